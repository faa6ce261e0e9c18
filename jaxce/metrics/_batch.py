"""One batch as the metrics see it: what each example counts, and its numbers, computed once.

A metric asks for the numbers that it adds up. All metrics of a collection ask the same `Batch`, so
that what they share is computed once, and what none of them needs is not computed at all.
"""

from __future__ import annotations

from functools import cached_property, partial

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import ArrayLike

from jaxce import _axes, _checks, _softmax, _softmax_cross_entropy, losses
from jaxce._axes import count_of, each_of_few, own_pass, sum_of
from jaxce._categorical_logits import prepared
from jaxce._numerics import wide
from jaxce._partition import gap_of, mean_gap, plain_weight, summing_weights
from jaxce.metrics._totals import Total

# Bytes that stay in a processor's cache, and that the system need not clear again for every batch.
_AT_HAND = 2**24
# Up to here a float32 counts.
_EXACT = 2**24


class Examples:
    """Which examples count, and how much."""

    def __init__(self, shape: tuple[int, ...], keep: Array | None, weights: ArrayLike | None):
        self.shape = shape
        self.keep: Array | None = keep
        self.weights: Array | None = None
        if weights is not None:
            self.weights = self.per_example("weights", weights)
            # A weight of 0 leaves an example out, like where: 0 * inf is not asked for.
            self.keep_only(self.weights != 0)

    def keep_only(self, kept: Array) -> None:
        """Leave out the others as well."""
        self.keep = kept if self.keep is None else self.keep & kept

    def total(self, values: Array) -> Total:
        """Weighted sum of one value per example; the values of others may be NaN."""
        return Total.of(self._kept(values), self._kept_weights)

    def hits(self, values: Array) -> Total:
        """The same of values that are 0 or 1, or NaN."""
        if self.weights is not None or values.size > _EXACT:
            return self.total(values)
        return Total.of_hits(self._kept(values))

    def totals(self, values: Array, bins: Array, size: int) -> Total:
        """The same for each of `size` bins; `bins` are indices."""
        return Total.of_bins(self._kept(values), bins, size, self._kept_weights)

    def per_example(self, name: str, x: ArrayLike) -> Array:
        """Return one number per example; integers stay what they are, for a total counts them."""
        x = _checks.real(name, x)
        x = x.astype(jnp.int32) if x.dtype == bool else x
        try:
            return jnp.broadcast_to(x, self.shape)
        except ValueError:
            raise ValueError(
                f"{name}: expected a shape that broadcasts to {self.shape}, one number per "
                f"example, got {x.shape}."
            ) from None

    @cached_property
    def weight(self) -> Total:
        """How many examples count or, with weights, how much they weigh."""
        if self._kept_weights is not None:
            return Total.of(self._kept_weights)
        return Total.count(self._counts)

    def weight_in(self, bins: Array, size: int) -> Total:
        """The same for each of `size` bins."""
        if self._kept_weights is not None:
            return Total.of_bins(self._kept_weights, bins, size)
        return Total.count_bins(self._counts, bins, size)

    @cached_property
    def _counts(self) -> Array:
        return jnp.ones(self.shape, bool) if self.keep is None else self.keep

    @cached_property
    def _kept_weights(self) -> Array | None:
        return None if self.weights is None else self._kept(self.weights)

    def _kept(self, values: Array) -> Array:
        return values if self.keep is None else jnp.where(self.keep, values, 0)


def _class_by_class(x: Array) -> Array:
    """Return x with its last axis first, and written so: of few classes each is read as it lies."""

    # A plain transpose the compiler would leave to all those who read it. In both branches, or it
    # chooses another layout for what they return.
    def transposed() -> Array:
        return with_layout_constraint(jnp.moveaxis(x, -1, 0), Layout(tuple(range(x.ndim))))

    return own_pass(transposed, transposed)


