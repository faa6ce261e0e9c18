"""Divergences between softmax(a) and softmax(b), with the rules that differentiate them exactly.

As in `_softmax`, a function returns its value and the gradients that its derivative needs.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxce._axes import (
    Axes,
    each_of_few,
    max_over,
    min_over,
    own_pass,
    products,
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
    two_difference,
    wide,
)
from jaxce._partition import Partition, divided, gap_and_rest, gap_of, partition
from jaxce._softmax import at_mode, centred, softmax


class _Pair(NamedTuple):
    """Two distributions by their logits. What is -inf has p or q = 0 and a huge t."""

    p: Array
    q: Array
    t: Array  # log(q / p)
    from_mode: Array  # t less its value at the most probable class under p
    close: Array  # where t is from_mode less a constant; elsewhere it was found without it
    kl: Array  # reduced axes kept
    kl_over_a: Array  # its gradient, p (mean_p(t) - t)


class _Change(NamedTuple):
    w: Array  # p, still to be divided by its total
    e: Array  # log(q / p), up to a constant per example
    gap_b: Array  # what b was referenced at, less b
    error_b: Array  # what rounding gap_b has lost


class Exact(NamedTuple):
    """What two arrays of logits are the rounded quotients of. It carries no derivative."""

    a: Array
    b: Array
    divisor: Array


def _finite(x: Array, maximum: Array, divisor: Array | None) -> Array:
    """Return x with a finite stand-in for -inf, far enough below to have weight 0 exactly."""
    reach = float(jnp.finfo(maximum.dtype).max) / 8
    if divisor is not None:
        reach = reach * jnp.minimum(divisor, 1)
    return jnp.maximum(wide(x), maximum - reach)


def _weight(gap: Array, error: Array) -> Array:
    """Return exp(-gap) with the rounding of the gap made good."""
    # Where the exponential is neither 0 nor cut off, the error is far smaller than this bound.
    return jnp.exp(-gap) * (1 - jnp.clip(error, -1e-3, 1e-3))


def _at_mode_of(a: Array, maximum: Array, b: Array, axes: Axes) -> Array:
    """Return b at the largest a (the largest such b), in arithmetic that vectorizes."""
    elsewhere = jnp.minimum(gap_of(a, maximum) * 2.0**100, 0.5)
    return max_over(b - elsewhere * float(jnp.finfo(b.dtype).max), axes)


def _written_total(compute: Callable[[], Array], like: Array, axes: Axes) -> Array:
    """Sum over classes of what is so dear to compute that CPU does it sooner out of the sum."""
    return sum_of_values(own_pass(compute, lambda: wide(like)), axes)


def _log1p_of_sum(x: Array, axes: Axes) -> Array:
    return with_axes(log1p(without(x, axes)), axes)


def _where_small(t: Array, small: Array, other: Array) -> Array:
    return jnp.where(jnp.abs(t) <= 1, small, other)


def _growth(p: Array, t: Array, risen: Array) -> Array:
    """Return p (exp(t) - 1), where p exp(t) is `risen`."""
    s = jnp.clip(t, -1, 1)
    return _where_small(t, p * (s + exp_series(s)), risen - p)


def _pair(a: Array, b: Array, axes: Axes, divisor: Array | None = None) -> _Pair:
    """Compare softmax(a / divisor) with softmax(b / divisor).

    With e_j = (max a - a_j) - (max b - b_j), which is exact where the two are near, and
    d_j = e_j - mean_p(e):

        KL = log(1 + K),    K = sum_j p_j (exp(d_j) - 1 - d_j),
        t_j = e_j - c,      c = log(1 + u),    u = sum_j p_j (exp(e_j) - 1).

    No term of K is negative, and a relative error in the mean hardly moves it. Where the two are
    far apart KL is c - mean_p(e), and c the difference of two logarithms. What is needed relative
    to the most probable class under p has the value of b there for max b.

    Every difference is taken of what is to be divided, and divided after that.
    """
    if each_of_few(a, axes):  # so short a row is not vectorized: wide ones written out cost less
        a, b = wide(a), wide(b)
    sa, sb = partition(a, axes, divisor), partition(b, axes, divisor)
    a_top, b_top = sa.maximum, sb.maximum

    # Made again in every pass: as arrays they would be written out for each to read.
    def change(b_reference: Array = b_top) -> _Change:
        gap_a, rest_a = gap_and_rest(_finite(a, a_top, divisor), a_top, divisor)
        gap_b, rest_b = gap_and_rest(_finite(b, b_top, divisor), b_reference, divisor)
        e = (gap_a - gap_b) + divided(rest_a - rest_b, divisor)
        w = _weight(gap_a, divided(rest_a, divisor))
        return _Change(w, e, gap_b, divided(rest_b, divisor))

    def mean_under_p(compute: Callable[[], Array]) -> Array:
        return _written_total(compute, a, axes) / sa.total

    def w_times_e() -> Array:
        w, e, *_ = change()
        return w * e

    mean = mean_under_p(w_times_e)

    # Where the exponent is not small, p exp(d) comes from b, because p may be 0 there.
    def convex() -> Array:
        w, e, gap_b, error_b = change()
        d = e - mean
        gap_b, error = two_difference(gap_b, -mean)
        risen = _weight(jnp.maximum(gap_b, -85), error_b + error)
        return _where_small(d, w * exp_series(jnp.clip(d, -1, 1)), risen - w * (1 + d))

    def growth() -> Array:
        w, e, gap_b, error_b = change()
        return _growth(w, e, _weight(gap_b, error_b))

    apart = _log_quotient(sb, sa)
    far = apart - mean

    def near() -> Array:
        k = mean_under_p(convex)
        return jnp.where(k < 1e4, _log1p_of_sum(jnp.where(k < 1e4, k, 0), axes), far)

    def on_cpu() -> Array:
        # The mean of |d| is at most 2 log(1 + exp(KL)): where KL is not small beside that and what
        # it is the difference of, the difference is as good, and saves a pass.
        cancels = ~((far > 0.5) & (6 * far > jnp.abs(mean) + jnp.abs(apart)))
        return lax.cond(jnp.any(cancels), near, lambda: far)

    kl = lax.platform_dependent(cpu=on_cpu, default=near)
    u = mean_under_p(growth)
    close = (u > -0.5) & (u < 10)
    c = jnp.where(close, _log1p_of_sum(jnp.where(close, u, 0), axes), apart)
    b_mode = own_pass(lambda: _at_mode_of(a, a_top, _finite(b, b_top, divisor), axes), lambda: u)

    def w_times_from_mode() -> Array:
        w, e, *_ = change(b_mode)
        return w * e

    mean_from_mode = mean_under_p(w_times_from_mode)

    def over_a() -> Array:
        w, e, *_ = change(b_mode)
        return w * ((mean_from_mode - e) / sa.total)

    w, e, gap_b, error_b = change()
    return _Pair(
        p=w / sa.total,
        q=_weight(gap_b, error_b) / sb.total,
        t=e - c,
        from_mode=change(b_mode).e,
        # Relative to a class that b hardly has, the others would keep no digits.
        close=close & (b_top - b_mode < 10),
        kl=kl,
        # On its own: together with the rest the compiler would write out parts of it.
        kl_over_a=own_pass(over_a, lambda: wide(a)),
    )


def _log_quotient(b: Partition, a: Partition) -> Array:
    """Return log(b.total / a.total): of large totals not as a difference of two logarithms."""
    large = jnp.minimum(a.total, b.total) > 1.5
    return jnp.where(large, jnp.log(b.total / a.total), b.excess - a.excess)


def _centred_pair(
    a: Array, b: Array, da: Array, db: Array, axes: Axes
) -> tuple[Array, Array, Array, Array]:
    p, q = softmax(a, axes), softmax(b, axes)
    return p, q, centred(a, p, da, axes), centred(b, q, db, axes)


def _penalty(a: Array, b: Array, axes: Axes, divisor: Array | None) -> Array:
    """Return +inf if some class has p > 0 and q = 0, else 0."""
    far = float(jnp.finfo(wide(a).dtype).min) / 8
    if divisor is not None:
        far = far * jnp.minimum(divisor, 1)

    def penalty() -> Array:
        change = jnp.maximum(wide(b), far) - jnp.maximum(wide(a), 2 * far)
        return jnp.where(min_over(change, axes) < far / 2, jnp.inf, 0).astype(change.dtype)

    def on_cpu() -> Array:
        least_b = own_pass(lambda: wide(min_over(b, axes)), lambda: wide(min_over(a, axes)))
        return lax.cond(jnp.any(least_b < far / 2), penalty, lambda: jnp.zeros_like(least_b))

    return lax.platform_dependent(cpu=on_cpu, default=penalty)


def kl_divergence(a: Array, b: Array, axes: Axes) -> tuple[Array, Array, Array]:
    """Return KL(softmax(a) || softmax(b)) and its gradients p (mean_p(t) - t) and q - p."""
    return kl_of_quotients(a, b, None, axes)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def kl_of_quotients(
    a: Array, b: Array, exact: Exact | None, axes: Axes
) -> tuple[Array, Array, Array]:
    """The same, where a and b may be rounded quotients."""
    divisor = None
    if exact is not None:
        a, b, divisor = exact
    pair = _pair(a, b, axes, divisor)
    kl = without(pair.kl + _penalty(a, b, axes, divisor), axes)
    return kl, pair.kl_over_a, _growth(pair.p, pair.t, pair.q)


@kl_of_quotients.defjvp
def _(axes, primals, tangents):
    (a, b, exact), da, db = primals, wide(tangents[0]), wide(tangents[1])
    _, over_a, over_b = primals_out = kl_of_quotients(a, b, exact, axes)
    p, q, da_centred, db_centred = _centred_pair(a, b, da, db, axes)
    from_a = total_over(products(da, over_a), axes)
    d_kl = from_a + total_over(products(db, over_b), axes)
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
    return p * (total_over(products(p, log_ratio), axes) - log_ratio) / 2


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def js_divergence(a: Array, b: Array, axes: Axes) -> tuple[Array, Array, Array]:
    """Return the mean of KL(p || m) and KL(q || m), m = (p + q) / 2, and its gradients.

    With r = (m - p) / p, KL(p || m) is the sum of p (r - log(1 + r)): the sum of p r is zero.
    """
    p, q, t, from_mode, close, *_ = _pair(a, b, axes)
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
    (a, b), da, db = primals, wide(tangents[0]), wide(tangents[1])
    _, over_a, over_b = primals_out = js_divergence(a, b, axes)
    p, q, da_centred, db_centred = _centred_pair(a, b, da, db, axes)
    dt = db_centred - da_centred
    js_a, js_b = total_over(products(da, over_a), axes), total_over(products(db, over_b), axes)

    def share(p: Array, q: Array) -> Array:
        return q / jnp.where(q == 0, 1, p + q)

    moved_a = centred(a, p, share(p, q) * dt, axes)
    moved_b = centred(b, q, share(q, p) * dt, axes)
    d_over_a = over_a * da_centred - p * (js_a + moved_a / 2)
    d_over_b = over_b * db_centred - q * (js_b - moved_b / 2)
    return primals_out, (without(js_a + js_b, axes), d_over_a, d_over_b)
