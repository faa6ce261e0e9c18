"""Metrics that are one sum over one weight, divided once: never a mean of means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxce import _checks
from jaxce._jit import jit_measure
from jaxce.metrics._batch import Batch, Examples
from jaxce.metrics._metric import Metric, registered
from jaxce.metrics._totals import Total


@registered
@dataclass(frozen=True)
class Mean(Metric):
    r"""Mean of any values: losses, rewards, lengths.

    $$ \bar v = \frac{\sum_i w_i v_i}{\sum_i w_i} $$

    Example:
        >>> import jax.numpy as jnp
        >>> state = Mean.empty().update(jnp.array([1.0, 2.0]))
        >>> print(state.update(jnp.array([6.0])).compute())
        3.0

    Source: Ogita, Rump & Oishi, "Accurate Sum and Dot Product" (2005), for the sums.
    """

    total: Total
    weight: Total

    @classmethod
    def empty(cls) -> Self:
        """Return a metric that has seen nothing."""
        return cls(Total.empty(), Total.empty())

    @jit_measure()
    def update(
        self, values: ArrayLike, where: ArrayLike | None = None, weights: ArrayLike | None = None
    ) -> Self:
        """Return the metric with more values in it.

        Args:
            values: Values of any shape; integers are added up exactly.
            where: Boolean, broadcastable to `values`: those that count. The others may be NaN.
            weights: Weights, broadcastable to `values`; 1 if None. 0 leaves a value out.

        Returns:
            A new metric; this one stays as it is.

        Raises:
            TypeError: If `values` is complex or `where` not boolean.
            ValueError: If a shape does not fit.
        """
        shape = jnp.shape(_checks.array("values", values))
        examples = Examples(shape, _checks.mask(where, shape, "values"), weights)
        return self.add_values(examples, examples.per_example("values", values))

    def add_values(self, examples: Examples, values: Array) -> Self:
        """Return the metric with one more value per example."""
        return replace(
            self,
            total=self.total.merge(examples.total(values)),
            weight=self.weight.merge(examples.weight),
        )

    @jit_measure()
    def compute(self) -> Array:
        """Return the mean; NaN if nothing has been seen."""
        return self.total.over(self.weight)[0]


@dataclass(frozen=True)
class Pooled(Metric):
    """The mean of one number per example, which a subclass names."""

    total: Total
    weight: Total
    bad_labels: Total

    @jit_measure()
    def update(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        where: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> Self:
        """Return the metric with one more batch in it.

        Args:
            logits: Predicted logits or log-probabilities, [..., classes].
            labels: True class indices, integer, [...], or distributions, floating, [..., classes].
                An index out of range is counted in `bad_labels` and else left out.
            where: Boolean, [...]: the examples that count. What is in the others, be it NaN, does
                not matter. Or [..., classes]: the classes that exist.
            weights: Weights of the examples, [...]; 1 if None. 0 leaves an example out.

        Returns:
            A new metric; this one stays as it is.

        Raises:
            TypeError: If a dtype does not fit.
            ValueError: If a shape does not fit.
        """
        return self.add(Batch(logits, labels, where, weights))

    def add(self, batch: Batch) -> Self:
        """Return the metric with one more batch in it."""
        return replace(
            self,
            total=self.total.merge(self._total(batch)),
            weight=self.weight.merge(batch.weight),
            bad_labels=self.bad_labels.merge(batch.bad_labels),
        )

    def _total(self, batch: Batch) -> Total:
        """Return the weighted sum over the examples of a batch."""
        raise NotImplementedError

    @jit_measure()
    def compute(self) -> Array:
        """Return the mean over all examples; NaN if there are none."""
        return self.total.over(self.weight)[0]


def nothing() -> tuple[Total, Total, Total]:
    """The totals of a pooled metric that has seen nothing."""
    return Total.empty(), Total.empty(), Total.empty()
