"""Metrics of what a classifier would answer, and of how sure it is."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Self

from jaxce.metrics._batch import Batch
from jaxce.metrics._metric import registered
from jaxce.metrics._pooled import Pooled, nothing
from jaxce.metrics._totals import Total


@registered
@dataclass(frozen=True)
class Accuracy(Pooled):
    r"""Share of the examples whose label is among the k most probable classes.

    Of equal logits the first counts as the most probable, as in `jnp.argmax` and `jax.lax.top_k`:
    logits that are all equal score as a guess and not as a hit. For a soft target the label is its
    most probable class.

    Example:
        >>> import jax.numpy as jnp
        >>> logits = jnp.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
        >>> labels = jnp.array([0, 1])
        >>> print(Accuracy.empty().update(logits, labels).compute())
        0.5
        >>> print(Accuracy.empty(top_k=2).update(logits, labels).compute())
        1.0

    Source: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge" (2015), for the
    k first.
    """

    top_k: int = field(default=1, metadata={"static": True})

    @classmethod
    def empty(cls, *, top_k: int = 1) -> Self:
        """Return a metric that has seen nothing.

        Args:
            top_k: How many of the most probable classes count as an answer.

        Raises:
            TypeError: If `top_k` is not an integer.
            ValueError: If `top_k` is not positive.
        """
        return cls(*nothing(), top_k=positive("top_k", top_k))

    def _total(self, batch: Batch) -> Total:
        return batch.hits(batch.correct(self.top_k))


@registered
@dataclass(frozen=True)
class BrierScore(Pooled):
    r"""Mean squared distance of the predicted from the true distribution, between 0 and 2.

    $$ B = \frac{\sum_i w_i \sum_j (q_{ij} - p_{ij})^2}{\sum_i w_i},
       \qquad q = \operatorname{softmax}(x) $$

    A class index is a distribution with all its mass there. For two classes this is twice the
    score that looks at one of them only.

    Example:
        >>> import jax.numpy as jnp
        >>> print(BrierScore.empty().update(jnp.zeros((1, 2)), jnp.array([1])).compute())
        0.5

    Source: Brier, "Verification of Forecasts Expressed in Terms of Probability" (1950).
    """

    @classmethod
    def empty(cls) -> Self:
        """Return a metric that has seen nothing."""
        return cls(*nothing())

    def _total(self, batch: Batch) -> Total:
        return batch.total(batch.brier_score)


def positive(name: str, value: int) -> int:
    """Return a positive integer, refusing others."""
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a positive integer, got {value!r}.") from None
    if value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value}.")
    return value
