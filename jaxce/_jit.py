"""The one way in which public measures are compiled."""

from collections.abc import Callable
from typing import TypeVar, cast

import jax

F = TypeVar("F", bound=Callable[..., object])


def jit_measure(*static: str) -> Callable[[F], F]:
    """Compile a measure with static keywords, keeping its signature for readers and type checkers.

    An eager call in a notebook is then one fused kernel, and what a formula does not need is never
    computed.
    """

    def decorate(function: F) -> F:
        return cast(F, jax.jit(function, static_argnames=static))

    return decorate
