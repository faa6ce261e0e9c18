"""What `jaxce evaluate` computes of each batch, and keeps: small, and the same whatever came."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxce import metrics
from jaxce.metrics._batch import Batch
from jaxce.metrics._metric import Metric
from jaxce.metrics._totals import Total

PER_BIT, MOST_BITS = 8, 64  # of the histogram of surprisals; its last bin is what lies beyond

T = TypeVar("T")

# How far log-probabilities may be from normalized: bfloat16 rounds one of -20 by up to 0.06.
_SLACK = 0.1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Surprisals(Metric):
    """A histogram of surprisals; on the way it sees the logits that are no distribution.

    Attributes:
        weight: Weight of the examples in each bin.
        steps: How many batches were seen.
        unsound: Batch and row of the first example whose logits are no distribution; or -1, -1.
        normalized: Whether logits have to be log-probabilities.
    """

    weight: Total
    steps: Array
    unsound: Array
    normalized: bool = field(metadata={"static": True})

    @classmethod
    def empty(cls, normalized: bool) -> Self:
        """Return a histogram of nothing."""
        weight = Total.empty((PER_BIT * MOST_BITS + 1,))
        return cls(weight, jnp.zeros((), jnp.int32), jnp.full(2, -1, jnp.int32), normalized)

    def add(self, batch: Batch) -> Self:
        """Return the histogram with one batch more."""
        bits = batch.cross_entropy / math.log(2)
        keep = jnp.ones(batch.shape, bool) if batch.keep is None else batch.keep
        # A NaN anywhere in an example's logits is one in its surprisal: no pass looks for it.
        bad = jnp.isnan(bits)
        if self.normalized:
            bad = bad | ~(jnp.abs(batch.log_normalizer) <= _SLACK)
        bad = bad & keep
        row = jnp.min(jnp.where(bad, jnp.arange(bad.size), bad.size), initial=bad.size)
        here = jnp.stack((self.steps, row.astype(jnp.int32)))
        first = (self.unsound[0] < 0) & (row < bad.size)
        counted = jnp.where(keep & ~jnp.isnan(bits), bits, 0) * PER_BIT
        bins = jnp.minimum(counted, PER_BIT * MOST_BITS).astype(jnp.int32)
        return replace(
            self,
            weight=self.weight.merge(batch.weight_in(bins, PER_BIT * MOST_BITS + 1)),
            steps=self.steps + 1,
            unsound=jnp.where(first, here, self.unsound),
        )

    def compute(self) -> Array:
        """Return the weight of each bin."""
        return self.weight.value()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scores:
    """All that is kept of what an evaluation has seen.

    The numbers of all metrics, one after another: each array that a step takes and returns costs
    time, and the metrics have fifty.

    Attributes:
        floats: Those of the totals.
        integers: The others.
        has_top5, has_bytes, normalized: Which metrics there are; see `empty`.
    """

    floats: Array
    integers: Array
    has_top5: bool = field(metadata={"static": True})
    has_bytes: bool = field(metadata={"static": True})
    normalized: bool = field(metadata={"static": True})

    @classmethod
    def empty(cls, classes: int, with_bytes: bool, normalized: bool) -> Self:
        """Return the scores of nothing."""
        kind = (classes > 5, with_bytes, normalized)
        floats, integers = _nothing(*kind)
        return cls(floats, integers, *kind)

    @property
    @jax.jit
    def collection(self) -> metrics.Collection:
        """The metrics."""
        like = jax.eval_shape(partial(_collection, self.has_top5, self.has_bytes, self.normalized))
        return _separated((self.floats, self.integers), like)

    @property
    def surprisals(self) -> Surprisals:
        """The histogram."""
        member = self.collection["surprisals"]
        assert isinstance(member, Surprisals)
        return member

    @property
    def steps(self) -> Array:
        """How many batches were seen."""
        return self.surprisals.steps

    def compute(self) -> dict[str, Array]:
        """Return what is shown while it runs."""
        values = self.collection.compute()
        return {"bits": values["cross_entropy"] / math.log(2), "top1": values["top1"]}

    def with_batch(self, where: Array, **batch: Array) -> Self:
        """Return the scores with one batch more."""
        floats, integers = _joined(self.collection.update(**batch, where=where))
        return replace(self, floats=floats, integers=integers)


def _collection(has_top5: bool, has_bytes: bool, normalized: bool) -> metrics.Collection:
    members: dict[str, Metric] = {
        "cross_entropy": metrics.CrossEntropy.empty(),
        "perplexity": metrics.Perplexity.empty(),
        "top1": metrics.Accuracy.empty(),
        "brier": metrics.BrierScore.empty(),
        "calibration": metrics.CalibrationError.empty(),
        "entropy": metrics.Entropy.empty(),
        "surprisals": Surprisals.empty(normalized),
    }
    if has_top5:
        members["top5"] = metrics.Accuracy.empty(top_k=5)
    if has_bytes:
        members["bits_per_byte"] = metrics.BitsPerByte.empty()
    return metrics.Collection.empty(**members)


_KINDS = (jnp.floating, jnp.integer)


def _joined(tree: Any) -> list[Array]:
    """Return the numbers of a tree, one array of each kind."""
    leaves = [x.ravel() for x in jax.tree.leaves(tree)]
    return [jnp.concatenate([x for x in leaves if jnp.issubdtype(x.dtype, k)]) for k in _KINDS]


def _separated(joined: tuple[Array, Array], like: T) -> T:
    """Return the tree of these numbers; `like` has its shapes."""
    leaves, structure = jax.tree.flatten(like)
    for kind, numbers in zip(_KINDS, joined, strict=True):
        mine = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, kind)]
        ends = np.cumsum([leaves[i].size for i in mine])
        for i, part in zip(mine, jnp.split(numbers, ends[:-1]), strict=True):
            leaves[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, leaves)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _nothing(has_top5: bool, has_bytes: bool, normalized: bool) -> list[Array]:
    # As one program: fifty arrays made one by one take longer than a small file.
    return _joined(_collection(has_top5, has_bytes, normalized))


@jax.jit
def step(scores: Scores, batch: dict[str, Array], where: Array) -> Scores:
    """Return the scores with one batch more.

    Args:
        scores: Those of the batches before.
        batch: logits and labels and, if given, where, weights and bytes.
        where: False for the rows that only fill up the last batch.
    """
    given = dict(batch)
    keep = where & given.pop("where") if "where" in given else where
    return scores.with_batch(keep, **given)
