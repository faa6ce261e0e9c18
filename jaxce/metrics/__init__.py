"""Streaming metrics that pool exactly over batches, devices and hosts.

A metric is a small pytree of sums: `empty()` starts one, `update` returns it with one more batch,
`merge` puts two together, `compute` divides, once. All of it works inside `jit`, `scan`, `vmap` and
`shard_map`, and a metric is saved as any pytree is. Sums are kept in two floats: whole numbers are
exact up to 2**46, with or without x64.

>>> import jax.numpy as jnp
>>> from jaxce import metrics
>>> state = metrics.Collection.empty(
...     perplexity=metrics.Perplexity.empty(), top5=metrics.Accuracy.empty(top_k=5)
... )
>>> for tokens in jnp.array([[0, 9], [3, -100]]):
...     state = state.update(jnp.zeros((2, 10)), tokens, where=tokens != -100)
>>> {name: round(float(value), 4) for name, value in state.compute().items()}
{'perplexity': 10.0, 'top5': 0.6667, 'bad_labels': 0.0}

`where` drops padding, labels out of range are counted and never scored, and a metric that has seen
nothing computes NaN, as it does where NaN logits count. Results are float32 or, under x64, float64.
"""

from jaxce.metrics._calibration import CalibrationError, CalibrationTable
from jaxce.metrics._collection import Collection
from jaxce.metrics._decisions import Accuracy, BrierScore
from jaxce.metrics._information import BitsPerByte, CrossEntropy, Entropy, KLDivergence, Perplexity
from jaxce.metrics._pooled import Mean

__all__ = [
    "Accuracy",
    "BitsPerByte",
    "BrierScore",
    "CalibrationError",
    "CalibrationTable",
    "Collection",
    "CrossEntropy",
    "Entropy",
    "KLDivergence",
    "Mean",
    "Perplexity",
]
