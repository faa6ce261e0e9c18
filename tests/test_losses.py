"""The losses at their edges, in every shape and under every transformation, against the oracles."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from jaxce import losses
from tests import oracles_losses as exact
from tests.conftest import option

INF, NAN = float("inf"), float("nan")
LOG2, LOG3, LOG4 = np.log([2.0, 3.0, 4.0])
THIRD = 1 / 3

soft = losses.softmax_cross_entropy
integer = losses.softmax_cross_entropy_with_integer_labels
safe = losses.safe_softmax_cross_entropy
kl = losses.kl_divergence
log_kl = losses.kl_divergence_with_log_targets
general_kl = losses.generalized_kl_divergence
binary = losses.sigmoid_binary_cross_entropy
sigmoid_focal = losses.sigmoid_focal_loss
focal = losses.softmax_focal_loss
poly = losses.poly_loss_cross_entropy
distillation = losses.distillation_loss
top_k = losses.distillation_loss_top_k

COMPILED = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "watched"])


def array(value):
    value = np.asarray(value)
    return value.astype(np.int32 if value.dtype.kind == "i" else np.float32)


def derivatives(function, *args):
    """The value, the gradients of its sum over the floating arguments, and forward mode."""
    places = [i for i, a in enumerate(args) if a.dtype.kind != "i"]

    def of(*floats):
        full = list(args)
        for i, value in zip(places, floats, strict=True):
            full[i] = value
        return function(*full)

    floats = [args[i] for i in places]
    value, pull = jax.vjp(of, *floats)
    pushed = jax.jvp(of, floats, [jnp.ones_like(f) for f in floats])[1]
    return value, pull(jnp.ones_like(value)), pushed


def pulled(function, *args, compiled=True, debug=True, **keywords):
    """The same as one compiled program; or operation by operation, none of which may give a NaN."""
    run = functools.partial(derivatives, functools.partial(function, **keywords))
    args = list(map(array, args))
    if compiled:
        with option("jax_debug_nans", debug):
            return jax.jit(run)(*args)
    closed, shape = jax.make_jaxpr(run, return_shape=True)(*args)
    results = watched(closed.jaxpr, closed.consts, args)
    return jax.tree.unflatten(jax.tree.structure(shape), results)


def watched(jaxpr, consts, args):
    """Run the operations one by one and look at every result: jax_debug_nans skips cached ones."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(v):
        return v.val if hasattr(v, "val") else values[v]

    for eqn in jaxpr.eqns:
        given, inner = list(map(read, eqn.invars)), None
        if eqn.primitive.name == "cond":
            which, *given = given
            inner = eqn.params["branches"][int(which)]
        elif eqn.primitive.name in ("jit", "pjit", "custom_jvp_call"):
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if inner is not None:
            results = watched(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given)
        else:
            results = eqn.primitive.bind(*given, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
            for result in results:
                if jnp.issubdtype(result.dtype, jnp.floating):
                    assert not np.isnan(result).any(), f"NaN in passing: {eqn}"
        values.update(zip(eqn.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))


def test_the_watch_can_condemn():
    with pytest.raises(AssertionError, match="NaN in passing"):
        pulled(lambda x: jnp.where(x > 0, jnp.sqrt(x), 0), [-1.0], compiled=False)


def compare(got, want, rtol=2e-6):
    """Six digits, and an expected 0 or inf is meant exactly."""
    np.testing.assert_allclose(got, np.asarray(want, float), rtol=rtol, atol=0)


def close(got, want):
    np.testing.assert_allclose(got, np.asarray(want, float), rtol=1e-5, atol=1e-6)


# --- edges --------------------------------------------------------------------------------------

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
    "very large logits": (integer, ([1e8] * 3, 0), {}, LOG3, [[-2 / 3, THIRD, THIRD]]),
    "very large difference": (integer, ([1e8, -1e8, 0], 1), {}, 2e8, [[1, -1, 0]]),
    "certain": (integer, ([-INF, 3.0], 1), {}, 0, [[0, 0]]),
    "ignored": (integer, ([1.0, 2], -100), {"ignore_index": -100}, 0, [[0, 0]]),
    "ignored class": (integer, ([1.0, 2], 1), {"ignore_index": 1}, 0, [[0, 0]]),
    "nothing left": (integer, ([1.0, 2], 1), {"where": [False, False]}, 0, [[0, 0]]),
    "soft, -inf": (soft, ([-INF, 0.0], [0.0, 1.0]), {}, 0, [[0, 0], None]),
    "safe, -inf": (safe, ([-INF, 0.0], [0.0, 1.0]), {}, 0, [[0, 0], None]),
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
    "soft, a row of zeros": (soft, ([1.0, 2, 3], [0.0, 0, 0]), {}, 0, [[0, 0, 0], None]),
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
    "kl, targets 0": (
        kl,
        (np.log([0.25] * 4), [0, 0.4, 0.6, 0]),
        {},
        0.4 * np.log(1.6) + 0.6 * np.log(2.4),
        [[0.25, -0.15, -0.35, 0.25], None],
    ),
    "kl, nothing predicted there": (
        kl,
        ([-INF, -LOG2, -LOG2, -INF], [0, 0.5, 0.5, 0]),
        {},
        0,
        [[0, 0, 0, 0], None],
    ),
    "kl, impossible": (kl, ([-LOG2, -LOG2, -INF], [0.3, 0.3, 0.4]), {}, INF, [None, None]),
    "kl, disjoint": (
        kl,
        ([-INF, np.log(0.3), np.log(0.7), -INF], [0.7, 0.3, 0, 0]),
        {},
        INF,
        [None, None],
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


def test_label_of_many_classes_does_not_wrap():
    assert np.isnan(integer(jnp.zeros(200), jnp.int32(-100)))
    assert integer(jnp.zeros(200), jnp.int32(-100), ignore_index=-100) == 0


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_narrow_labels(dtype):
    labels = jnp.asarray([3, 100], dtype)
    compare(integer(jnp.zeros((2, 300)), labels), [np.log(300)] * 2)
    ignored = integer(jnp.zeros((2, 300)), labels, ignore_index=100)
    compare(ignored, [np.log(300), 0])


KEYWORDS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.25},
    "weighted": {"class_weights": np.array([0.5, 1, 2, 3], np.float32)},
    "both": {
        "label_smoothing": 0.25,
        "class_weights": np.array([0.5, 1, 2, 3], np.float32),
    },
}


