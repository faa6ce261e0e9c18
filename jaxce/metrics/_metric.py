"""What every metric has: how two of them become one, within a process and across devices."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import jax
from jax.tree_util import GetAttrKey

from jaxce._jit import jit_measure
from jaxce.metrics._totals import AxisName, Total

if TYPE_CHECKING:
    from jaxce.metrics._batch import Batch


M = TypeVar("M", bound="Metric")


def registered(cls: type[M]) -> type[M]:
    """Make a pytree of a dataclass, whose kind is part of its structure.

    `jax.tree_util.register_dataclass` does the same, but in JAX 0.10 to 0.12 the structures of two
    kinds compare as equal where their static fields do: what was compiled for one kind may then,
    rarely, be run for the other.
    """
    all_fields = fields(cast(Any, cls))
    static = [f.name for f in all_fields if f.metadata.get("static")]
    data = [f.name for f in all_fields if f.name not in static]

    def flatten(metric: M) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(GetAttrKey(name), getattr(metric, name)) for name in data]
        return children, (cls, *(getattr(metric, name) for name in static))

    def unflatten(kind: tuple[Any, ...], children: Any) -> M:
        return cls(
            **dict(zip(data, children, strict=True)), **dict(zip(static, kind[1:], strict=True))
        )

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


def _is_total(x: object) -> bool:
    return isinstance(x, Total)


class Metric:
    """A registered dataclass whose data are totals, and whose other fields are static."""

    def add(self, batch: Batch) -> Self:
        """Return the metric with one more batch in it."""
        raise NotImplementedError

    def compute(self) -> Any:
        """Return the value of the metric."""
        raise NotImplementedError

    def merge(self, other: Self) -> Self:
        """Return the metric of what either has seen; the order does not matter.

        Args:
            other: A metric of the same kind and parameters.

        Returns:
            The merged metric.

        Raises:
            TypeError: If the kinds or their parameters differ.
        """
        if jax.tree.structure(self) != jax.tree.structure(other):
            raise TypeError(
                f"other: expected a metric of the same kind and parameters as {_named(self)}, "
                f"got {_named(other)}."
            )
        return _merge(self, other)

    def all_reduce(self, axis_name: AxisName) -> Self:
        """Return the merged metric of all devices, the same on each; inside `shard_map` or `vmap`.

        Reduce the metric of a batch, then merge it into the running one: a running metric that all
        devices already share would count once for each of them.

        Args:
            axis_name: Mesh axis or axes to merge over.

        Returns:
            The merged metric.
        """
        return jax.tree.map(lambda total: total.all_reduce(axis_name), self, is_leaf=_is_total)


@jit_measure()
def _merge(a: Metric, b: Metric) -> Any:
    return jax.tree.map(Total.merge, a, b, is_leaf=_is_total)


def _named(x: object) -> str:
    """Kind and parameters, without the arrays."""
    own = getattr(x, "__dataclass_fields__", {})
    static = [f"{n}={getattr(x, n)!r}" for n, f in own.items() if f.metadata.get("static")]
    return f"{type(x).__name__}({', '.join(static)})"
