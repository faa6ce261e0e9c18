"""Divergences between softmax(a) and softmax(b), with the rules that differentiate them exactly.

As in `_softmax`, a function returns its value and the gradients that its derivative needs.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxce._axes import (
    Axes,
    max_over,
    own_pass,
    sum_of_values,
    total_over,
    with_axes,
    without,
)
from jaxce._numerics import (
    exp_series,
    expm1,
    log1p,
    minus_log1p,
    quotient_and_rest,
    two_difference,
)
from jaxce._softmax import at_mode, centred, partition, softmax


class _Pair(NamedTuple):
    """Two distributions by their logits. What is -inf has p or q = 0 and a huge t."""

    p: Array
    q: Array
    t: Array  # log(q / p)
    from_mode: Array  # t less its value at the most probable class under p
    close: Array  # where t is from_mode less a constant; elsewhere it was found without it
    kl: Array  # reduced axes kept


class _Change(NamedTuple):
    p: Array
    e: Array  # log(q / p), up to a constant per example, 0 at the most probable class under p
    gap_b: Array  # b at that class less b
    error_b: Array  # what rounding gap_b has lost


class Exact(NamedTuple):
    """What two arrays of logits are the rounded quotients of. It carries no derivative."""

    a: Array
    b: Array
    divisor: Array


def _finite(x: Array, maximum: Array, divisor: Array | None) -> Array:
    """Return x with a finite stand-in for -inf, far enough below to have weight 0 exactly."""
    reach = float(jnp.finfo(x.dtype).max) / 8
    return jnp.maximum(x, maximum - (reach if divisor is None else reach * jnp.minimum(divisor, 1)))


def _gap(top: Array, x: Array, divisor: Array | None) -> tuple[Array, Array]:
    """Return the gap (top - x) / divisor rounded, and the rest that is still to be divided."""
    gap, error = two_difference(top, x)
    if divisor is None:
        return gap, error
    gap, rest = quotient_and_rest(gap, divisor)
    return gap, rest + error


def _divided(rest: Array, divisor: Array | None) -> Array:
    return rest if divisor is None else rest / divisor


def _weight(gap: Array, error: Array) -> Array:
    """Return exp(-gap) with the rounding of the gap made good."""
    # Where the exponential is neither 0 nor cut off, the error is far smaller than this bound.
    return jnp.exp(-gap) * (1 - jnp.clip(error, -1e-3, 1e-3))


def _at_mode_of(a: Array, maximum: Array, b: Array, axes: Axes) -> Array:
    """Return b at the largest a (the largest such b), in arithmetic that vectorizes."""
    elsewhere = jnp.minimum((maximum - a) * 2.0**100, 0.5)
    return max_over(b - elsewhere * float(jnp.finfo(b.dtype).max), axes)


def _written_total(compute: Callable[[], Array], like: Array, axes: Axes) -> Array:
    """Sum over classes of what is so dear to compute that CPU does it sooner out of the sum."""
    return sum_of_values(own_pass(compute, lambda: like), axes)


def _log1p_of_sum(x: Array, axes: Axes) -> Array:
    return with_axes(log1p(without(x, axes)), axes)


def _where_small(t: Array, small: Array, other: Array) -> Array:
    return jnp.where(jnp.abs(t) <= 1, small, other)


def _growth(p: Array, t: Array, risen: Array) -> Array:
    """Return p (exp(t) - 1), where p exp(t) is `risen`."""
    s = jnp.clip(t, -1, 1)
    return _where_small(t, p * (s + exp_series(s)), risen - p)


def _pair(a: Array, b: Array, axes: Axes, exact: Exact | None = None) -> _Pair:
    """Compare softmax(a) with softmax(b).

    With e_j = (b_j - b_*) - (a_j - a_*), * the most probable class under p, which is exact where
    the two are near, and d_j = e_j - mean_p(e):

        KL = log(1 + K),    K = sum_j p_j (exp(d_j) - 1 - d_j),
        t_j = e_j - c,      c = log(1 + u),    u = sum_j p_j (exp(e_j) - 1).

    No term of K is negative, and a relative error in the mean hardly moves it. Where K or u is
    large, the difference of the mean, or single, surprisals is accurate and does not overflow.

    Where a and b are rounded quotients, every difference is taken of what was divided, and divided
    after that; the sums sa and sb hardly feel the rounding.
    """
    sa, sb = partition(a, axes), partition(b, axes)
    divisor, a_top, b_top = None, sa.maximum, sb.maximum
    if exact is not None:
        a, b, divisor = exact
        a_top, b_top = max_over(a, axes), max_over(b, axes)

    # Made again in every pass: as arrays they would be written out for each to read.
    def finite() -> tuple[Array, Array]:
        return _finite(a, a_top, divisor), _finite(b, b_top, divisor)

    b_mode = own_pass(lambda: _at_mode_of(a, a_top, finite()[1], axes), lambda: sa.total)

    def change() -> _Change:
        finite_a, finite_b = finite()
        gap_a, rest_a = _gap(a_top, finite_a, divisor)
        gap_b, rest_b = _gap(b_mode, finite_b, divisor)
        e = (gap_a - gap_b) + _divided(rest_a - rest_b, divisor)
        p = _weight(gap_a, _divided(rest_a, divisor)) / sa.total
        return _Change(p, e, gap_b, _divided(rest_b, divisor))

    def p_times_e() -> Array:
        p, e, *_ = change()
        return p * e

    mean = _written_total(p_times_e, a, axes)

    # Where the exponent is not small, p exp(d) comes from b, because p may be 0 there.
    def convex() -> Array:
        p, e, gap_b, error_b = change()
        d = e - mean
        gap_b, error = two_difference(gap_b, -mean)
        risen = _weight(jnp.maximum(gap_b, -85), error_b + error) / sa.total
        return _where_small(d, p * exp_series(jnp.clip(d, -1, 1)), risen - p * (1 + d))

    def growth() -> Array:
        p, e, gap_b, error_b = change()
        risen = _weight(jnp.maximum(gap_b, -85), error_b) / sa.total
        return _growth(p, e, risen)

    k = _written_total(convex, a, axes)
    u = _written_total(growth, a, axes)
    excess = sb.excess - sa.excess
    close = k < 1e4
    far = _gap(b_top, b_mode, divisor)[0] - mean + excess
    kl = jnp.where(close, _log1p_of_sum(jnp.where(close, k, 0), axes), far)

    p, e, *_ = change()
    finite_a, finite_b = finite()
    gap_b, rest_b = _gap(b_top, finite_b, divisor)
    close = (u > -0.5) & (u < 10)
    apart = _gap(a_top, finite_a, divisor)[0] - gap_b - excess
    t = jnp.where(close, e - _log1p_of_sum(jnp.where(close, u, 0), axes), apart)
    q = _weight(gap_b, _divided(rest_b, divisor)) / sb.total
    return _Pair(p, q, t, e, close, kl)


def _centred_pair(
    a: Array, b: Array, da: Array, db: Array, axes: Axes
) -> tuple[Array, Array, Array, Array]:
    p, q = softmax(a, axes), softmax(b, axes)
    return p, q, centred(a, p, da, axes), centred(b, q, db, axes)


def _penalty(a: Array, b: Array, axes: Axes) -> Array:
    """Return +inf if some class has p > 0 and q = 0, else 0."""
    far = jnp.finfo(a.dtype).min / 8
    change = jnp.maximum(b, far) - jnp.maximum(a, 2 * far)
    impossible = -max_over(-change, axes) < far / 2
    return jnp.where(impossible, jnp.inf, 0)


def kl_divergence(a: Array, b: Array, axes: Axes) -> tuple[Array, Array, Array]:
    """Return KL(softmax(a) || softmax(b)) and its gradients p (mean_p(t) - t) and q - p."""
    return kl_of_quotients(a, b, None, axes)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def kl_of_quotients(
    a: Array, b: Array, exact: Exact | None, axes: Axes
) -> tuple[Array, Array, Array]:
    """The same, where a and b may be rounded quotients."""
    p, q, t, from_mode, _, kl = _pair(a, b, axes, exact)
    over_a = p * (_written_total(lambda: p * from_mode, a, axes) - from_mode)
    return without(kl + _penalty(a, b, axes), axes), over_a, _growth(p, t, q)


@kl_of_quotients.defjvp
def _(axes, primals, tangents):
    (a, b, exact), (da, db, _) = primals, tangents
    _, over_a, over_b = primals_out = kl_of_quotients(a, b, exact, axes)
    p, q, da_centred, db_centred = _centred_pair(a, b, da, db, axes)
    from_a = total_over(over_a * da, axes)
    d_kl = from_a + total_over(over_b * db, axes)
    d_over_a = over_a * da_centred - p * (from_a + centred(a, p, db - da, axes))
    d_over_b = q * db_centred - p * da_centred
    return primals_out, (without(d_kl, axes), d_over_a, d_over_b)


def _softplus(t: Array) -> Array:
    return jnp.maximum(t, 0) + log1p(jnp.exp(-jnp.abs(t)))


def _mixture_gradient(x: Array, p: Array, e: Array, t: Array, axes: Axes) -> Array:
    """Return the gradient of KL(p || m) / 2 + KL(q || m) / 2 over the logits x of p.

    It is -p/2 times log(m / p), centred; log(m / p) is softplus(t) less log 2. Relative to the most
    probable class that is log(1 + sigmoid(t_*) (exp(t - t_*) - 1)), which keeps small differences.
    """
    change = e - at_mode(x, e, axes)
    t_mode = at_mode(x, t, axes)
    near = jnp.abs(change) < 1
    close = log1p(jnp.exp(-_softplus(-t_mode)) * expm1(jnp.where(near, change, 0)))
    log_ratio = jnp.where(near, close, _softplus(t) - _softplus(t_mode))
    return p * (total_over(p * log_ratio, axes) - log_ratio) / 2


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def js_divergence(a: Array, b: Array, axes: Axes) -> tuple[Array, Array, Array]:
    """Return the mean of KL(p || m) and KL(q || m), m = (p + q) / 2, and its gradients.

    With r = (m - p) / p, KL(p || m) is the sum of p (r - log(1 + r)): the sum of p r is zero.
    """
    p, q, t, from_mode, close, _ = _pair(a, b, axes)
    change = jnp.where(close, from_mode, t)

    def side(p: Array, q: Array, t: Array) -> Array:
        close = p * minus_log1p(expm1(jnp.minimum(t, 1)) / 2)
        far = (q - p) / 2 - p * (_softplus(t) - math.log(2))
        return jnp.where(t < 1, close, far)

    value = sum_of_values(side(p, q, t) + side(q, p, -t), axes) / 2
    over_a = _mixture_gradient(a, p, change, t, axes)
    over_b = _mixture_gradient(b, q, -change, -t, axes)
    return without(value, axes), over_a, over_b


@js_divergence.defjvp
def _(axes, primals, tangents):
    (a, b), (da, db) = primals, tangents
    _, over_a, over_b = primals_out = js_divergence(a, b, axes)
    p, q, da_centred, db_centred = _centred_pair(a, b, da, db, axes)
    dt = db_centred - da_centred
    js_a, js_b = total_over(over_a * da, axes), total_over(over_b * db, axes)

    def share(p: Array, q: Array) -> Array:
        return q / jnp.where(q == 0, 1, p + q)

    moved_a = centred(a, p, share(p, q) * dt, axes)
    moved_b = centred(b, q, share(q, p) * dt, axes)
    d_over_a = over_a * da_centred - p * (js_a + moved_a / 2)
    d_over_b = over_b * db_centred - q * (js_b - moved_b / 2)
    return primals_out, (without(js_a + js_b, axes), d_over_a, d_over_b)
