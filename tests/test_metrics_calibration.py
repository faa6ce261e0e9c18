"""Calibration: bin edges, bins of equal mass, the table; and what a collection's passes cost."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import metrics
from tests import oracles_metrics as oracles


def binary(confidences):
    """Logits of two classes whose first has these probabilities."""
    p = np.asarray(confidences, np.float64)
    with np.errstate(divide="ignore"):
        return np.log(np.stack([p, 1 - p], -1)).astype(np.float32)


def sample(rows=500, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    x = (2 * rng.standard_normal((rows, classes))).astype(np.float32)
    labels = rng.integers(0, classes, rows).astype(np.int32)
    labels[::2] = x[::2].argmax(-1)
    return x, labels, rng.exponential(size=rows).astype(np.float32)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_equal_width_against_the_definition(bins):
    x, labels, weights = sample()
    state = metrics.CalibrationError.empty(bins=bins).update(x, labels, weights=weights)
    table, error = oracles.calibration(x, labels, weights, np.linspace(0, 1, bins + 1))
    np.testing.assert_allclose(np.stack(state.table()), table.astype(float), rtol=2e-6)
    np.testing.assert_allclose(state.compute(), float(error), rtol=5e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e36])
def test_weights_of_any_size(scale):
    x, labels, weights = sample(rows=50)
    scaled = np.float32(scale) * weights
    state = metrics.CalibrationError.empty(bins=5).update(x, labels, weights=scaled)
    _, error = oracles.calibration(x, labels, scaled, np.linspace(0, 1, 6))
    np.testing.assert_allclose(state.compute(), float(error), rtol=5e-6)


def test_edges_belong_to_the_bin_below():
    """(0.25, 0.5] holds 0.5; certainty is in the last bin, next to nothing in the first."""
    state = metrics.CalibrationError.empty(bins=4)
    exists = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    table = state.update(jnp.where(exists, 0, -jnp.inf), jnp.zeros(3, int)).table()
    assert list(table.weight) == [1, 1, 0, 1]
    assert list(table.confidence[jnp.array([0, 1, 3])]) == [0.25, 0.5, 1]
    many = jnp.zeros((1, 2**17))
    table = state.update(many, jnp.zeros(1, int)).table()
    assert list(table.weight) == [1, 0, 0, 0]
    for equal_mass in (False, True):
        state = metrics.CalibrationError.empty(bins=3, equal_mass=equal_mass)
        certain = state.update(binary([1.0, 1.0]), jnp.array([0, 1]))
        assert certain.compute() == 0.5
        one_class = state.update(jnp.zeros((2, 1)), jnp.zeros(2, int))
        assert one_class.compute() == 0


def test_empty_bins_are_nan():
    table = metrics.CalibrationError.empty(bins=2).update(binary([0.9]), jnp.array([0])).table()
    assert np.isnan(table.confidence[0])
    assert np.isnan(table.accuracy[0])
    assert list(table.weight) == [0, 1]


@pytest.mark.parametrize("weights", [None, np.ones(2, np.float32)])
def test_nan_is_in_one_bin_and_in_the_error(weights):
    x = np.array([[np.nan, 0.0], [0.0, 0.0]], np.float32)
    state = metrics.CalibrationError.empty(bins=2)
    state = state.update(x, jnp.array([0, 0]), weights=weights)
    table = state.table()
    assert list(np.isnan(table.confidence)) == list(np.isnan(table.accuracy)) == [False, True]
    assert (table.confidence[0], table.accuracy[0], *table.weight) == (0.5, 1, 1, 1)
    assert np.isnan(state.compute())


def test_equal_mass_against_sorting():
    """Bins as close to equal as the resolution allows, and the error that they give."""
    x, labels, _ = sample(20_000, 10)
    state = metrics.CalibrationError.empty(bins=10, equal_mass=True)
    for part in range(4):
        state = state.update(x[part::4], labels[part::4])
    table = state.table()
    confidence = np.sort(oracles.probabilities(x).max(-1).astype(float))
    order = np.argsort(oracles.probabilities(x).max(-1))
    right = oracles.hits(x, labels, 1)[order]
    assert table.weight.sum() == 20_000
    np.testing.assert_allclose(table.weight, 2000, rtol=0.03)
    groups = confidence.reshape(10, -1).mean(1), right.reshape(10, -1).mean(1)
    np.testing.assert_allclose(table.confidence, groups[0], atol=2e-3)
    np.testing.assert_allclose(table.accuracy, groups[1], atol=0.02)
    want = np.abs(groups[0] - groups[1]).mean()
    np.testing.assert_allclose(state.compute(), want, atol=2e-3)


def test_equal_mass_sees_confidences_of_every_size():
    """Three groups, of 1e-5 doubt, of 1e-3, and almost even: each gets a bin of its own."""
    p = np.repeat([1 - 1e-5, 1 - 1e-3, 0.5001], 100)
    state = metrics.CalibrationError.empty(bins=3, equal_mass=True)
    x = binary(p).astype(np.float64)
    table = state.update(x.astype(np.float32), np.zeros(300, np.int32)).table()
    assert list(table.weight) == [100, 100, 100]
    np.testing.assert_allclose(table.confidence, [0.5001, 1 - 1e-3, 1 - 1e-5], rtol=1e-6)


def test_perfect_calibration_is_found():
    rng = np.random.default_rng(5)
    x = (2 * rng.standard_normal((200_000, 3))).astype(np.float32)
    p = oracles.probabilities(x).astype(float)
    labels = (rng.random((len(p), 1)) > p.cumsum(-1)).sum(-1).clip(0, 2).astype(np.int32)
    for equal_mass in (False, True):
        state = metrics.CalibrationError.empty(equal_mass=equal_mass)
        assert state.update(x, labels).compute() < 0.006
        assert state.update(3 * x, labels).compute() > 0.1


def test_soft_targets_count_their_most_probable_class():
    x, labels, _ = sample()
    soft = 0.9 * np.eye(4, dtype=np.float32)[labels] + 0.025
    state = metrics.CalibrationError.empty()
    assert state.update(x, soft).compute() == state.update(x, labels).compute()


def passes(members, **given):
    """How often the compiled update takes an exponential of every logit."""
    state = metrics.Collection.empty(**members)
    x = jax.ShapeDtypeStruct((64, 4096), jnp.float32)
    labels = jax.ShapeDtypeStruct((64,), jnp.int32)
    jaxpr = str(jax.make_jaxpr(metrics.Collection.update)(state, x, labels, **given))
    return len(re.findall(r"f32\[64,4096\] = exp ", jaxpr))


def test_a_collection_shares_its_passes():
    ce = {"ce": metrics.CrossEntropy.empty()}
    alone = passes(ce)
    assert alone > 0
    assert alone == passes(
        ce
        | {
            "perplexity": metrics.Perplexity.empty(),
            "bits": metrics.CrossEntropy.empty(base=2),
            "kl": metrics.KLDivergence.empty(),
            "top1": metrics.Accuracy.empty(),
            "top5": metrics.Accuracy.empty(top_k=5),
            "ece": metrics.CalibrationError.empty(),
            "mass": metrics.CalibrationError.empty(equal_mass=True),
        }
    )
    entropy = {"entropy": metrics.Entropy.empty()}
    assert passes(ce | entropy) == passes(entropy)
