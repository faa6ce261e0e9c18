"""Checks of values, for those who want to be told: raised at once, or through checkify inside jit.

The measures and losses never raise for a value; they follow one documented answer per edge, which
for a bad label is NaN. These functions say which value is bad and where. Called with arrays they
raise a ValueError; inside a compiled function they take effect under
`jax.experimental.checkify.checkify`, and without it jax says so.

>>> import jax.numpy as jnp
>>> from jaxce import checks
>>> checks.labels(jnp.array([0, 3, -1]), 3)
Traceback (most recent call last):
    ...
ValueError: labels: expected class indices in [0, 3), got 2 others, the first 3 at flat index 1.
"""

import jax.numpy as jnp
from jax import Array, core
from jax.experimental import checkify
from jax.typing import ArrayLike

from jaxce import _checks

__all__ = ["distribution", "labels", "logits"]


def _check(good: Array, values: Array, message: str) -> None:
    """Raise or record `message` unless every entry of `good` holds.

    The message may name {count}, {value} and {index}: how many are bad, and the first of them.
    """
    bad = ~jnp.ravel(good)
    index = jnp.argmax(bad) if bad.size else jnp.zeros((), jnp.int32)
    details = {
        "count": jnp.sum(bad),
        "value": jnp.ravel(values)[index] if bad.size else jnp.zeros((), values.dtype),
        "index": index,
    }
    if isinstance(good, core.Tracer):
        checkify.check(jnp.all(good), message, debug=False, **details)
    elif bool(jnp.any(bad)):
        raise ValueError(message.format(**{k: v.item() for k, v in details.items()}))


def distribution(
    p: ArrayLike,
    *,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    tolerance: float = 1e-3,
) -> None:
    """Check that p is a distribution: finite, not negative, summing to 1.

    Args:
        p: Probabilities, [..., classes].
        axis: Axis or axes of the classes.
        where: Boolean, broadcastable to `p`: the entries that exist. An example with none passes.
        tolerance: How far the sum may be from 1.

    Raises:
        TypeError: If `p` is not floating.
        ValueError: If a value is NaN, infinite or negative, or a sum is not 1; eagerly.
        jax.experimental.checkify.JaxRuntimeError: The same, from a checkified function's error.

    Example:
        >>> distribution(jnp.array([0.5, 0.6]))
        Traceback (most recent call last):
            ...
        ValueError: p: expected sums of 1, got 1 other, the first 1.100000023841858 at flat index 0.
    """
    p = _checks.floating("p", p)
    axes = _checks.axes(axis, p.ndim, "p")
    mask = _checks.mask(where, p.shape, "p")
    p = p if mask is None else jnp.where(mask, p, 0)
    _check(
        jnp.isfinite(p) & (p >= 0),
        p,
        "p: expected finite probabilities of at least 0, got {count} others, the first {value} "
        "at flat index {index}.",
    )
    total = jnp.sum(p, axes)
    good = jnp.abs(total - 1) <= tolerance
    if mask is not None:
        good = good | ~jnp.any(mask, axes)
    _check(
        good,
        total,
        "p: expected sums of 1, got {count} other, the first {value} at flat index {index}.",
    )


def labels(labels: ArrayLike, num_classes: int, *, ignore_index: int | None = None) -> None:
    """Check that labels are class indices.

    Args:
        labels: Class indices, integers of any shape.
        num_classes: How many classes there are.
        ignore_index: A label that is allowed besides.

    Raises:
        TypeError: If `labels` is not integer.
        ValueError: If a label is not in [0, num_classes); eagerly.
        jax.experimental.checkify.JaxRuntimeError: The same, from a checkified function's error.

    Example:
        >>> labels(jnp.array([0, 2, -100]), 3, ignore_index=-100)
    """
    y = _checks.integers("labels", labels)
    good = (y >= 0) & (y < num_classes)
    if ignore_index is not None:
        good = good | (y == ignore_index)
    _check(
        good,
        y,
        f"labels: expected class indices in [0, {num_classes}), got {{count}} others, the first "
        "{value} at flat index {index}.",
    )


def logits(
    x: ArrayLike, *, axis: int | tuple[int, ...] = -1, where: ArrayLike | None = None
) -> None:
    """Check that x are logits of distributions: no NaN, no +inf, and not every one -inf.

    Args:
        x: Logits, [..., classes].
        axis: Axis or axes of the classes.
        where: Boolean, broadcastable to `x`: the entries that exist. An example with none passes.

    Raises:
        TypeError: If `x` is not floating.
        ValueError: If a value is NaN or +inf, or an example has no class; eagerly.
        jax.experimental.checkify.JaxRuntimeError: The same, from a checkified function's error.

    Example:
        >>> logits(jnp.array([0.0, -jnp.inf]))
        >>> logits(jnp.array([0.0, jnp.nan]))
        Traceback (most recent call last):
            ...
        ValueError: x: expected logits without NaN or +inf, got 1, the first nan at flat index 1.
    """
    x = _checks.floating("x", x)
    axes = _checks.axes(axis, x.ndim, "x")
    mask = _checks.mask(where, x.shape, "x")
    x = x if mask is None else jnp.where(mask, x, -jnp.inf)
    _check(
        x < jnp.inf,
        x,
        "x: expected logits without NaN or +inf, got {count}, the first {value} "
        "at flat index {index}.",
    )
    left = jnp.any(x > -jnp.inf, axes)
    if mask is not None:
        left = left | ~jnp.any(mask, axes)
    _check(
        left,
        jnp.sum(jnp.ones_like(x), axes),
        "x: expected a class with a logit above -inf in every example, got {count} without, the "
        "first at flat index {index}.",
    )
