"""jaxce's metrics inside a `flax.nnx.MultiMetric`.

This module needs flax, which `import jaxce` does not.

>>> import jax.numpy as jnp
>>> from flax import nnx
>>> from jaxce import metrics
>>> from jaxce.metrics.nnx import NnxMetric
>>> both = nnx.MultiMetric(
...     perplexity=NnxMetric(metrics.Perplexity.empty()),
...     loss=NnxMetric(metrics.Mean.empty(), "loss"),
... )
>>> both.update(logits=jnp.zeros((2, 4)), labels=jnp.array([0, 3]), loss=jnp.ones(2))
>>> print(both.compute()["perplexity"])
4.0
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from jaxce.metrics._metric import Metric

__all__ = ["NnxMetric"]


class NnxMetric(nnx.Metric):
    """A metric that flax updates in place.

    Args:
        metric: An empty metric, for example `CrossEntropy.empty()`.
        values: For a `Mean`: the keyword that holds its values, as in `nnx.metrics.Average`.
    """

    def __init__(self, metric: Metric, values: str = "values"):
        self.state: nnx.metrics.MetricState = nnx.metrics.MetricState(metric)
        self.values = values

    def reset(self) -> None:
        """Forget all that has been seen."""
        self.state.set_value(jax.tree.map(jnp.zeros_like, self.state.get_value()))

    def update(self, *, mask: ArrayLike | None = None, **given: Any) -> None:
        """Add a batch; keywords that are meant for other metrics are left alone.

        Args:
            mask: Flax's name for `where`.
            **given: Arguments of the metric's own `update`, among others.
        """
        metric: Any = self.state.get_value()
        if mask is not None:
            given["where"] = mask
        if self.values in given:
            given["values"] = given[self.values]
        taken = inspect.signature(metric.update).parameters
        names = (*taken, *getattr(metric, "names", ()))  # a collection takes values of its means
        given = {name: value for name, value in given.items() if name in names}
        self.state.set_value(metric.update(**given))

    def compute(self) -> Any:
        """Return the value of the metric."""
        return self.state.get_value().compute()
