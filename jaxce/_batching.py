"""Batches of one size, with a mask of the rows that are real, on the devices they belong to."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxce import _checks

Batch = Any


def sharding_of(mesh: object) -> NamedSharding | None:
    """Return how rows are spread: over the first axis of a mesh, or as a sharding says."""
    if isinstance(mesh, Mesh):
        return NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    if mesh is not None and not isinstance(mesh, NamedSharding):
        raise TypeError(
            f"mesh: expected a jax.sharding.Mesh or NamedSharding, got {type(mesh).__name__}."
        )
    return mesh


def replicated(tree: Any, sharding: NamedSharding | None) -> Any:
    """Return a tree of arrays with a whole copy on each device."""
    if sharding is None:
        return tree
    return jax.device_put(tree, NamedSharding(sharding.mesh, PartitionSpec()))


def beside(tree: Any, batch: Batch) -> Any:
    """Return a tree of arrays on the devices that a batch is committed to, if it is.

    What a step returns is there too, and is not another kind of argument than what it began with.
    """
    for leaf in jax.tree.leaves(batch):
        if isinstance(leaf, Array) and leaf.committed:
            place = leaf.sharding
            if isinstance(place, NamedSharding):
                return replicated(tree, place)
            return jax.device_put(tree, place) if len(place.device_set) == 1 else tree
    return tree


def shards(sharding: NamedSharding | None) -> int:
    """Return into how many parts the rows that this process gives are cut."""
    if sharding is None:
        return 1
    names = sharding.spec[0] if len(sharding.spec) else None
    names = names if isinstance(names, tuple) else (names,)
    parts = math.prod(sharding.mesh.shape[name] for name in names if name is not None)
    return -(-parts // jax.process_count())


def _names(batch: Batch) -> list[str]:
    paths = jax.tree_util.tree_leaves_with_path(batch)
    return [f"batch{jax.tree_util.keystr(path)}" for path, _ in paths]


def _rows(batch: Batch) -> int:
    """Return the length of the first axis, which all arrays of a batch share."""
    lengths = [np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)]
    rows = next(filter(None, lengths), None)
    if rows is None:
        raise ValueError("batch: expected arrays with an axis of examples, got none.")
    for i, length in enumerate(lengths):
        if length not in ((), rows):
            names = _names(batch)
            raise ValueError(
                f"{names[i]}: expected {rows[0]} examples along the first axis, as in "
                f"{names[lengths.index(rows)]}, got {length[0]}."
            )
    return rows[0]


def pieces(
    batches: Iterable[Batch], size: int | None, multiple: int
) -> Iterator[tuple[Batch, int]]:
    """Cut batches that are larger than `size`; yield each piece with the size to fill it up to.

    Args:
        batches: Trees of arrays with rows along their first axes; without an axis, they are kept.
        size: How many rows are a piece. None: as many as the first batch has.
        multiple: `size` is raised to a multiple of this.
    """
    for batch in batches:
        rows = _rows(batch)
        if not (size or rows):
            continue  # no size is known yet
        size = -(-(size or rows) // multiple) * multiple
        if rows <= size:
            yield batch, size
            continue
        for start in range(0, rows, size):
            cut = slice(start, start + size)
            yield (
                jax.tree.map(lambda leaf, cut=cut: leaf[cut] if np.ndim(leaf) else leaf, batch),
                size,
            )


class Placer:
    """Puts pieces on the devices, filled up, and makes their masks.

    A jitted step on a CPU borrows NumPy arrays itself, in a tenth of the time that it takes to put
    them there; it does so unasked, which a transfer guard may forbid.
    """

    def __init__(self, sharding: NamedSharding | None, step: Callable[..., Any]) -> None:
        self._sharding = sharding
        self._lends = (
            sharding is None
            and isinstance(step, jax.stages.Wrapped)
            and jax.default_backend() == "cpu"
            and cast(Any, jax.config).jax_transfer_guard_host_to_device in (None, "allow")
        )
        self._full: Any = None  # the mask of all full pieces

    def __call__(self, piece: Batch, size: int) -> tuple[Batch, Any]:
        """Return a piece with `size` rows, and which of them are real."""
        rows = _rows(piece)
        leaves, structure = jax.tree.flatten(piece)
        filled = [_filled(leaf, size) for leaf in leaves]
        for i, array in enumerate(filled):
            if isinstance(array, np.ndarray) and array.dtype.itemsize == 8:
                _checks.fits(_names(piece)[i], array)
        if rows == size and self._full is not None:
            return jax.tree.unflatten(structure, self._put(filled)), self._full
        *placed, where = self._put([*filled, np.arange(size) < rows])
        if rows == size:
            self._full = where
        return jax.tree.unflatten(structure, placed), where

    def _put(self, arrays: list[np.ndarray | Array]) -> Sequence[Any]:
        if self._lends:
            return arrays
        if self._sharding is None:  # one call for all: each costs a tenth of a millisecond
            return jax.device_put(arrays)
        return [
            jax.device_put(array, self._spread(array))
            if isinstance(array, Array)
            else jax.make_array_from_process_local_data(self._spread(array), array)
            for array in arrays
        ]

    def _spread(self, array: np.ndarray | Array) -> NamedSharding:
        assert self._sharding is not None
        spec = self._sharding.spec if array.ndim else PartitionSpec()
        return NamedSharding(self._sharding.mesh, spec)


def _filled(leaf: Any, size: int) -> np.ndarray | Array:
    """Return an array of `size` rows that nobody else writes to."""
    if np.ndim(leaf) and np.shape(leaf)[0] < size:
        # The rows themselves again, because zeros may be an input that a model divides by.
        array = np.asarray(leaf)
        rows = np.resize(array, (size, *array.shape[1:]))
        rows.flags.writeable = False
        # Where full batches are committed to devices, this one is too: the step is compiled for it.
        committed = isinstance(leaf, Array) and leaf.committed
        leaf = jax.device_put(rows, leaf.sharding) if committed else rows
    if isinstance(leaf, Array):
        return leaf
    array = np.asarray(leaf)
    # On a CPU jax borrows a NumPy array, and a step that is under way would see it change.
    return array.copy() if array.flags.writeable else array
