"""Reductions over the axes of the classes, and what XLA:CPU needs to do them one by one.

Axes are non-negative positions and, inside `shard_map`, names of mesh axes that the classes are
spread over. A reduction keeps the positions with length 1; `without` drops them.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxce._numerics import added, exact_sum

Axes = tuple[int | str, ...]
T = TypeVar("T")

# Of a row that XLA:CPU sums quickly.
_LONGEST = 2**15
# Classes that are read one by one: within a row, and where each lies by itself. There XLA:CPU takes
# up to ten times as long for the sum over them. One class more than a multiple of 16 is the dearest
# row: 33 take longer in it than 40.
_FEW = 15
_FEW_APART = 33
# Numbers in examples of a few classes, so few that a loop for each class is not worth it.
_FEW_EXAMPLES = 2**13
# XLA:CPU adds up what is shorter in few running sums, which lose digits if the classes are many.
_SHORT = 2**12
_MANY = 48
# Classes on a page of memory, and how many pieces of what is longer are read at once.
_PAGE = 2**10
_STREAMS = 6


def positions_of(axes: Axes) -> tuple[int, ...]:
    return tuple(a for a in axes if isinstance(a, int))


def names_of(axes: Axes) -> tuple[str, ...]:
    return tuple(a for a in axes if isinstance(a, str))


def is_spread(x: Array, axis: int) -> bool:
    """Whether the type of x says that this axis is spread over a mesh."""
    spec = jax.typeof(x).sharding.spec
    return axis < len(spec) and spec[axis] is not None


def varying_over(tree: Any) -> frozenset[str]:
    """Mesh axes inside `shard_map` on which some array may differ from device to device."""

    def names(x: Array) -> frozenset[str]:
        kind = jax.typeof(x)
        return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma

    return frozenset[str]().union(*map(names, jax.tree.leaves(tree)))


def varying(tree: T, names: frozenset[str]) -> T:
    """Mark what is the same on all devices as different: its gradient is summed over them here."""

    def mark(x: Array) -> Array:
        missing = tuple(sorted(names - varying_over(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, tree)


def gradient_of(x: Array, shares: Array) -> Array:
    """Return the gradient over x, in its type: the sum over devices where all have the same x."""
    missing = tuple(sorted(varying_over(shares) - varying_over(x)))
    return (lax.psum(shares, missing) if missing else shares).astype(x.dtype)


def placed_alike(a: Array, b: Array) -> tuple[Array, Array]:
    """Give two arrays of one shape one type: what all devices have goes where the other is.

    Two operands that are placed differently need not mix, and two branches may not.
    """
    a, b = varying((a, b), varying_over((a, b)))
    of_a, of_b = (jax.typeof(x).sharding for x in (a, b))
    if not any(of_a.spec) and any(of_b.spec):
        return jax.sharding.reshard(a, of_b), b
    if not any(of_b.spec) and any(of_a.spec):
        return a, jax.sharding.reshard(b, of_a)
    return a, b


def placed_as_examples(a: Array, x: Array, axis: int) -> Array:
    """Put numbers of examples, if all devices have them, where the examples of x are.

    The axis of the classes is missing in the numbers.
    """
    sharding = jax.typeof(x).sharding
    spec = (*sharding.spec, *(None,) * (x.ndim - len(sharding.spec)))
    spec = PartitionSpec(*spec[:axis], *spec[axis + 1 :])
    if any(jax.typeof(a).sharding.spec) or not any(spec):
        return a
    return jax.sharding.reshard(a, NamedSharding(sharding.mesh, spec))


def class_index(x: Array, axis: int, dtype: jnp.dtype) -> Array:
    """Return the index of every class, in a shape that broadcasts against x."""
    if is_spread(x, axis):
        return lax.broadcasted_iota(dtype, x.shape, axis, out_sharding=jax.typeof(x).sharding)
    # One row: a loop keeps it instead of making it again, and in full size it would weigh as much
    # as x.
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    return lax.broadcasted_iota(dtype, shape, axis)


def each_of_few(x: Array, axes: Axes) -> list[Array]:
    """Return x class by class if classes are few and examples many: no short sum is vectorized.

    A single example may be one of many under `vmap`. A pass of its own asks inside: given the parts
    instead of the whole, it would get copies.
    """
    if len(positions := positions_of(axes)) != 1:
        return []
    (axis,) = positions
    if not _are_few(x, axis, _FEW_APART if axis == 0 < x.ndim - 1 else _FEW):
        return []
    return [lax.slice_in_dim(x, j, j + 1, axis=axis) for j in range(x.shape[axis])]


def are_few_apart(x: Array) -> bool:
    """Whether `each_of_few` takes x class by class once its last axis is the first."""
    return x.ndim > 1 and _are_few(x, x.ndim - 1, _FEW_APART)


def _are_few(x: Array, axis: int, most: int) -> bool:
    classes = x.shape[axis]
    few_examples = classes < x.size <= _FEW_EXAMPLES
    return 0 < classes <= most and not few_examples and not is_spread(x, axis)


def products(a: Array, b: Array) -> Array:
    """Return a * b for a sum of them; a is finite.

    XLA:CPU of jax 0.10 adds the products of a single row one by one, and loses three digits where
    they are many and equal. It does not if the last operation on them is an addition.
    """
    return a * b + 0 * a


def total_over(x: Array, axes: Axes) -> Array:
    """Sum over axes, which are kept with length 1, and over named mesh axes."""
    total = jnp.sum(x, positions_of(axes), keepdims=True)
    return lax.psum(total, names_of(axes)) if names_of(axes) else total


def sum_of_values(x: Array, axes: Axes) -> Array:
    """The same where no derivative is taken: quicker for few classes, but dear to transpose."""
    if few := each_of_few(x, axes):
        return total_over(added(few), axes)
    positions = positions_of(axes)
    classes = math.prod(x.shape[a] for a in positions)
    elsewhere = names_of(axes) or any(jax.typeof(x).sharding.spec)
    if classes < _MANY or elsewhere or not _is_short(x.size // classes, classes):
        return total_over(x, axes)

    def on_cpu(x: Array) -> Array:
        last = jnp.moveaxis(x, positions, range(-len(positions), 0))
        kept = [1 if a in positions else size for a, size in enumerate(x.shape)]
        return _sums_of_few(last.reshape(x.size // classes, classes)).reshape(kept)

    return lax.platform_dependent(x, cpu=on_cpu, default=partial(total_over, axes=axes))


def _is_short(rows: int, classes: int) -> bool:
    # Rows that may be spread over devices, as no type says, are summed where they are.
    return rows * classes < _SHORT and (rows == 1 or jax.device_count() == 1)


@jax.custom_batching.custom_vmap
def _sums_of_few(rows: Array) -> Array:
    """Sum up to 16 parts of short rows class by class, and what comes of it in two floats."""
    classes = rows.shape[1]
    count = min(range(16, 7, -1), key=lambda count: classes // count + classes % count)
    size = classes // count
    parts = [lax.slice_in_dim(rows, i * size, (i + 1) * size, axis=1) for i in range(count)]
    few = jnp.concatenate((added(parts), rows[:, count * size :]), 1)
    total = jnp.sum(few, 1)
    return jnp.where(jnp.isfinite(total), exact_sum(few, jnp.zeros_like(few), (1,)), total)


@_sums_of_few.def_vmap
def _(size: int, batched: list[bool], rows: Array) -> tuple[Array, bool]:
    """Take the rows of all together: more are summed otherwise, and more quickly."""
    n, classes = rows.shape[1:]
    together = rows.reshape(size * n, classes)
    sums = _sums_of_few if _is_short(size * n, classes) else partial(jnp.sum, axis=1)
    return sums(together).reshape(size, n), True


def _pieces(x: Array, axes: Axes) -> int:
    """Return into how many equal pieces to take a row of classes, 1 where that is of no use."""
    last, size = x.ndim - 1, x.shape[-1]
    if size <= _LONGEST or positions_of(axes) != (last,) or is_spread(x, last):
        return 1
    least = -(-size // _LONGEST)
    # A multiple of 64, if any will do, so that no piece lies on two devices. Pieces of less than a
    # thousand classes would cost more than they bring.
    most = size // 2**10
    counts = (*range(64 * -(-least // 64), most + 1, 64), *range(least, most + 1))
    return next((n for n in counts if size % n == 0), 1)


def sum_of(
    compute: Callable[..., Array], rows: tuple[Array, ...], numbers: tuple[Array, ...], axes: Axes
) -> Array:
    """Sum what is computed of rows of classes and of one number per example, class by class.

    The arrays of rows have one shape; the numbers have the axes with length 1. XLA:CPU slows down
    by a factor of 4 to 25 where a row is longer than it likes: such rows are taken in pieces.
    """
    return summing(compute, rows, numbers, axes)()


def summing(
    compute: Callable[..., Array], rows: tuple[Array, ...], numbers: tuple[Array, ...], axes: Axes
) -> Callable[[], Array]:
    """Return a function that does what `sum_of` does, for a pass of its own."""

    def whole() -> Array:
        if few := [*zip(*(each_of_few(x, axes) for x in rows), strict=True)]:
            total = added(compute(*columns, *numbers) for columns in few)
            return lax.psum(total, names_of(axes)) if names_of(axes) else total
        return sum_of_values(compute(*rows, *numbers), axes)

    pieces = _pieces(rows[0], axes)
    if pieces == 1:
        return whole

    def in_pieces() -> Array:
        *shape, size = rows[0].shape
        split = [x.reshape(*shape, pieces, size // pieces) for x in rows]
        each = [jnp.expand_dims(a, -1) for a in numbers]
        # On its own, or the two sums become one again, or a slow pair where the pieces are many.
        parts = own_pass(
            lambda: total_over(compute(*split, *each), (rows[0].ndim,)),
            lambda: compute(*(x[..., :1] for x in split), *each),
        )
        return total_over(parts[..., 0], axes)

    return lambda: lax.platform_dependent(cpu=in_pieces, default=whole)


def summing_written(
    compute: Callable[..., Array], rows: tuple[Array, ...], numbers: tuple[Array, ...], axes: Axes
) -> Callable[[], Array]:
    """Return what `summing` does, quicker for arrays in the cache of which little is computed."""
    positions, x = positions_of(axes), rows[0]
    whole = summing(compute, rows, numbers, axes)
    last = x.ndim - 1
    if positions != (last,) or is_spread(x, last) or x.size < _SHORT or each_of_few(x, axes):
        return whole

    def in_pieces() -> Array:
        sums = _added_pieces(lambda _, *each: compute(*each, *numbers), rows, last)
        return _total_of_pieces(sums, axes)

    return lambda: lax.platform_dependent(cpu=in_pieces, default=whole)


def _added_pieces(compute: Callable[..., Array], rows: tuple[Array, ...], axis: int) -> Array:
    """Add up compute(indices, *pieces) for some pieces of rows of classes, element by element.

    What holds or not is counted, in float32.

    XLA:CPU vectorizes no comparison inside a sum, and takes every operation there for a pass of its
    own over what is in the cache; what is written out it computes at once. Writing is dear: pieces
    of the row are added up first.
    """
    size = rows[0].shape[axis]
    # A length that suits the vectors, so that the last piece may begin before the one ahead of it
    # ends: what both have counts once. Of a row on one page of memory any number of pieces are read
    # at once, of longer ones a few.
    length = 32 if size <= _PAGE else -(-size // (32 * _STREAMS)) * 32
    length = size if is_spread(rows[0], axis) else min(size, length)

    def piece(start: int) -> Array:
        first = min(start, size - length)
        parts = [lax.slice_in_dim(x, first, first + length, axis=axis) for x in rows]
        index = first + class_index(parts[0], axis, jnp.dtype("int32"))
        each = compute(index, *parts)
        # Of bytes four times as many are added at once.
        each = each.astype(jnp.int8) if each.dtype == bool else each
        return each if first == start else jnp.where(index >= start, each, 0)

    def floats(sums: Array) -> Array:
        return sums.astype(jnp.float32) if sums.dtype == jnp.int8 else sums

    return own_pass(
        lambda: floats(reduce(jnp.add, map(piece, range(0, size, length)))),
        lambda: floats(piece(0)),
    )


def _total_of_pieces(sums: Array, axes: Axes) -> Array:
    """Do what `total_over` does, as a product: XLA:CPU takes half as long for one so narrow."""
    ones = jnp.ones(sums.shape[-1], sums.dtype)
    total = jnp.matmul(sums, ones, precision=lax.Precision.HIGHEST)[..., None]
    return lax.psum(total, names_of(axes)) if names_of(axes) else total


def count_of(condition: Callable[[Array, Array], Array], x: Array, axes: Axes) -> Array:
    """Count the classes for which condition(x, index) is True; they are along one axis."""
    (last,) = positions_of(axes)
    if few := each_of_few(x, axes):

        def of_few() -> Array:
            columns = enumerate(each_of_few(x, axes))
            each = [condition(a, jnp.full_like(a, j, jnp.int32)) for j, a in columns]
            return reduce(jnp.add, [holds.astype(jnp.int8) for holds in each]).astype(jnp.float32)

        return own_pass(of_few, lambda: jnp.zeros_like(few[0], jnp.float32))

    def whole() -> Array:
        holds = condition(x, class_index(x, last, jnp.dtype("int32")))
        return total_over(holds.astype(jnp.float32), axes)

    def in_pieces() -> Array:
        holding = _added_pieces(lambda index, x: condition(x, index), (x,), last)
        return _total_of_pieces(holding, axes)

    return lax.platform_dependent(cpu=in_pieces, default=whole)


def max_over(x: Array, axes: Axes) -> Array:
    """Maximum over axes, which are kept with length 1, and over named mesh axes."""
    few = each_of_few(x, axes)
    maximum = reduce(jnp.maximum, few) if few else jnp.max(x, positions_of(axes), keepdims=True)
    return lax.pmax(maximum, names_of(axes)) if names_of(axes) else maximum


def min_over(x: Array, axes: Axes) -> Array:
    """Minimum over axes, which are kept with length 1, and over named mesh axes."""
    few = each_of_few(x, axes)
    minimum = reduce(jnp.minimum, few) if few else jnp.min(x, positions_of(axes), keepdims=True)
    return lax.pmin(minimum, names_of(axes)) if names_of(axes) else minimum


def any_over(mask: Array, axes: Axes) -> Array:
    """Whether anything is True over axes, which are kept with length 1, and named mesh axes."""
    found = jnp.any(mask, positions_of(axes), keepdims=True)
    return lax.pmax(found.astype(jnp.int32), names_of(axes)) > 0 if names_of(axes) else found


def without(x: Array, axes: Axes) -> Array:
    """Drop the axes that a reduction kept."""
    return jnp.squeeze(x, positions_of(axes))


def with_axes(x: Array, axes: Axes) -> Array:
    """Put back, with length 1, the axes that `without` drops.

    XLA:CPU vectorizes no logarithm along a last axis of length 1: it is taken without it.
    """
    return jnp.expand_dims(x, positions_of(axes))


def own_pass(compute: Callable[[], T], like: Callable[[], T]) -> T:
    """Return compute(), compiled as a computation of its own.

    XLA:CPU vectorizes a sum together with what it sums, but not two sums over the same input, and
    what two such sums share (a broadcast constant is enough) it writes out in full size. A branch
    that is always taken, which the compiler cannot know, keeps them apart. `like` has the type of
    the result and never runs.
    """

    def branch() -> T:
        always = lax.optimization_barrier(jnp.ones((), bool))
        # Negated: of an array that a branch only hands on, the compiler makes a copy first.
        return lax.cond(always, compute, lambda: jax.tree.map(jnp.negative, like()))

    return lax.platform_dependent(cpu=branch, default=compute)
