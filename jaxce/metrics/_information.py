"""Metrics in nats, bits and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Self

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxce import _checks
from jaxce._jit import jit_measure
from jaxce.metrics._batch import Batch
from jaxce.metrics._metric import Metric, registered
from jaxce.metrics._pooled import Pooled, nothing
from jaxce.metrics._totals import Total


@dataclass(frozen=True)
class _InUnits(Pooled):
    base: float | None = field(default=None, metadata={"static": True})

    @classmethod
    def empty(cls, *, base: float | None = None) -> Self:
        """Return a metric that has seen nothing.

        Args:
            base: Unit of the result: None for nats, 2 for bits.

        Raises:
            TypeError: If `base` is not a number.
            ValueError: If `base` is not finite or not above 1.
        """
        _checks.nats_per_unit(base)
        return cls(*nothing(), base=None if base is None else float(base))

    @jit_measure()
    def compute(self) -> Array:
        """Return the mean over all examples, in the unit asked for; NaN if there are none."""
        return self.total.over(self.weight, 1 / _checks.nats_per_unit(self.base))[0]


@registered
@dataclass(frozen=True)
class CrossEntropy(_InUnits):
    r"""Mean cross-entropy per example: what a code made for the predictions costs.

    $$ H = \frac{\sum_i w_i H(p_i, q_i)}{\sum_i w_i}, \qquad q = \operatorname{softmax}(x) $$

    Example:
        >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 0.0]]), jnp.array([0, 1])
        >>> print(CrossEntropy.empty(base=2).update(logits, labels).compute().round(4))
        0.5916

    Source: Cover & Thomas, "Elements of Information Theory" (2006), section 5.4.
    """

    def _total(self, batch: Batch) -> Total:
        return batch.cross_entropy_total


@registered
@dataclass(frozen=True)
class Entropy(_InUnits):
    r"""Mean entropy of the predictions: the cross-entropy that the model itself expects.

    $$ H = \frac{\sum_i w_i H(q_i)}{\sum_i w_i}, \qquad q = \operatorname{softmax}(x) $$

    Labels may be given: then an example with a bad label is left out, as it is of other metrics.

    Example:
        >>> print(Entropy.empty(base=2).update(jnp.zeros((2, 4))).compute())
        2.0

    Source: Shannon, "A Mathematical Theory of Communication" (1948).
    """

    @jit_measure()
    def update(
        self,
        logits: ArrayLike,
        labels: ArrayLike | None = None,
        where: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> Self:
        """Return the metric with one more batch in it; see `CrossEntropy.update`."""
        return self.add(Batch(logits, labels, where, weights))

    def _total(self, batch: Batch) -> Total:
        return batch.total(batch.entropy)


@registered
@dataclass(frozen=True)
class KLDivergence(_InUnits):
    r"""Mean Kullback-Leibler divergence of the predictions from soft targets.

    $$ D = \frac{\sum_i w_i \operatorname{KL}(p_i \| q_i)}{\sum_i w_i},
       \qquad q = \operatorname{softmax}(x) $$

    A class index is a certainty, whose divergence is the cross-entropy. Targets are probabilities;
    of a teacher's logits take `jax.nn.softmax`.

    Example:
        >>> logits = jnp.log(jnp.array([[0.25, 0.5, 0.25]]))
        >>> p = jnp.array([[0.5, 0.5, 0.0]])
        >>> print(f"{KLDivergence.empty(base=2).update(logits, p).compute():.4f}")
        0.5000

    Source: Kullback & Leibler, "On Information and Sufficiency" (1951).
    """

    def _total(self, batch: Batch) -> Total:
        return batch.total(batch.kl_divergence)


@registered
@dataclass(frozen=True)
class Perplexity(Pooled):
    r"""Perplexity of all examples together: the exponential of their mean cross-entropy in nats.

    $$ \operatorname{PP} = \exp \frac{\sum_i w_i H(p_i, q_i)}{\sum_i w_i} $$

    Example:
        >>> logits, labels = jnp.zeros((2, 6)), jnp.array([0, 5])
        >>> print(f"{Perplexity.empty().update(logits, labels).compute():.4f}")
        6.0000

    Source: Jelinek et al., "Perplexity: a measure of the difficulty of speech recognition tasks"
    (1977).
    """

    @classmethod
    def empty(cls) -> Self:
        """Return a metric that has seen nothing."""
        return cls(*nothing())

    def _total(self, batch: Batch) -> Total:
        return batch.cross_entropy_total

    @jit_measure()
    def compute(self) -> Array:
        """Return the perplexity of all examples; NaN if there are none."""
        mean, error = self.total.over(self.weight)
        return jnp.exp(mean) * (1 + error)  # the rounding of a large mean is not blown up


@registered
@dataclass(frozen=True)
class BitsPerByte(Metric):
    r"""Bits that a language model needs for one byte of text, whatever its tokens are.

    $$ \operatorname{bpb} = \frac{\sum_i w_i H(p_i, q_i)}{\ln 2 \, \sum_i w_i b_i} $$

    with cross-entropies in nats and \(b_i\) the bytes of token i.

    Example:
        >>> logits, tokens = jnp.zeros((3, 256)), jnp.array([72, 105, 33])
        >>> state = BitsPerByte.empty().update(logits, tokens, bytes=jnp.array([1, 2, 1]))
        >>> print(f"{state.compute():.4f}")
        6.0000

    Source: Gao et al., "The Pile: An 800GB Dataset of Diverse Text for Language Modeling" (2020),
    section 3.1.
    """

    total: Total
    weight: Total
    bad_labels: Total

    @classmethod
    def empty(cls) -> Self:
        """Return a metric that has seen nothing."""
        return cls(*nothing())

    @jit_measure()
    def update(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        where: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        *,
        bytes: ArrayLike,
    ) -> Self:
        """Return the metric with one more batch in it; see `CrossEntropy.update`.

        Args:
            logits: Predicted logits or log-probabilities, [..., classes].
            labels: True class indices or distributions.
            where: Boolean: the tokens that count. Bytes of the others do not count either.
            weights: Weights of the tokens and of their bytes.
            bytes: How many bytes of text each token stands for, broadcastable to [...].

        Returns:
            A new metric; this one stays as it is.

        Raises:
            TypeError: If a dtype does not fit.
            ValueError: If a shape does not fit.
        """
        return self.add(Batch(logits, labels, where, weights, bytes))

    def add(self, batch: Batch) -> Self:
        """Return the metric with one more batch in it."""
        return replace(
            self,
            total=self.total.merge(batch.cross_entropy_total),
            weight=self.weight.merge(batch.total(batch.bytes)),
            bad_labels=self.bad_labels.merge(batch.bad_labels),
        )

    @jit_measure()
    def compute(self) -> Array:
        """Return the bits per byte of all tokens; NaN if there are none."""
        return self.total.over(self.weight, 1 / math.log(2))[0]
