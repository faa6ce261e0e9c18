"""Cross-entropy of softmax(logits) under a true distribution, with the rules that differentiate it.

As in `_softmax`, a function returns its value and the gradients that its derivative needs.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jaxce._axes import (
    Axes,
    class_index,
    each_of_few,
    is_spread,
    max_over,
    min_over,
    names_of,
    own_pass,
    positions_of,
    products,
    sum_of,
    sum_of_values,
    total_over,
    without,
)
from jaxce._numerics import is_narrow, wide
from jaxce._partition import Partition, gap_of, partition, plain_weight
from jaxce._softmax import centred, softmax, softmax_less, softmax_less_1


def mass_of_others(p: Array, axes: Axes) -> Array:
    """Return sum(p) - p, with the digits of the others where one class has most of the mass."""
    mass = own_pass(lambda: sum_of(wide, (p,), (), axes), lambda: wide(max_over(p, axes)))
    most = 0.75 * mass

    # What is less than most of the mass, in arithmetic that vectorizes.
    def minor(p: Array, most: Array) -> Array:
        return jnp.minimum(wide(p), jnp.maximum(most - wide(p), 0) * 2.0**100)

    others = own_pass(lambda: sum_of(minor, (p,), (most,), axes), lambda: mass)
    return jnp.where(wide(p) < most, mass - wide(p), others)


def _given(*tangents: Array) -> list[bool]:
    return [not isinstance(t, SymbolicZero) for t in tangents]


def expected_surprisal(p: Array, x: Array, s: Partition, axes: Axes) -> Array:
    """Return sum(p surprisal), 0 log 0 = 0; the reduced axes are kept with length 1."""

    def plain(p: Array, x: Array, maximum: Array, excess: Array) -> Array:
        # Two products, for the reason of `products`.
        return wide(p) * gap_of(x, maximum) + wide(p) * excess

    def terms() -> Array:
        return wide(p) * jnp.where(p == 0, 0, gap_of(x, s.maximum) + s.excess)

    def on_cpu() -> Array:
        # A selection is dear inside a sum: it is left out where nothing is infinite.
        least = own_pass(lambda: wide(min_over(x, axes)), lambda: s.total)
        return lax.cond(
            jnp.any(least == -jnp.inf),
            lambda: sum_of_values(own_pass(terms, lambda: wide(p)), axes),
            lambda: sum_of(plain, (p, x), (s.maximum, s.excess), axes),
        )

    return lax.platform_dependent(cpu=on_cpu, default=lambda: sum_of_values(terms(), axes))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def cross_entropy(p: Array, x: Array, axes: Axes) -> tuple[Array, Array, Array]:
    """Return sum(p surprisal) and its gradients over x and over p."""
    s = partition(x, axes)
    value = expected_surprisal(p, x, s, axes)
    over_x = softmax_less(p, mass_of_others(p, axes), x, s)
    over_p = jnp.where((p == 0) & (x == -jnp.inf), 0, gap_of(x, s.maximum) + s.excess)
    return without(value, axes), over_x, over_p


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
        dp = wide(dp)
        d_value.append(without(total_over(products(dp, over_p), axes), axes))
        d_over_x.append((total_over(dp, axes) - dp) * q + dp * softmax_less_1(x, axes))
    if x_moves:
        dx = wide(dx)
        dx_centred = centred(x, q, dx, axes)
        d_value.append(without(total_over(products(dx, over_x), axes), axes))
        d_over_x.append(total_over(wide(p), axes) * q * dx_centred)
        d_over_p.append(jnp.where((p == 0) & (x == -jnp.inf), 0, -dx_centred))
    return primals_out, (_add(d_value, value), _add(d_over_x, over_x), _add(d_over_p, over_p))


def at_class(x: Array, label: Array, axes: Axes) -> tuple[Array, Array, Array]:
    """Return x at one class per example, whether there is such a class, and where it is.

    `label` has the class axis with length 1. What is returned for no such class means nothing.
    """
    (axis,), names = positions_of(axes), names_of(axes)
    size = x.shape[axis]
    exists = (label >= 0) & (label < size * (lax.axis_size(names) if names else 1))
    if names:
        label = label - (lax.axis_index(names) * size).astype(label.dtype)
    spread = is_spread(x, axis)
    chosen = class_index(x, axis, label.dtype) == label
    if names or spread:  # an index into what is spread would gather it
        value = total_over(jnp.where(chosen, wide(x), 0), axes)
    elif axis != x.ndim - 1 and (few := each_of_few(x, axes)):  # nor do they lie side by side
        each = [jnp.where(label == j, wide(column), 0) for j, column in enumerate(few)]
        value = reduce(jnp.add, each)
    else:
        label = jnp.where(exists, label, 0)

        def pick() -> Array:
            return wide(jnp.take_along_axis(x, label, axis, mode="promise_in_bounds"))

        # XLA:CPU knows no narrow gather: it would share wide logits, written out, with a sum.
        value = own_pass(pick, lambda: wide(max_over(x, axes))) if is_narrow(x) else pick()
    return value, exists, chosen


def _even_gap(x: Array, maximum: Array, axes: Axes) -> tuple[Array, Array]:
    """Return the mean gap of the classes that exist, and the share of each of them."""
    half = float(jnp.finfo(maximum.dtype).max) / 2

    # Positive, and huge, but for a logit of -inf: no comparison, because one would stop the
    # compiler from vectorizing a sum. The lowest finite logit counts: its class exists.
    def reach(x: Array) -> Array:
        return jnp.maximum(wide(x) * 2.0**-24 + half, 0)

    def exists(x: Array) -> Array:
        return jnp.minimum(2 * reach(x), 1)

    # Shared out before they are summed: a few of the largest gaps are too large a sum.
    def share_of_gap(x: Array, maximum: Array, share: Array) -> Array:
        return jnp.minimum(gap_of(x, maximum) * share, reach(x) * 2.0**100)

    share = 1 / own_pass(lambda: sum_of(exists, (x,), (), axes), lambda: maximum)
    mean = own_pass(lambda: sum_of(share_of_gap, (x,), (maximum, share), axes), lambda: maximum)
    return mean, share


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def class_surprisal(
    x: Array,
    labels: Array,
    keep: Array | None,
    smoothing: Array | None,
    axes: Axes,
    known: Partition | None = None,
) -> tuple[Array, Array, Array | None]:
    """Return the surprisal of one class per example and its gradient; NaN for a bad label.

    Where `keep` is False both are 0, whatever the logits and the label are. With `smoothing` that
    share of the surprisal is the mean of all classes that exist; the third result is the derivative
    over it.
    """
    s = known or partition(x, axes)
    (axis,) = positions_of(axes)
    value, exists, chosen = at_class(x, jnp.expand_dims(labels, axis), axes)
    bad = ~exists if keep is None else ~exists & jnp.expand_dims(keep, axis)
    missing = jnp.where(bad, jnp.inf, 0.0)
    invalid = missing - missing  # NaN for a bad label: made there and nowhere else
    maximum, of_class, excess, nan = (
        without(a, axes) for a in (s.maximum, value, s.excess, invalid)
    )
    gap = gap_of(of_class, maximum)
    losses = gap + excess + nan
    weight = plain_weight(x, s.maximum)
    gradient = jnp.where(chosen, (weight - 1) - s.rest, weight) * (1 / s.total + invalid)
    slope = None
    if smoothing is not None:
        even, share = _even_gap(x, s.maximum, axes)
        slope = without(even, axes) - gap + nan
        losses = (1 - smoothing) * losses + smoothing * (without(even, axes) + excess)
        of_even = weight / s.total - jnp.where(x == -jnp.inf, 0, share)
        each = jnp.expand_dims(smoothing, axis) if smoothing.ndim else smoothing
        gradient = (1 - each) * gradient + each * of_even
    # Written out, so that the sums over classes are not drawn into a later mean over examples.
    value = own_pass(lambda: losses, lambda: of_class)
    if keep is not None:
        value = jnp.where(keep, value, 0)
        gradient = jnp.where(jnp.expand_dims(keep, axis), gradient, 0)
        slope = None if slope is None else jnp.where(keep, slope, 0)
    return value, gradient, slope


@partial(class_surprisal.defjvp, symbolic_zeros=True)
def _(axes, primals, tangents):
    x, labels, keep, smoothing, known = primals
    dx, _, _, d_smoothing, _ = tangents
    value, gradient, slope = primals_out = class_surprisal(x, labels, keep, smoothing, axes, known)
    (axis,) = positions_of(axes)

    def kept(change: Array) -> Array:
        return change if keep is None else jnp.where(jnp.expand_dims(keep, axis), change, 0)

    def moved_to_label() -> Array:
        """The distribution that is learned moves so, from the mean of all to the label."""
        _, _, chosen = at_class(x, jnp.expand_dims(labels, axis), axes)
        share = _even_gap(x, wide(max_over(x, axes)), axes)[1]
        return kept(chosen.astype(gradient.dtype) - jnp.where(x == -jnp.inf, 0, share))

    d_value, d_gradient, d_slope = [], [], []
    if _given(dx)[0]:
        dx = wide(dx)
        p = softmax(x, axes, known)
        d_value.append(without(total_over(products(dx, gradient), axes), axes))
        d_gradient.append(kept(p * centred(x, p, dx, axes)))
        if smoothing is not None:
            d_slope.append(without(total_over(products(dx, moved_to_label()), axes), axes))
    if smoothing is not None and _given(d_smoothing)[0]:
        d_value.append(d_smoothing * slope)
        each = jnp.expand_dims(d_smoothing, axis) if d_smoothing.ndim else d_smoothing
        d_gradient.append(each * moved_to_label())
    changes = _add(d_value, value), _add(d_gradient, gradient)
    return primals_out, (*changes, None if slope is None else _add(d_slope, slope))
