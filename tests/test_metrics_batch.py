"""The numbers of each example, with the exponentials written out and without."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce.metrics import _batch
from tests import oracles_metrics as oracles
from tests.conftest import thorough

AT_HAND = (2**24, 0)  # the exponentials are written out, or not
NUMBERS = ("cross_entropy", "entropy", "brier_score", "doubt", "rank")


def logits(rows, classes):
    """Ordinary rows, confident ones by less and by more, ties, huge ones, missing classes."""
    rng = np.random.default_rng(classes)
    x = (3 * rng.standard_normal((rows, classes))).astype(np.float32)
    labels = rng.integers(0, classes, rows).astype(np.int32)
    labels[::2] = x[::2].argmax(-1)
    row = np.arange(rows)
    x[1::8, 0] = 20 + x[1::8].max(-1)
    x[2::8, -1] = 40
    x[3::8] = np.round(x[3::8] / 4)
    x[4::8] += 1e6
    x[row[5::8], row[5::8] % classes] = -np.inf
    x[7] = 0
    return x, labels


def numbers(x, labels):
    def compute(x, labels):
        batch = _batch.Batch(x, labels, None, None)
        return {name: getattr(batch, name) for name in NUMBERS}

    return jax.jit(compute)(x, labels)


def expected(x, labels):
    q, row = oracles.probabilities(x), np.arange(len(x))
    x = x.astype(oracles.WIDE)
    gap = x.max(-1, keepdims=True) - x
    weight = np.exp(-gap)
    total = weight.sum(-1)
    top = x.argmax(-1)
    others = np.where(np.arange(x.shape[-1]) == top[:, None], 0, weight).sum(-1)
    # 1 - q, without its rounding where q is almost 1.
    missed = np.where(labels == top, others / total, 1 - q[row, labels])
    rest = np.where(np.arange(x.shape[-1]) == labels[:, None], 0, q)
    order = np.argsort(-x, -1, kind="stable")
    with np.errstate(invalid="ignore"):
        mean_gap = np.where(weight == 0, 0, q * gap).sum(-1)
    return {
        "cross_entropy": gap[row, labels] + np.log1p(others),
        "entropy": mean_gap + np.log1p(others),
        "brier_score": np.square(rest).sum(-1) + missed**2,
        "doubt": others / total,
        "rank": (order == labels[:, None]).argmax(-1),
    }


@pytest.mark.parametrize(
    ("classes", "at_hand"),
    thorough(
        itertools.product((10, 17, 32, 33, 34, 100, 512, 513, 1000, 2000, 40_000), AT_HAND),
        lambda classes, at_hand: at_hand or classes in (10, 34, 2000),
    ),
)
def test_every_example(classes, at_hand, monkeypatch):
    monkeypatch.setattr(_batch, "_AT_HAND", at_hand)
    x, labels = logits(5000 if classes <= 33 else 64, classes)  # of many rows class by class
    got = numbers(jnp.asarray(x), jnp.asarray(labels))
    for name, want in expected(x, labels).items():
        # 16 ulp of float32, of a square 32; the smallest of all may be below its range.
        ulp = 32 if name == "brier_score" else 16
        np.testing.assert_allclose(
            got[name].ravel(),
            want.astype(np.float64),
            rtol=ulp * 2.0**-24,
            atol=1e-37,
            err_msg=name,
        )


@pytest.mark.parametrize(
    "classes",
    thorough(
        [(n,) for n in (1, 2, 15, 31, 32, 100, 511, 1025, 70_001)],
        lambda classes: classes not in (2, 15, 32, 511),
    ),
)
def test_rank_counts_every_class_once(classes):
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (40, classes)).astype(np.float32)
    x[:4] = 0
    labels = rng.integers(0, classes, 40).astype(np.int32)
    labels[:2] = classes - 1
    order = np.argsort(-x, -1, kind="stable")
    for kind in (jnp.float32, jnp.bfloat16):
        got = _batch.Batch(jnp.asarray(x, kind), labels, None, None).rank
        np.testing.assert_array_equal(got.ravel(), (order == labels[:, None]).argmax(-1))


def gradients(x, labels):
    """Of the sum over examples, from the definitions."""
    p = oracles.probabilities(x)
    one = np.eye(x.shape[-1], dtype=oracles.WIDE)[labels]
    with np.errstate(divide="ignore", invalid="ignore"):
        surprisal = np.where(p == 0, 0, -np.log(p))
    entropy = (p * surprisal).sum(-1, keepdims=True)
    off = p - one
    return {
        "cross_entropy": off,
        "entropy": p * (surprisal - entropy),
        "brier_score": 2 * p * (off - (p * off).sum(-1, keepdims=True)),
        "doubt": p * (p.max(-1, keepdims=True) - (x == x.max(-1, keepdims=True))),
    }


@pytest.mark.parametrize(
    ("classes", "at_hand"),
    thorough(
        itertools.product((10, 100), AT_HAND), lambda classes, at_hand: at_hand or classes > 32
    ),
)
def test_gradients(classes, at_hand, monkeypatch):
    monkeypatch.setattr(_batch, "_AT_HAND", at_hand)
    x, labels = logits(64, classes)
    alone = (x == x.max(-1, keepdims=True)).sum(-1) == 1  # else the doubt has a corner there

    def gradient(name, x):
        return jax.grad(lambda x: getattr(_batch.Batch(x, labels, None, None), name).sum())(x)

    exact = gradients(x, labels)
    found = jax.jit(lambda x: {name: gradient(name, x) for name in exact})(x)
    for name, want in exact.items():
        got = found[name]
        use = alone if name == "doubt" else np.ones(len(x), bool)
        np.testing.assert_allclose(
            got[use], want[use].astype(np.float64), rtol=1e-5, atol=3e-7, err_msg=name
        )
