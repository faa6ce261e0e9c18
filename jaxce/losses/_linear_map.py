"""Linear functions that bring their own transpose.

JAX transposes a linear function operation by operation. Where the transpose can be had in less time
or memory in another way, `linear_map` takes it as a second function. Both may be differentiated, in
both modes and to every order, and mapped by `vmap`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

T = TypeVar("T")
Flat = Callable[[list[Array], list[Array]], list[Array]]


def linear_map(
    function: Callable[[Any, Any], T], transpose: Callable[[Any, T], Any], given: Any, x: Any
) -> T:
    """Return function(given, x), which is linear in x.

    Args:
        function: Of two pytrees of arrays; closes over no traced array.
        transpose: Likewise; of `given` and what has the type of the result, to the type of `x`.
        given: What the linear function depends on.
        x: What it is applied to.
    """
    given_leaves, given_tree = jax.tree.flatten(given)
    x_leaves, x_tree = jax.tree.flatten(x)
    y_tree = jax.tree.structure(jax.eval_shape(function, given, x))

    def flat(f: Callable[[Any, Any], Any], tree: Any) -> Flat:
        def call(given: list[Array], x: list[Array]) -> list[Array]:
            return jax.tree.leaves(f(given_tree.unflatten(given), tree.unflatten(x)))

        return call

    there, back = flat(function, x_tree), flat(transpose, y_tree)
    return y_tree.unflatten(_bind(given_leaves, x_leaves, there, back))


def _bind(given: list[Any], x: list[Any], there: Flat, back: Flat) -> list[Array]:
    return _linear_map.bind(*given, *x, there=there, back=back, count=len(given))


_linear_map = Primitive("linear_map")
_linear_map.multiple_results = True


@_linear_map.def_impl
def _apply(*operands: Array, there: Flat, back: Flat, count: int) -> list[Array]:
    return there([*operands[:count]], [*operands[count:]])


@_linear_map.def_abstract_eval
def _(*types: Any, **parameters: Any) -> list[Any]:
    return jax.make_jaxpr(lambda *operands: _apply(*operands, **parameters))(*types).out_avals


mlir.register_lowering(_linear_map, mlir.lower_fun(_apply, multiple_results=True))


def _jvp(primals: Any, tangents: Any, *, there: Flat, back: Flat, count: int) -> Any:
    given: list[Any] = [*primals[:count]]
    x: list[Any] = [*primals[count:]]
    y = _bind(given, x, there, back)
    changes: list[list[Array]] = []
    moving = [i for i, t in enumerate(tangents[:count]) if not isinstance(t, ad.Zero)]
    if moving:

        def of_moving(*some: Array) -> list[Array]:
            moved = {**dict(enumerate(given)), **dict(zip(moving, some, strict=True))}
            return there([*moved.values()], x)

        start, direction = ([a[i] for i in moving] for a in (primals, tangents))
        changes.append(jax.jvp(of_moving, start, direction)[1])
    dx = tangents[count:]
    if any(not isinstance(t, ad.Zero) for t in dx):
        dx = [ad.instantiate_zeros(t) for t in dx]
        changes.append(_bind(given, dx, there, back))
    return y, [a if not rest else a + rest[0] for a, *rest in zip(*changes, strict=True)]


ad.primitive_jvps[_linear_map] = _jvp


def _transpose(cotangents: Any, *operands: Any, there: Flat, back: Flat, count: int) -> list[Any]:
    y = [ad.instantiate_zeros(c) for c in cotangents]
    x = _bind([*operands[:count]], y, back, there)
    # Some of x may be known after all: zeros, where only the others move.
    unknown = map(ad.is_undefined_primal, operands[count:])
    return [None] * count + [g if u else None for g, u in zip(x, unknown, strict=True)]


ad.primitive_transposes[_linear_map] = _transpose


def _batch(operands: Any, dims: Any, *, there: Flat, back: Flat, count: int) -> Any:
    size = next(a.shape[d] for a, d in zip(operands, dims, strict=True) if d is not None)
    given, of_given = [*operands[:count]], [*dims[:count]]
    x = [
        jax.numpy.broadcast_to(a, (size, *a.shape)) if d is None else jax.numpy.moveaxis(a, d, 0)
        for a, d in zip(operands[count:], dims[count:], strict=True)
    ]
    there, back = (jax.vmap(f, (of_given, 0)) for f in (there, back))
    y = _bind(given, x, there, back)
    return y, [0] * len(y)


batching.primitive_batchers[_linear_map] = _batch
