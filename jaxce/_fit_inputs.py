"""What a fit is given, checked by value: unlike a measure, it starts from concrete numbers."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxce import _checks

# How far a sum of probabilities may be from 1: what rounding each of them to bfloat16 can do.
_ROUNDING = 2.0**-8


def problem(target: ArrayLike, init_logits: ArrayLike | None) -> tuple[Array, Array, Array | None]:
    """Return the target, the start and which classes take part (None: all), in one shape."""
    p = _checks.floating("target", target)
    if not p.ndim or not p.shape[-1]:
        raise ValueError(f"target: expected shape [..., classes], got {p.shape}.")
    start = (
        jnp.zeros_like(p) if init_logits is None else _checks.floating("init_logits", init_logits)
    )
    dtype = np.promote_types(p.dtype, start.dtype)
    if start.ndim == p.ndim and start.shape[-1] != p.shape[-1]:
        raise ValueError(
            f"init_logits: expected {p.shape[-1]} classes as in target, got {start.shape[-1]}."
        )
    shape = _checks.broadcast("target", p.shape, "init_logits", start.shape)

    p64 = _normalized(_float64(p))
    start64 = _float64(start)
    _refuse("init_logits", start64, np.isnan(start64) | (start64 == np.inf), "logits below +inf")
    p64, start64 = np.broadcast_to(p64, shape), np.broadcast_to(start64, shape)
    live = start64 > -np.inf
    stuck = (p64 > 0) & ~live
    _refuse("init_logits", start64, stuck, "finite logits where target has mass")

    some = None if live.all() else jnp.asarray(live)
    return jnp.asarray(p64, dtype), jnp.asarray(np.where(live, start64, 0), dtype), some


def _float64(x: Array) -> np.ndarray:
    return np.asarray(jax.device_get(x), np.float64)


def _normalized(p: np.ndarray) -> np.ndarray:
    """Return `p` over its sum, if it is a distribution already, up to rounding."""
    _refuse("target", p, ~np.isfinite(p) | (p < 0), "probabilities from 0 to 1")
    total = p.sum(-1, keepdims=True)
    far = np.abs(total - 1) > _ROUNDING
    _refuse(
        "target", total, far, "probabilities that sum to 1 over the last axis", "a sum of ",
        " Divide weights or counts by their sum first.",
    )  # fmt: skip
    return p / total


def _refuse(
    name: str, values: np.ndarray, bad: np.ndarray, expected: str, what: str = "", hint: str = ""
) -> None:
    """Raise a ValueError that shows the first bad value and where it is."""
    if not bad.any():
        return
    where = tuple(int(i) for i in np.argwhere(bad)[0])
    place = where if not what else where[:-1]
    at = f" at {name}[{', '.join(map(str, place))}]" if place else ""
    raise ValueError(f"{name}: expected {expected}, got {what}{values[where]:.6g}{at}.{hint}")


def strides(steps: int, record_every: int) -> np.ndarray:
    """Return the number of steps before each record; the first record comes before all of them."""
    steps = _whole("steps", steps, 0)
    every = _whole("record_every", record_every, 1)
    full, rest = divmod(steps, every)
    before = np.full(1 + full + (rest > 0), every, np.int32)
    before[0], before[-1] = (0, rest or every) if steps else (0, 0)
    return before


def _whole(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}.") from None
    if not least <= number < 2**31:
        raise ValueError(f"{name}: expected an integer from {least} to 2**31 - 1, got {number}.")
    return number
