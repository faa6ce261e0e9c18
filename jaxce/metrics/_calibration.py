"""How far a classifier's confidence is from how often it is right."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxce._jit import jit_measure
from jaxce.metrics._batch import Batch
from jaxce.metrics._decisions import positive
from jaxce.metrics._metric import Metric, registered
from jaxce.metrics._totals import Total

# Fine bins for those of equal mass: odds against from 2**-44 to 2**20, 128 bins to each doubling.
_PER_DOUBLING, _LEAST, _DOUBLINGS = 128, -44, 64
_FINE = _PER_DOUBLING * _DOUBLINGS


class CalibrationTable(NamedTuple):
    """One number per bin, from the least to the most confident bin.

    `confidence` is the mean probability of the predicted class and `accuracy` the share of right
    predictions, both NaN in a bin without examples; `weight` is how many examples are in it, or
    how much they weigh.
    """

    confidence: Array
    accuracy: Array
    weight: Array


@registered
@dataclass(frozen=True)
class CalibrationError(Metric):
    r"""Expected calibration error: how far confidence is from accuracy, bin by bin.

    $$ \operatorname{ECE} = \sum_b \frac{w_b}{w}
       \left| \operatorname{accuracy}_b - \operatorname{confidence}_b \right| $$

    The confidence of an example is the probability of its predicted class, the first of several
    with the largest logit. Bins of equal width hold confidences in ((b - 1)/B, b/B], so that 1 is
    in the last one and 0 in the first. Bins of equal mass hold equally many examples each, as far
    as possible: examples are collected in 8192 fine bins, each within 0.8 % in the odds
    p / (1 - p), which are shared out whole.

    Example:
        >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5]]))
        >>> state = CalibrationError.empty(bins=2).update(logits, jnp.array([0, 1, 0]))
        >>> print(f"{state.compute():.4f}")
        0.3333
        >>> table = state.table()
        >>> print(table.confidence, table.accuracy, table.weight)
        [0.5  0.75] [1.  0.5] [1. 2.]

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017); for equal mass: Nguyen &
    O'Connor, "Posterior calibration and exploratory analysis for natural language processing
    models" (2015).
    """

    doubt: Total  # 1 - confidence, which keeps its digits where confidence is almost 1
    wrong: Total
    weight: Total
    bad_labels: Total
    bins: int = field(metadata={"static": True})
    equal_mass: bool = field(metadata={"static": True})

    @classmethod
    def empty(cls, *, bins: int = 15, equal_mass: bool = False) -> Self:
        """Return a metric that has seen nothing.

        Args:
            bins: How many bins there are.
            equal_mass: Whether the bins hold equally many examples; else they are equally wide.

        Raises:
            TypeError: If `bins` is not an integer.
            ValueError: If `bins` is not positive.
        """
        shape = (_FINE if equal_mass else positive("bins", bins),)
        totals = (Total.empty(shape), Total.empty(shape), Total.empty(shape), Total.empty())
        return cls(*totals, bins=positive("bins", bins), equal_mass=bool(equal_mass))

    @jit_measure()
    def update(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        where: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> Self:
        """Return the metric with one more batch in it; see `CrossEntropy.update`.

        For a soft target the label is its most probable class.
        """
        return self.add(Batch(logits, labels, where, weights))

    def add(self, batch: Batch) -> Self:
        """Return the metric with one more batch in it."""
        if self.equal_mass:
            index, size = _fine_bin(batch.odds_against), _FINE
        else:
            # From the right, so that a bin has its upper edge and not its lower one.
            from_right = jnp.clip(batch.doubt * self.bins, 0, self.bins - 1).astype(jnp.int32)
            index, size = self.bins - 1 - from_right, self.bins
        # Right and wrong in turn: one pass counts both, and how many there are.
        correct = batch.correct(1)
        is_wrong = (correct == 0).astype(jnp.int32)
        right, wrong = batch.weight_in(2 * index + is_wrong, 2 * size).apart(2)
        return replace(
            self,
            doubt=self.doubt.merge(batch.totals(batch.doubt + 0 * correct, index, size)),
            wrong=self.wrong.merge(wrong),
            weight=self.weight.merge(right.merge(wrong)),
            bad_labels=self.bad_labels.merge(batch.bad_labels),
        )

    def _binned(self) -> tuple[Total, Total, Total]:
        if not self.equal_mass:
            return self.doubt, self.wrong, self.weight
        mass = self.weight.value()
        total = jnp.sum(mass)
        share = (jnp.cumsum(mass) - mass / 2) / jnp.where(total == 0, 1, total)
        group = jnp.clip(share * self.bins, 0, self.bins - 1).astype(jnp.int32)

        def merged(fine: Total) -> Total:
            high = Total.of_bins(fine.high, group, self.bins)
            return high.merge(Total.of_bins(fine.low, group, self.bins))

        return merged(self.doubt), merged(self.wrong), merged(self.weight)

    @jit_measure()
    def table(self) -> CalibrationTable:
        """Return what a reliability diagram shows: confidence, accuracy and weight of each bin."""
        doubt, wrong, weight = self._binned()
        confidence, accuracy = (1 - share.over(weight)[0] for share in (doubt, wrong))
        # NaN in logits or targets is a confidence of NaN, and neither right nor wrong.
        accuracy = jnp.where(jnp.isnan(confidence), jnp.nan, accuracy)
        return CalibrationTable(confidence, accuracy, weight.value())

    @jit_measure()
    def compute(self) -> Array:
        """Return the expected calibration error; NaN if there are no examples."""
        doubt, wrong, weight = self._binned()
        gap = jnp.abs(doubt.merge(wrong.negative()).value())
        return Total.of(gap).over(Total.of(weight.high).merge(Total.of(weight.low)))[0]


def _fine_bin(odds_against: Array) -> Array:
    """Index of the fine bin, read off the exponent and the first bits of the fraction."""
    bits = lax.bitcast_convert_type(odds_against.astype(jnp.float32), jnp.int32)
    steps = bits >> (23 - (_PER_DOUBLING.bit_length() - 1))
    first = (127 + _LEAST) * _PER_DOUBLING
    return _FINE - 1 - jnp.clip(steps - first, 0, _FINE - 1)
