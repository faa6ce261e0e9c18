r"""Functions of softmax(logits), each with the rule that differentiates it exactly.

They take what those of `_partition` take, which is where the formulas of the values are. A function
returns its value together with the gradients that its derivative needs; the derivative of a
gradient is written in terms of the same functions, so that forward mode, reverse mode and every
higher order come out of one rule and keep their digits. A partition of x that is `known` is not
made again; it is a function of x all the same: no derivative over it is taken.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxce._axes import Axes, max_over, products, total_over, without
from jaxce._numerics import wide
from jaxce._partition import (
    CONFIDENT,
    Partition,
    gap_of,
    mean_gap,
    partition,
    plain_weight,
    plain_weights,
    weights,
)


def softmax_less(p: Array, others: Array, x: Array, s: Partition) -> Array:
    """Return (p + others) softmax(x) - p, accurate where p has most of the two and softmax of 1."""
    weight = plain_weight(x, s.maximum)
    p, others = wide(p), wide(others)
    return (others * weight + p * ((weight - 1) - s.rest)) / s.total


def at_mode(x: Array, value: Array, axes: Axes) -> Array:
    """Return the value at the largest x, the mean of them where several are tied."""
    mode = x == max_over(x, axes)
    return total_over(jnp.where(mode, value, 0), axes) / total_over(mode.astype(value.dtype), axes)


def centred(x: Array, p: Array, value: Array, axes: Axes) -> Array:
    """Return value - mean_p(value); of a tangent of x it is the derivative of log softmax.

    The mean is taken relative to the value at the largest x, so that nothing cancels where that
    class has nearly all the probability.
    """
    change = value - at_mode(x, value, axes)
    return change - total_over(products(p, change), axes)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(x: Array, axes: Axes, known: Partition | None = None) -> Array:
    s = known or partition(x, axes)
    return weights(x, s.maximum)[1] / s.total


@softmax.defjvp
def _(axes, primals, tangents):
    (x, known), dx = primals, wide(tangents[0])
    p = softmax(x, axes, known)
    return p, p * centred(x, p, dx, axes)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def written_partition(x: Array, axes: Axes, write: bool) -> Partition:
    """Return the partition, to be differentiated as it is; see `partition`."""
    return partition(x, axes, write=write)


@written_partition.defjvp
def _(axes, write, primals, tangents):
    (x,), dx = primals, wide(*tangents)
    s = written_partition(x, axes, write)
    d_maximum = at_mode(x, dx, axes)
    change = dx - d_maximum
    # The change is 0 at a single largest class, which is left out: its weight would swallow the
    # others when this is transposed.
    is_alone = (x == max_over(x, axes)) & (s.total < CONFIDENT)
    p = jnp.where(is_alone, 0, softmax(x, axes))
    d_excess = total_over(products(p, change), axes)
    d_total = s.total * d_excess
    d_written = None if s.written is None else s.written * change
    d_gaps = None
    if s.gaps is not None:
        gap = plain_weights(x, s.maximum)[0]
        d_gaps = s.total * total_over(products(p * (gap - 1), change), axes)
    return s, Partition(d_maximum, d_total, d_total, d_excess, d_written, d_gaps)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_normalizer(x: Array, axes: Axes, known: Partition | None = None) -> Array:
    s = known or partition(x, axes)
    return without(s.maximum + s.excess, axes)


@log_normalizer.defjvp
def _(axes, primals, tangents):
    (x, known), dx = primals, wide(tangents[0])
    change = total_over(products(dx, softmax(x, axes, known)), axes)
    return log_normalizer(x, axes, known), without(change, axes)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def surprisal(x: Array, axes: Axes) -> Array:
    """-log softmax(x), of the shape of x; +inf where x is -inf."""
    s = partition(x, axes)
    return gap_of(x, s.maximum) + s.excess


@surprisal.defjvp
def _(axes, primals, tangents):
    (x,), dx = primals, wide(*tangents)
    moved = products(dx, softmax(x, axes))
    # sum(p dx) - dx_j, with (p_j - 1) dx_j taken on its own and no cancellation elsewhere:
    # its transpose is p_k (sum_j ct_j - ct_k) + (p_k - 1) ct_k.
    return surprisal(x, axes), (total_over(moved, axes) - moved) + softmax_less_1(x, axes) * dx


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax_less_1(x: Array, axes: Axes) -> Array:
    one = jnp.ones((), x.dtype)
    return softmax_less(one, jnp.zeros_like(one), x, partition(x, axes))


@softmax_less_1.defjvp
def _(axes, primals, tangents):
    (x,), dx = primals, wide(*tangents)
    p = softmax(x, axes)
    return softmax_less_1(x, axes), p * centred(x, p, dx, axes)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def entropy(x: Array, axes: Axes, known: Partition | None = None) -> tuple[Array, Array]:
    """Return H and its gradient p_j (mean_p(x) - x_j)."""
    s = known or partition(x, axes)
    gap_mean = mean_gap(x, s, axes)
    gap, weight = weights(x, s.maximum)
    return without(s.excess + gap_mean, axes), weight * ((gap - gap_mean) / s.total)


@entropy.defjvp
def _(axes, primals, tangents):
    (x, known), dx = primals, wide(tangents[0])
    h, gradient = entropy(x, axes, known)
    p = softmax(x, axes, known)
    dx_centred = centred(x, p, dx, axes)
    dh = total_over(products(dx, gradient), axes)
    return (h, gradient), (without(dh, axes), gradient * dx_centred - p * (dx_centred + dh))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def perplexity(x: Array, axes: Axes) -> Array:
    """exp(H), as total * exp(mean gap): the rounding of a large H is not blown up."""
    s = partition(x, axes)
    gap_mean = mean_gap(x, s, axes)
    return without(s.total * jnp.exp(gap_mean), axes)


@perplexity.defjvp
def _(axes, primals, tangents):
    (x,), dx = primals, wide(*tangents)
    value = perplexity(x, axes)
    return value, value * without(total_over(products(dx, entropy(x, axes)[1]), axes), axes)
