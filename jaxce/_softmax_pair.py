"""Divergences between softmax(a) and softmax(b), with the rules that differentiate them exactly.

As in `_softmax`, a function returns its value and the gradients that its derivative needs.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxce._numerics import expm1, expm1_minus, log1p, minus_log1p, two_difference
from jaxce._softmax import Axes, apart, at_mode, centred, partition, softmax, total_over, weights


class _Pair(NamedTuple):
    """Two distributions by their logits. What is -inf has p or q = 0 and a huge e and t."""

    p: Array
    q: Array
    e: Array  # t, up to a constant per example that makes it 0 at the most probable class under p
    t: Array  # log(q / p)


def _finite(x: Array, maximum: Array) -> Array:
    """Return x with a finite stand-in for -inf, far enough below to have weight 0 exactly."""
    return jnp.maximum(x, maximum - jnp.finfo(x.dtype).max / 8)


def _at_mode_of(a: Array, maximum: Array, b: Array, axes: Axes) -> Array:
    """Return b at the largest a (the largest such b), in arithmetic that vectorizes."""
    elsewhere = jnp.minimum((maximum - a) * 2.0**100, 1)
    return jnp.max(b - elsewhere * (jnp.finfo(b.dtype).max / 2), axes, keepdims=True)


def _pair(a: Array, b: Array, axes: Axes) -> _Pair:
    """Compare softmax(a) with softmax(b).

    t_j = e_j - c with e_j = (b_j - b_*) - (a_j - a_*), * the most probable class under p, and
    c = log sum_j p_j exp(e_j): tiny where p and q are near, and then exact to the last digits.
    Where they are far apart t is the difference of the two surprisals.
    """
    sa, sb = partition(a, axes), partition(b, axes)
    a, b = _finite(a, sa.maximum), _finite(b, sb.maximum)
    b_mode = _at_mode_of(a, sa.maximum, b, axes)

    def behind(reference: Array) -> tuple[Array, Array]:
        """(reference - b) - (maximum of a - a), negated, and exp of the first."""
        gap_a, error_a = two_difference(sa.maximum, a)
        gap_b, error_b = two_difference(reference, b)
        rise = jnp.exp(jnp.minimum(-gap_b, 85)) * (1 - error_b)
        return (gap_a - gap_b) + (error_a - error_b), rise

    p = weights(a, sa.maximum)[1] / sa.total
    q = weights(b, sb.maximum)[1] / sb.total
    # u is the sum of p (exp(e) - 1). Past e = 1, p exp(e) comes from b: it is not 0 * inf.
    e, rise = behind(b_mode)
    grown = jnp.maximum(rise / sa.total - p * math.e, 0)
    u = total_over(p * expm1(jnp.minimum(e, 1)) + grown, axes)
    close = (u > -0.5) & (u < 10)
    reference = apart(jnp.where(close, b_mode, sb.maximum), u)
    constant = jnp.where(close, -log1p(jnp.where(close, u, 0)), sa.excess - sb.excess)
    return _Pair(p, q, e, behind(reference)[0] + constant)


def _centred_pair(
    a: Array, b: Array, da: Array, db: Array, axes: Axes
) -> tuple[Array, Array, Array, Array]:
    p, q = softmax(a, axes), softmax(b, axes)
    return p, q, centred(a, p, da, axes), centred(b, q, db, axes)


def _penalty(a: Array, b: Array, axes: Axes) -> Array:
    """Return +inf if some class has p > 0 and q = 0, else 0."""
    far = jnp.finfo(a.dtype).min / 8
    change = jnp.maximum(b, far) - jnp.maximum(a, 2 * far)
    impossible = jnp.min(change, axes, keepdims=True) < far / 2
    return jnp.where(impossible, jnp.inf, 0)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def kl_divergence(a: Array, b: Array, axes: Axes) -> tuple[Array, Array, Array]:
    """Return KL(softmax(a) || softmax(b)) and its gradients over a and over b.

    KL = sum of p (exp(t) - 1 - t): no term is negative, and an error in c cancels to first order.
    Past t = 1 it goes on as q - p (1 + t), which is above its value at 1 exactly there.
    """
    p, q, e, t = _pair(a, b, axes)
    near = jnp.minimum(t, 1)
    grown = jnp.maximum(q - p * (jnp.maximum(t, 0) + (math.e - 1)), 0)
    kl = total_over(p * expm1_minus(near) + grown, axes)
    over_a = p * (total_over(p * e, axes) - e)
    over_b = p * expm1(near) + jnp.maximum(q - p * math.e, 0)
    return jnp.squeeze(kl + _penalty(a, b, axes), axes), over_a, over_b


@kl_divergence.defjvp
def _(axes, primals, tangents):
    (a, b), (da, db) = primals, tangents
    _, over_a, over_b = primals_out = kl_divergence(a, b, axes)
    p, q, da_centred, db_centred = _centred_pair(a, b, da, db, axes)
    from_a = total_over(over_a * da, axes)
    d_kl = from_a + total_over(over_b * db, axes)
    d_over_a = over_a * da_centred - p * (from_a + centred(a, p, db - da, axes))
    d_over_b = q * db_centred - p * da_centred
    return primals_out, (jnp.squeeze(d_kl, axes), d_over_a, d_over_b)


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
    p, q, e, t = _pair(a, b, axes)

    def side(p: Array, q: Array, t: Array) -> Array:
        close = p * minus_log1p(expm1(jnp.minimum(t, 1)) / 2)
        far = (q - p) / 2 - p * (_softplus(t) - math.log(2))
        return jnp.where(t < 1, close, far)

    value = jnp.sum(side(p, q, t) + side(q, p, -t), axes) / 2
    return value, _mixture_gradient(a, p, e, t, axes), _mixture_gradient(b, q, -e, -t, axes)


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
    return primals_out, (jnp.squeeze(js_a + js_b, axes), d_over_a, d_over_b)