def sample(*shape, seed=0):
    """Logits, class indices, distributions and a mask that keeps each label."""
    rng = np.random.default_rng(seed)
    x = (2 * rng.standard_normal(shape)).astype(np.float32)
    labels = rng.integers(0, shape[-1], shape[:-1]).astype(np.int32)
    p = np.exp(rng.standard_normal(shape))
    where = (rng.random(shape) < 0.6) | (exact.one_hot(labels, x) == 1)
    return x, labels, (p / p.sum(-1, keepdims=True)).astype(np.float32), where


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


# loss of (logits, other argument), whether the other are distributions, logits or class indices
MASKED = {
    "soft": (soft, "p", exact.cross_entropy),
    "soft, smoothed": (
        functools.partial(soft, label_smoothing=0.25),
        "p",
        functools.partial(exact.cross_entropy, label_smoothing=0.25),
    ),
    "integer": (integer, "labels", exact.cross_entropy),
    "integer, smoothed": (
        functools.partial(integer, label_smoothing=0.25),
        "labels",
        functools.partial(exact.cross_entropy, label_smoothing=0.25),
    ),
    "focal": (focal, "labels", exact.focal),
    "focal of distributions": (focal, "p", exact.focal),
    "poly": (poly, "p", exact.poly),
    "z_loss": (lambda x, _, where=None: losses.z_loss(x, where=where), "labels", None),
    "kl": (kl, "p", exact.kl),
    "log kl": (log_kl, "logits", exact.kl_log_targets),
    "generalized kl": (general_kl, "p", exact.generalized_kl),
    "distillation": (
        functools.partial(distillation, temperature=2.0),
        "logits",
        functools.partial(exact.distillation, temperature=2.0),
    ),
}
MASKED["z_loss"] = (*MASKED["z_loss"][:2], lambda x, _: exact.z_loss(x))


def second(kind, x, labels, p):
    return {"p": p, "labels": labels, "logits": 3 * p}[kind]


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


# --- smoothing, weights, means ------------------------------------------------------------------


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


@pytest.mark.parametrize("keywords", KEYWORDS)
def test_integer_labels_are_one_hot_ones(keywords):
    keywords = KEYWORDS[keywords]
    x, labels, *_ = sample(5, 4)
    one_hot = jax.nn.one_hot(labels, 4)
    got = integer(x, labels, **keywords)
    compare(got, soft(x, one_hot, **keywords))
    for dtype in (jnp.int32, jnp.bool_):
        compare(got, soft(x, one_hot.astype(dtype), **keywords))


def test_gradient_over_soft_labels_is_the_surprisal():
    """Also of classes with label 0, and 0 where it is infinite."""
    x = np.array([-INF, 1.0, 2.0], np.float32)
    grad = jax.grad(soft, argnums=1)(x, jnp.array([0.0, 1.0, 0.0]))
    with np.errstate(all="ignore"):
        want = np.log(np.exp(x[1]) + np.exp(x[2])) - x
    compare(grad, [0, *want[1:]])
    jacobian = jax.jacfwd(soft, argnums=1)(x, jnp.array([0.0, 1.0, 0.0]))
    compare(jacobian, [0, *want[1:]])


def test_both_weighted_means():
    """torch's weighted mean, and the mean of weighted losses: another number, and both are had."""
    x = np.array([[-100.0, 100], [-100, 100]], np.float32)
    labels, weights = np.array([0, 1], np.int32), jnp.array([20.0, 10.0])
    compare(losses.mean(integer(x, labels, class_weights=weights)), 2000)
    compare(losses.mean(integer(x, labels), weights=weights[labels]), 20 * 200 / 30)
    weighted = integer(x, labels, class_weights=weights)
    compare(weighted.sum() / weights[labels].sum(), 20 * 200 / 30)


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("keywords", ["plain", "both"])
def test_any_axis(axis, keywords):
    keywords = KEYWORDS[keywords]
    x, labels, p, where = sample(3, 5, 4)

    def moved(a):
        return np.moveaxis(a, -1, axis)

    for function, target in ((integer, labels), (soft, moved(p))):
        call = functools.partial(function, axis=axis, **keywords)
        value, grads, _ = pulled(call, moved(x), np.array(target))
        judged = labels if function is integer else p
        close(value, exact.cross_entropy(x, judged, **keywords))
        close(grads[0], moved(exact.cross_entropy_grad(x, judged, **keywords)))
    masked = integer(moved(x), labels, axis, moved(where))
    close(masked, exact.cross_entropy(x, labels, where))


@pytest.mark.parametrize("name", [n for n in MASKED if n != "integer"])
def test_other_losses_along_any_axis(name):
    if name == "z_loss":
        function = lambda x, _, axis, where=None: losses.z_loss(x, axis=axis, where=where)  # noqa: E731
        kind, oracle = MASKED[name][1:]
    else:
        function, kind, oracle = MASKED[name]
    x, labels, p, _ = sample(2, 3, 4)
    target = np.asarray(second(kind, x, labels, p))
    moved = target if kind == "labels" else np.moveaxis(target, -1, 1)
    close(function(np.moveaxis(x, -1, 1), moved, axis=1), oracle(x, target))
    batch = np.array([[True, False, True]] * 2)
    got = function(np.moveaxis(x, -1, 1), moved, axis=1, where=batch)
    close(got, np.where(batch, oracle(x, target), 0))


