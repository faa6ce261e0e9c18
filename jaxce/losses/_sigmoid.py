"""Losses of independent binary predictions: predictions first, elementwise."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxce import _checks
from jaxce._binary import cross_entropy_of_logit, softplus
from jaxce._jit import jit_measure


def _pair(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    x = _checks.floating("logits", logits)
    y = jnp.asarray(labels)
    if not jnp.issubdtype(y.dtype, jnp.floating):
        y = y.astype(x.dtype)  # labels 0 and 1 may be integers or booleans
    return _checks.floating_pair("logits", x, "labels", y)


@jit_measure()
def sigmoid_binary_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, pos_weight: ArrayLike | None = None
) -> Array:
    r"""Binary cross-entropy of sigmoid(logits), elementwise: predictions first.

    $$ \ell = w\, y \log(1 + e^{-x}) + (1 - y) \log(1 + e^{x}) $$

    Args:
        logits: Predicted logits of outcome 1, any shape; infinite ones are certainty.
        labels: Probabilities of outcome 1, or 0 and 1 of any dtype, of the rank of `logits` and a
            shape that broadcasts.
        pos_weight: \(w\), weight of the positive term, broadcastable to the logits.

    Returns:
        One loss per element, in nats.

    Raises:
        TypeError: If `logits` is not floating.
        ValueError: If ranks differ or a shape does not fit: (n,) against (n, 1) is no (n, n) loss.

    Example:
        >>> logits, labels = jnp.array([2.0, -jnp.inf]), jnp.array([1, 0])
        >>> print(sigmoid_binary_cross_entropy(logits, labels).round(4))
        [0.1269 0.    ]

    Source: Goodfellow, Bengio & Courville, "Deep Learning" (2016), section 6.2.
    """
    x, y = _pair(logits, labels)
    if pos_weight is None:
        return cross_entropy_of_logit(y, x)
    weight = jnp.asarray(pos_weight, x.dtype)
    try:
        weight = jnp.broadcast_to(weight, x.shape)
    except ValueError:
        raise ValueError(
            f"pos_weight: expected a shape that broadcasts to {x.shape}, the shape of logits, "
            f"got {weight.shape}."
        ) from None
    positive = cross_entropy_of_logit(jnp.ones_like(y), x)
    negative = cross_entropy_of_logit(jnp.zeros_like(y), x)
    return jnp.where(y == 0, 0, weight * y) * jnp.where(y == 0, 0, positive) + jnp.where(
        y == 1, 0, 1 - y
    ) * jnp.where(y == 1, 0, negative)


@jit_measure()
def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> Array:
    r"""Focal loss of sigmoid(logits), elementwise: predictions first.

    $$ \ell = \alpha_y (1 - p_y)^\gamma H(y, \sigma(x)), \qquad
       1 - p_y = y\, \sigma(-x) + (1 - y)\, \sigma(x), \quad
       \alpha_y = \alpha y + (1 - \alpha)(1 - y) $$

    Args:
        logits: Predicted logits of outcome 1, any shape.
        labels: Probabilities of outcome 1, or 0 and 1 of any dtype, of the rank of `logits` and a
            shape that broadcasts.
        alpha: \(\alpha\), weight of outcome 1 against outcome 0; None for no weighting.
        gamma: \(\gamma \ge 0\); 0 is the cross-entropy.

    Returns:
        One loss per element, in nats.

    Raises:
        TypeError: If `logits` is not floating.
        ValueError: If ranks differ or a shape does not fit.

    Example:
        >>> print(sigmoid_focal_loss(jnp.array([2.0, 0.0]), jnp.array([1.0, 0.0])).round(4))
        [0.0018 0.1733]

    Source: Lin et al., "Focal Loss for Dense Object Detection" (2017).
    """
    x, y = _pair(logits, labels)
    gamma = jnp.asarray(gamma, x.dtype)
    # log(1 - p_y) by logs, so that a tiny 1 - p_y keeps its power and its derivative
    wrong_1, wrong_0 = -softplus(x), -softplus(-x)
    inner = jnp.where((y == 0) | (y == 1), 0.5, y)
    mixed = jnp.logaddexp(jnp.log(inner) + wrong_1, jnp.log1p(-inner) + wrong_0)
    log_wrong = jnp.where(y == 1, wrong_1, jnp.where(y == 0, wrong_0, mixed))
    certain = jnp.isinf(log_wrong)
    factor = jnp.where(certain & (gamma > 0), 0, jnp.exp(gamma * jnp.where(certain, 0, log_wrong)))
    loss = factor * cross_entropy_of_logit(y, x)
    if alpha is None:
        return loss
    alpha = jnp.asarray(alpha, x.dtype)
    return (alpha * y + (1 - alpha) * (1 - y)) * loss
