"""Logits that are a product: the compiler may fuse it with a subtraction and round only once.

As in `jit(vmap(lambda x: loss(x / temperature)))`, where branches are selections and every pass
makes the product for itself.
"""

import jax
import numpy as np
import pytest

import jaxce
from jaxce import losses, metrics
from tests import oracles
from tests.cases import LABELS, LOGITS, MEASURES
from tests.conftest import thorough

SCALE = 1 / np.float32(0.7)
LD = np.longdouble
SIZES = thorough([(3,), (20,), (1000,)], lambda n: n == 3)
OF_LOGITS = [m for m in MEASURES if not m.binary and set(m.takes) & set(LOGITS)]
CLOSE = {"rtol": 2e-5, "atol": 2e-5}  # what the rounding of a product of 40 comes to


def ahead(n):
    """Logits whose first class is ahead by 0 to 30: from hardly to entirely."""
    x = np.random.default_rng(n).normal(size=(64, n)).astype(np.float32)
    x[:, 0] += np.linspace(0, 30, 64, dtype=np.float32)
    return x


def arguments(measure, n):
    x = ahead(n)
    p = np.exp(np.roll(x, 1, 0))
    by_kind = {"y": np.zeros(64, np.int32), "p": p / p.sum(-1, keepdims=True), "x": x, "a": x}
    return [by_kind.get(kind, np.roll(x, 1, -1)) for kind in measure.takes]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("measure", OF_LOGITS, ids=lambda m: m.id)
def test_values_and_gradients(measure, n):
    args = arguments(measure, n)
    is_logits = [kind in LOGITS for kind in measure.takes]
    wide = [a if k == LABELS else a.astype(LD) for k, a in zip(measure.takes, args, strict=True)]
    wide = [a * SCALE if yes else a for a, yes in zip(wide, is_logits, strict=True)]
    pulled = [*wide, np.ones(wide[0].shape)] if measure.mixes else wide
    slopes = [
        slope * SCALE
        for slope, i in zip(measure.grad(*pulled), measure.floating, strict=True)
        if is_logits[i]
    ]

    def scaled(*args):
        return measure(*(a * SCALE if yes else a for a, yes in zip(args, is_logits, strict=True)))

    places = tuple(np.flatnonzero(is_logits).tolist())

    def both(*args):
        return scaled(*args), jax.grad(lambda *args: scaled(*args).sum(), places)(*args)

    for way in (lambda f: f, jax.vmap):
        value, gradient = jax.jit(way(both))(*args)
        np.testing.assert_allclose(value, measure.value(*wide).astype(float), **CLOSE)
        for got, exact in zip(gradient, slopes, strict=True):
            np.testing.assert_allclose(got, exact.astype(float), **CLOSE)


@pytest.mark.parametrize("n", SIZES)
def test_losses_and_metrics(n):
    x, labels = ahead(n), np.arange(64, dtype=np.int32) % 2
    wide = x.astype(LD) * SCALE
    surprisal = oracles.surprisal_with_logits(wide)[np.arange(64), labels].astype(float)
    loss = losses.softmax_cross_entropy_with_integer_labels
    for way in (lambda f: f, jax.vmap):
        got = jax.jit(way(lambda x, y: loss(x * SCALE, y)))(x, labels)
        np.testing.assert_allclose(got, surprisal, **CLOSE)
    state = metrics.Collection.empty(
        bits=metrics.CrossEntropy.empty(),
        entropy=metrics.Entropy.empty(),
        brier=metrics.BrierScore.empty(),
    )
    found = jax.jit(lambda x, y: state.update(x * SCALE, y).compute())(x, labels)
    each = jax.jit(jax.vmap(lambda x, y: state.update(x * SCALE, y).compute()))(
        x[:, None], labels[:, None]
    )
    p = np.exp(-oracles.surprisal_with_logits(wide))
    exact = {
        "bits": surprisal,
        "entropy": oracles.entropy_with_logits(wide).astype(float),
        "brier": np.square(p - np.eye(n)[labels]).sum(-1).astype(float),
    }
    for name, values in exact.items():
        np.testing.assert_allclose(found[name], values.mean(), **CLOSE)
        np.testing.assert_allclose(each[name], values, **CLOSE)


def test_perplexity_of_a_certainty_is_one():
    """Logits near 10,000: as small as the change is, the largest has to have a weight of 1."""
    x = ahead(20)[-8:] * 300
    for way in (lambda f: f, jax.vmap):
        value = jax.jit(way(lambda x: jaxce.perplexity_with_logits(x * SCALE)))(x)
        np.testing.assert_array_equal(value, 1.0)