@pytest.mark.parametrize("axis", [(1, 2), (-1, 1), (2, 0), (2, 0, 1)])
def test_labels_are_flat_over_several_axes(axis):
    """In the order in which the axes are given."""
    x, *_, where = sample(2, 3, 4)
    flat = np.moveaxis(x, axis, range(-len(axis), 0))
    flat = flat.reshape(*flat.shape[: 3 - len(axis)], -1)
    labels = np.random.default_rng(1).integers(0, flat.shape[-1], flat.shape[:-1]).astype(np.int32)
    masks = np.moveaxis(where, axis, range(-len(axis), 0)).reshape(flat.shape)
    keywords = {
        "label_smoothing": 0.25,
        "class_weights": np.linspace(1, 2, flat.shape[-1]).astype(np.float32),
    }
    close(integer(x, labels, axis), exact.cross_entropy(flat, labels))
    want = exact.cross_entropy(flat, labels, masks, **keywords)
    close(integer(x, labels, axis, where, **keywords), want)


@pytest.mark.parametrize("name", ["soft", "poly", "kl", "generalized kl"])
@pytest.mark.parametrize("axis", [(1, 2), (-1, 0), None])
def test_distributions_over_several_axes(name, axis):
    function, kind, oracle = MASKED[name]
    x, labels, p, _ = sample(2, 3, 4)
    target = second(kind, x, labels, p)
    axes = (0, 1, 2) if axis is None else axis

    def flat(a):
        moved = np.moveaxis(a, axes, range(-len(axes), 0))
        return moved.reshape(*moved.shape[: 3 - len(axes)], -1)

    close(function(x, target, axis=axis), oracle(flat(x), flat(target)))


def test_smoothing_over_all_axes():
    x, _, p, _ = sample(2, 3)
    got = soft(x, p, axis=None, label_smoothing=0.25)
    close(got, exact.cross_entropy(x.ravel(), p.ravel(), label_smoothing=0.25))
    assert soft(x, p, axis=None, where=np.array(False)) == 0


@pytest.mark.parametrize(
    ("name", "dtype"), [(n, "bfloat16") for n in MASKED] + [("integer", "float16")]
)
def test_low_precision(name, dtype):
    """Computed in and returned as float32; the gradient has the dtype of the logits."""
    function, kind, oracle = MASKED[name]
    x, labels, p, _ = sample(3, 300)
    x = jnp.asarray(x, dtype)
    target = second(kind, x, labels, p)
    if kind != "labels":
        target = jnp.asarray(target, dtype)
    value, (grad, *_), _ = jax.jit(functools.partial(derivatives, function))(x, target)
    assert value.dtype == jnp.float32
    wide = [np.asarray(a, np.float32 if a.dtype.kind != "i" else None) for a in (x, target)]
    compare(value, oracle(*wide), rtol=1e-5)
    assert grad.dtype == x.dtype


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", MASKED)
def test_dtype_of_value_and_gradient(name):
    """float32 stays float32 under x64, and float64 wins where they meet."""
    function, kind, _ = MASKED[name]
    x, labels, p, _ = sample(3, 4)
    target = second(kind, x, labels, p)
    for dtype in ("float32", "float64"):
        for other in [labels.dtype] if kind == "labels" else ["float32", "float64"]:
            args = x.astype(dtype), target.astype(other)
            run = functools.partial(derivatives, function)
            value, grads, pushed = jax.eval_shape(run, *args)
            wide = "float64" in (dtype, other)
            assert value.dtype == pushed.dtype == ("float64" if wide else "float32")
            assert [g.dtype for g in grads] == [a.dtype for a in args if a.dtype.kind == "f"]


def test_float16_at_its_largest():
    x = jnp.array([65504, -65504], jnp.float16)
    for label, value, slope in ((0, 0, [0, 0]), (1, 2 * 65504, [1, -1])):
        got, grad = jax.value_and_grad(integer)(x, jnp.int32(label))
        assert got == value
        np.testing.assert_array_equal(grad, slope)


def test_float16_sum_of_surprisals_of_many_classes():
    x = jnp.zeros(2**17, jnp.float16)
    grad = jax.grad(soft)(x, jnp.ones(2**17, jnp.float16))
    assert grad.dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(grad, np.float32), 0, atol=1e-4)


@pytest.mark.usefixtures("x64")
def test_a_tiny_gradient_survives():
    x = jnp.array([37.42994775023705, 0.0])
    for function, target in ((integer, jnp.int32(0)), (soft, jnp.array([1.0, 0.0]))):
        grad = jax.grad(function)(x, target)
        compare(jnp.abs(grad), [np.exp(-x[0])] * 2, rtol=1e-14)


def test_bfloat16_of_a_large_vocabulary_is_not_rounded():
    rng = np.random.default_rng(0)
    x = jnp.asarray(8 * rng.standard_normal((2, 50257)), jnp.bfloat16)
    labels = np.array([17, 50256], np.int32)
    compare(integer(x, labels), exact.cross_entropy(np.asarray(x, np.float32), labels))


# --- focal, poly and what acts on logits alone --------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal(gamma):
    x, labels, p, _ = sample(5, 4)
    for target in (labels, p):
        call = functools.partial(focal, gamma=gamma)
        value, grads, _ = pulled(call, x, np.array(target))
        close(value, exact.focal(x, target, gamma))
        close(grads[0], exact.focal_grad(x, target, gamma))
    if gamma == 0:
        compare(focal(x, labels, gamma=gamma), integer(x, labels))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_sigmoid_focal(gamma, alpha):
    x, _, p, _ = sample(5, 4)
    x, y = np.concatenate([x, x]), np.concatenate([p, p > 0.25])
    value, grads, _ = pulled(functools.partial(sigmoid_focal, alpha=alpha, gamma=gamma), x, y)
    close(value, exact.sigmoid_focal(x, y, alpha, gamma))
    close(grads[0], exact.sigmoid_focal_grad(x, y, alpha, gamma))
    assert np.isfinite(grads[1]).all()
    if gamma == 0 and alpha is None:
        compare(value, binary(x, y), rtol=1e-5)


