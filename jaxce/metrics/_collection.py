"""Several metrics of the same batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self, cast

from jax import Array
from jax.typing import ArrayLike

from jaxce._jit import jit_measure
from jaxce.metrics._batch import Batch
from jaxce.metrics._metric import Metric, registered
from jaxce.metrics._pooled import Mean
from jaxce.metrics._totals import Total

_TAKEN = ("bad_labels", "bytes", "labels", "logits", "where", "weights")


@registered
@dataclass(frozen=True)
class Collection(Metric):
    """Several metrics of the same batches: what they share is computed once per batch.

    All of them count the same examples: those that `where` and `weights` leave in, less those with
    a bad label. How many labels were bad is computed as `"bad_labels"`. A `Mean` in a collection
    takes its values from the keyword that bears its name.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxce.metrics import Accuracy, CrossEntropy
        >>> state = Collection.empty(bits=CrossEntropy.empty(base=2), top1=Accuracy.empty())
        >>> state = state.update(jnp.zeros((3, 2)), jnp.array([0, 1, 7]))
        >>> print({name: float(value) for name, value in state.compute().items()})
        {'bits': 1.0, 'top1': 0.5, 'bad_labels': 1.0}
        >>> print(state["bits"].compute())
        1.0
    """

    members: tuple[Metric, ...]
    bad_labels: Total
    names: tuple[str, ...] = field(metadata={"static": True})

    @classmethod
    def empty(cls, **members: Metric) -> Self:
        """Return a collection of metrics, usually empty ones.

        Args:
            **members: Metrics by name.

        Raises:
            TypeError: If a member is no metric, or a collection.
            ValueError: If a name is taken by an argument of `update` or by `bad_labels`.
        """
        for name, member in members.items():
            if not isinstance(cast(object, member), Metric) or isinstance(member, Collection):
                raise TypeError(
                    f"{name}: expected a metric, for example CrossEntropy.empty(), "
                    f"got {type(member).__name__}."
                )
            if name in _TAKEN:
                raise ValueError(f"{name}: expected another name, one not in {_TAKEN}.")
        return cls(tuple(members.values()), Total.empty(), tuple(members))

    def __getitem__(self, name: str) -> Metric:
        """Return one of the metrics."""
        if name not in self.names:
            raise KeyError(f"name: expected one of {self.names}, got {name!r}.")
        return self.members[self.names.index(name)]

    @jit_measure()
    def update(
        self,
        logits: ArrayLike,
        labels: ArrayLike | None = None,
        where: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        *,
        bytes: ArrayLike | None = None,
        **values: ArrayLike,
    ) -> Self:
        """Return the collection with one more batch in each metric; see `CrossEntropy.update`.

        Args:
            logits: Predicted logits or log-probabilities, [..., classes].
            labels: True class indices or distributions; only entropies do without.
            where: Boolean: the examples that count, or the classes that exist.
            weights: Weights of the examples.
            bytes: Bytes of text per token, for `BitsPerByte`.
            **values: One value per example for each `Mean`, by its name.

        Returns:
            A new collection; this one stays as it is.

        Raises:
            TypeError: If a dtype does not fit, something that a metric needs is missing, or values
                are given that no `Mean` is named for.
            ValueError: If a shape does not fit.
        """
        means = {n for n, m in zip(self.names, self.members, strict=True) if isinstance(m, Mean)}
        if values.keys() != means:
            raise TypeError(
                f"values: expected one keyword for each Mean, {sorted(means)}, "
                f"got {sorted(values)}."
            )
        batch = Batch(logits, labels, where, weights, bytes)
        # The largest k first: the rank that it needs then answers for k = 1 too.
        by_k = sorted(range(len(self.names)), key=lambda i: -getattr(self.members[i], "top_k", 0))
        updated: dict[int, Metric] = {}
        for i in by_k:
            name, member = self.names[i], self.members[i]
            if isinstance(member, Mean):
                updated[i] = member.add_values(batch, batch.per_example(name, values[name]))
            else:
                updated[i] = member.add(batch)
        return type(self)(
            tuple(updated[i] for i in range(len(self.names))),
            self.bad_labels.merge(batch.bad_labels),
            self.names,
        )

    def compute(self) -> dict[str, Array]:
        """Return the value of each metric by name, and how many labels were bad, an integer."""
        results = {n: m.compute() for n, m in zip(self.names, self.members, strict=True)}
        return results | {"bad_labels": self.bad_labels.integer()}
