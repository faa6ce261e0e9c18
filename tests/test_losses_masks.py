"""What a mask leaves out does not exist, in every loss."""

import functools

import numpy as np
import pytest

from tests import oracles_losses as exact
from tests.cases_losses import (
    INF,
    KEYWORDS,
    MASKED,
    NAN,
    close,
    integer,
    pulled,
    sample,
    second,
    soft,
)


@pytest.mark.parametrize("name", MASKED)
def test_masked_entries_do_not_exist(name):
    """As if sliced away; what stands there reaches neither the value nor a gradient."""
    function, kind, oracle = MASKED[name]
    x, labels, p, where = sample(5, 6)
    target = np.array(second(kind, x, labels, p))
    hole = np.resize([NAN, INF, -INF, 3e38], x.shape)
    x_bad = np.where(where, x, hole)
    bad = target if kind == "labels" else np.where(where, target, hole)
    value, grads, pushed = pulled(function, x_bad, bad, where=where)
    for i, row in enumerate(where):
        picked = target[i] if kind != "labels" else np.int32(row[: labels[i]].sum())
        picked = np.asarray(picked[row] if kind != "labels" else picked)
        close(value[i], oracle(x[i][row][None], picked[None])[0])
    for grad in grads:
        assert (np.asarray(grad)[~where] == 0).all()
        assert np.isfinite(grad).all()
    assert np.isfinite(pushed).all()


@pytest.mark.parametrize("name", MASKED)
def test_masked_examples_do_not_count(name):
    """`where` shaped as the batch: 0 with gradient 0, whatever is there."""
    function, kind, oracle = MASKED[name]
    x, labels, p, _ = sample(4, 3)
    target = np.array(second(kind, x, labels, p))
    keep = np.array([True, False, True, False])
    x_bad, bad = np.array(x), np.array(target)
    x_bad[1], x_bad[3] = NAN, [INF, -INF, 1e30]
    bad[1], bad[3] = (-5, 3) if kind == "labels" else (NAN, INF)
    value, grads, pushed = pulled(function, x_bad, bad, where=keep)
    close(value[keep], oracle(x[keep], target[keep]))
    for result in (value, *grads, pushed):
        assert (np.asarray(result)[~keep] == 0).all()
        assert np.isfinite(result).all()


@pytest.mark.parametrize("name", MASKED)
def test_mask_of_classes_alone(name):
    function, kind, oracle = MASKED[name]
    x, labels, p, _ = sample(4, 5)
    labels[:] = [0, 1, 1, 3]
    target = np.asarray(second(kind, x, labels, p))
    where = np.array([[True, True, False, True, False]])
    got = function(x, target, where=where)
    chosen = target if kind != "labels" else np.array([0, 1, 1, 2], np.int32)
    want = oracle(x[:, where[0]], chosen if kind == "labels" else chosen[:, where[0]])
    close(got, want)


@pytest.mark.parametrize("name", [n for n, m in MASKED.items() if m[1] != "p" or "gen" not in n])
def test_nan_in_is_nan_out(name):
    function, kind, _ = MASKED[name]
    x, labels, p, _ = sample(3, 4)
    x[1, 2] = NAN
    value = function(x, np.asarray(second(kind, x, labels, p)))
    np.testing.assert_array_equal(np.isnan(value), [False, True, False])


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 3)])
def test_empty_batch(name, shape):
    function, kind, _ = MASKED[name]
    x, labels, p, _ = sample(*shape)
    assert function(x, second(kind, x, labels, p)).shape == shape[:-1]


@pytest.mark.parametrize("keywords", ["weighted", "both"])
@pytest.mark.parametrize(("masked", "holes"), [(False, True), (True, False), (True, True)])
def test_smoothing_weights_and_masks_together(keywords, masked, holes):
    keywords = KEYWORDS[keywords]
    x, labels, p, where = sample(7, 4)
    if holes:
        hole = ~where if not masked else (exact.one_hot(labels, x) == 0) & (x > 1)
        x = np.where(hole, -np.inf, x).astype(np.float32)
        p = np.where(hole, 0, p)
    more = keywords | ({"where": where} if masked else {})
    oracle = keywords | ({"where": where} if masked else {})
    p_there = np.where(where, p, 0) if masked else p
    for function, target, judged in ((integer, labels, labels), (soft, p, p_there)):
        value, grads, _ = pulled(functools.partial(function, **more), x, np.array(target))
        close(value, exact.cross_entropy(x, judged, **oracle))
        close(grads[0], exact.cross_entropy_grad(x, judged, **oracle))
