"""Losses that reshape the cross-entropy: focal and polynomial, and what acts on logits alone."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxce import _axes, _checks, _softmax
from jaxce._binary import times, variance
from jaxce._categorical_logits import finished, log_normalizer, surprisal_with_logits
from jaxce._jit import jit_measure
from jaxce._numerics import expm1, power, reciprocal
from jaxce.losses._softmax_losses import (
    Axis,
    logits_rows,
    smoothed,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)


@jax.custom_jvp
def _focal(surprisal: Array, gamma: Array) -> Array:
    """Return (1 - p)**gamma log(1 / p), by the surprisal log(1 / p)."""
    return power(-expm1(-surprisal), gamma) * surprisal


@_focal.defjvp
def _(primals, tangents):
    (s, gamma), (ds, d_gamma) = primals, tangents
    missed = -expm1(-s)
    # s p / (1 - p), which is 1 at s = 0 and 0 at s = inf
    middle = (s >= float(jnp.finfo(s.dtype).smallest_normal)) & (s < jnp.inf)
    inside = jnp.where(middle, s, 1)
    odds = inside * jnp.exp(-inside) * reciprocal(-expm1(-inside))
    odds = jnp.where(middle, odds, jnp.where(s == jnp.inf, 0, 1))
    over_gamma = jnp.where(middle, jnp.log(-expm1(-inside)) * inside, 0)
    change = (1 + gamma * odds) * ds + over_gamma * d_gamma
    return _focal(s, gamma), power(missed, gamma) * change


@jit_measure("axis")
def softmax_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: ArrayLike = 2.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Focal loss over classes: predictions first. Examples that are nearly right count less.

    $$ \ell = \sum_c y_c (1 - p_c)^\gamma \log \frac{1}{p_c},
       \qquad p = \operatorname{softmax}(x) $$

    Args:
        logits: Predicted logits, [..., classes].
        labels: Class indices, shaped as `logits` without `axis`, or a floating distribution of the
            rank of `logits`.
        gamma: \(\gamma \ge 0\); 0 is the cross-entropy.
        axis: Axis of the classes.
        where: Boolean, shaped as the logits or as the batch.

    Returns:
        One loss per example, in nats.

    Raises:
        TypeError: If `logits` is not floating or `where` not boolean.
        ValueError: If a shape or `axis` does not fit.

    Example:
        >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
        >>> print(softmax_focal_loss(logits, jnp.array([0, 1])).round(4))
        [0.0018 0.1733]

    Source: Lin et al., "Focal Loss for Dense Object Detection" (2017).
    """
    labels = _checks.array("labels", labels)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        loss = softmax_cross_entropy_with_integer_labels(logits, labels, axis, where)
        return _focal(loss, jnp.asarray(gamma, loss.dtype))
    rows = logits_rows(logits, axis, where)
    p, x = _checks.floating_pair("labels", labels, "logits", rows.x)
    if rows.mask is not None:
        p = jnp.where(rows.mask, p, 0)
    surprisal = surprisal_with_logits(x, axis=axis)
    surprisal = jnp.where((p == 0) & jnp.isinf(surprisal), 0, surprisal)
    terms = _axes.products(p, _focal(surprisal, jnp.asarray(gamma, x.dtype)))
    return finished(jnp.sum(terms, rows.positions), rows.left, 1.0)