@pytest.mark.parametrize("epsilon", [-1.0, 0.0, 2.0])
def test_poly(epsilon):
    x, _, p, _ = sample(5, 4)
    value, grads, _ = pulled(functools.partial(poly, epsilon=epsilon), x, p)
    close(value, exact.poly(x, p, epsilon))
    close(grads[0], exact.poly_grad(x, p, epsilon))


def test_binary_with_weights_and_any_labels():
    x, _, p, _ = sample(5, 4)
    weights = np.array([[0.5, 1, 2, 3]], np.float32)
    value, grads, _ = pulled(functools.partial(binary, pos_weight=weights), x, p)
    close(value, exact.sigmoid_cross_entropy(x, p, weights))
    close(grads[0], exact.sigmoid_cross_entropy_grad(x, p, weights))
    hard = p > 0.25
    for labels in (hard, hard.astype(np.int32)):
        close(binary(x, labels), exact.sigmoid_cross_entropy(x, hard.astype(float)))
        close(sigmoid_focal(x, labels), exact.sigmoid_focal(x, hard.astype(float)))


def test_z_loss():
    x, *_ = sample(5, 4)
    value, grads, _ = pulled(losses.z_loss, x)
    close(value, exact.z_loss(x))
    close(grads[0], exact.z_loss_grad(x))


def test_soft_cap():
    x = np.array([-1e8, -50, -1, 0, 1e-3, 20, 1e8], np.float32)
    value, (grad, _), _ = pulled(losses.soft_cap, x, 30.0)
    compare(value, exact.soft_cap(x, 30))
    close(grad, exact.soft_cap_grad(x, 30))
    assert losses.soft_cap(jnp.ones(2, jnp.bfloat16), 30.0).dtype == jnp.float32


def test_smooth_labels():
    _, _, p, where = sample(3, 4)
    compare(losses.smooth_labels(p, 0.25), exact.smooth_labels(p, 0.25), rtol=1e-6)
    compare(losses.smooth_labels(p, 0.25, where=where), exact.smooth_labels(p, 0.25, where))
    batch = losses.smooth_labels(p, 0.25, where=np.array([True, False, True]))
    compare(batch[::2], exact.smooth_labels(p, 0.25)[::2])
    assert (batch[1] == 0).all()
    compare(losses.smooth_labels(p.T, 0.25, axis=0).T, exact.smooth_labels(p, 0.25))
    flat = exact.smooth_labels(p.ravel(), 0.25).reshape(p.shape)
    compare(losses.smooth_labels(p, 0.25, axis=None), flat)
    compare(losses.smooth_labels(p, 0.25, axis=(0, 1)), flat)
    # What it leaves out may be NaN, and reaches no derivative.
    bad = np.where(where, p, NAN)
    with option("jax_debug_nans", True):
        value, pull = jax.vjp(lambda p: losses.smooth_labels(p, 0.25, where=where), bad)
        (grad,) = pull(jnp.ones_like(value))
    compare(grad, 0.75 * where)


# --- divergences --------------------------------------------------------------------------------


def test_divergences():
    x, _, p, _ = sample(5, 4)
    value, grads, _ = pulled(kl, x, p)
    close(value, exact.kl(x, p))
    close(grads[0], exact.kl_grad(x, p))
    value, grads, _ = pulled(log_kl, x, 3 * p)
    close(value, exact.kl_log_targets(x, 3 * p))
    close(grads[0], exact.kl_log_targets_grad(x, 3 * p))
    value, grads, _ = pulled(general_kl, x, 3 * p)
    close(value, exact.generalized_kl(x, 3 * p))
    close(grads[0], exact.generalized_kl_grad(x, 3 * p))
    close(grads[1], np.log(3 * p) - x)


