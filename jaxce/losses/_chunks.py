"""Functions of logits that are the product of inputs and a kernel, a chunk of tokens at a time.

The logits of all tokens never exist. What is asked for decides how often those of a chunk are made:

- `per_token` gives one value per token. In reverse mode the logits of each chunk are made again,
  but not what the loss `knows` of them: four products of the size of the logits for a value and all
  gradients.
- `weighted_total` gives one number, whose gradients are formed while the logits of a chunk are
  there: three products, as many as a layer without any loss after it needs.

Both are differentiable in forward and in reverse mode, to every order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jaxce import _axes
from jaxce._numerics import wide, wide_dtype
from jaxce.losses._cuts import Strides, Windows
from jaxce.losses._linear_map import linear_map
from jaxce.losses._reduction import left_out

# Each part of a kernel's gradient is added in its turn: beside the gradient no second one is alive.
# On a CPU a part, and what it is made of, is 2 MB: it is still in the cache when it is added.
_PARTS = 4
_PART_ELEMENTS = 2**19


class Head(NamedTuple):
    """One linear layer: inputs [tokens, features], kernel, and bias [classes] or None."""

    inputs: Any
    kernel: Any
    bias: Any


class Plan(NamedTuple):
    """What is known before any number is."""

    # (logits, tokens, shared, known) -> (values, what is now known), both per token. What is known
    # is None at first; a loss that knows it already makes no sums over the classes.
    loss: Callable[..., tuple[Any, Any]]
    chunk: int  # tokens whose logits are alive at a time
    spread: bool  # whether the tokens may be spread over devices
    class_axis: int  # of the kernels: 0 or 1
    names: tuple[str, ...]  # mesh axes that the classes are spread over
    dtype: jnp.dtype  # in which gradients of kernels are summed


def _dot(a: Array, b: Array, over: tuple[int, int], dtype: jnp.dtype) -> Array:
    dims = (((over[0],), (over[1],)), ((), ()))
    return lax.dot_general(a, b, dims, preferred_element_type=dtype)


def _logits(plan: Plan, x: Array, kernel: Array, bias: Array | None) -> Array:
    y = _dot(x, kernel, (1, 1 - plan.class_axis), wide_dtype(x.dtype))
    return y if bias is None else y + bias.astype(y.dtype).reshape(1, -1)


def _cut(plan: Plan, heads: tuple[Head, ...]) -> Strides | Windows:
    # Chunks are read out of the inputs where they lie, and their gradients written likewise.
    return (Strides if plan.spread else Windows)(heads[0].inputs.shape[0], plan.chunk)


def per_token(plan: Plan, heads: tuple[Head, ...], shared: Any, tokens: Any) -> Any:
    """Return plan.loss for every token, a pytree of arrays [tokens]."""
    return _values_and_known(plan, heads, shared, tokens)[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _values_and_known(
    plan: Plan, heads: tuple[Head, ...], shared: Any, tokens: Any
) -> tuple[Any, Any]:
    return _values(plan, heads, shared, tokens)


@partial(_values_and_known.defjvp, symbolic_zeros=True)
def _(plan, primals, tangents):
    values, known = _values_and_known(plan, *primals)
    given = _moving(tangents[:2])
    wanted = tuple(i for i, _ in given)

    def along(operands: Any, moved: list[Array]) -> Any:
        """Return how the values move with the wanted leaves."""
        (heads, shared, tokens), known = operands
        leaves, structure = jax.tree.flatten((heads, shared))

        def values_of(some: list[Array]) -> Any:
            new = dict(zip(wanted, some, strict=True))
            heads, shared = structure.unflatten([new.get(i, x) for i, x in enumerate(leaves)])
            return _values(plan, heads, shared, tokens, known)[0]

        return jax.jvp(values_of, ([leaves[i] for i in wanted],), (moved,))[1]

    def against(operands: Any, cotangents: Any) -> list[Array]:
        (heads, shared, tokens), known = operands
        gradients = _sweep(plan, (heads, shared, tokens, cotangents), wanted, known)[1]
        leaves = jax.tree.leaves((heads, shared))
        return [_axes.gradient_of(leaves[i], g) for i, g in zip(wanted, gradients, strict=True)]

    change = linear_map(along, against, (primals, known), [t for _, t in given])
    return (values, known), (change, jax.tree.map(jnp.zeros_like, known))


def _values(
    plan: Plan, heads: tuple[Head, ...], shared: Any, tokens: Any, known: Any = None
) -> tuple[Any, Any]:
    # Before the loop, so that gradients are summed over devices once and not in each turn.
    heads = _axes.varying(heads, _axes.varying_over((heads, tokens)))
    # Not over the classes: what all devices agree on stays known to be the same.
    shared, tokens = _axes.varying(
        (shared, tokens), _axes.varying_over((heads, tokens)) - {*plan.names}
    )

    cut = _cut(plan, heads)
    views = jax.tree.map(cut.view, ([head.inputs for head in heads], tokens, known))

    @partial(jax.checkpoint, prevent_cse=False)
    def chunk(index: Array) -> Any:
        inputs, own, own_known = jax.tree.map(lambda x: cut.read(x, index), views)
        logits = tuple(
            _logits(plan, x, head.kernel, head.bias) for x, head in zip(inputs, heads, strict=True)
        )
        return plan.loss(logits, own, shared, own_known)

    return jax.tree.map(cut.in_order, lax.map(chunk, jnp.arange(cut.chunks)))


def _total(values: Array, weights: Array) -> Array:
    return jnp.sum(_axes.products(weights, left_out(weights, values)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def weighted_total(
    plan: Plan, heads: tuple[Head, ...], shared: Any, tokens: Any, weights: Array
) -> Array:
    """Return the sum over tokens of weight times plan.loss; a weight of 0 leaves a token out."""
    return _total(per_token(plan, heads, shared, tokens), weights)


@partial(weighted_total.defjvp, symbolic_zeros=True)
def _(plan, primals, tangents):
    weights = primals[-1]
    *moving, _, d_weights = tangents
    given = _moving(moving)
    values, gradients = _with_gradients(plan, primals, tuple(i for i, _ in given))
    total = _total(values, weights)
    change = jnp.zeros_like(total)
    for gradient, (_, tangent) in zip(gradients, given, strict=True):
        products = _axes.products(tangent.astype(gradient.dtype), gradient)
        inner = jnp.sum(products).astype(total.dtype)
        partial_over = (
            _axes.varying_over(inner) & {*plan.names}
            if _axes.varying_over(primals)
            else {*plan.names}
        )
        change = change + (lax.psum(inner, tuple(sorted(partial_over))) if partial_over else inner)
    if not isinstance(d_weights, SymbolicZero):
        change = change + jnp.sum(_axes.products(d_weights, left_out(weights, values)))
    return total, change


def _moving(tangents: Any) -> list[tuple[int, Array]]:
    """Return the tangents that there are, each with the number of its leaf."""
    leaves = jax.tree.leaves(tangents, is_leaf=lambda x: isinstance(x, SymbolicZero))
    return [(i, t) for i, t in enumerate(leaves) if not isinstance(t, SymbolicZero)]


@partial(jax.custom_jvp, nondiff_argnums=(0, 2))
def _with_gradients(
    plan: Plan, operands: tuple[Any, ...], wanted: tuple[int, ...]
) -> tuple[Array, list[Array]]:
    heads, *_, weights = operands
    if plan.names and not _axes.varying_over(heads):
        # shard_map(check_vma=False): psum is its own transpose, and sums the share of all devices.
        operands = (*operands[:-1], weights / lax.axis_size(plan.names))
    return _sweep(plan, operands, wanted)


@_with_gradients.defjvp
def _(plan, wanted, primals, tangents):
    # The derivative that JAX would take anyway. Without a rule of its own the loop would lose the
    # rules of the functions inside it where this is differentiated in reverse (JAX 0.10).
    return jax.jvp(lambda operands: _with_gradients.fun(plan, operands, wanted), primals, tangents)


def _sweep(
    plan: Plan, operands: tuple[Any, ...], wanted: tuple[int, ...], known: Any = None
) -> tuple[Any, list[Array]]:
    """Return the values, and the gradients of their weighted sum for the wanted leaves.

    The leaves are those of (heads, shared); values and weights are alike. On a mesh the gradients
    are this device's share.
    """
    heads, shared, tokens, weights = operands
    size = _size(heads, weights)
    if size is not None:
        weights = jax.tree.map(lambda w: w / size.astype(w.dtype), weights)
    leaves, structure = jax.tree.flatten((heads, shared))
    is_wanted = jax.tree.unflatten(structure, [i in wanted for i in range(len(leaves))])

    def zeros(x: Array | None, wants: bool, dtype: Any) -> Array | None:
        return jnp.zeros_like(x, dtype=dtype) if wants and x is not None else None

    cut = _cut(plan, heads)
    varying = _axes.varying_over((heads, tokens, weights))
    agreed = varying - {*plan.names}
    shared = _axes.varying(shared, agreed)
    inputs = [_axes.varying(cut.view(head.inputs), varying) for head in heads]
    tokens, weights, known = _axes.varying(jax.tree.map(cut.view, (tokens, weights, known)), agreed)
    start = (
        [
            Head(
                zeros(x, w.inputs, wide_dtype(x.dtype) if plan.names else x.dtype),
                zeros(head.kernel, w.kernel, plan.dtype),
                zeros(head.bias, w.bias, plan.dtype),
            )
            for x, head, w in zip(inputs, heads, is_wanted[0], strict=True)
        ],
        jax.tree.map(lambda x, w: zeros(x, w, x.dtype), shared, is_wanted[1]),
    )
    start = _axes.varying(start[0], varying), _axes.varying(start[1], agreed)

    def step(sums: Any, index: Array) -> Any:
        own_inputs, own, own_weights, own_known = jax.tree.map(
            lambda x: cut.read(x, index), (inputs, tokens, weights, known)
        )
        logits = tuple(
            _logits(plan, x, head.kernel, head.bias)
            for x, head in zip(own_inputs, heads, strict=True)
        )
        values, pull = jax.vjp(
            lambda logits, shared: plan.loss(logits, own, shared, own_known)[0], logits, shared
        )
        over_logits, over_shared = pull(
            jax.tree.map(
                lambda w, v: cut.counted_once(w, index).astype(v.dtype), own_weights, values
            )
        )
        head_sums, shared_sums = sums
        head_sums = [
            _plus_gradients(plan, total, x, head.kernel, g, partial(cut.write, index=index))
            for total, x, head, g in zip(head_sums, own_inputs, heads, over_logits, strict=True)
        ]
        shared_sums = jax.tree.map(
            lambda a, b: a if a is None else a + b, shared_sums, over_shared, is_leaf=_is_none
        )
        return (head_sums, shared_sums), values

    step = jax.checkpoint(step, prevent_cse=False)
    (head_sums, shared_sums), values = lax.scan(step, start, jnp.arange(cut.chunks))
    gradients = tuple(
        total._replace(inputs=None if total.inputs is None else cut.joined(total.inputs))
        for total in head_sums
    )
    sums = jax.tree.leaves((gradients, shared_sums))
    if size is not None:
        sums = [(wide(g) * size.astype(wide_dtype(g.dtype))).astype(g.dtype) for g in sums]
    return jax.tree.map(cut.in_order, values), sums


def _size(heads: tuple[Head, ...], weights: Any) -> Array | None:
    """Return a power of two near the largest weight where gradients of logits become float16.

    Multiplied by the weights of a mean they would all be 0.
    """
    if all(head.inputs.dtype != jnp.float16 for head in heads):
        return None
    tops = [jnp.max(jnp.abs(w), initial=0) for w in jax.tree.leaves(weights)]
    top = lax.stop_gradient(reduce(jnp.maximum, tops))
    sound = jnp.isfinite(top) & (top > 0)
    return jnp.where(sound, jnp.exp2(jnp.floor(jnp.log2(jnp.where(sound, top, 1)))), 1)


def _is_none(x: Any) -> bool:
    return x is None


def _plus_gradients(
    plan: Plan,
    total: Head,
    x: Array,
    kernel: Array,
    g: Array,
    write: Callable[[Array, Array], Array],
) -> Head:
    """Add what a chunk, of logits with gradient g, gives to the gradients that are wanted."""
    over_inputs, over_kernel, over_bias = total
    narrow = g.astype(x.dtype)
    if over_inputs is not None:
        own = _dot(narrow, kernel, (1, plan.class_axis), over_inputs.dtype)
        over_inputs = write(over_inputs, own)
    if over_kernel is not None:
        over_kernel = _plus_product(plan, over_kernel, x, narrow)
    if over_bias is not None:
        over_bias = over_bias + jnp.sum(g, 0).astype(over_bias.dtype)
    return Head(over_inputs, over_kernel, over_bias)


def _plus_product(plan: Plan, total: Array, x: Array, g: Array) -> Array:
    """Return total plus the gradient of the kernel, x^T g or its transpose."""
    # Of classes that may be spread over devices none are picked out: a few features at a time.
    axis = 1 - plan.class_axis if plan.spread else plan.class_axis
    size = -(-total.shape[axis] // _PARTS)
    if not plan.spread and jax.default_backend() == "cpu":
        size = max(_PART_ELEMENTS // sum(x.shape) // 128, 2) * 128
    cut = Windows(total.shape[axis], min(size, total.shape[axis]))

    # A product takes rows at twice the speed, and only a loop keeps it from taking columns.
    turned, over = (x.T, 1) if plan.class_axis and cut.chunks > 1 else (x, 0)

    def part(index: Array) -> Array:
        a, b = turned, g
        if plan.spread:
            a = cut.read_once(a, index, 1 - over)
        else:
            b = cut.read_once(b, index, 1)
        if plan.class_axis:
            return _dot(a, b, (over, 0), total.dtype)
        return _dot(b, a, (0, over), total.dtype)

    def plus_part(total: Array, index: Array) -> tuple[Array, None]:
        old = cut.read(total, index, axis)
        return cut.write(total, old + part(index), index, axis), None

    # Unsigned, so that no negative index has to be looked for: with one index for what is read and
    # what is written, the compiler adds in place.
    return lax.scan(plus_part, total, jnp.arange(cut.chunks, dtype=jnp.uint32))[0]
