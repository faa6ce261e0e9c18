"""Huffman's algorithm as array operations: sorting, one loop of merges, and pointer doubling."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def depths(p: jax.Array) -> jax.Array:
    """Return the leaf depths (int32) of the Huffman tree over the positive elements of a vector.

    Elements that are not positive are no leaves and get 0, as the only leaf of a tree does.

    This is van Leeuwen's two-queue form: once the leaves are sorted, the merged nodes come out in
    ascending order by themselves, so the lightest node is always at the head of one of two queues.
    Node k < n is the k-th lightest leaf, node n + k the k-th merge.
    """
    n = p.size
    # Among equals the later element is taken as the lighter one: the earlier gets the shorter word.
    order = n - 1 - jnp.argsort(jnp.where(p > 0, p, jnp.inf)[::-1]).astype(jnp.int32)
    leaves = p[order]
    count = jnp.sum(p > 0, dtype=jnp.int32)

    def merge(k: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        leaf, inner, merged, parent = state
        running = k < count - 1
        weight = jnp.zeros((), p.dtype)
        for _ in range(2):
            a, b = leaves[jnp.minimum(leaf, n - 1)], merged[inner]
            # On a tie the leaf goes first, which keeps the longest codeword short.
            is_leaf = (leaf < count) & ((inner >= k) | (a <= b))
            child = jnp.where(is_leaf, leaf, n + inner)
            parent = parent.at[jnp.where(running, child, 2 * n)].set(n + k, mode="drop")
            weight += jnp.where(is_leaf, a, b)
            leaf = jnp.where(is_leaf, leaf + 1, leaf)
            inner = jnp.where(is_leaf, inner, inner + 1)
        return leaf, inner, merged.at[k].set(weight), parent

    # Zeros made from the data, so that inside `shard_map` they vary over devices as the data does.
    head = count - count
    nodes = jnp.arange(2 * n, dtype=jnp.int32) + head
    state = (head, head, jnp.zeros_like(p) + head.astype(p.dtype), nodes)
    parent = lax.fori_loop(np.int32(0), np.int32(n - 1), merge, state)[-1]

    # After r rounds, `depth` counts up to 2**r ancestors and `parent` is the furthest of them.
    depth = (parent != nodes).astype(jnp.int32)
    for _ in range(n.bit_length()):
        depth, parent = depth + depth[parent], parent[parent]
    return jnp.zeros((n,), jnp.int32).at[order].set(depth[:n])