def test_kl_takes_targets_as_written():
    x, _, p, _ = sample(5, 4)
    for mass in (0.5, 2.0, 100.0):
        close(kl(x, mass * p), exact.kl(x, (mass * p).astype(np.float32)))
    close(
        jax.grad(lambda p: kl(x, p).sum())(p),
        np.log(p) + 1 - exact.log_softmax(x.astype(np.longdouble)),
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation(temperature):
    x, _, p, _ = sample(5, 4)
    teacher = 5 * p
    call = functools.partial(distillation, temperature=temperature)
    value, grads, _ = pulled(call, x, teacher)
    close(value, exact.distillation(x, teacher, temperature))
    close(grads[0], exact.distillation_grad(x, teacher, temperature))
    same = pulled(call, x, x)
    for result in (same[0], *same[1], same[2]):
        assert (np.asarray(result) == 0).all()


def test_distillation_near_the_teacher_keeps_its_digits():
    x, *_ = sample(4, 1000)
    near = (x + 1e-4 * sample(4, 1000, seed=1)[0]).astype(np.float32)
    compare(distillation(near, x, temperature=2.0), exact.distillation(near, x, 2.0), rtol=3e-6)


def teacher_of(x, k, temper=1.0):
    """The k likeliest classes of a teacher and their log-probabilities."""
    log_p = exact.log_softmax(x.astype(np.longdouble) * temper).astype(np.float32)
    indices = np.argsort(-log_p, -1)[..., :k].astype(np.int32)
    return indices, np.take_along_axis(log_p, indices, -1)


@pytest.mark.parametrize(("k", "shape"), [(1, (4, 6)), (2, (6,)), (5, (2, 3, 6))])
def test_top_k_distillation_is_the_divergence_of_coarse_distributions(k, shape):
    student, teacher = sample(*shape)[0], sample(*shape, seed=1)[0]
    indices, log_p = teacher_of(teacher, k)
    value, (grad, _), _ = pulled(lambda s, t: top_k(s, indices, t), student, log_p)
    close(value, exact.distillation_top_k(student, indices, log_p))
    assert (value <= exact.distillation(student, teacher).astype(float) + 1e-6).all()
    step = 1e-3 * np.random.default_rng(2).standard_normal(shape)
    wide = student.astype(np.longdouble)
    up, down = (exact.distillation_top_k(wide + s * step, indices, log_p).sum() for s in (1, -1))
    np.testing.assert_allclose(float((grad * step).sum()), float(up - down) / 2, rtol=1e-4)


def test_top_k_of_all_classes_is_the_whole_divergence():
    student, teacher = sample(4, 5)[0], sample(4, 5, seed=1)[0]
    log_p = exact.log_softmax(teacher.astype(np.longdouble)).astype(np.float32)
    indices = np.argsort(-log_p, -1).astype(np.int32)
    picked = np.take_along_axis(log_p, indices, -1)
    got, grad = jax.value_and_grad(lambda s: top_k(s, indices, picked).sum())(student)
    close(got, exact.distillation(student, log_p).sum())
    close(grad, exact.distillation_grad(student, log_p))


def test_top_k_near_the_teacher():
    teacher = sample(3, 50)[0]
    indices, log_p = teacher_of(teacher, 8)
    agree = top_k(teacher, indices, log_p)
    assert (agree >= 0).all()
    assert (agree < 1e-12).all()
    jitter = (teacher + 1e-2 * sample(3, 50, seed=1)[0]).astype(np.float32)
    want = exact.distillation_top_k(jitter, indices, log_p)
    compare(top_k(jitter, indices, log_p), want, rtol=1e-3)


def test_top_k_bad_index_is_nan_for_its_row():
    student = sample(5, 5)[0]
    indices, log_p = teacher_of(student, 2)
    indices[1:, 0] = 5, -1, -5, 2**31 - 1
    value, (grad, *_), _ = pulled(top_k, student, indices, log_p, debug=False)
    bad = np.array([False, True, True, True, True])
    np.testing.assert_array_equal(np.isnan(value), bad)
    np.testing.assert_array_equal(np.isnan(grad), np.stack([bad] * 5, -1))


def test_top_k_masked_examples_do_not_count():
    student = sample(4, 5)[0]
    indices, log_p = teacher_of(sample(4, 5, seed=1)[0], 2)
    keep = np.array([True, False, True, False])
    want = exact.distillation_top_k(student, indices, log_p)[keep]
    student[1], student[3], log_p[3], indices[3, 0] = NAN, INF, NAN, -7
    value, grads, pushed = pulled(top_k, student, indices, log_p, where=keep)
    close(value[keep], want)
    for result in (value, *grads, pushed):
        assert (np.asarray(result)[~keep] == 0).all()
        assert np.isfinite(result).all()


def test_top_k_of_low_precision_student():
    student = jnp.asarray(sample(4, 5)[0], jnp.bfloat16)
    indices, log_p = teacher_of(np.asarray(student, np.float32), 2, 0.5)
    value, grad = jax.value_and_grad(lambda s: top_k(s, indices, log_p).sum())(student)
    assert (value.dtype, grad.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimate(kind):
    rng = np.random.default_rng(0)
    log_p, log_q = (-np.abs(rng.standard_normal((2, 30))) * 5).astype(np.float32)
    value, grads, _ = pulled(functools.partial(losses.kl_estimate, kind=kind), log_p, log_q)
    compare(value, exact.kl_estimate(log_p, log_q, kind), rtol=3e-6)
    slope = exact.kl_estimate_grad(log_p, log_q, kind)
    compare(grads[0], slope, rtol=3e-6)
    compare(grads[1], -slope, rtol=3e-6)


def test_kl_estimate_of_nearly_equal_policies():
    """exp(r) - 1 - r as written has no digit left below 1e-4."""
    log_q = np.full(6, -1.0, np.float32)
    log_p = (log_q + np.float32(2.0) ** -np.arange(3, 21, 3)).astype(np.float32)
    got = losses.kl_estimate(log_p, log_q)
    compare(got, exact.kl_estimate(log_p, log_q, "k3"), rtol=5e-7)
    assert (got > 0).all()
    assert losses.kl_estimate(log_p, log_p).sum() == 0


def test_kl_estimate_estimates():
    """Over all outcomes of q, weighted with their probabilities, k1 and k3 give KL(q || p)."""
    x, other = (sample(5, seed=s)[0] for s in (0, 1))
    log_p, log_q = (
        exact.log_softmax(v.astype(np.longdouble)).astype(np.float32) for v in (x, other)
    )
    want = exact.kl_log_targets(log_p, log_q)
    for kind in ("k1", "k3"):
        close((np.exp(log_q) * losses.kl_estimate(log_p, log_q, kind=kind)).sum(), want)


@COMPILED
def test_kl_estimate_overflows_without_nan(compiled):
    args = [0.0, 0.0, -200.0], [-100.0, -1e4, 0.0]
    value, (grad, _), _ = pulled(losses.kl_estimate, *args, compiled=compiled)
    compare(value, [INF, INF, 199])
    compare(grad, [INF, INF, -1])


# --- means --------------------------------------------------------------------------------------


@COMPILED
def test_mean_of_what_counts(compiled):
    junk = NAN if compiled else INF
    values, where = [1.0, 2.0, junk], np.array([True, True, False])
    got, (grad,), _ = pulled(losses.mean, values, compiled=compiled, where=where)
    assert got == 1.5
    assert tuple(losses.sum_and_count(array(values), where)) == (3, 2)
    np.testing.assert_array_equal(grad, [0.5, 0.5, 0])


@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0], np.float32)])
def test_mean_of_nothing(weights):
    """All examples ignored: torch gives NaN."""

    def step(x):
        loss = integer(x, np.array([-100, -100], np.int32), ignore_index=-100)
        return losses.mean(loss, where=np.zeros(2, bool), weights=weights)

    with option("jax_debug_nans", True):
        value, grad = jax.jit(jax.value_and_grad(step))(jnp.ones((2, 3)))
        pushed = jax.jvp(step, (jnp.ones((2, 3)),), (jnp.ones((2, 3)),))[1]
    assert value == 0
    assert pushed == 0
    np.testing.assert_array_equal(grad, np.zeros((2, 3)))
    assert losses.mean(jnp.zeros(0)) == 0
    assert losses.mean(jnp.array([3.0, INF]), weights=np.zeros(2, np.float32)) == 0


