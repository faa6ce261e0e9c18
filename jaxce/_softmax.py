r"""Functions of softmax(logits), each with the rule that differentiates it exactly.

Every function here takes float32 or float64 logits `x`, in which -inf is probability 0, and a tuple
of non-negative axes. It returns its value together with the gradients that its derivative needs;
the derivative of a gradient is written in terms of the same functions, so that forward mode,
reverse mode and every higher order come out of one rule and keep their digits.

Written with m = max x, the gap g_j = m - x_j >= 0 and the excess L = log Z - m >= 0:

    softmax_j = exp(-g_j) / Z'        surprisal_j = g_j + L        log Z = m + L

The two terms of a surprisal are not negative, so nothing cancels. L comes from the sum over all but
one maximum, so that it keeps its digits when one class has nearly all the probability.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jaxce._numerics import expm1, expm1_minus, log1p, minus_log1p, two_difference, where_nonzero

Axes = tuple[int, ...]

# Beyond this gap exp(-gap) is 0 in float64 too; clipping there keeps 0 * inf away.
_NEGLIGIBLE = 1e4


class _Partition(NamedTuple):
    """One number per example each; the reduced axes are kept with length 1."""

    maximum: Array
    total: Array  # sum of exp(x - maximum), at least 1
    excess: Array  # log(total)


def _sum(x: Array, axes: Axes) -> Array:
    return jnp.sum(x, axes, keepdims=True)


def _weights(x: Array, maximum: Array) -> tuple[Array, Array]:
    """Return the gaps, and exp(-gap) with the rounding of the gap made good."""
    gap, error = two_difference(maximum, jnp.maximum(x, maximum - _NEGLIGIBLE))
    return gap, jnp.exp(-gap) * (1 - error)


def _others(x: Array, maximum: Array, axes: Axes) -> Array:
    """Sum of exp(x - maximum) over the classes whose weight does not round to 1.

    In plain arithmetic, because a comparison would stop the compiler from vectorizing the sum.
    """
    _, weight = _weights(x, maximum)
    return _sum(jnp.minimum(weight, (1 - weight) * 2.0**54), axes)


def _partition(x: Array, axes: Axes) -> _Partition:
    maximum = jnp.max(x, axes, keepdims=True)
    total = _sum(jnp.exp(x - maximum), axes)
    # Where one class has most of the probability, log(total) has lost the digits of the others:
    # they are summed on their own. A second class of weight 1 would make the total at least 2.
    confident = total < 1.5
    others = lax.cond(
        jnp.any(confident),
        partial(_others, axes=axes),
        lambda _, m: jnp.zeros_like(m),
        *(x, _apart(maximum, total)),
    )
    excess = jnp.where(confident, log1p(jnp.where(confident, others, 0)), jnp.log(total))
    return _Partition(_apart(maximum, total), total, excess)


def _apart(value: Array, after: Array) -> Array:
    """Return `value`, kept apart from its earlier use.

    Two passes that broadcast the same array would share a full-size copy of it, and two sums over
    the same input would be merged into a loop that is not vectorized: on CPU both cost more than
    the pass itself.
    """
    return lax.optimization_barrier((value, after))[0]


def _given(*tangents: Array) -> list[bool]:
    return [not isinstance(t, SymbolicZero) for t in tangents]


def _at_mode(x: Array, value: Array, axes: Axes) -> Array:
    """Return the value at the largest x, the mean of them where several are tied."""
    mode = x == jnp.max(x, axes, keepdims=True)
    return _sum(jnp.where(mode, value, 0), axes) / _sum(mode.astype(x.dtype), axes)


def _centred(x: Array, p: Array, value: Array, axes: Axes) -> Array:
    """Return value - mean_p(value); of a tangent of x it is the derivative of log softmax.

    The mean is taken relative to the value at the largest x, so that nothing cancels where that
    class has nearly all the probability.
    """
    change = value - _at_mode(x, value, axes)
    return change - _sum(p * change, axes)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(x: Array, axes: Axes) -> Array:
    s = _partition(x, axes)
    return _weights(x, s.maximum)[1] / s.total


@softmax.defjvp
def _(axes, primals, tangents):
    (x,), (dx,) = primals, tangents
    p = softmax(x, axes)
    return p, p * _centred(x, p, dx, axes)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_normalizer(x: Array, axes: Axes) -> Array:
    s = _partition(x, axes)
    return jnp.squeeze(s.maximum + s.excess, axes)


@log_normalizer.defjvp
def _(axes, primals, tangents):
    (x,), (dx,) = primals, tangents
    return log_normalizer(x, axes), jnp.sum(softmax(x, axes) * dx, axes)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def surprisal(x: Array, axes: Axes) -> Array:
    """-log softmax(x), of the shape of x; +inf where x is -inf."""
    s = _partition(x, axes)
    return (s.maximum - x) + s.excess


@surprisal.defjvp
def _(axes, primals, tangents):
    (x,), (dx,) = primals, tangents
    moved = softmax(x, axes) * dx
    # sum(p dx) - dx_j, with (p_j - 1) dx_j taken on its own and no cancellation elsewhere:
    # its transpose is p_k (sum_j ct_j - ct_k) + (p_k - 1) ct_k.
    return surprisal(x, axes), (_sum(moved, axes) - moved) + _softmax_less_1(x, axes) * dx


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax_less_1(x: Array, axes: Axes) -> Array:
    return expm1(-surprisal(x, axes))


@_softmax_less_1.defjvp
def _(axes, primals, tangents):
    (x,), (dx,) = primals, tangents
    p = softmax(x, axes)
    return _softmax_less_1(x, axes), p * _centred(x, p, dx, axes)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def entropy(x: Array, axes: Axes) -> tuple[Array, Array]:
    """Return H and its gradient p_j (mean_p(x) - x_j)."""
    s = _partition(x, axes)
    gap, weight = _weights(x, s.maximum)
    mean_gap = _sum(weight * gap, axes) / s.total
    gap, weight = _weights(x, _apart(s.maximum, mean_gap))
    return jnp.squeeze(s.excess + mean_gap, axes), weight * ((gap - mean_gap) / s.total)


@entropy.defjvp
def _(axes, primals, tangents):
    (x,), (dx,) = primals, tangents
    h, gradient = entropy(x, axes)
    p = softmax(x, axes)
    dx_centred = _centred(x, p, dx, axes)
    dh = _sum(gradient * dx, axes)
    return (h, gradient), (jnp.squeeze(dh, axes), gradient * dx_centred - p * (dx_centred + dh))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def perplexity(x: Array, axes: Axes) -> Array:
    """exp(H), as total * exp(mean gap): the rounding of a large H is not blown up."""
    s = _partition(x, axes)
    gap, weight = _weights(x, s.maximum)
    mean_gap = _sum(weight * gap, axes) / s.total
    return jnp.squeeze(s.total * jnp.exp(mean_gap), axes)


@perplexity.defjvp
def _(axes, primals, tangents):
    (x,), (dx,) = primals, tangents
    value = perplexity(x, axes)
    return value, value * jnp.sum(entropy(x, axes)[1] * dx, axes)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def cross_entropy(p: Array, x: Array, axes: Axes) -> tuple[Array, Array, Array]:
    """Return sum(p surprisal) and its gradients over x and over p."""
    s = _partition(x, axes)
    surprisal_ = where_nonzero(p, (s.maximum - x) + s.excess)
    mass = _sum(p, axes)
    # mass * softmax_j - p_j, exact where p_j holds all the mass
    q = jnp.exp(x - s.maximum) / s.total
    over_x = (mass - p) * q + p * expm1(-surprisal_)
    return jnp.sum(where_nonzero(p, p * surprisal_), axes), over_x, surprisal_


def _add(terms: list[Array], like: Array) -> Array:
    return sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(like)


@partial(cross_entropy.defjvp, symbolic_zeros=True)
def _(axes, primals, tangents):
    (p, x), (dp, dx) = primals, tangents
    value, over_x, over_p = primals_out = cross_entropy(p, x, axes)
    q = softmax(x, axes)
    p_moves, x_moves = _given(dp, dx)
    d_value, d_over_x, d_over_p = [], [], []
    if p_moves:
        d_value.append(jnp.sum(over_p * dp, axes))
        d_over_x.append((_sum(dp, axes) - dp) * q + dp * _softmax_less_1(x, axes))
    if x_moves:
        dx_centred = _centred(x, q, dx, axes)
        d_value.append(jnp.sum(over_x * dx, axes))
        d_over_x.append(_sum(p, axes) * q * dx_centred)
        d_over_p.append(where_nonzero(p, -dx_centred))
    return primals_out, (_add(d_value, value), _add(d_over_x, x), _add(d_over_p, p))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def class_surprisal(x: Array, labels: Array, axis: int) -> tuple[Array, Array]:
    """Return the surprisal of one class per example and its gradient; NaN for a bad label."""
    s = _partition(x, (axis,))
    label = jnp.expand_dims(labels, axis)
    exists = (label >= 0) & (label < x.shape[axis])
    label = jnp.where(exists, label, 0)
    picked = jnp.take_along_axis(x, label, axis, mode="promise_in_bounds")
    value = jnp.where(exists, (s.maximum - picked) + s.excess, jnp.nan)
    chosen = lax.broadcasted_iota(label.dtype, x.shape, axis) == label
    gradient = jnp.where(chosen, expm1(-value), jnp.exp(x - s.maximum) / s.total)
    return jnp.squeeze(value, axis), jnp.where(exists, gradient, jnp.nan)


@class_surprisal.defjvp
def _(axis, primals, tangents):
    (x, labels), (dx, _) = primals, tangents
    value, gradient = class_surprisal(x, labels, axis)
    p = softmax(x, (axis,))
    d_gradient = p * _centred(x, p, dx, (axis,))
    return (value, gradient), (jnp.sum(gradient * dx, axis), d_gradient)


class _Pair(NamedTuple):
    """Two distributions by their logits."""

    p: Array
    q: Array
    e: Array  # t, up to a constant per example that makes it 0 at the most probable class under p
    t: Array  # log(q / p) where both exist, else 0
    both: Array
    penalty: Array  # +inf if some class has p > 0 and q = 0; NaN if p or q is not a distribution


def _pair(a: Array, b: Array, axes: Axes) -> _Pair:
    """Compare softmax(a) with softmax(b).

    t_j = e_j - c with e_j = (b_j - a_j) - (b_* - a_*), * the most probable class, and
    c = log sum_j p_j exp(e_j): tiny where p and q are near, and then exact to the last digits.
    Where they are far apart it is the difference of the two surprisals.
    """
    in_p, in_q = a > -jnp.inf, b > -jnp.inf
    both = in_p & in_q
    sa, sb = _partition(a, axes), _partition(b, axes)
    p, q = _weights(a, sa.maximum)[1] / sa.total, _weights(b, sb.maximum)[1] / sb.total
    d, d_error = two_difference(jnp.where(both, b, 0), jnp.where(both, a, 0))

    def highest(candidates: Array, value: Array) -> Array:
        lowest = jnp.finfo(a.dtype).min / 4  # differences of it stay finite
        return jnp.max(jnp.where(candidates, value, lowest), axes, keepdims=True)

    # The most probable class under p that exists in q; ties are settled by d, then by any.
    a_mode = highest(both, a)
    mode = both & (a >= a_mode)
    d_mode = highest(mode, d)
    mode = mode & (d >= d_mode)
    error_mode = highest(mode, d_error)
    b_mode = highest(mode, b)
    e = jnp.where(both, (d - d_mode) + (d_error - error_mode), 0)
    # u = p (exp(e) - 1); where e is large, p exp(e) comes from b: it is not 0 * inf.
    near = both & (e < 1)
    below = sa.maximum - a_mode
    ahead, error = two_difference(jnp.where(in_q, b, b_mode - _NEGLIGIBLE), b_mode)
    rise = jnp.exp(jnp.minimum(ahead - below, 85)) * (1 + error) / sa.total
    u = _sum(jnp.where(near, p * expm1(jnp.where(near, e, 0)), rise - p), axes)
    close = (u > -0.5) & (u < 10)
    apart = (jnp.where(both, sa.maximum - a, 0) - jnp.where(both, sb.maximum - b, 0)) + (
        sa.excess - sb.excess
    )
    t = jnp.where(close, e - log1p(jnp.where(close, u, 0)), apart)
    possible = jnp.all(~in_p | in_q, axes, keepdims=True)
    penalty = jnp.where(possible, 0, jnp.inf) + 0 * (sa.total + sb.total)
    return _Pair(p, q, e, jnp.where(both, t, 0), both, penalty)


def _centred_pair(
    a: Array, b: Array, da: Array, db: Array, axes: Axes
) -> tuple[Array, Array, Array, Array]:
    p, q = softmax(a, axes), softmax(b, axes)
    return p, q, _centred(a, p, da, axes), _centred(b, q, db, axes)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def kl_divergence(a: Array, b: Array, axes: Axes) -> tuple[Array, Array, Array]:
    """Return KL(softmax(a) || softmax(b)) and its gradients over a and over b.

    KL = sum of p (exp(t) - 1 - t): no term is negative, and an error in c cancels to first order.
    """
    p, q, e, t, both, penalty = _pair(a, b, axes)
    near = both & (t < 1) & (penalty == 0)
    s = jnp.where(near, t, 0)
    kl = _sum(jnp.where(near, p * expm1_minus(s), (q - p) - p * t), axes)
    over_a = p * (_sum(p * e, axes) - e)
    over_b = jnp.where(near, p * expm1(s), q - p)
    return jnp.squeeze(kl + penalty, axes), over_a, over_b


@kl_divergence.defjvp
def _(axes, primals, tangents):
    (a, b), (da, db) = primals, tangents
    kl, over_a, over_b = primals_out = kl_divergence(a, b, axes)
    p, q, da_centred, db_centred = _centred_pair(a, b, da, db, axes)
    d_kl = _sum(over_a * da + over_b * db, axes)
    d_over_a = over_a * da_centred - p * (
        _sum(over_a * da, axes) + _centred(a, p, db - da, axes)
    )
    d_over_b = q * db_centred - p * da_centred
    return primals_out, (jnp.squeeze(d_kl, axes), d_over_a, d_over_b)


def _softplus(t: Array) -> Array:
    return jnp.maximum(t, 0) + log1p(jnp.exp(-jnp.abs(t)))


def _mixture_gradient(x: Array, p: Array, e: Array, t: Array, both: Array, axes: Axes) -> Array:
    """Return the gradient of KL(p || m) / 2 + KL(q || m) / 2 over the logits x of p.

    It is -p/2 times log(m / p), centred; log(m / p) is softplus(t) less log 2. Relative to the most
    probable class that is log(1 + sigmoid(t_*) (exp(t - t_*) - 1)), which keeps small differences.
    """
    change = e - _at_mode(x, e, axes)
    near = both & (jnp.abs(change) < 1) & (_at_mode(x, both.astype(x.dtype), axes) == 1)
    t_mode = _at_mode(x, jnp.where(both, t, -_NEGLIGIBLE), axes)
    share = jnp.exp(-_softplus(-t_mode))
    close = log1p(share * expm1(jnp.where(near, change, 0)))
    apart = jnp.where(both, _softplus(t), 0) - _softplus(t_mode)
    log_ratio = jnp.where(near, close, apart)
    return p * (_sum(p * log_ratio, axes) - log_ratio) / 2


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def js_divergence(a: Array, b: Array, axes: Axes) -> tuple[Array, Array, Array]:
    """Return the mean of KL(p || m) and KL(q || m), m = (p + q) / 2, and its gradients.

    With r = (m - p) / p, KL(p || m) is the sum of p (r - log(1 + r)): the sum of p r is zero.
    """
    p, q, e, t, both, _ = _pair(a, b, axes)

    def side(p: Array, q: Array, t: Array) -> Array:
        near = both & (t < 1)
        close = p * minus_log1p(expm1(jnp.where(near, t, 0)) / 2)
        log_ratio = jnp.where(both, _softplus(t), 0) - math.log(2)
        return _sum(jnp.where(near, close, (q - p) / 2 - p * log_ratio), axes)

    value = (side(p, q, t) + side(q, p, -t)) / 2
    over_a = _mixture_gradient(a, p, e, t, both, axes)
    over_b = _mixture_gradient(b, q, -e, -t, both, axes)
    return jnp.squeeze(value, axes), over_a, over_b


@js_divergence.defjvp
def _(axes, primals, tangents):
    (a, b), (da, db) = primals, tangents
    js, over_a, over_b = primals_out = js_divergence(a, b, axes)
    p, q, da_centred, db_centred = _centred_pair(a, b, da, db, axes)
    dt = db_centred - da_centred
    js_a, js_b = _sum(over_a * da, axes), _sum(over_b * db, axes)

    def share(p: Array, q: Array) -> Array:
        return where_nonzero(q, q / jnp.where(q == 0, 1, p + q))

    moved_a = _centred(a, p, share(p, q) * dt, axes)
    moved_b = _centred(b, q, share(q, p) * dt, axes)
    d_over_a = over_a * da_centred - p * (js_a + moved_a / 2)
    d_over_b = over_b * db_centred - q * (js_b - moved_b / 2)
    return primals_out, (jnp.squeeze(js_a + js_b, axes), d_over_a, d_over_b)
