"""Losses of independent binary predictions: predictions first, elementwise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxce import _checks
from jaxce._binary import cross_entropy_of_logit, finite, sigmoid, times, variance
from jaxce._jit import jit_measure
from jaxce._numerics import power, reciprocal
from jaxce.losses._reduction import counted


def _pair(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    x = _checks.floating("logits", logits)
    y = _checks.array("labels", labels)
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
    return counted(weight * y, positive) + counted(1 - y, negative)


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
    alpha = None if alpha is None else jnp.asarray(alpha, x.dtype)
    return _focal(x, y, jnp.asarray(gamma, x.dtype), alpha)


def _missed(x: Array, y: Array) -> Array:
    """Return 1 - p_y, a sum of terms of one sign."""
    return y * sigmoid(-x) + (1 - y) * sigmoid(x)


def _weight(y: Array, alpha: Array | None) -> Array:
    return jnp.ones_like(y) if alpha is None else alpha * y + (1 - alpha) * (1 - y)


@jax.custom_jvp
def _focal(x: Array, y: Array, gamma: Array, alpha: Array | None) -> Array:
    return _weight(y, alpha) * power(_missed(x, y), gamma) * cross_entropy_of_logit(y, x)


@_focal.defjvp
def _(primals, tangents):
    (x, y, gamma, alpha), (dx, dy, d_gamma, d_alpha) = primals, tangents
    missed, h = _missed(x, y), finite(cross_entropy_of_logit(y, x))
    # H / (1 - p_y) is at least 1: nothing underflows before it is multiplied.
    certain = missed < float(jnp.finfo(x.dtype).smallest_normal)
    one = jnp.where(certain, 1, missed)
    ratio = jnp.where(certain, 1, h * reciprocal(one))
    over_x = gamma * times((1 - 2 * y) * variance(x), ratio)
    over_x = over_x + ((1 - y) * sigmoid(x) - y * sigmoid(-x))
    over_y = -gamma * jnp.tanh(x / 2) * ratio - finite(x)
    over_gamma = jnp.log(one) * h
    change = _weight(y, alpha) * (over_x * dx + over_y * dy + over_gamma * d_gamma)
    if alpha is not None:
        change = change + h * ((2 * alpha - 1) * dy + (2 * y - 1) * d_alpha)
    return _focal(x, y, gamma, alpha), power(missed, gamma) * change