@jit_measure("axis")
def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 2.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""PolyLoss: cross-entropy with a changed linear term. Predictions first.

    $$ \ell = \sum_c y_c \left[\log \frac{1}{p_c} + \epsilon (1 - p_c)\right],
       \qquad p = \operatorname{softmax}(x) $$

    Args:
        logits: Predicted logits, [..., classes].
        labels: True distribution of the rank of `logits`, in a shape that broadcasts.
        epsilon: Weight of the linear term.
        axis: Axis or axes of the classes; None for all.
        where: Boolean, shaped as the logits or as the batch.

    Returns:
        One loss per example, in nats.

    Raises:
        TypeError: If `logits` is not floating or `where` not boolean.
        ValueError: If ranks differ, or a shape or `axis` does not fit.

    Example:
        >>> loss = poly_loss_cross_entropy(jnp.array([2.0, 0.0]), jnp.array([1.0, 0.0]))
        >>> print(f"{loss:.4f}")
        0.3653

    Source: Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss
    Functions" (2022).
    """
    rows = logits_rows(logits, axis, where)
    p, x = _checks.floating_pair("labels", labels, "logits", rows.x)
    if rows.mask is not None:
        p = jnp.where(rows.mask, p, 0)
    extra = finished(jnp.asarray(epsilon, x.dtype) * _missed(p, x, rows.axes), rows.left, 1.0)
    return softmax_cross_entropy(logits, labels, axis, where) + extra


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _missed(p: Array, x: Array, axes: _axes.Axes) -> Array:
    """Return sum p (1 - softmax(x)); its gradient over x is -softmax (p - its mean)."""
    wrong = -_softmax.softmax_less_1(x, axes)
    return _axes.without(_axes.total_over(_axes.products(p, wrong), axes), axes)


@_missed.defjvp
def _(axes, primals, tangents):
    (p, x), (dp, dx) = primals, tangents
    q = _softmax.softmax(x, axes)
    over_x = -q * _softmax.centred(x, q, p, axes)
    over_p = -_softmax.softmax_less_1(x, axes)
    change = _axes.products(dx, over_x) + _axes.products(dp, over_p)
    return _missed(p, x, axes), _axes.without(_axes.total_over(change, axes), axes)


@jit_measure("axis")
def z_loss(logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> Array:
    r"""Squared log-normalizer: keeps logits from drifting. Add it with a small weight.

    $$ \ell = (\log Z(x))^2 $$

    Compiled together with a cross-entropy of the same logits, the two share their passes over them.

    Args:
        logits: Predicted logits, [..., classes].
        axis: Axis of the classes.
        where: Boolean, shaped as the logits or as the batch.

    Returns:
        One loss per example. Where log Z is near 0 by cancellation, the rounding of the logits
        shows: see `log_normalizer`.

    Raises:
        TypeError: If `logits` is not floating or `where` not boolean.
        ValueError: If `axis` or `where` does not fit.

    Example:
        >>> print(f"{z_loss(jnp.array([0.0, 0.0])):.4f}")
        0.4805

    Source: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways" (2022), section 5.
    """
    rows = logits_rows(logits, axis, where)
    return finished(jnp.square(log_normalizer(rows.x, axis=axis)), rows.left, 1.0)


@jit_measure()
def soft_cap(logits: ArrayLike, cap: ArrayLike) -> Array:
    r"""Bend logits smoothly into (-cap, cap).

    $$ f(x) = c \tanh(x / c) $$

    Args:
        logits: Logits, any shape.
        cap: \(c > 0\).

    Returns:
        Capped logits in the shape of `logits`, float32 or float64.

    Raises:
        TypeError: If `logits` is not floating.

    Example:
        >>> print(soft_cap(jnp.array([0.0, 30.0, 1e4]), 30.0).round(4))
        [ 0.     22.8478 30.    ]

    Source: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size" (2024).
    """
    x = _checks.floating("logits", logits)
    return _soft_cap(x, jnp.asarray(cap, x.dtype))


@jax.custom_jvp
def _soft_cap(x: Array, cap: Array) -> Array:
    return cap * jnp.tanh(x / cap)


@_soft_cap.defjvp
def _(primals, tangents):
    (x, cap), (dx, d_cap) = primals, tangents
    u = x / cap
    slope = 4 * variance(2 * u)  # 1 - tanh(u)**2 without cancellation
    return _soft_cap(x, cap), slope * dx + (jnp.tanh(u) - times(slope, u)) * d_cap


@jit_measure("axis")
def smooth_labels(
    labels: ArrayLike,
    alpha: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Mix a distribution with the uniform one over the K classes that exist.

    $$ y'_c = (1 - \alpha)\, y_c + \alpha / K $$

    Args:
        labels: True distribution, [..., classes].
        alpha: Share of the uniform distribution.
        axis: Axis or axes of the classes; None for all.
        where: Boolean, shaped as the labels or as the batch; what it leaves out gets 0.

    Returns:
        Smoothed labels in the shape of `labels`.

    Raises:
        TypeError: If `labels` is not floating or `where` not boolean.
        ValueError: If `axis` or `where` does not fit.

    Example:
        >>> print(smooth_labels(jnp.array([1.0, 0.0, 0.0, 0.0]), 0.2))
        [0.85 0.05 0.05 0.05]

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016).
    """
    rows = logits_rows(labels, axis, where, name="labels")
    p = _checks.floating("labels", labels)
    exists = jnp.ones_like(p, bool) if rows.mask is None else rows.mask
    return jnp.where(exists, smoothed(p, exists, alpha, rows.axes), 0)
