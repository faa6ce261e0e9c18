"""Trace-time checks: dtype, rank, axis, mask and base, with messages that name the argument.

Nothing here looks at what a traced array holds, so it costs nothing inside a compiled function.
"""

import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxce._axes import placed_alike
from jaxce._numerics import wide, wide_dtype

Axis = int | Sequence[int]


def _floating_array(name: str, x: ArrayLike) -> jax.Array:
    """Return `x` as an array of its own floating dtype."""
    x = array(name, x)
    dtype = x.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name}: expected a floating dtype, got {dtype}. "
            f"Convert it first, for example {name}.astype(jnp.float32)."
        )
    # A weak type (a Python float) would let the result's dtype depend on what it meets later.
    return jax.lax.convert_element_type(x, dtype)


def array(name: str, x: ArrayLike | None) -> jax.Array:
    """Return `x` as an array."""
    if x is None:  # which passes through jit as a tree without leaves
        raise TypeError(f"{name}: expected an array, got None.")
    return jnp.asarray(x)


def floating(name: str, x: ArrayLike, *, narrow: bool = False) -> jax.Array:
    """Return `x` as a float32 or float64 array; integers, booleans and complex are refused.

    With `narrow`, float16 and bfloat16 stay what they are, for cores that widen them themselves.
    """
    x = _floating_array(name, x)
    return x if narrow else wide(x)


def integers(name: str, x: ArrayLike) -> jax.Array:
    """Return `x` as an integer array wide enough for any class index."""
    if isinstance(x, np.ndarray):
        fits(name, x)
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name}: expected an integer dtype, class indices, got {x.dtype}.")
    return x.astype(jnp.int32) if x.dtype.itemsize < 4 else x


def fits(name: str, x: np.ndarray) -> None:
    """Refuse integers that JAX would not keep as they are: of 32 bits, -(2**63) is class 0."""
    if x.dtype.kind not in "iu" or x.dtype.itemsize < 8 or not x.size:
        return
    info = np.iinfo(jax.dtypes.canonicalize_dtype(x.dtype))
    least, most = x.min(), x.max()
    if not info.min <= least <= most <= info.max:
        raise ValueError(
            f"{name}: expected integers from {info.min} to {info.max}, or jax_enable_x64, "
            f"got {least if least < info.min else most}."
        )


def real(name: str, x: ArrayLike, dtype: DTypeLike | None = None) -> jax.Array:
    """Return `x`, numbers of any real dtype, in `dtype` if one is given."""
    x = array(name, x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"{name}: expected real numbers, got {x.dtype}.")
    return x if dtype is None else x.astype(dtype)


def number(name: str, x: ArrayLike, dtype: DTypeLike) -> jax.Array:
    """Return `x`, one real number, in `dtype`."""
    if jnp.ndim(x) != 0:
        raise ValueError(f"{name}: expected a number, got shape {jnp.shape(x)}.")
    return real(name, x, dtype)


def counting(labels: jax.Array, ignore_index: ArrayLike) -> jax.Array:
    """Return which labels are not `ignore_index`."""
    if jnp.ndim(ignore_index) != 0:
        raise ValueError(f"ignore_index: expected one label, got shape {jnp.shape(ignore_index)}.")
    return labels != integers("ignore_index", ignore_index).astype(labels.dtype)


def order(
    logits_name: str, logits: ArrayLike, labels_name: str, labels: ArrayLike, rule: str
) -> None:
    """Refuse integer logits with floating labels: they were given in the other order."""
    x, y = array(logits_name, logits).dtype, array(labels_name, labels).dtype
    if jnp.issubdtype(x, jnp.integer) and jnp.issubdtype(y, jnp.floating):
        raise TypeError(
            f"{logits_name}: expected a floating dtype, got {x}, while {labels_name} has {y}. "
            f"Have they changed places? {rule}"
        )