class Batch(Examples):
    """Logits with labels. Every property has one number per example; those left out may be NaN."""

    def __init__(
        self,
        logits: ArrayLike,
        labels: ArrayLike | None,
        where: ArrayLike | None,
        weights: ArrayLike | None,
        bytes: ArrayLike | None = None,
    ):
        x = _checks.floating("logits", logits, narrow=True)
        self._axes = _checks.axes(-1, x.ndim, "logits")
        if x.shape[-1] == 0:
            raise ValueError(f"logits: expected at least one class, got shape {x.shape}.")
        self._labels = self._target = None
        if labels is not None and jnp.issubdtype(jnp.asarray(labels).dtype, jnp.integer):
            self._labels = _checks.integers("labels", labels)
            _checks.classes("labels", self._labels, "logits", x.shape, self._axes)
        elif labels is not None:
            if jnp.ndim(labels) == x.ndim - 1:
                raise TypeError(
                    f"labels: expected integer class indices of shape {x.shape[:-1]} or "
                    f"probabilities of the shape of logits {x.shape}, got "
                    f"{jnp.asarray(labels).dtype} of shape {jnp.shape(labels)}."
                )
            self._target, x = _checks.floating_pair("labels", labels, "logits", x, narrow=True)
        keep = mask = None
        if where is not None:
            where = jnp.asarray(where)
            if where.ndim == x.ndim - 1:
                keep = _checks.mask(where, x.shape[:-1], "the batch")
            else:
                mask = _checks.mask(where, x.shape, "logits")
        x, left = prepared(x, mask, self._axes)
        shape = x.shape[:-1]
        super().__init__(shape, keep if left is None else left, weights)
        self.bad_labels: Total = Total.empty()
        if self._labels is not None:
            good = (self._labels >= 0) & (self._labels < x.shape[-1])
            self.bad_labels = Total.count(~good if self.keep is None else self.keep & ~good)
            self.keep_only(good)
        elif self._target is not None and mask is not None:
            self._target = jnp.where(mask, self._target, 0)
        if _axes.are_few_apart(x):
            x = _class_by_class(x)
            self._target = None if self._target is None else _class_by_class(self._target)
            self._axes = (0,)
        self._x = x
        # Not when first asked for: that may be inside a branch, which nothing leaves.
        at_hand = x.size * wide(x).dtype.itemsize <= _AT_HAND
        self._partition = _softmax.written_partition(x, self._axes, at_hand)
        self._bytes_given = bytes

    @property
    def bytes(self) -> Array:
        """Of text."""
        if self._bytes_given is None:
            raise TypeError("bytes: expected the bytes of text per token, got None.")
        return self.per_example("bytes", self._bytes_given)

    @cached_property
    def _label(self) -> Array:
        """Class index; of a distribution its most probable class, the first of several."""
        if self._labels is not None:
            return jnp.expand_dims(self._labels, self._axes)
        if self._target is None:
            raise TypeError("labels: expected class indices or distributions, got None.")
        return jnp.argmax(self._target, self._axes[0], keepdims=True).astype(jnp.int32)

    @cached_property
    def _label_logit(self) -> Array:
        return _softmax_cross_entropy.at_class(self._x, self._label, self._axes)[0]

    @cached_property
    def _surprisal(self) -> Array:
        """Of the label, in nats; the class axis has length 1."""
        return gap_of(self._label_logit, self._partition.maximum) + self._partition.excess

    @cached_property
    def cross_entropy(self) -> Array:
        """In nats."""
        s = self._partition
        if self._target is not None:
            value = _softmax_cross_entropy.expected_surprisal(self._target, self._x, s, self._axes)
        else:
            value = self._surprisal
        return self._of_example(value)

    @cached_property
    def cross_entropy_total(self) -> Total:
        """The same of all examples, which several metrics of a collection divide."""
        return self.total(self.cross_entropy)

    @cached_property
    def kl_divergence(self) -> Array:
        """In nats; an index stands for a certainty, whose entropy is 0."""
        if self._target is None:
            return self.cross_entropy
        return losses.kl_divergence(self._x, self._target, axis=self._axes)

    @cached_property
    def entropy(self) -> Array:
        """Of the prediction, in nats."""
        s = self._partition
        return self._of_example(s.excess + mean_gap(self._x, s, self._axes))

    @property
    def log_normalizer(self) -> Array:
        """In nats; 0 for log-probabilities."""
        return self._of_example(self._partition.maximum + self._partition.excess)

    @cached_property
    def odds_against(self) -> Array:
        """Of the predicted class: (1 - p) / p, accurate also where p is almost 1."""
        return self._of_example(self._partition.rest)

    @cached_property
    def doubt(self) -> Array:
        """1 - p of the predicted class."""
        return self._of_example(self._partition.rest / self._partition.total)

    @cached_property
    def rank(self) -> Array:
        """How many classes come before the label: with larger logits, or equal ones and before it.

        So the label is among the k first exactly where `jax.lax.top_k` has it.
        """
        logit, label = self._label_logit, self._label
        return count_of(
            lambda x, index: (wide(x) > logit) | ((wide(x) == logit) & (index < label)),
            self._x,
            self._axes,
        )

    @cached_property
    def is_first(self) -> Array:
        """1 where rank is 0, else 0; cheaper, because ties matter only at the maximum."""
        x, s, label = self._x, self._partition, self._label
        first = (self._label_logit == s.maximum).astype(s.total.dtype)

        def by_index() -> Array:
            earlier = count_of(
                lambda x, index: (wide(x) == s.maximum) & (index < label), x, self._axes
            )
            return jnp.where(earlier == 0, first, 0)

        def on_cpu() -> Array:
            # Two maxima make the total 2.
            return lax.cond(jnp.any(first * s.total > 1.99), by_index, lambda: first)

        return lax.platform_dependent(cpu=on_cpu, default=by_index)

    def correct(self, top_k: int) -> Array:
        """1 where the label is among the first classes, 0 where not, NaN where something is NaN."""
        if top_k == 1 and "rank" not in vars(self) and not each_of_few(self._x, self._axes):
            first = self.is_first
        else:
            first = (self.rank < top_k).astype(self._partition.total.dtype)
        correct = self._of_example(first) + 0 * self.odds_against
        if self._target is None:
            return correct
        return correct + 0 * self._of_example(wide(_axes.max_over(self._target, self._axes)))

    @cached_property
    def brier_score(self) -> Array:
        """Squared distance of the predicted from the true distribution."""
        x, s, axes = self._x, self._partition, self._axes
        if self._target is not None:

            def distance(x: Array, p: Array, maximum: Array, total: Array) -> Array:
                return jnp.square(plain_weight(x, maximum) / total - wide(p))

            of_all = partial(sum_of, distance, (x, self._target), (s.maximum, s.total), axes)
            return self._of_example(own_pass(of_all, lambda: s.total))

        # Where the label has most of the probability, its square is left out, not subtracted: the
        # one weight of 1 counts as 0 there, by arithmetic that keeps the sum vectorized.
        # Behind a barrier, or the compiler puts back the axis of length 1, which it does not
        # vectorize along.
        gap = lax.optimization_barrier(self._of_example(gap_of(self._label_logit, s.maximum)))
        weight = _axes.with_axes(jnp.exp(-gap), axes)
        likely = (weight == 1) & (s.rest < 1)

        def square(w: Array, left_out: Array) -> Array:
            return jnp.square(w - left_out * jnp.floor(w))

        numbers = (likely.astype(weight.dtype),)
        of_all = summing_weights(square, x, s.maximum, s.written, numbers, axes)
        squares = own_pass(of_all, lambda: s.total)
        rest = squares - jnp.where(likely, 0, jnp.square(weight))
        missed = jnp.where(likely, s.rest, s.total - weight) / s.total
        return self._of_example(rest / jnp.square(s.total) + jnp.square(missed))

    def _of_example(self, value: Array) -> Array:
        return _axes.without(value, self._axes)
