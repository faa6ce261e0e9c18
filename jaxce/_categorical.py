"""Measures of categorical distributions given as probabilities.

The true distribution comes first, the predicted one second. `axis` is reduced and nothing else is;
`where` marks the entries that exist; the unit is the nat, or log(base) nats.

>>> import jax.numpy as jnp
>>> import jaxce
>>> p = jnp.array([0.5, 0.25, 0.25])
>>> print(jaxce.entropy(p, base=2))
1.5
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxce import _checks
from jaxce._axes import own_pass, products, sum_of, total_over, without
from jaxce._jit import jit_measure
from jaxce._numerics import (
    exact_sum,
    kl_parts,
    kl_term,
    log,
    log1p,
    log_ratio,
    reciprocal,
    two_difference,
    where_nonzero,
)

Axes = tuple[int, ...]


def _masked(p: Array, where: Array | None) -> Array:
    """Return `p` with 0 for entries that do not exist: 0 is off the support, and a constant."""
    return p if where is None else jnp.where(where, p, 0)


def _log_inverse(p: Array, support: Array) -> Array:
    """Return log(1 / p) on the support, elsewhere 0 with gradient 0."""
    return 0 - log(jnp.where(support, p, 1))  # of p = 1 it is 0, not -0


def _terms(p: Array, q: Array) -> Array:
    """Return p log(1 / q), 0 where p is 0.

    The selection comes last: a single row of products is otherwise added one by one (`products`).
    """
    return where_nonzero(p, p * _log_inverse(q, p != 0))


def _single(p: ArrayLike, axis: _checks.Axis, where: ArrayLike | None) -> tuple[Array, Axes]:
    array = _checks.floating("p", p)
    axes = _checks.axes(axis, array.ndim, "p")
    return _masked(array, _checks.mask(where, array.shape, "p")), axes


def _pair(
    p: ArrayLike, q: ArrayLike, axis: _checks.Axis, where: ArrayLike | None
) -> tuple[Array, Array, Axes]:
    p, q = _checks.floating_pair("p", p, "q", q)
    axes = _checks.axes(axis, p.ndim, "p")
    mask = _checks.mask(where, p.shape, "p")
    return _masked(p, mask), _masked(q, mask), axes


@jit_measure("base")
def surprisal(p: ArrayLike, *, base: float | None = None) -> Array:
    r"""Information of an outcome of probability p, elementwise.

    $$ s(p) = \log \frac{1}{p} $$

    Args:
        p: Probabilities, any shape.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        Surprisals in the shape of `p`; `inf` where p is 0, with gradient 0 there.

    Raises:
        TypeError: If `p` is not floating or `base` is not a number.
        ValueError: If `base` is not a finite number above 1.

    Example:
        >>> print(surprisal(jnp.array([1.0, 0.5, 0.125]), base=2))
        [0. 1. 3.]

    Source: Shannon, "A Mathematical Theory of Communication" (1948).
    """
    unit = _checks.nats_per_unit(base)
    p = _checks.floating("p", p)
    off = p == 0
    return jnp.where(off, jnp.inf, _log_inverse(p, ~off)) / unit


@jit_measure("axis", "base")
def entropy(
    p: ArrayLike,
    *,
    axis: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
) -> Array:
    r"""Entropy of p: the expected surprisal, the fewest bits per outcome that a code can use.

    $$ H(p) = \sum_j p_j \log \frac{1}{p_j} $$

    Args:
        p: Probabilities; `axis` runs over the classes. Applied as written if they do not sum to 1.
        axis: Axis or axes that are summed over.
        where: Boolean, broadcastable to `p`: the entries that exist.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        One entropy per example, of the shape of `p` without `axis`. An entry of 0 contributes 0,
        with gradient 0.

    Raises:
        TypeError: If `p` is not floating, `where` not boolean or `base` not a number.
        ValueError: If `axis`, `where` or `base` does not fit.

    Example:
        >>> print(entropy(jnp.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]]), base=2))
        [2. 0.]

    Source: Shannon, "A Mathematical Theory of Communication" (1948).
    """
    unit = _checks.nats_per_unit(base)
    p, axes = _single(p, axis, where)
    return jnp.sum(_terms(p, p), axes) / unit


@jit_measure("axis")
def perplexity(
    p: ArrayLike, *, axis: int | Sequence[int] = -1, where: ArrayLike | None = None
) -> Array:
    r"""Perplexity of p: the number of equally likely classes with the same entropy.

    $$ \operatorname{PP}(p) = e^{H(p)} $$

    Args:
        p: Probabilities; `axis` runs over the classes.
        axis: Axis or axes that are summed over.
        where: Boolean, broadcastable to `p`: the entries that exist.

    Returns:
        One number per example, between 1 and the number of classes if p sums to 1.

    Raises:
        TypeError: If `p` is not floating or `where` not boolean.
        ValueError: If `axis` or `where` does not fit.

    Example:
        >>> print(perplexity(jnp.array([0.25, 0.25, 0.25, 0.25])))
        4.0

    Source: Jelinek et al., "Perplexity: a measure of the difficulty of speech recognition tasks"
    (1977).
    """
    p, axes = _single(p, axis, where)
    # Exactly: the exponential makes of each ulp of the entropy as many as there are nats.
    terms = _terms(p, p)
    return jnp.exp(exact_sum(terms, jnp.zeros_like(terms), axes))


@jit_measure("axis", "base")
def cross_entropy(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
) -> Array:
    r"""Cross-entropy of q under p: the bits that a code built for q spends on outcomes of p.

    $$ H(p, q) = \sum_j p_j \log \frac{1}{q_j} $$

    Args:
        p: True probabilities.
        q: Predicted probabilities; the ranks are equal and the shapes broadcast. Both are taken as
            they are, normalized or not.
        axis: Axis or axes that are summed over.
        where: Boolean, broadcastable to the inputs: the entries that exist.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        One cross-entropy per example. An entry with p = 0 contributes 0 whatever q is; p > 0 with
        q = 0 gives `inf`.

    Raises:
        TypeError: If an input is not floating, `where` not boolean or `base` not a number.
        ValueError: If ranks differ, or a shape, `axis`, `where` or `base` does not fit.

    Example:
        >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
        >>> print(f"{cross_entropy(p, q, base=2):.4f} bits")
        1.2075 bits

    Source: Cover & Thomas, "Elements of Information Theory" (2006), section 5.4.
    """
    unit = _checks.nats_per_unit(base)
    p, q, axes = _pair(p, q, axis, where)
    return jnp.sum(_terms(p, q), axes) / unit


def _on_support(p: Array, q: Array) -> tuple[Array, Array]:
    """Return p and q with 1 where p is 0: both are constants there, and contribute nothing."""
    support = p != 0
    return jnp.where(support, p, 1), jnp.where(support, q, 1)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kl(p: Array, q: Array, axes: Axes) -> Array:
    """Sum of p log(p / q), where p and q are near as p (r - log(1 + r)) + (p - q), r = (q - p) / p.

    The first part is not negative; the second is summed exactly, because it cancels.
    """

    def terms(p: Array, q: Array) -> Array:
        near, close, far = kl_parts(p, q, q - p)
        return where_nonzero(p, jnp.where(near, close, far))

    def excess() -> Array:
        near, _, _ = kl_parts(p, q, q - p)
        high, low = two_difference(p, q)
        return exact_sum(jnp.where(near, high, 0), jnp.where(near, low, 0), axes)

    def like() -> Array:
        return without(total_over(p, axes), axes)

    sum_of_terms = own_pass(lambda: without(sum_of(terms, (p, q), (), axes), axes), like)
    return sum_of_terms + own_pass(excess, like)


@_kl.defjvp
def _(axes, primals, tangents):
    (p, q), (dp, dq) = primals, tangents
    p_, q_ = _on_support(p, q)
    over_p = where_nonzero(p, 1 - log_ratio(p_, q_, q_ - p_))
    over_q = where_nonzero(p, -p_ * reciprocal(q_))
    return _kl(p, q, axes), jnp.sum(products(dp, over_p) + products(dq, over_q), axes)


@jit_measure("axis", "base")
def kl_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
) -> Array:
    r"""Kullback-Leibler divergence: the bits wasted by using a code built for q on outcomes of p.

    $$ \operatorname{KL}(p \| q) = \sum_j p_j \log \frac{p_j}{q_j} = H(p, q) - H(p) $$

    Args:
        p: True probabilities.
        q: Predicted probabilities; the ranks are equal and the shapes broadcast. Both are taken as
            they are, normalized or not.
        axis: Axis or axes that are summed over.
        where: Boolean, broadcastable to the inputs: the entries that exist.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        One divergence per example, accurate to its last digits also where p and q nearly agree.
        An entry with p = 0 contributes 0 whatever q is; p > 0 with q = 0 gives `inf`.

    Raises:
        TypeError: If an input is not floating, `where` not boolean or `base` not a number.
        ValueError: If ranks differ, or a shape, `axis`, `where` or `base` does not fit.

    Example:
        >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
        >>> print(f"{kl_divergence(p, q, base=2):.4f} bits")
        0.2075 bits

    Source: Kullback & Leibler, "On Information and Sufficiency" (1951).
    """
    unit = _checks.nats_per_unit(base)
    p, q, axes = _pair(p, q, axis, where)
    return _kl(p, q, axes) / unit


@jax.custom_jvp
def _log_mixture_ratio(p: Array, q: Array) -> Array:
    """Return log(m / p) for p > 0, with m = (p + q) / 2."""
    return log1p((q - p) / 2 / p)


@_log_mixture_ratio.defjvp
def _(primals, tangents):
    (p, q), (dp, dq) = primals, tangents
    return _log_mixture_ratio(p, q), reciprocal(p + q) * (dp + dq) - reciprocal(p) * dp


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _js(p: Array, q: Array, axes: Axes) -> Array:
    """Mean of KL(p || m) and KL(q || m): the sums of p - m and q - m cancel exactly."""
    mean, half = (p + q) / 2, (q - p) / 2
    return jnp.sum(kl_term(p, mean, half) + kl_term(q, mean, -half), axes) / 2


@_js.defjvp
def _(axes, primals, tangents):
    (p, q), (dp, dq) = primals, tangents

    def over(p: Array, q: Array) -> Array:
        return where_nonzero(p, -_log_mixture_ratio(*_on_support(p, q)) / 2)

    return _js(p, q, axes), jnp.sum(products(dp, over(p, q)) + products(dq, over(q, p)), axes)


@jit_measure("axis", "base")
def js_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
) -> Array:
    r"""Jensen-Shannon divergence: the mean divergence of p and q from their mixture.

    $$ \operatorname{JS}(p, q) = \tfrac12 \operatorname{KL}(p \| m)
       + \tfrac12 \operatorname{KL}(q \| m), \qquad m = \tfrac12 (p + q) $$

    Args:
        p: Probabilities.
        q: Probabilities; the ranks are equal and the shapes broadcast.
        axis: Axis or axes that are summed over.
        where: Boolean, broadcastable to the inputs: the entries that exist.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        One divergence per example: symmetric, finite, at most log 2 (1 bit).

    Raises:
        TypeError: If an input is not floating, `where` not boolean or `base` not a number.
        ValueError: If ranks differ, or a shape, `axis`, `where` or `base` does not fit.

    Example:
        >>> print(js_divergence(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), base=2))
        1.0

    Source: Lin, "Divergence Measures Based on the Shannon Entropy" (1991).
    """
    unit = _checks.nats_per_unit(base)
    p, q, axes = _pair(p, q, axis, where)
    return _js(p, q, axes) / unit
