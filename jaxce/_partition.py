r"""The partition of softmax(logits): its maximum, the sums of its weights, and what they give.

Every function here takes floating logits `x`, in which -inf is probability 0, and a tuple of axes:
non-negative positions and, inside `shard_map`, names of mesh axes that the classes are spread over.
Of narrow logits every pass makes float32 for itself: wide ones would be written out for the passes
to read.

Written with m = max x, the gap g_j = m - x_j >= 0 and the excess L = log Z - m >= 0:

    softmax_j = exp(-g_j) / Z'        surprisal_j = g_j + L        log Z = m + L

The two terms of a surprisal are not negative, so nothing cancels. L comes from the sum over all but
one maximum, so that it keeps its digits when one class has nearly all the probability.

What is summed here has no rule for derivatives: the functions of `_softmax`, made of it, have.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxce._axes import (
    Axes,
    each_of_few,
    max_over,
    names_of,
    own_pass,
    sum_of,
    sum_of_values,
    summing,
    summing_written,
    with_axes,
    without,
)
from jaxce._numerics import added, is_narrow, log1p, quotient_and_rest, two_difference, wide

# Beyond this gap exp(-gap) is 0 in float64 too; clipping there keeps 0 * inf away.
_NEGLIGIBLE = 1e4
# Below this total one class alone weighs 1. What is added to that 1 loses its digits, and equal
# weights, one after another, are all rounded to the same side: they are summed on their own.
CONFIDENT = 2.0
# So many products of two classes are summed at once.
_AT_ONCE = 16
# Below this total the gaps that matter are above 13, and so large is the rounding of x - maximum.
_LARGE_GAPS = 1 + 2.0**-20


class Partition(NamedTuple):
    """One number per example each; the reduced axes are kept with length 1."""

    maximum: Array
    total: Array  # sum of exp(x - maximum), at least 1
    rest: Array  # total - 1, of full precision also where it is tiny
    excess: Array  # log(total)
    written: Array | None = None  # exp(x - maximum), of the shape of x, if it was asked for
    gaps: Array | None = None  # sum of exp(-gap) gap, where few classes make it cheap


def gap_and_rest(x: Array, maximum: Array, divisor: Array | None) -> tuple[Array, Array]:
    """Return the gap (maximum - x) / divisor rounded, and what is missing, not yet divided."""
    gap, error = two_difference(maximum, x)
    if divisor is None:
        return gap, error
    gap, rest = quotient_and_rest(gap, divisor)
    return gap, rest + error


def divided(x: Array, divisor: Array | None) -> Array:
    return x if divisor is None else x / divisor


def weights(x: Array, maximum: Array, divisor: Array | None = None) -> tuple[Array, Array]:
    """Return the gaps, and exp(-gap) with the rounding of the gap made good."""
    reach = _NEGLIGIBLE
    if divisor is not None:
        reach = jnp.minimum(reach * divisor, float(jnp.finfo(maximum.dtype).max) / 8)
    gap, rest = gap_and_rest(jnp.maximum(wide(x), maximum - reach), maximum, divisor)
    return gap, jnp.exp(-gap) * (1 - divided(rest, divisor))


@jax.custom_jvp
def gap_of(x: Array, maximum: Array) -> Array:
    """Return maximum - x, which is not negative.

    Where x is itself a product (logits by a temperature), the compiler makes it anew in every pass
    and fuses it with a subtraction that follows: rounded once, the largest x would not be the
    maximum. A minimum comes between the two.
    """
    return maximum - jnp.minimum(wide(x), maximum)


@gap_of.defjvp
def _(primals, tangents):
    dx, d_maximum = tangents
    return gap_of(*primals), d_maximum - wide(dx)


def plain_weight(x: Array, maximum: Array, divisor: Array | None = None) -> Array:
    """Return exp((x - maximum) / divisor), which is off by the rounding of a large gap."""
    return jnp.exp(-divided(gap_of(x, maximum), divisor))


def _unless_1(weight: Array) -> Array:
    """Return the weight, or 0 where it is 1.

    In plain arithmetic, because a comparison would stop the compiler from vectorizing a sum of it.
    """
    return weight - jnp.floor(weight)


def summing_weights(
    term: Callable[..., Array],
    x: Array,
    maximum: Array,
    written: Array | None,
    numbers: tuple[Array, ...],
    axes: Axes,
    divisor: Array | None = None,
) -> Callable[[], Array]:
    """Return a function that sums term(weight, *numbers) over the classes, for a pass of its own.

    The weights are exp((x - maximum) / divisor).
    """
    if written is not None:
        return summing_written(term, (written,), numbers, axes)

    def of_logits(x: Array, maximum: Array, *numbers: Array) -> Array:
        return term(plain_weight(x, maximum, divisor), *numbers)

    return summing(of_logits, (x,), (maximum, *numbers), axes)


def _sums(
    x: Array,
    maximum: Array,
    divisor: Array | None,
    written: Array | None,
    axes: Axes,
    *,
    apart: bool,
) -> tuple[Array, Array]:
    """Return the total and, where it is below CONFIDENT, the sum of the others.

    The others are the classes whose weight does not round to 1.
    """
    if written is None:
        plain = summing_weights(lambda weight: weight, x, maximum, None, (), axes, divisor)
    else:  # nothing to compute: a plain sum is as quick as can be
        plain = summing(lambda weight: weight, (written,), (), axes)
    quick = summing_weights(_unless_1, x, maximum, written, (), axes, divisor)

    def exact() -> Array:
        if divisor is None:
            return sum_of(lambda x, m: _unless_1(weights(x, m)[1]), (x,), (maximum,), axes)
        # So dear to compute that a CPU does it sooner out of the sum.
        others = own_pass(lambda: _unless_1(weights(x, maximum, divisor)[1]), lambda: wide(x))
        return sum_of_values(others, axes)

    # With a gradient, which shares the exponentials of wide logits; of narrow ones it shares the
    # wide logits too, and both would be written out.
    apart = apart or divisor is not None or is_narrow(x)
    total = own_pass(plain, lambda: maximum) if apart else plain()

    def on_cpu() -> Array:
        # A pass costs what it computes: it is left out where no example needs it, and the rounding
        # of x - maximum, 2**-24 of its size, is made good only where gaps are large.
        totals = without(total, axes)
        confident, large = (jnp.any(totals < most) for most in (CONFIDENT, _LARGE_GAPS))
        need = confident.astype(jnp.int32) + large.astype(jnp.int32)
        return lax.switch(need, (lambda: total - 1, quick, exact))

    # Elsewhere the two sums are one pass, and a branch would wait for all devices.
    return total, lax.platform_dependent(cpu=on_cpu, default=exact)


def plain_weights(x: Array, maximum: Array, divisor: Array | None = None) -> tuple[Array, Array]:
    """Return the gaps, and exp(-gap), which is off by the rounding of a large gap."""
    gap = jnp.minimum(divided(gap_of(x, maximum), divisor), _NEGLIGIBLE)
    return gap, jnp.exp(-gap)


def _in_turn(compute: Callable[[slice], Array], classes: int) -> Array:
    """Add up what is computed of some classes, for a few at a time if they are many.

    Each class is in two arrays. Where that is more places in memory at once than a processor looks
    up quickly, one sum takes twice as long.
    """
    if classes <= _AT_ONCE:
        return compute(slice(None))
    size = _AT_ONCE // 2
    parts = [partial(compute, slice(i, i + size)) for i in range(0, classes, size)]
    return added(own_pass(part, parts[0]) for part in parts)


def _sums_of_few(
    x: Array, axes: Axes, divisor: Array | None, written: tuple[Array, Array] | None
) -> tuple[Array, Array, Array, Array]:
    """Maximum, both sums and that of the gaps: loops over the examples, for each class.

    The maximum and the exponentials may be written out already.
    """

    def columns_of(x: Array) -> list[Array]:
        return [without(wide(column), axes) for column in each_of_few(x, axes)]

    def sums(*, exact: bool) -> tuple[Array, Array, Array, Array]:
        columns = columns_of(x)
        maximum = without(written[0], axes) if written else reduce(jnp.maximum, columns)

        def pairs(some: slice) -> list[tuple[Array, Array]]:
            of_each = weights if exact else plain_weights
            each = [of_each(column, maximum, divisor) for column in columns_of(x)[some]]
            if not written or exact:
                return each
            at_hand = columns_of(written[1])[some]
            return [(gap, weight) for (gap, _), weight in zip(each, at_hand, strict=True)]

        def gaps(some: slice) -> Array:
            # No product is negative: the absolute value does what `products` does, in one
            # operation.
            return added(jnp.abs(weight * gap) for gap, weight in pairs(some))

        each = [weight for _, weight in pairs(slice(None))]
        others = added(map(_unless_1, each))
        return maximum, added(each), others, _in_turn(gaps, len(columns))

    def on_cpu() -> tuple[Array, Array, Array, Array]:
        def like() -> tuple[Array, Array, Array, Array]:
            one = without(wide(each_of_few(x, axes)[0]), axes)
            return one, one, one, one

        _, total, others, _ = quick = own_pass(partial(sums, exact=False), like)
        large = (total < CONFIDENT) & (others < _LARGE_GAPS - 1)
        return lax.cond(jnp.any(large), partial(sums, exact=True), lambda: quick)

    return lax.platform_dependent(cpu=on_cpu, default=partial(sums, exact=True))


def partition(
    x: Array,
    axes: Axes,
    divisor: Array | None = None,
    *,
    write: bool = False,
    apart: bool = False,
) -> Partition:
    """Return the parts of the softmax.

    Args:
        x: Logits.
        axes: Of the classes.
        divisor: What the logits are divided by, but not the maximum that is returned: quotients
            are made anew in every pass instead of being written out for all of them. Not with
            `write`.
        write: Whether the exponentials are written out, on a CPU, to be summed more than once: a
            sum of what is in the cache costs a third of one that computes it.
        apart: Whether the sums share no exponentials with a gradient, which can then be written
            over the logits: a tenth slower of logits in memory, but in less of it.
    """
    written = gaps = None
    top = wide(max_over(x, axes))
    if write:
        written = own_pass(lambda: plain_weight(x, top), lambda: wide(x))
    if each_of_few(x, axes) and not names_of(axes):
        at_hand = None if written is None else (top, written)
        maximum, total, others, gaps = _sums_of_few(x, axes, divisor, at_hand)
        gaps = with_axes(gaps, axes)
    else:
        sums = _sums(x, top, divisor, written, axes, apart=apart)
        maximum, total, others = (without(part, axes) for part in (top, *sums))
    confident = total < CONFIDENT
    rest = jnp.where(confident, others, total - 1)
    total = jnp.where(confident, 1 + others, total)
    four = (with_axes(part, axes) for part in (maximum, total, rest, log1p(rest)))
    return Partition(*four, written=written, gaps=gaps)


def mean_gap(x: Array, s: Partition, axes: Axes) -> Array:
    """Mean under softmax(x) of the gaps; the reduced axes are kept with length 1."""
    if s.gaps is not None:
        return s.gaps / s.total

    # No product is negative: the absolute value does what `products` does, in one operation.
    def careful(x: Array, maximum: Array) -> Array:
        gap, weight = weights(x, maximum)
        return jnp.abs(weight * gap)

    def plain(x: Array, maximum: Array) -> Array:
        gap, weight = plain_weights(x, maximum)
        return jnp.abs(weight * gap)

    def of_written(weight: Array, x: Array, maximum: Array) -> Array:
        return jnp.abs(weight * jnp.minimum(gap_of(x, maximum), _NEGLIGIBLE))

    exact = partial(sum_of, careful, (x,), (s.maximum,), axes)
    quick = partial(sum_of, plain, (x,), (s.maximum,), axes)
    if s.written is not None:
        quick = summing_written(of_written, (s.written, x), (s.maximum,), axes)

    def on_cpu() -> Array:
        return lax.cond(jnp.any(s.total < _LARGE_GAPS), exact, quick)

    return lax.platform_dependent(cpu=on_cpu, default=exact) / s.total