def test_weighted_mean():
    values, where = array([1.0, 2, 4, NAN]), np.array([True, True, True, False])
    weights = np.array([1.0, 0, 3, NAN], np.float32)
    compare(losses.mean(values, where, weights), 13 / 4)
    compare(losses.sum_and_count(values, where, weights), (13, 4))
    integers = np.array([1, 0, 3, 7])
    compare(losses.mean(values, where, integers), 13 / 4)
    compare(losses.mean(values[:3], weights=np.array([True, False, True])), 2.5)
    grad = jax.grad(losses.mean)(values, where, weights)
    compare(grad, [0.25, 0, 0.75, 0])
    over_weights = jax.grad(losses.mean, argnums=2)(values[:3], None, weights[:3] + 1)
    compare(over_weights, (np.array([1, 2, 4]) - 20 / 7) / 7)


def test_mask_of_a_mean_broadcasts():
    """nnx gives 5.0: it sums what the mask selects but counts the mask once."""
    values = array([[1.0, 2, 3], [2, 5, 4]])
    assert losses.mean(values, np.array([True, False, True])) == 2.5
    assert losses.mean(values, np.array([[True], [False]])) == 2


def test_microbatches_are_exact():
    """Sums and counts add up to the mean over all; a mean of means is another number."""
    x, labels, *_ = sample(12, 5)
    labels[[0, 1, 2, 7]] = -100

    def pair(x, labels):
        loss = integer(x, labels, ignore_index=-100)
        return losses.sum_and_count(loss, where=labels != -100)

    def accumulate(carry, batch):
        return jax.tree.map(jnp.add, carry, pair(*batch)), None

    def over_microbatches(x):
        zero = jnp.zeros(()), jnp.zeros(())
        batches = x.reshape(3, 4, 5), labels.reshape(3, 4)
        (total, count), _ = jax.lax.scan(accumulate, zero, batches)
        return total / count

    whole = jax.value_and_grad(
        lambda x: losses.mean(integer(x, labels, ignore_index=-100), labels != -100)
    )(x)
    for got, want in zip(jax.jit(jax.value_and_grad(over_microbatches))(x), whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)
    means = [
        losses.mean(integer(*b, ignore_index=-100), b[1] != -100)
        for b in zip(x.reshape(3, 4, 5), labels.reshape(3, 4), strict=True)
    ]
    assert abs(np.mean(means) - whole[0]) > 1e-3


def test_mean_under_vmap_axis():
    values, where = array([[1.0, 2], [3, NAN]]), np.array([[True, True], [True, False]])
    run = jax.vmap(lambda v, w: losses.mean(v, w, axis_name="i"), axis_name="i")
    np.testing.assert_array_equal(run(values, where), [2, 2])


# --- transformations ----------------------------------------------------------------------------

WEIGHTS = np.array([0.5, 1, 2, 3], np.float32)
TRANSFORMED = {
    "soft": (soft, "p"),
    "integer": (integer, "labels"),
    "integer, all": (
        functools.partial(integer, label_smoothing=0.25, class_weights=WEIGHTS, ignore_index=-1),
        "labels",
    ),
    "soft, all": (functools.partial(soft, label_smoothing=0.25, class_weights=WEIGHTS), "p"),
    "focal": (focal, "labels"),
    "focal of distributions": (focal, "p"),
    "poly": (poly, "p"),
    "z_loss": (lambda x, _: losses.z_loss(x), "labels"),
    "kl": (kl, "p"),
    "log kl": (log_kl, "logits"),
    "generalized kl": (general_kl, "p"),
    "distillation": (functools.partial(distillation, temperature=2.0), "logits"),
    "top k": (lambda s, y: top_k(s, y[..., None], jnp.full((*y.shape, 1), -0.5)), "labels"),
    "binary": (lambda x, p: binary(x, p).sum(-1), "p"),
    "binary, weighted": (lambda x, p: binary(x, p, pos_weight=3.0).sum(-1), "p"),
    "sigmoid focal": (lambda x, p: sigmoid_focal(x, p, alpha=0.25).sum(-1), "p"),
    "k3": (lambda x, p: losses.kl_estimate(x, 3 * p).sum(-1), "p"),
    "soft cap": (lambda x, _: losses.soft_cap(x, 5.0).sum(-1), "p"),
}


# What shares its core with another is transformed with that one.
ALIKE = ("soft", "integer", "log kl", "binary", "soft cap", "focal of distributions")
ROUTED = [n for n in TRANSFORMED if n not in (*ALIKE, "generalized kl", "binary, weighted")]


