"""From one loss per example to one loss per batch: sums and counts, divided once."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxce import _axes, _checks

AxisName = str | tuple[str, ...] | None


def mesh_axes(axis_name: AxisName) -> tuple[str, ...]:
    """Return the names of mesh axes as a tuple."""
    return () if axis_name is None else (axis_name,) if isinstance(axis_name, str) else axis_name


def counted(weights: Array, values: Array) -> Array:
    """Return weights * values, 0 where the weight is 0 and the value infinite."""
    return weights * jnp.where((weights == 0) & jnp.isinf(values), 0, values)


def left_out(weights: Array, values: Array) -> Array:
    """Return the values of examples, 0 for what is not finite where the weight is 0.

    What is finite stays: it is the derivative over the weight.
    """
    return jnp.where((weights == 0) & ~jnp.isfinite(values), 0, values)


def sum_and_count(
    values: ArrayLike,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
) -> tuple[Array, Array]:
    r"""Sum of the values that count, and how many, or how much weight, that is.

    $$ S = \sum_i w_i v_i, \qquad C = \sum_i w_i $$

    Add both over microbatches, devices or hosts and divide once: a mean of means is another number
    wherever the counts differ.

    Args:
        values: One value per example, any shape.
        where: Boolean, broadcastable to `values`: those that count. The others may be NaN.
        weights: Weights, broadcastable to `values`; 1 if None.
        axis_name: Mesh axis or axes to sum over as well, inside `shard_map` or `vmap`.

    Returns:
        The sum and the count, two scalars.

    Raises:
        TypeError: If `values` is not floating or `where` not boolean.
        ValueError: If a shape does not fit.

    Example:
        >>> print(*sum_and_count(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([True, True, False])))
        3.0 2.0
    """
    return _sum_and_count(values, where, weights, axis_name=axis_name)


@partial(jax.jit, static_argnames="axis_name")
def _sum_and_count(
    values: ArrayLike,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    *,
    axis_name: AxisName,
) -> tuple[Array, Array]:
    v = _checks.floating("values", values)
    mask = _checks.mask(where, v.shape, "values")
    w = jnp.ones_like(v)
    if weights is not None:
        w = _checks.real("weights", weights, v.dtype)
        try:
            w = jnp.broadcast_to(w, v.shape)
        except ValueError:
            raise ValueError(
                f"weights: expected a shape that broadcasts to {v.shape}, the shape of values, "
                f"got {w.shape}."
            ) from None
    if mask is not None:
        v, w = jnp.where(mask, v, 0), jnp.where(mask, w, 0)
    total, count = jnp.sum(_axes.products(w, left_out(w, v))), jnp.sum(w)
    return (total, count) if axis_name is None else lax.psum((total, count), axis_name)


def mean(
    values: ArrayLike,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
) -> Array:
    r"""Mean of the values that count; 0 with gradient 0 where nothing does.

    $$ \bar v = \frac{\sum_i w_i v_i}{\sum_i w_i} $$

    Args:
        values: One value per example, any shape.
        where: Boolean, broadcastable to `values`: those that count. The others may be NaN.
        weights: Weights, broadcastable to `values`. With the class weight of each label this is the
            weighted mean whose denominator is the sum of weights; for the one whose denominator is
            the number of examples, weight the losses and take their plain mean.
        axis_name: Mesh axis or axes to average over as well, inside `shard_map` or `vmap`: the
            exact mean over all devices, however many examples each has.

    Returns:
        The mean, a scalar.

    Raises:
        TypeError: If `values` is not floating or `where` not boolean.
        ValueError: If a shape does not fit.

    Example:
        >>> print(mean(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([True, True, False])))
        1.5
    """
    total, count = sum_and_count(values, where, weights, axis_name=axis_name)
    return jnp.where(count == 0, 0, total / jnp.where(count == 0, 1, count))
