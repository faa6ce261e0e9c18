"""How the tokens of a batch are cut into chunks, for a loop over the numbers of the chunks.

A cut says what chunks are read from (its `view` of an array with tokens along the first axis),
reads and writes one, and puts together what came of all. `Strides` that divide the batch, and all
`Windows`, copy nothing of the size of the batch.
"""

import jax.numpy as jnp
from jax import Array, lax


def _count(tokens: int, chunk: int) -> int:
    return -(-tokens // chunk) if tokens else 1  # one without tokens


class Strides:
    """Chunks of tokens from all over the batch, so that they stay spread over devices as it is."""

    def __init__(self, tokens: int, chunk: int):
        self.tokens, self.chunk, self.chunks = tokens, chunk, _count(tokens, chunk)
        self._missing = chunk * self.chunks - tokens

    def view(self, x: Array) -> Array:
        """Reshape [tokens, ...] to [chunk, chunks, ...], filled up with the last token."""
        if self._missing:
            x = jnp.pad(x, [(0, self._missing)] + [(0, 0)] * (x.ndim - 1), mode="edge")
        return x.reshape(self.chunk, self.chunks, *x.shape[1:])

    def read(self, view: Array, index: Array) -> Array:
        """Return a chunk."""
        return lax.dynamic_index_in_dim(view, index, 1, keepdims=False)

    def write(self, view: Array, own: Array, index: Array) -> Array:
        """Return the view with a chunk replaced."""
        return lax.dynamic_update_index_in_dim(view, own, index, 1)

    def counted_once(self, weights: Array, index: Array) -> Array:
        """Return the weights of a chunk, 0 for what fills it up."""
        if not self._missing:
            return weights
        return jnp.where(jnp.arange(self.chunk) * self.chunks + index < self.tokens, weights, 0)

    def joined(self, view: Array) -> Array:
        """Undo `view`."""
        x = view.reshape(self.chunk * self.chunks, *view.shape[2:])
        return x if x.shape[0] == self.tokens else x[: self.tokens]

    def in_order(self, values: Array) -> Array:
        """Return what there is of each token, given that of chunk after chunk, [chunks, chunk]."""
        return self.joined(jnp.moveaxis(values, 0, 1))


class Windows:
    """Chunks of neighbours. The first one reaches into the second: there is nothing to pad.

    What the first writes of tokens that are not its own, the second writes again. Along another
    axis the same cuts features or classes.
    """

    def __init__(self, length: int, chunk: int):
        self.chunk, self.chunks = chunk, _count(length, chunk)
        self._own_of_first = length - chunk * (self.chunks - 1)

    def _start(self, index: Array) -> Array:
        return jnp.maximum(self._own_of_first + index * self.chunk, self.chunk) - self.chunk

    def view(self, x: Array) -> Array:
        """Return the array itself."""
        return x

    def read(self, view: Array, index: Array, axis: int = 0) -> Array:
        """Return a chunk."""
        return lax.dynamic_slice_in_dim(view, self._start(index), self.chunk, axis)

    def write(self, view: Array, own: Array, index: Array, axis: int = 0) -> Array:
        """Return the view with a chunk replaced."""
        return lax.dynamic_update_slice_in_dim(view, own, self._start(index), axis)

    def counted_once(self, weights: Array, index: Array, axis: int = 0) -> Array:
        """Return the weights of a chunk, 0 for what a later one has as well."""
        if self._own_of_first == self.chunk:
            return weights
        at = lax.broadcasted_iota(index.dtype, weights.shape, axis)
        return jnp.where((index > 0) | (at < self._own_of_first), weights, 0)

    def read_once(self, view: Array, index: Array, axis: int) -> Array:
        """Return a chunk, 0 where a later one has the same."""
        return self.counted_once(self.read(view, index, axis), index, axis)

    def joined(self, view: Array) -> Array:
        """Undo `view`."""
        return view

    def in_order(self, values: Array) -> Array:
        """Return what there is of each token, given that of chunk after chunk, [chunks, chunk]."""
        flat = values.reshape(-1, *values.shape[2:])
        return jnp.concatenate([flat[: self._own_of_first], flat[self.chunk :]])
