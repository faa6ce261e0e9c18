"""Measures of categorical distributions given as logits (log-probabilities are logits too).

An entry with logit -inf has probability 0. Derivatives are taken with respect to the logits.

>>> import jax.numpy as jnp
>>> import jaxce
>>> print(f"{jaxce.cross_entropy_with_logits(jnp.array(0), jnp.array([20.0, 0.0])):.4e}")
2.0612e-09
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxce import _axes, _checks, _softmax, _softmax_cross_entropy, _softmax_pair
from jaxce._axes import Axes
from jaxce._jit import jit_measure
from jaxce._numerics import still_at_zero, wide


def prepared(x: Array, mask: Array | None, axes: Axes) -> tuple[Array, Array | None]:
    """Return logits with -inf for what does not exist, and which examples have anything left.

    An example with nothing left gets logits 0, so that no NaN arises; its result is replaced.
    """
    if mask is None:
        return x, None
    left = _axes.any_over(mask, axes)
    return jnp.where(mask, x, jnp.where(left, -jnp.inf, 0)), _axes.without(left, axes)


def finished(value: Array, left: Array | None, unit: float, nothing: float = 0) -> Array:
    """Return `value` in the unit asked for, `nothing` where nothing was left."""
    value = value / unit
    return value if left is None else jnp.where(left, value, nothing)


def _reduced(
    core: Callable[[Array, Axes], Array],
    name: str,
    logits: ArrayLike,
    axis: _checks.Axis,
    where: ArrayLike | None,
    unit: float = 1.0,
    nothing: float = 0,
) -> Array:
    x = _checks.floating(name, logits, narrow=True)
    axes = _checks.axes(axis, x.ndim, name)
    mask = _checks.mask(where, x.shape, name)
    if 0 in [x.shape[a] for a in axes]:
        return jnp.full_like(jnp.sum(wide(x), axes), nothing)
    x, left = prepared(x, mask, axes)
    return finished(core(x, axes), left, unit, nothing)


@jit_measure("axis")
def log_normalizer(
    logits: ArrayLike, *, axis: int | Sequence[int] = -1, where: ArrayLike | None = None
) -> Array:
    r"""Logarithm of the sum of exponentials: what turns logits into log-probabilities.

    $$ \log Z(x) = \log \sum_j e^{x_j} $$

    Args:
        logits: Logits; `axis` runs over the classes.
        axis: Axis or axes that are summed over.
        where: Boolean, broadcastable to `logits`: the entries that exist.

    Returns:
        One number per example; 0 where nothing is left. Its error is a few ulp of the larger of
        its own and the largest logit's magnitude: where log Z is near 0 by cancellation, as it is
        for log-probabilities, the rounding of the logits themselves is of that size. The gradient,
        softmax(logits), is accurate everywhere.

    Raises:
        TypeError: If `logits` is not floating or `where` not boolean.
        ValueError: If `axis` or `where` does not fit.

    Example:
        >>> print(f"{log_normalizer(jnp.array([0.0, 0.0])):.4f}")
        0.6931

    Source: Blanchard, Higham & Higham, "Accurately computing the log-sum-exp and softmax
    functions" (2021).
    """
    return _reduced(_softmax.log_normalizer, "logits", logits, axis, where)


@jit_measure("axis", "base")
def surprisal_with_logits(
    logits: ArrayLike,
    *,
    axis: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
) -> Array:
    r"""Surprisal of every class: -log softmax, and the negative of a log-softmax.

    $$ s_j = \log Z(x) - x_j $$

    Args:
        logits: Logits; `axis` runs over the classes.
        axis: Axis or axes that are normalized over.
        where: Boolean, broadcastable to `logits`: the entries that exist.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        Surprisals in the shape of `logits`: `inf` where a logit is -inf, 0 where `where` is False.

    Raises:
        TypeError: If `logits` is not floating, `where` not boolean or `base` not a number.
        ValueError: If `axis`, `where` or `base` does not fit.

    Example:
        >>> print(surprisal_with_logits(jnp.array([0.0, 0.0]), base=2))
        [1. 1.]

    Source: Shannon, "A Mathematical Theory of Communication" (1948).
    """
    unit = _checks.nats_per_unit(base)
    x = _checks.floating("logits", logits, narrow=True)
    axes = _checks.axes(axis, x.ndim, "logits")
    mask = _checks.mask(where, x.shape, "logits")
    if x.size == 0:
        return wide(x)
    x, _ = prepared(x, mask, axes)
    value = _softmax.surprisal(x, axes) / unit
    return value if mask is None else jnp.where(mask, value, 0)


@jit_measure("axis", "base")
def entropy_with_logits(
    logits: ArrayLike,
    *,
    axis: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
) -> Array:
    r"""Entropy of softmax(logits): the expected surprisal.

    $$ H = \sum_j p_j s_j, \qquad p = \operatorname{softmax}(x), \quad s_j = \log Z(x) - x_j $$

    Args:
        logits: Logits; `axis` runs over the classes.
        axis: Axis or axes that are summed over.
        where: Boolean, broadcastable to `logits`: the entries that exist.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        One entropy per example, between 0 and log(classes). Below about 1e-35 in float32 (1e-304
        in float64) it loses digits, because its terms are flushed to zero.

    Raises:
        TypeError: If `logits` is not floating, `where` not boolean or `base` not a number.
        ValueError: If `axis`, `where` or `base` does not fit.

    Example:
        >>> print(entropy_with_logits(jnp.array([0.0, 0.0, -jnp.inf]), base=2))
        1.0

    Source: Shannon, "A Mathematical Theory of Communication" (1948).
    """
    unit = _checks.nats_per_unit(base)
    return _reduced(lambda x, a: _softmax.entropy(x, a)[0], "logits", logits, axis, where, unit)


@jit_measure("axis")
def perplexity_with_logits(
    logits: ArrayLike, *, axis: int | Sequence[int] = -1, where: ArrayLike | None = None
) -> Array:
    r"""Perplexity of softmax(logits): the number of equally likely classes of the same entropy.

    $$ \operatorname{PP} = e^{H(\operatorname{softmax}(x))} $$

    Args:
        logits: Logits; `axis` runs over the classes.
        axis: Axis or axes that are summed over.
        where: Boolean, broadcastable to `logits`: the entries that exist.

    Returns:
        One number per example, between 1 and the number of classes.

    Raises:
        TypeError: If `logits` is not floating or `where` not boolean.
        ValueError: If `axis` or `where` does not fit.

    Example:
        >>> print(perplexity_with_logits(jnp.zeros(6)))
        6.0

    Source: Jelinek et al., "Perplexity: a measure of the difficulty of speech recognition tasks"
    (1977).
    """
    return _reduced(_softmax.perplexity, "logits", logits, axis, where, nothing=1)


@jit_measure("axis", "base")
def cross_entropy_with_logits(
    p: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
) -> Array:
    r"""Cross-entropy of softmax(q_logits) under p: the loss that trains a classifier.

    $$ H(p, q) = \sum_j p_j s_j, \qquad s_j = \log Z(x) - x_j $$

    Args:
        p: Either a true distribution, floating, with the rank of `q_logits` and a shape that
            broadcasts; or class indices, integer, with the shape of `q_logits` without `axis`.
        q_logits: Predicted logits; `axis` runs over the classes.
        axis: Axis or axes that are summed over; a single one for class indices.
        where: Boolean, broadcastable to `q_logits`: the entries that exist.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        One cross-entropy per example. Probability on a class with logit -inf, or a class index
        that `where` masks out, gives `inf` with the finite gradient softmax - p. A class index out
        of range (negative ones too) gives NaN with a NaN gradient.

        The gradient over the logits is p.sum() * softmax - p. Where softmax nearly equals a soft
        target, its error is a few ulp of the two, not of their difference;
        `kl_divergence_with_logits` has no such limit.

    Raises:
        TypeError: If `q_logits` is not floating, `p` is boolean, `where` is not boolean or `base`
            is not a number.
        ValueError: If a shape, `axis`, `where` or `base` does not fit.

    Example:
        >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
        >>> print(cross_entropy_with_logits(jnp.array([0, 1]), logits).round(4))
        [0.1269 0.6931]
        >>> print(cross_entropy_with_logits(jnp.array([[1.0, 0.0], [0.5, 0.5]]), logits).round(4))
        [0.1269 0.6931]

    Source: Cover & Thomas, "Elements of Information Theory" (2006), section 5.4.
    """
    unit = _checks.nats_per_unit(base)
    _checks.order("q_logits", q_logits, "p", p, "True distributions and labels come first here.")
    p = _checks.array("p", p)
    if jnp.issubdtype(p.dtype, jnp.integer):
        return _class_cross_entropy(_checks.integers("p", p), q_logits, axis, where, unit)
    p, x = _checks.floating_pair("p", p, "q_logits", q_logits, narrow=True)
    axes = _checks.axes(axis, x.ndim, "q_logits")
    mask = _checks.mask(where, x.shape, "q_logits")
    if 0 in [x.shape[a] for a in axes]:
        return jnp.sum(wide(x), axes)
    x, left = prepared(x, mask, axes)
    p = still_at_zero(p if mask is None else jnp.where(mask, p, 0))
    return finished(_softmax_cross_entropy.cross_entropy(p, x, axes)[0], left, unit)


def _class_cross_entropy(
    labels: Array, logits: ArrayLike, axis: _checks.Axis, where: ArrayLike | None, unit: float
) -> Array:
    x = _checks.floating("q_logits", logits, narrow=True)
    axes = _checks.axes(axis, x.ndim, "q_logits")
    class_axis = _checks.classes("p", labels, "q_logits", x.shape, axes)
    mask = _checks.mask(where, x.shape, "q_logits")
    if x.shape[class_axis] == 0:
        return jnp.sum(wide(x), axes)
    x, left = prepared(x, mask, axes)
    return finished(
        _softmax_cross_entropy.class_surprisal(x, labels, None, None, (class_axis,))[0],
        left,
        unit,
    )


def _compared(
    core: Callable[[Array, Array, Axes], tuple[Array, Array, Array]],
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    axis: _checks.Axis,
    where: ArrayLike | None,
    base: float | None,
) -> Array:
    unit = _checks.nats_per_unit(base)
    a, b = _checks.floating_pair("p_logits", p_logits, "q_logits", q_logits, narrow=True)
    axes = _checks.axes(axis, a.ndim, "p_logits")
    mask = _checks.mask(where, a.shape, "p_logits")
    if 0 in [a.shape[i] for i in axes]:
        return jnp.sum(wide(a), axes)
    a, left = prepared(a, mask, axes)
    b, _ = prepared(b, mask, axes)
    return finished(core(a, b, axes)[0], left, unit)


@jit_measure("axis", "base")
def kl_divergence_with_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
) -> Array:
    r"""Kullback-Leibler divergence of softmax(q_logits) from softmax(p_logits).

    $$ \operatorname{KL}(p \| q) = \sum_j p_j (\log p_j - \log q_j)
       = \sum_j p_j (e^{t_j} - 1 - t_j), \qquad t_j = \log \frac{q_j}{p_j} $$

    Args:
        p_logits: True logits; `axis` runs over the classes.
        q_logits: Predicted logits; the ranks are equal and the shapes broadcast.
        axis: Axis or axes that are summed over.
        where: Boolean, broadcastable to the inputs: the entries that exist.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        One divergence per example, never negative, accurate to its last digits also where the two
        nearly agree. Probability where the other logit is -inf gives `inf`, with the finite
        gradient softmax(q_logits) - softmax(p_logits) over `q_logits`.

    Raises:
        TypeError: If an input is not floating, `where` not boolean or `base` not a number.
        ValueError: If ranks differ, or a shape, `axis`, `where` or `base` does not fit.

    Example:
        >>> a = jnp.array([1.0, 2.0, 3.0])
        >>> print(f"{kl_divergence_with_logits(a, a + jnp.array([2.0**-13, 0.0, 0.0])):.3e}")
        6.104e-10

    Source: Kullback & Leibler, "On Information and Sufficiency" (1951).
    """
    return _compared(_softmax_pair.kl_divergence, p_logits, q_logits, axis, where, base)


@jit_measure("axis", "base")
def js_divergence_with_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
) -> Array:
    r"""Jensen-Shannon divergence of softmax(p_logits) and softmax(q_logits).

    $$ \operatorname{JS}(p, q) = \tfrac12 \operatorname{KL}(p \| m)
       + \tfrac12 \operatorname{KL}(q \| m), \qquad m = \tfrac12 (p + q) $$

    Args:
        p_logits: Logits; `axis` runs over the classes.
        q_logits: Logits; the ranks are equal and the shapes broadcast.
        axis: Axis or axes that are summed over.
        where: Boolean, broadcastable to the inputs: the entries that exist.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        One divergence per example: symmetric, finite, at most log 2 (1 bit).

    Raises:
        TypeError: If an input is not floating, `where` not boolean or `base` not a number.
        ValueError: If ranks differ, or a shape, `axis`, `where` or `base` does not fit.

    Example:
        >>> a, b = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
        >>> print(js_divergence_with_logits(a, b, base=2))
        1.0

    Source: Lin, "Divergence Measures Based on the Shannon Entropy" (1991).
    """
    return _compared(_softmax_pair.js_divergence, p_logits, q_logits, axis, where, base)
