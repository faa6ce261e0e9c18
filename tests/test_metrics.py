"""Every metric against extended precision, and one answer for every edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import metrics
from tests import oracles_metrics as oracles
from tests.conftest import option, thorough

CLASSES, ROWS = 37, 96
MEMBERS = {
    "ce": metrics.CrossEntropy.empty(),
    "bits": metrics.CrossEntropy.empty(base=2),
    "perplexity": metrics.Perplexity.empty(),
    "entropy": metrics.Entropy.empty(),
    "kl": metrics.KLDivergence.empty(),
    "top1": metrics.Accuracy.empty(),
    "top5": metrics.Accuracy.empty(top_k=5),
    "brier": metrics.BrierScore.empty(),
    "ece": metrics.CalibrationError.empty(),
    "bpb": metrics.BitsPerByte.empty(),
}
ALL = metrics.Collection.empty(**MEMBERS)


def sample(dtype="float32", *, soft=False, seed=3):
    """Logits of every kind: confident rows, tied ones, ones with -inf."""
    rng = np.random.default_rng(seed)
    x = (3 * rng.standard_normal((ROWS, CLASSES))).astype(dtype)
    labels = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    labels[::2] = x[::2].argmax(-1)
    x[np.arange(0, 20, 4), labels[:20:4]] = 25
    x[20:30] = np.round(x[20:30] / 4)  # ties, also at the maximum
    x[30, :] = 0
    x[31, 5:] = -np.inf
    labels[31] = 2
    if soft:
        p = np.exp(rng.standard_normal((ROWS, CLASSES)))
        p[:, -5:] = 0
        p[31, 5:] = 0
        labels = (p / p.sum(-1, keepdims=True)).astype(dtype)
    weights = rng.exponential(size=ROWS).astype(dtype)
    size = rng.integers(1, 9, ROWS).astype(np.int32)
    return x, labels, weights, size


def close(got, want, rtol=2e-6):
    assert got.keys() - {"bad_labels"} == want.keys()
    for name, value in want.items():
        # The calibration error is a difference of two means of the size of 1.
        np.testing.assert_allclose(
            got[name], float(value), rtol=rtol, atol=1e-7 if name == "ece" else 0, err_msg=name
        )


@pytest.mark.parametrize(
    ("soft", "weighted", "dtype"),
    thorough(
        [
            (soft, weighted, dtype)
            for soft, weighted in ((False, False), (False, True), (True, True))
            for dtype in ("float32", "float64")
        ],
        lambda soft, weighted, dtype: soft or (dtype == "float32" and not weighted),
    ),
    indirect=["dtype"],
)
def test_values(soft, weighted, dtype):
    x, labels, weights, size = sample(dtype, soft=soft)
    weights = weights if weighted else None
    got = ALL.update(x, labels, weights=weights, bytes=size).compute()
    assert got.pop("bad_labels") == 0
    assert {v.dtype for v in got.values()} == {np.dtype(dtype)}
    rtol = 2e-6 if dtype == "float32" else 1e-12
    want = oracles.pooled(x, labels, weights, size)
    close(got, want, rtol)


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_alone_as_in_a_collection(name):
    x, labels, weights, size = sample()
    more = {"bytes": size} if name == "bpb" else {}
    got = MEMBERS[name].update(x, labels, None, weights, **more).compute()
    want = ALL.update(x, labels, None, weights, bytes=size)[name].compute()
    np.testing.assert_allclose(got, want, rtol=1e-7)


def test_log_probabilities_and_low_precision():
    x, labels, _, size = sample()
    want = ALL.update(x, labels, bytes=size).compute()
    close(
        ALL.update(jax.nn.log_softmax(x), labels, bytes=size).compute(),
        {k: v for k, v in want.items() if k != "bad_labels"},
        rtol=5e-6,
    )
    low = jnp.asarray(x, jnp.bfloat16)
    close(ALL.update(low, labels, bytes=size).compute(), oracles.pooled(low, labels, size=size))


def test_what_is_left_out_does_not_exist():
    """Masked examples may hold anything, and equal slices."""
    x, labels, weights, size = sample()
    where = np.arange(ROWS) % 3 != 1
    want = oracles.pooled(x[where], labels[where], weights[where], size[where])
    x, weights = x.copy(), weights.copy()
    x[~where], labels[~where], weights[~where] = np.nan, -100, np.nan
    got = ALL.update(x, labels, where, weights, bytes=size).compute()
    assert got["bad_labels"] == 0
    close(got, want)
    # A weight of 0 does the same, and so does one that is made of the labels.
    weights[~where] = 0
    close(ALL.update(x, labels, labels != -100, weights, bytes=size).compute(), want)


def test_classes_that_do_not_exist():
    x, labels, _, size = sample()
    labels = labels % 20
    where = np.broadcast_to(np.arange(CLASSES) < 20, x.shape).copy()
    where[7] = False  # an example with no class left does not count
    x[:, 20:] = np.nan
    keep = np.arange(ROWS) != 7
    want = oracles.pooled(x[keep, :20], labels[keep], size=size[keep])
    close(ALL.update(x, labels, where, bytes=size).compute(), want)


def test_bad_labels_are_counted_and_not_scored():
    x, labels, weights, size = sample()
    good = np.ones(ROWS, bool)
    good[[3, 50, 51, 90]] = False
    want = oracles.pooled(x[good], labels[good], weights[good], size[good])
    labels[~good] = -1, CLASSES, -(2**31), 2**31 - 1
    state = ALL.update(x, labels, weights=weights, bytes=size)
    got = state.compute()
    assert got["bad_labels"] == 4
    assert got["bad_labels"].dtype == jnp.int32
    close(got, want)
    assert state["ce"].bad_labels.integer() == 4
    where = good | (np.arange(ROWS) == 3)
    for left_out in ({"where": where}, {"weights": where.astype(np.float32)}):
        assert ALL.update(x, labels, **left_out, bytes=size).compute()["bad_labels"] == 1


def test_soft_targets_and_logits_broadcast():
    """Examples are counted as often as there are pairs, whichever side is given once."""
    x, p, weights, size = sample(soft=True)
    x[:], weights = x[0], weights[:6]
    one, many = x[:1], p[:6]
    update = jax.jit(ALL.update)
    want = update(x[:6], many, weights=weights, bytes=size[:6]).compute()
    del want["bad_labels"]
    close(update(one, many, weights=weights, bytes=size[:6]).compute(), want)
    rows = x[:6].reshape(2, 3, -1)
    close(
        update(
            rows[:, :1], many.reshape(2, 3, -1), weights=weights.reshape(2, 3),
            bytes=size[:6].reshape(2, 3),
        ).compute(),
        want,
    )  # fmt: skip


def test_empty_is_nan():
    assert all(np.isnan(v) for k, v in ALL.compute().items() if k != "bad_labels")
    x, labels, _, size = sample()
    for state in (
        ALL.update(x, labels, np.zeros(ROWS, bool), bytes=size),
        ALL.update(x, labels, weights=np.zeros(ROWS), bytes=size),
        ALL.update(x, np.full_like(labels, -1), bytes=size),
        ALL.update(x[:0], labels[:0], bytes=size[:0]),
    ):
        assert all(np.isnan(v) for k, v in state.compute().items() if k != "bad_labels")
    assert np.isnan(metrics.Mean.empty().compute())


def test_infinite_surprisal_and_nan():
    x, labels, _, size = sample()
    x[0, labels[0]] = -np.inf
    got = ALL.update(x, labels, bytes=size).compute()
    assert all(got[name] == np.inf for name in ("ce", "bits", "perplexity", "kl", "bpb"))
    close(
        {k: got[k] for k in ("top1", "top5", "entropy")},
        {k: oracles.pooled(x, labels)[k] for k in ("top1", "top5", "entropy")},
    )
    assert np.isfinite(got["brier"])
    x[1, 4] = np.nan
    got = ALL.update(x, labels, bytes=size).compute()
    assert got.pop("bad_labels") == 0
    assert all(np.isnan(v) for v in got.values())
    x, p, _, size = sample(soft=True)
    p[0, 4] = np.nan
    got = ALL.update(x, p, bytes=size).compute()
    assert np.isfinite([got.pop("bad_labels"), got.pop("entropy")]).all()
    assert all(np.isnan(v) for v in got.values()), got
    got = metrics.Mean.empty().update(jnp.array([jnp.inf, 1.0]), weights=jnp.array([2.0, 1.0]))
    assert got.compute() == np.inf


@pytest.mark.parametrize("top_k", [1, 2, 5, 40])
def test_ties_as_top_k_breaks_them(dtype, top_k):
    rng = np.random.default_rng(0)
    x = rng.integers(-1, 3, (400, 12)).astype(dtype)
    x[0] = 0
    x[1, 3:] = -np.inf
    labels = rng.integers(0, 12, 400).astype(np.int32)
    labels[1] = 8
    first = np.asarray(jax.lax.top_k(x, min(top_k, 12))[1])
    want = (first == labels[:, None]).any(-1).mean()
    got = metrics.Accuracy.empty(top_k=top_k).update(x, labels).compute()
    np.testing.assert_allclose(got, want, rtol=1e-7)


def test_equal_logits_are_no_hit():
    labels = np.arange(40, dtype=np.int32)
    got = metrics.Accuracy.empty().update(np.zeros((40, 40), np.float32), labels).compute()
    np.testing.assert_allclose(got, 1 / 40, rtol=1e-7)


def test_confident_rows_keep_their_digits():
    x = np.zeros((50, 11), np.float32)
    x[:, 4] = np.linspace(12, 40, 50)
    labels = np.full(50, 4, np.int32)
    close(
        ALL.update(x, labels, bytes=np.ones(50)).compute(),
        oracles.pooled(x, labels, size=np.ones(50)),
        rtol=3e-6,
    )
    error = metrics.CalibrationError.empty().update(x, labels).compute()
    want = (1 - oracles.probabilities(x).max(-1)).mean()
    np.testing.assert_allclose(error, float(want), rtol=3e-6)


def test_no_nan_on_the_way(no_nans):
    x, labels, weights, size = sample()
    x, labels, weights, size = x[28:36], labels[28:36].copy(), weights[28:36], size[28:36]
    labels[0] = -1
    where = np.arange(8) != 5
    state = ALL.update(x, labels, where, weights, bytes=size).merge(
        ALL.update(x, labels, where, weights, bytes=size)
    )
    with option("jax_debug_nans", False):
        values = state.compute()
    assert all(np.isfinite(v) for v in values.values())


def test_mean_with_a_broadcast_mask():
    """The mask counts as often as it is used: 2.5, where a library counts it once and says 5."""
    values = jnp.array([[1.0, 9.0, 2.0], [3.0, 9.0, 4.0]])
    where = jnp.array([True, False, True])
    assert metrics.Mean.empty().update(values, where).compute() == 2.5


X, Y = jnp.zeros((2, 3)), jnp.array([0, 1])
WRONG = {
    "labels shape": (lambda: MEMBERS["ce"].update(X, jnp.array([0])), ValueError, "labels"),
    "labels missing": (lambda: MEMBERS["ce"].update(X, None), TypeError, "labels"),
    "labels bool": (lambda: MEMBERS["ce"].update(X, Y > 0), TypeError, "labels"),
    "labels floating": (
        lambda: MEMBERS["ce"].update(X, jnp.array([0.0, 1.0])),
        TypeError,
        r"labels: expected integer class indices of shape \(2,\) or probabilities",
    ),
    "soft shape": (lambda: MEMBERS["kl"].update(X, jnp.ones((2, 2))), ValueError, "labels"),
    "logits": (lambda: MEMBERS["ce"].update(jnp.zeros((2, 3), int), Y), TypeError, "logits"),
    "no classes": (lambda: MEMBERS["ce"].update(X[:, :0], Y), ValueError, "logits"),
    "scalar": (lambda: MEMBERS["ce"].update(1.0, 0), ValueError, "logits"),
    "where": (lambda: MEMBERS["ce"].update(X, Y, jnp.ones(3, bool)), ValueError, "where"),
    "where dtype": (lambda: MEMBERS["ce"].update(X, Y, jnp.ones(2)), TypeError, "where"),
    "weights": (lambda: MEMBERS["ce"].update(X, Y, None, jnp.ones(3)), ValueError, "weights"),
    "mean": (lambda: metrics.Mean.empty().update(jnp.ones(2, complex)), TypeError, "values"),
    "mean, where": (
        lambda: metrics.Mean.empty().update(jnp.ones((2, 3)), jnp.ones(2, bool)),
        ValueError,
        "where",
    ),
    "bytes": (lambda: ALL.update(X, Y), TypeError, "bytes"),
    "bytes shape": (lambda: ALL.update(X, Y, bytes=jnp.ones(3)), ValueError, "bytes"),
    "values": (lambda: ALL.update(X, Y, bytes=Y, loss=Y), TypeError, "loss"),
    "name": (lambda: metrics.Collection.empty(where=MEMBERS["ce"]), ValueError, "where"),
    "member": (lambda: metrics.Collection.empty(ce=metrics.CrossEntropy), TypeError, "ce"),
    "item": (lambda: ALL["nothing"], KeyError, "nothing"),
    "base": (lambda: metrics.CrossEntropy.empty(base=1), ValueError, "base"),
    "top_k": (lambda: metrics.Accuracy.empty(top_k=0), ValueError, "top_k"),
    "top_k float": (lambda: metrics.Accuracy.empty(top_k=1.5), TypeError, "top_k"),
    "bins": (lambda: metrics.CalibrationError.empty(bins=0), ValueError, "bins"),
    "merge": (lambda: MEMBERS["ce"].merge(MEMBERS["bits"]), TypeError, r"base=2\.0"),
    "merge kinds": (lambda: MEMBERS["ce"].merge(MEMBERS["brier"]), TypeError, "BrierScore"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_the_argument(case):
    call, error, name = WRONG[case]
    with pytest.raises(error, match=name):
        call()