@pytest.mark.parametrize("name", ROUTED)
def test_all_routes_agree(name):
    function, kind = TRANSFORMED[name]
    x, labels, p, _ = sample(6, 4)
    target = jnp.asarray(second(kind, x, labels, p))
    rng = np.random.default_rng(3)
    tangent = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)

    def scanned(x):
        step = jax.checkpoint(function)
        return jax.lax.scan(lambda c, row: (c, step(*row)), 0, (x, target))[1]

    def both(function, x):
        value, pull = jax.vjp(function, x)
        return value, pull(jnp.ones_like(value))[0]

    @jax.jit
    def routes(x):
        columns = jax.vmap(function, in_axes=(1, 0))
        by_column = both(lambda x: columns(x, target), x.T)
        return {
            "vmap over columns": (by_column[0], by_column[1].T),
            "scan of remat": both(scanned, x),
        }, jax.jvp(lambda x: function(x, target), (x,), (tangent,))[1]

    value, grad = jax.jit(functools.partial(both, lambda x: function(x, target)))(x)
    assert value.shape == (6,)
    others, forward = routes(x)
    for route, (again, slope) in others.items():
        np.testing.assert_allclose(again, value, rtol=2e-6, atol=1e-6, err_msg=route)
        np.testing.assert_allclose(slope, grad, rtol=2e-6, atol=1e-6, err_msg=route)
    np.testing.assert_allclose(forward, (grad * tangent).sum(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["integer, all", "soft, all", "focal", "distillation"])
def test_reverse_over_reverse(name):
    function, kind = TRANSFORMED[name]
    x, labels, p, _ = sample(6, 4)
    target = second(kind, x, labels, p)
    tangent = jnp.asarray(np.random.default_rng(4).standard_normal(x.shape), jnp.float32)

    @jax.jit
    def both(x):
        slope = jax.grad(lambda x: function(x, target).sum())
        return jax.grad(lambda x: (slope(x) * tangent).sum())(x), jax.jvp(slope, (x,), (tangent,))[
            1
        ]

    again, forward = both(x)
    np.testing.assert_allclose(again, forward, rtol=1e-5, atol=1e-6)


# Their gradients by the oracle: Hessian-vector products are their differences in longdouble.
HESSIANS = {
    "soft": exact.cross_entropy_grad,
    "integer": exact.cross_entropy_grad,
    "soft, all": functools.partial(
        exact.cross_entropy_grad, label_smoothing=0.25, class_weights=WEIGHTS
    ),
    "integer, all": functools.partial(
        exact.cross_entropy_grad, label_smoothing=0.25, class_weights=WEIGHTS
    ),
    "focal": exact.focal_grad,
    "focal of distributions": exact.focal_grad,
    "poly": exact.poly_grad,
    "z_loss": lambda x, _: exact.z_loss_grad(x),
    "kl": exact.kl_grad,
    "log kl": exact.kl_log_targets_grad,
    "generalized kl": exact.generalized_kl_grad,
    "distillation": functools.partial(exact.distillation_grad, temperature=2.0),
    "binary": exact.sigmoid_cross_entropy_grad,
    "binary, weighted": functools.partial(exact.sigmoid_cross_entropy_grad, pos_weight=3.0),
    "sigmoid focal": functools.partial(exact.sigmoid_focal_grad, alpha=0.25),
    "soft cap": lambda x, _: exact.soft_cap_grad(x, 5.0),
}


@pytest.mark.parametrize("name", HESSIANS)
def test_second_derivatives(name):
    function, kind = TRANSFORMED[name]
    oracle = HESSIANS[name]
    x, labels, p, _ = sample(6, 4)
    target = second(kind, x, labels, p)
    tangent = np.random.default_rng(4).standard_normal(x.shape)

    @jax.jit
    def product(x, tangent):
        slope = jax.grad(lambda x: function(x, target).sum())
        return jax.jvp(slope, (x,), (tangent,))[1]

    step, wide = np.longdouble(1e-6), x.astype(np.longdouble)
    want = (
        (oracle(wide + step * tangent, target) - oracle(wide - step * tangent, target)) / 2 / step
    )
    got = product(x, tangent.astype(np.float32))
    np.testing.assert_allclose(got, want.astype(float), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["integer", "soft", "binary"])
def test_eager_call_compiles_once(name, traces):
    function, kind = TRANSFORMED[name]
    if name == "binary":
        function = binary
    x, labels, p, _ = sample(3, 7)
    args = [jnp.asarray(a) for a in (x, second(kind, x, labels, p))]
    traces.clear()
    jax.block_until_ready(function(*args))
    assert len(traces) <= 1
    jax.block_until_ready(function(*args))
    assert len(traces) <= 1


def test_keywords_may_be_traced():
    """Schedules of smoothing, temperature, gamma: no new compilation."""
    x, labels, p, _ = sample(3, 4)

    @jax.jit
    def run(v):
        return (
            integer(x, labels, label_smoothing=v, ignore_index=jnp.int32(-1)).sum(),
            focal(x, labels, gamma=v).sum(),
            poly(x, p, epsilon=v).sum(),
            distillation(x, p, temperature=v).sum(),
            sigmoid_focal(x, p, alpha=v, gamma=v).sum(),
        )

    v = np.float32(0.75)
    want = (
        exact.cross_entropy(x, labels, label_smoothing=v).sum(),
        exact.focal(x, labels, v).sum(),
        exact.poly(x, p, v).sum(),
        exact.distillation(x, p, v).sum(),
        exact.sigmoid_focal(x, p, v, v).sum(),
    )
    close(np.array(run(v)), np.array(want))


def full_size_work(function, *args):
    """Floating-point operations, and reductions over the full size, of the compiled program."""
    compiled = jax.jit(function).lower(*args).compile()
    rows, classes = args[0].shape
    reduces = re.findall(
        rf"f32\[{rows}(?:,1)?\]\S* reduce\(f32\[{rows},{classes}\]", spelled(compiled)
    )
    return compiled.cost_analysis()["transcendentals"], len(reduces)


def spelled(compiled):
    """The program with the type of each operand written where it is used."""
    text = compiled.as_text()
    types = dict(re.findall(r"(%[\w.-]+) = (\S+)", text))
    return re.sub(r"\((%[\w.-]+)", lambda m: f"({types.get(m[1], '')} {m[1]}", text)


def test_z_loss_shares_the_passes_of_the_cross_entropy():
    """Under one jit the maximum and the sum of exponentials are taken once for both."""
    x, labels, *_ = sample(16, 512)

    def both(x, labels):
        return integer(x, labels) + 1e-4 * losses.z_loss(x)

    alone = full_size_work(integer, x, labels)
    z_alone = full_size_work(lambda x, _: losses.z_loss(x), x, labels)
    together = full_size_work(both, x, labels)
    assert alone[1] > 0
    assert z_alone[1] > 0
    # Nothing but numbers per example is added to the cross-entropy's own work.
    assert together[1] == alone[1], (alone, z_alone, together)
    assert together[0] <= alone[0] + 4 * len(x), (alone, z_alone, together)


# --- errors at trace time -----------------------------------------------------------------------

X, Y = np.zeros((3, 4), np.float32), np.zeros(3, np.int32)
Q = np.full((3, 4), 0.25, np.float32)
ERRORS = {
    "integer logits": (lambda: soft(Y, Q), TypeError, "^logits: "),
    "ranks": (lambda: soft(X, Q[0]), ValueError, "labels and logits: "),
    "shapes": (lambda: soft(X, Q[:2]), ValueError, "labels and logits: "),
    "axis": (lambda: soft(X, Q, axis=2), ValueError, "^axis: "),
    "axis twice": (lambda: soft(X, Q, axis=(1, -1)), ValueError, "^axis: "),
    "where, dtype": (lambda: soft(X, Q, where=np.ones((3, 4))), TypeError, "^where: "),
    "where, shape": (lambda: soft(X, Q, where=np.ones((3, 5), bool)), ValueError, "^where: "),
    "batch where": (lambda: soft(X, Q, where=np.ones(4, bool)), ValueError, "^where: "),
    "weights": (lambda: soft(X, Q, class_weights=np.ones(3)), ValueError, "^class_weights: "),
    "weights, dtype": (
        lambda: soft(X, Q, class_weights=np.ones(4, np.int32)),
        TypeError,
        "^class_weights: ",
    ),
    "weights, axes": (
        lambda: soft(X, Q, axis=None, class_weights=np.ones(4, np.float32)),
        ValueError,
        "^axis: .*class_weights",
    ),
    "floating labels": (lambda: integer(X, Q[:, 0]), TypeError, "^labels: "),
    "labels, shape": (lambda: integer(X, Y[:2]), ValueError, "^labels: "),
    "labels, rank": (lambda: integer(X, Y[:, None]), ValueError, "^labels: "),
    "integer, axis": (lambda: integer(X, Y, axis=5), ValueError, "^axis: "),
    "integer, axis None": (lambda: integer(X, Y, axis=None), (TypeError, ValueError), "^axis: "),
    "integer, weights": (
        lambda: integer(X, Y, class_weights=np.ones(3, np.float32)),
        ValueError,
        "^class_weights: ",
    ),
    "integer, where": (lambda: integer(X, Y, where=np.ones(4, bool)), ValueError, "^where: "),
    "integer, where, dtype": (lambda: integer(X, Y, where=Y), TypeError, "^where: "),
    "integer, logits": (lambda: integer(X.astype(int), Y), TypeError, "^logits: "),
    "focal, labels": (lambda: focal(X, Y[:2]), ValueError, "^labels: "),
    "focal, ranks": (lambda: focal(X, Q[0]), ValueError, "labels and logits: "),
    "poly, ranks": (lambda: poly(X, Q[0]), ValueError, "labels and logits: "),
    "poly, integer labels": (lambda: poly(X, Y), TypeError, "^labels: "),
    "z_loss": (lambda: losses.z_loss(Y), TypeError, "^logits: "),
    "soft cap": (lambda: losses.soft_cap(Y, 3.0), TypeError, "^logits: "),
    "smooth_labels": (lambda: losses.smooth_labels(Y, 0.1), TypeError, "^labels: "),
    "kl": (lambda: kl(X, Q[0]), ValueError, "log_predictions and targets: "),
    "kl, targets": (lambda: kl(X, X.astype(int)), TypeError, "^targets: "),
    "kl, predictions": (lambda: kl(X.astype(int), X), TypeError, "^log_predictions: "),
    "log kl": (lambda: log_kl(X, Q[0]), ValueError, "log_predictions and log_targets: "),
    "generalized kl": (lambda: general_kl(X, Q[0]), ValueError, "log_predictions and targets: "),
    "distillation": (
        lambda: distillation(X, X[0]),
        ValueError,
        "student_logits and teacher_logits: ",
    ),
    "distillation, axis": (lambda: distillation(X, X, axis=3), ValueError, "^axis: "),
    "top k, shapes": (
        lambda: top_k(X, np.zeros((3, 2), np.int32), np.zeros((3, 1), np.float32)),
        ValueError,
        "teacher_indices and teacher_log_probs: ",
    ),
    "top k, batch": (
        lambda: top_k(X, np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float32)),
        ValueError,
        "teacher_indices and teacher_log_probs: ",
    ),
    "top k, indices": (lambda: top_k(X, X[:, :2], X[:, :2]), TypeError, "^teacher_indices: "),
    "top k, log-probabilities": (
        lambda: top_k(X, np.zeros((3, 2), np.int32), np.zeros((3, 2), np.int32)),
        TypeError,
        "^teacher_log_probs: ",
    ),
    "kl_estimate": (lambda: losses.kl_estimate(X, X, kind="k4"), ValueError, "^kind: "),
    "kl_estimate, ranks": (lambda: losses.kl_estimate(X, X[0]), ValueError, "log_p and log_q: "),
    "binary, ranks": (lambda: binary(X[:, 0], X[:, :1]), ValueError, "logits and labels: "),
    "binary, shapes": (lambda: binary(X, X[:2]), ValueError, "logits and labels: "),
    "binary, logits": (lambda: binary(Y, Y), TypeError, "^logits: "),
    "binary, weight": (lambda: binary(X, Q, pos_weight=np.ones(3)), ValueError, "pos_weight: "),
    "sigmoid focal": (lambda: sigmoid_focal(X[:, 0], X[:, :1]), ValueError, "logits and labels: "),
    "mean": (lambda: losses.mean(Y), TypeError, "^values: "),
    "mean, where": (lambda: losses.mean(X, np.ones(3, bool)), ValueError, "^where: "),
    "mean, where, dtype": (lambda: losses.mean(X, X), TypeError, "^where: "),
    "mean, weights": (lambda: losses.mean(X, None, np.ones(3)), ValueError, "^weights: "),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_argument(name):
    call, kind, text = ERRORS[name]
    with pytest.raises(kind, match=text):
        call()


def test_predictions_come_first():
    """As in optax; the measures have the true distribution first."""
    x, _, p, _ = sample(3, 4)
    compare(soft(x, p), jaxce.cross_entropy_with_logits(p, x))
    compare(log_kl(x, 3 * p), jaxce.kl_divergence_with_logits(3 * p, x))
