"""The one way in which public measures are compiled."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

F = TypeVar("F", bound=Callable[..., object])


def jit_measure(*static: str) -> Callable[[F], F]:
    """Compile a measure with static keywords, keeping its signature for readers and type checkers.

    An eager call in a notebook is then one fused kernel, and what a formula does not need is never
    computed. A static argument may be a list, of axes for example: it becomes a tuple, which jit
    can tell from others.
    """

    def decorate(function: F) -> F:
        compiled = jax.jit(function, static_argnames=static)
        if not static:
            return cast(F, compiled)
        names = list(inspect.signature(function).parameters)

        def hashable(name: str, value: Any) -> Any:
            return tuple(value) if isinstance(value, list) and name in static else value

        @functools.wraps(function)
        def measure(*args: Any, **keywords: Any) -> object:
            return compiled(
                *(hashable(name, a) for name, a in zip(names, args, strict=False)),
                *args[len(names) :],
                **{name: hashable(name, a) for name, a in keywords.items()},
            )

        return cast(F, measure)

    return decorate
