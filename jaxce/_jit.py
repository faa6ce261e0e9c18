"""The one way in which public measures are compiled."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np

from jaxce import _checks

F = TypeVar("F", bound=Callable[..., object])


def jit_measure(*static: str) -> Callable[[F], F]:
    """Compile a measure with static keywords, keeping its signature for readers and type checkers.

    An eager call in a notebook is then one fused kernel, and what a formula does not need is never
    computed. A static argument may be a list, of axes for example: it becomes a tuple, which jit
    can tell from others. Integers that jit would cut to 32 bits are refused.
    """

    def decorate(function: F) -> F:
        compiled = jax.jit(function, static_argnames=static)
        names = list(inspect.signature(function).parameters)

        def checked(name: str, value: Any) -> Any:
            if isinstance(value, np.ndarray):
                _checks.fits(name, value)
            return tuple(value) if isinstance(value, list) and name in static else value

        @functools.wraps(function)
        def measure(*args: Any, **keywords: Any) -> object:
            return compiled(
                *(checked(name, a) for name, a in zip(names, args, strict=False)),
                *args[len(names) :],
                **{name: checked(name, a) for name, a in keywords.items()},
            )

        return cast(F, measure)

    return decorate
