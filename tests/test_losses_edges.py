"""The losses at their edges: one answer each, for the value and for its derivatives."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import losses
from tests import oracles_losses as exact
from tests.cases_losses import (
    INF,
    KEYWORDS,
    LOG2,
    NAN,
    THIRD,
    binary,
    close,
    compare,
    distillation,
    focal,
    general_kl,
    integer,
    kl,
    log_kl,
    poly,
    pulled,
    safe,
    sample,
    sigmoid_focal,
    soft,
)


def test_the_watch_can_condemn():
    with pytest.raises(AssertionError, match="NaN in passing"):
        pulled(lambda x: jnp.where(x > 0, jnp.sqrt(x), 0), [-1.0], compiled=False)


# loss, arguments, keywords, value, one gradient per floating argument (None: not NaN, and finite
# where the value is)
EDGES = {
    "masked label": (
        integer,
        ([1.0, 1, 100], 2),
        {"where": [True, True, False]},
        INF,
        [[0.5, 0.5, 0]],
    ),
    "label of a logit -inf": (integer, ([-INF, 0.0, 0.0], 0), {}, INF, [[-1, 0.5, 0.5]]),
    "very large difference": (integer, ([1e8, -1e8, 0], 1), {}, 2e8, [[1, -1, 0]]),
    "certain": (integer, ([-INF, 3.0], 1), {}, 0, [[0, 0]]),
    "impossible label of weight 0": (
        integer,
        ([-INF, 1.0, 0.0], 0),
        {"class_weights": [0.0, 1, 2]},
        0,
        [[0, 0, 0]],
    ),
    "impossible outcome of weight 0": (binary, (-INF, 1.0), {"pos_weight": 0.0}, 0, [0, None]),
    "ignored": (integer, ([1.0, 2], -100), {"ignore_index": -100}, 0, [[0, 0]]),
    "ignored class": (integer, ([1.0, 2], 1), {"ignore_index": 1}, 0, [[0, 0]]),
    "nothing left": (integer, ([1.0, 2], 1), {"where": [False, False]}, 0, [[0, 0]]),
    "soft, -inf and two": (
        safe,
        ([-INF, 0.0, 0.0], [0.0, 1.0, 0.0]),
        {},
        LOG2,
        [[0, -0.5, 0.5], None],
    ),
    "soft, impossible": (
        soft,
        ([-INF, 0.0, 0.0], [0.5, 0.5, 0.0]),
        {},
        INF,
        [[-0.5, 0, 0.5], None],
    ),
    "poly, a row of zeros": (poly, ([1.0, 2, 3], [0.0, 0, 0]), {}, 0, [[0, 0, 0], None]),
    "focal, a row of zeros": (focal, ([1.0, 2, 3], [0.0, 0, 0]), {}, 0, [[0, 0, 0], None]),
    "soft, smoothed over what exists": (
        soft,
        ([-INF, 0.0, 0.0], [0.0, 1.0, 0.0]),
        {"label_smoothing": 0.2},
        LOG2,
        [[0, -0.4, 0.4], None],
    ),
    "smoothed over what exists": (
        integer,
        ([-INF, 0.0, 0.0], 1),
        {"label_smoothing": 0.2},
        LOG2,
        [[0, -0.4, 0.4]],
    ),
    "smoothed over what is not masked": (
        integer,
        ([100.0, 0.0, 0.0], 1),
        {"label_smoothing": 0.2, "where": [False, True, True]},
        LOG2,
        [[0, -0.4, 0.4]],
    ),
    "poly, -inf": (
        poly,
        ([-INF, 0.0, 0.0], [0.0, 1.0, 0.0]),
        {},
        LOG2 + 1,
        [[0, -1.0, 1.0], None],
    ),
    "focal, -inf": (
        focal,
        ([-INF, 0.0, 0.0], 1),
        {},
        LOG2 / 4,
        [[0, -1 / 8 - LOG2 / 4, 1 / 8 + LOG2 / 4]],
    ),
    "focal, impossible": (focal, ([-INF, 0.0, 0.0], 0), {}, INF, [[-1, 0.5, 0.5]]),
    "focal, certain": (focal, ([-INF, 3.0], 1), {}, 0, [[0, 0]]),
    "focal, certain, root": (focal, ([-INF, 3.0], 1), {"gamma": 0.5}, 0, [[0, 0]]),
    "focal, certain, gamma 0": (focal, ([-INF, 3.0], 1), {"gamma": 0.0}, 0, [[0, 0]]),
    "z_loss": (
        losses.z_loss,
        ([-INF, 0.0, 0.0],),
        {},
        LOG2**2,
        [[0, LOG2, LOG2]],
    ),
    "z_loss, nothing left": (losses.z_loss, ([1.0, 2],), {"where": [False, False]}, 0, [[0, 0]]),
    "kl, nothing predicted there": (
        kl,
        ([-INF, -LOG2, -LOG2, -INF], [0, 0.5, 0.5, 0]),
        {},
        0,
        [[0, 0, 0, 0], None],
    ),
    "kl, both -inf": (
        log_kl,
        ([-LOG2, -LOG2, -INF], [-LOG2, -LOG2, -INF]),
        {},
        0,
        [[0, 0, 0], [0, 0, 0]],
    ),
    "kl, impossible, logs": (
        log_kl,
        ([-INF, 0.0, 0.0], [0.0, 0.0, 0.0]),
        {},
        INF,
        [[-THIRD, 1 / 6, 1 / 6], None],
    ),
    "kl, a row of zeros": (kl, (np.log([0.5, 0.5]), [0.0, 0]), {}, 0, [[0, 0], None]),
    "generalized kl, both 0": (
        general_kl,
        ([-INF, 0.0], [0.0, 2.0]),
        {},
        2 * LOG2 - 1,
        [[0, -1], None],
    ),
    "generalized kl, impossible": (general_kl, ([-INF, 0.0], [1.0, 1.0]), {}, INF, [None, None]),
    "distillation, the same holes": (
        distillation,
        ([0.0, 0.0, -INF], [0.0, 0.0, -INF]),
        {"temperature": 2.0},
        0,
        [[0, 0, 0], [0, 0, 0]],
    ),
    "binary, certain": (
        binary,
        ([INF, -INF, 1e8, -1e8], [1.0, 0, 1, 0]),
        {},
        [0, 0, 0, 0],
        [[0, 0, 0, 0], None],
    ),
    "binary, certain and wrong": (
        binary,
        ([INF, -INF, 1e8], [0.0, 1, 0]),
        {},
        [INF, INF, 1e8],
        [[1, -1, 1], None],
    ),
    "binary, weighted, certain": (
        functools.partial(binary, pos_weight=3.0),
        ([INF, -INF, 1e8, -1e8], [1.0, 0, 1, 0]),
        {},
        [0, 0, 0, 0],
        [[0, 0, 0, 0], None],
    ),
    "binary, weighted, wrong": (
        functools.partial(binary, pos_weight=3.0),
        ([INF, -INF], [0.0, 1]),
        {},
        [INF, INF],
        [[1, -3], None],
    ),
    "sigmoid focal, certain": (
        sigmoid_focal,
        ([INF, -INF, 1e8, -1e8], [1.0, 0, 1, 0]),
        {},
        [0, 0, 0, 0],
        [[0, 0, 0, 0], None],
    ),
    "sigmoid focal, wrong": (
        functools.partial(sigmoid_focal, alpha=0.25),
        ([INF, -INF, 1e4], [0.0, 1, 0]),
        {},
        [INF, INF, 7.5e3],
        [[0.75, -0.25, 0.75], None],
    ),
    "soft cap": (
        functools.partial(losses.soft_cap, cap=5.0),
        ([INF, -INF, 0.0],),
        {},
        [5, -5, 0],
        [[0, 0, 1]],
    ),
}


def on_an_edge(name):
    """Whether operations may meet an infinity, so that it matters to look at each of them."""
    _, args, keywords, *_ = EDGES[name]
    return bool(keywords) or not all(np.isfinite(a).all() for a in args)


@pytest.mark.parametrize(
    ("name", "compiled"),
    [(n, True) for n in EDGES] + [(n, False) for n in EDGES if on_an_edge(n)],
)
def test_edge(name, compiled):
    function, args, keywords, value, grads = EDGES[name]
    keywords = {k: np.array(v) if isinstance(v, list) else v for k, v in keywords.items()}
    got, slopes, pushed = pulled(function, *args, compiled=compiled, **keywords)
    compare(got, value)
    for mine, want in zip(slopes, grads, strict=True):
        if want is None:
            assert not np.isnan(mine).any()
            assert np.isfinite(mine).all() or not np.isfinite(value).all()
        else:
            compare(mine, want)
    assert not np.isnan(pushed).any()


BAD_LABELS = [4, -1, -4, -100, 2**31 - 1, -(2**31)]


@pytest.mark.parametrize("name", ["plain", "smoothed", "weighted", "both", "focal"])
def test_bad_label_is_nan_for_its_row(name):
    labels = np.array([1, *BAD_LABELS, 2], np.int32)
    bad = np.isin(labels, BAD_LABELS)
    function = functools.partial(integer, **KEYWORDS[name]) if name in KEYWORDS else focal
    value, (grad,), pushed = pulled(function, [[0.5, 1, 2, 3]] * len(labels), labels, debug=False)
    np.testing.assert_array_equal(np.isnan(value), bad)
    np.testing.assert_array_equal(np.isnan(pushed), bad)
    np.testing.assert_array_equal(np.isnan(grad), np.stack([bad] * 4, -1))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_narrow_labels(dtype):
    labels = jnp.asarray([3, 100], dtype)
    compare(integer(jnp.zeros((2, 300)), labels), [np.log(300)] * 2)
    ignored = integer(jnp.zeros((2, 300)), labels, ignore_index=100)
    compare(ignored, [np.log(300), 0])


@pytest.mark.parametrize(
    ("how", "keywords", "compiled"),
    [(how, k, True) for how in ("ignore_index", "where") for k in ("plain", "both")]
    + [("ignore_index and where", k, c) for k in ("plain", "both") for c in (True, False)],
)
def test_dropped_examples(how, keywords, compiled):
    """Exactly 0 with gradient 0, whatever is in them; the others are as if alone."""
    keywords = KEYWORDS[keywords]
    x, labels, *_ = sample(6, 4)
    where, ignored = np.ones(6, bool), np.zeros(6, bool)
    if "where" in how:
        where[[1, 4]] = False
    if "ignore_index" in how:
        ignored[[2, 4]] = True
    keep = where & ~ignored
    # No NaN where each operation is watched: merely reading one would be an offence.
    junk = [NAN, INF, -INF, 3e38] if compiled else [3e38, -INF, -3e38, 0]
    x[~keep] = junk
    labels[~where] = np.resize([77, -1], (~where).sum())
    labels[ignored] = -100
    more = {"ignore_index": -100} if "ignore_index" in how else {}
    if "where" in how:
        more["where"] = jnp.asarray(where)
    value, (grad,), pushed = pulled(integer, x, labels, compiled=compiled, **keywords, **more)
    close(value[keep], exact.cross_entropy(x[keep], labels[keep], **keywords))
    close(grad[keep], exact.cross_entropy_grad(x[keep], labels[keep], **keywords))
    assert (np.asarray(value)[~keep] == 0).all()
    assert (np.asarray(grad)[~keep] == 0).all()
    assert (np.asarray(pushed)[~keep] == 0).all()
