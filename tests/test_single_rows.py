"""Sums over many classes where there is one example only, and where all of them weigh the same.

XLA:CPU of jax 0.10 adds the products of a single row one by one. Where they are equal, every
rounding goes the same way: with 40,000 classes that was 7,000 ulp.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from jaxce import losses
from tests import cases, corpus
from tests.conftest import thorough
from tests.test_accuracy import LD, program, ulp, worst

SIZES = thorough([(2000,), (40_000,)], lambda n: n == 2000)
REDUCING = [m.id for m in cases.CATEGORICAL if m.reduces]


def even_rows(measure, n):
    """Arguments of few different values; sums of probabilities need not be 1."""
    odd = np.arange(n) % 2
    rows = {}
    for c in (0.1, 0.3, 0.7, 0.9):
        make = {
            "p": lambda c=c: np.full(n, c / n),
            "q": lambda c=c: np.full(n, 0.77 * c / n),
            "x": lambda c=c: c * odd,
            "a": lambda c=c: c * odd,
            "b": lambda c=c: 0.3 * c * odd,
            "y": lambda: np.int64(0),
        }
        rows[f"{c:g}"] = tuple(make[kind]() for kind in measure.takes)
    return rows


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", REDUCING)
@pytest.mark.parametrize("vmapped", [False, True], ids=["axis of 1", "vmap over 1"])
def test_values_and_gradients(name, n, vmapped):
    measure = cases.BY_ID[name]
    names, args = corpus.rounded(even_rows(measure, n), "float32")
    cotangent = np.ones(len(names), np.float32)
    if vmapped:
        run = jax.vmap(program(name, 0), (0, None, 0))
        parts = [
            run(tuple(a[i : i + 1] for a in args), [], cotangent[:1]) for i in range(len(names))
        ]
        (value, grads), _ = jax.tree.map(lambda *each: np.concatenate(each), *parts)
    else:
        spread = tuple(np.expand_dims(a, 1) for a in args)
        (value, grads), _ = program(name, 0)(spread, [], np.expand_dims(cotangent, 1))
        value, *grads = (np.squeeze(np.asarray(a), 1) for a in (value, *grads))
    exact_args = [a if a.dtype.kind in "iu" else a.astype(LD) for a in args]
    exact = measure.value(*exact_args)
    results = [worst("value", names, value, exact, *measure.value_bound(exact_args, exact), "f4")]
    exact = measure.grad(*exact_args)
    for got, want, bound in zip(grads, exact, measure.grad_bound(exact_args, exact), strict=True):
        results.append(worst("gradient", names, got, want, *bound, "f4"))
    bad = [str(w) for w in results if not w.ratio <= 1]
    assert not bad, "\n" + "\n".join(bad)


def test_kl_divergence_of_a_million_classes():
    """Differences of one size and of both signs, in order: a running sum strays far from zero."""
    n = 1_000_000
    p = np.full(n, 1 / n, np.float32)
    q = np.where(np.arange(n) < n // 2, p * np.float32(1.001), p * np.float32(0.999))
    exact = (p.astype(LD) * np.log(p.astype(LD) / q)).sum()
    assert abs(float(jaxce.kl_divergence(p, q)) / float(exact) - 1) < 16 * 2**-24


@pytest.mark.parametrize("shape", [(100_000,), (1, 100_000), (100_000, 1)])
def test_mean_of_one_long_batch(shape):
    values, weights = np.full(shape, 0.1, np.float32), np.full(shape, 0.7, np.float32)
    got = jax.jit(losses.mean)(values, weights > 0, weights)
    np.testing.assert_allclose(got, np.float32(0.1), rtol=4 * 2**-24)
    slope = jax.grad(lambda v: losses.mean(v, weights=jnp.asarray(weights)))(values)
    np.testing.assert_allclose(slope, np.full(shape, 1e-5), rtol=4 * 2**-24)


def test_expected_length_of_one_code():
    p, lengths = np.full((1, 40_000), 0.3 / 40_000, np.float32), np.full((1, 40_000), 7.0)
    exact = (p.astype(LD) * 7).sum()
    got = jaxce.coding.expected_length(p, lengths.astype(np.float32))
    np.testing.assert_allclose(got, [float(exact)], rtol=4 * 2**-24)


SHAPES = [
    *[(15,), (32,), (64,), (1, 100), (2000,)],
    *[(3, 15), (3, 32), (3, 63), (2, 1023), (64, 64), (3, 2000), (600, 15), (600, 32)],
]
DAILY = {(3, 63), (600, 15)}  # in float64 and along other axes


@pytest.mark.parametrize(
    ("shape", "how", "dtype"),
    thorough(
        itertools.product(SHAPES, ("last", "first", "mapped"), ("float32", "float64")),
        lambda shape, how, dtype: (how, dtype) == ("last", "float32") or shape in DAILY,
    ),
    indirect=["dtype"],
)
def test_one_class_ahead_of_equal_others(shape, how, dtype, monkeypatch):
    """Added to 1 one after another, small equal weights are all rounded alike."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # several sum a short batch as it lies
    n = shape[-1]

    def gradient(measure):
        one = jax.grad(lambda x: measure(x, axis=0 if how == "first" else -1).sum())
        if how == "first":
            return lambda x: one(x.T).T
        return jax.vmap(one) if how == "mapped" and len(shape) > 1 else one

    both = jax.jit(
        lambda x: (gradient(jaxce.log_normalizer)(x), gradient(jaxce.entropy_with_logits)(x))
    )
    for lead in (1.93, 2.57, 3.01, 3.98, 5.0, 9.34, 12.97, 16.7, 20.0):
        x = np.where(np.arange(n) == n // 4, lead, 0).astype(dtype) * np.ones(shape, dtype)
        lead = LD(x.max())
        others = (n - 1) * np.exp(-lead)
        p = np.where(x == 0, np.exp(-lead), LD(1)) / (1 + others)
        slope = np.where(x == 0, p * lead, -lead * others / (1 + others)) / (1 + others)
        for got, exact in zip(both(x), (p, slope), strict=True):
            error = abs(np.asarray(got) - exact).max() / ulp(abs(exact).max(), dtype)
            assert error <= 16, f"{lead}: {error} ulp"