def floating_pair(
    name_a: str, a: ArrayLike, name_b: str, b: ArrayLike, *, narrow: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Return both arrays in one dtype, in one shape and on the same devices; ranks must be equal.

    With `narrow`, what would become float32 stays narrow.
    """
    a, b = _floating_array(name_a, a), _floating_array(name_b, b)
    shape = broadcast(name_a, a.shape, name_b, b.shape)
    dtype = max(wide_dtype(a.dtype), wide_dtype(b.dtype), key=lambda d: d.itemsize)
    if not narrow or dtype != jnp.float32:
        a, b = a.astype(dtype), b.astype(dtype)
    return placed_alike(jnp.broadcast_to(a, shape), jnp.broadcast_to(b, shape))


def broadcast(name_a: str, a: tuple[int, ...], name_b: str, b: tuple[int, ...]) -> tuple[int, ...]:
    """Return the common shape of two shapes of equal rank."""
    if len(a) != len(b):
        raise ValueError(
            f"{name_a} and {name_b}: expected the same number of dimensions, got shapes {a} and "
            f"{b}. Add the missing axis explicitly, for example x[..., None]."
        )
    try:
        return jnp.broadcast_shapes(a, b)
    except ValueError:
        raise ValueError(
            f"{name_a} and {name_b}: expected shapes that broadcast, got {a} and {b}."
        ) from None


def axes(axis: Axis, ndim: int, name: str) -> tuple[int, ...]:
    """Return `axis` as a sorted tuple of non-negative axes of an array called `name`."""
    try:
        given = tuple(operator.index(a) for a in (axis if isinstance(axis, Sequence) else (axis,)))
    except TypeError:
        raise TypeError(f"axis: expected an int or a tuple of ints, got {axis!r}.") from None
    if ndim == 0:
        raise ValueError(f"{name}: expected an array with an axis of classes, got a scalar.")
    for a in given:
        if not -ndim <= a < ndim:
            raise ValueError(
                f"axis: expected integers in [{-ndim}, {ndim}) because {name} has {ndim} "
                f"dimension{'' if ndim == 1 else 's'}, got {axis!r}."
            )
    found = tuple(sorted(a % ndim for a in given))
    if not found or len(set(found)) != len(found):
        raise ValueError(f"axis: expected at least one axis and none twice, got {axis!r}.")
    return found


def mask(where: ArrayLike | None, shape: tuple[int, ...], name: str) -> jax.Array | None:
    """Return `where` broadcast to `shape`, the shape of the array called `name`."""
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"where: expected a boolean array, got dtype {where.dtype}.")
    try:
        return jnp.broadcast_to(where, shape)
    except ValueError:
        raise ValueError(
            f"where: expected a shape that broadcasts to {shape}, the shape of {name}, "
            f"got {where.shape}."
        ) from None


def nats_per_unit(base: float | None) -> float:
    """Return ln(base), the size of the unit in nats; 1 for `base=None`."""
    if base is None:
        return 1.0
    try:
        base = float(operator.pos(base))  # refuses text, which float would parse
    except (TypeError, ValueError):
        raise TypeError(
            f"base: expected None (nats) or a number such as 2 (bits), got {base!r}."
        ) from None
    if not (math.isfinite(base) and base > 1):
        raise ValueError(
            f"base: expected None (nats) or a finite number greater than 1, got {base!r}."
        )
    return math.log(base)


def classes(
    name: str, labels: jax.Array, logits_name: str, shape: tuple[int, ...], axis: tuple[int, ...]
) -> int:
    """Check integer `labels` against logits of `shape`; return the class axis."""
    if len(axis) != 1:
        raise ValueError(
            f"axis: expected a single axis because {name} holds class indices, got {axis}."
        )
    expected = shape[: axis[0]] + shape[axis[0] + 1 :]
    if labels.shape != expected:
        raise ValueError(
            f"{name}: expected class indices of shape {expected}, the shape of {logits_name} "
            f"{shape} without axis {axis[0]}, got {labels.shape}."
        )
    return axis[0]
