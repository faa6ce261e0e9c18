"""The one documented answer at every edge, for the value and for its derivatives in both modes.

Each edge runs compiled and then operation by operation, so that no NaN appears in passing either.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from tests import cases
from tests.cases import BY_ID, CATEGORICAL, MEASURES
from tests.conftest import option
from tests.watching import watched

COMPILED = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "watched"])
INF, NAN = np.inf, np.nan
LOG2, LOG3, LOG4 = np.log([2.0, 3.0, 4.0])
THIRD = 1 / 3
CE, CE_LABELS = "cross_entropy_with_logits", "cross_entropy_with_logits[labels]"
KL, JS = "kl_divergence_with_logits", "js_divergence_with_logits"

# measure, arguments, value, one gradient per floating argument (None: not NaN, whatever it is)
EDGES = [
    ("surprisal", [[0, 1, 0.5]], [INF, 0, LOG2], [[0, -1, -2]]),
    ("entropy", [[0, 0.5, 0.5, 0]], LOG2, [[0, LOG2 - 1, LOG2 - 1, 0]]),
    ("entropy", [[1, 0, 0, 0]], 0, [[-1, 0, 0, 0]]),
    ("entropy", [[0, 0, 0, 0]], 0, [[0, 0, 0, 0]]),
    ("entropy", [[0.5, 0.25, 0, 0]], LOG2, [[LOG2 - 1, LOG4 - 1, 0, 0]]),
    ("perplexity", [[0, 0.5, 0.5, 0]], 2, [[0, 2 * LOG2 - 2, 2 * LOG2 - 2, 0]]),
    ("perplexity", [[0, 0, 0, 1]], 1, [[0, 0, 0, -1]]),
    (
        "cross_entropy",
        [[0, 0.5, 0.5], [0, 0.25, 0.75]],
        -np.log(0.1875) / 2,
        [[0, LOG4, -np.log(0.75)], [0, -2, -2 / 3]],
    ),
    ("cross_entropy", [[0, 1, 0], [0.5, 0.5, 0]], LOG2, [[0, LOG2, 0], [0, -2, 0]]),
    ("cross_entropy", [[0.5, 0.5, 0], [0, 1, 0]], INF, [None, None]),
    ("kl_divergence", [[0.5, 0.5, 0], [0.5, 0.5, 0]], 0, [[1, 1, 0], [-1, -1, 0]]),
    ("kl_divergence", [[0.3, 0.3, 0.4], [0.5, 0.5, 0]], INF, [None, None]),
    ("kl_divergence", [[0.7, 0.3, 0, 0], [0, 0.3, 0.7, 0]], INF, [None, None]),
    (
        "kl_divergence",
        [[0, 0.4, 0.6, 0], [0.25, 0.25, 0.25, 0.25]],
        0.4 * np.log(1.6) + 0.6 * np.log(2.4),
        [[0, np.log(1.6) + 1, np.log(2.4) + 1, 0], [0, -1.6, -2.4, 0]],
    ),
    ("kl_divergence", [[0, 0, 0, 0], [0.5, 0.5, 0, 0]], 0, [[0] * 4, [0] * 4]),
    (
        "js_divergence",
        [[1, 0, 0, 0], [0, 1, 0, 0]],
        LOG2,
        [[LOG2 / 2, 0, 0, 0], [0, LOG2 / 2, 0, 0]],
    ),
    ("js_divergence", [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]], 0, [[0] * 4, [0] * 4]),
    ("js_divergence", [[1, 0], [1, 1.5e-38]], 0, [[0, 0], None]),  # half of which is flushed to 0
    ("kl_divergence", [[1, 1.5e-38], [1, 1.5e-38]], 0, [[1, 1], [-1, -1]]),
    ("surprisal_with_logits", [[0, 0, -INF]], [LOG2, LOG2, INF], [None]),
    ("entropy_with_logits", [[0, 0, -INF]], LOG2, [[0, 0, 0]]),
    ("entropy_with_logits", [[-INF, 3, -INF]], 0, [[0, 0, 0]]),
    ("entropy_with_logits", [[1e8, 1e8, 1e8]], LOG3, [[0, 0, 0]]),
    ("entropy_with_logits", [[1e8, -1e8, 0]], 0, [[0, 0, 0]]),
    ("perplexity_with_logits", [[0, 0, -INF]], 2, [[0, 0, 0]]),
    ("perplexity_with_logits", [[-INF, 3, -INF]], 1, [[0, 0, 0]]),
    ("log_normalizer", [[0, 0, -INF]], LOG2, [[0.5, 0.5, 0]]),
    ("log_normalizer", [[-INF, 3, -INF]], 3, [[0, 1, 0]]),
    ("log_normalizer", [[1e8, -1e8, 0]], 1e8, [[1, 0, 0]]),
    (CE, [[0, 1], [-INF, 0]], 0, [[0, 0], [0, 0]]),
    (CE, [[0, 1, 0], [-INF, 0, 0]], LOG2, [None, [0, -0.5, 0.5]]),
    (CE, [[0.5, 0.5, 0], [-INF, 0, 0]], INF, [None, [-0.5, 0, 0.5]]),
    (CE, [[0, 0, 0], [1, 2, 3]], 0, [None, [0, 0, 0]]),
    (CE, [[1, 0, 0], [1e8, 1e8, 1e8]], LOG3, [None, [-2 / 3, THIRD, THIRD]]),
    (CE, [[0, 1, 0], [1e8, -1e8, 0]], 2e8, [None, [1, -1, 0]]),
    (CE_LABELS, [0, [1e8, 1e8, 1e8]], LOG3, [[-2 / 3, THIRD, THIRD]]),
    (CE_LABELS, [1, [1e8, -1e8, 0]], 2e8, [[1, -1, 0]]),
    (CE_LABELS, [0, [-INF, 0, 0]], INF, [[-1, 0.5, 0.5]]),
    (CE_LABELS, [1, [-INF, 0, -INF]], 0, [[0, 0, 0]]),
    (KL, [[0, 0, -INF, -INF], [0, 0, -INF, -INF]], 0, [[0] * 4, [0] * 4]),
    (KL, [[-INF, 0, 0, 0], [0, 0, 0, 0]], LOG4 - LOG3, [[0] * 4, [0.25] + [0.25 - THIRD] * 3]),
    (KL, [[0, 0, 0, 0], [-INF, 0, 0, 0]], INF, [None, [-0.25] + [THIRD - 0.25] * 3]),
    (KL, [[0, 0, -INF, -INF], [-INF, -INF, 0, 0]], INF, [None, [-0.5, -0.5, 0.5, 0.5]]),
    (JS, [[0, -INF, -INF, -INF], [-INF, 0, 0, -INF]], LOG2, [[0] * 4, [0] * 4]),
    (JS, [[0, 0, -INF, -INF], [0, 0, -INF, -INF]], 0, [[0] * 4, [0] * 4]),
    (JS, [[1, 2, 3, 4], [1, 2, 3, 4]], 0, [[0] * 4, [0] * 4]),
    ("binary_entropy", [[0, 1, 0.5]], [0, 0, LOG2], [[0, 0, 0]]),
    (
        "binary_cross_entropy",
        [[0, 1, 0, 0.5], [0, 1, 1, 1]],
        [0, 0, INF, INF],
        [[0] * 4, [1, -1, INF, INF]],
    ),
    ("binary_cross_entropy", [[1, 0.5], [0, 0]], [INF, INF], [[0] * 2, [-INF, -INF]]),
    (
        "binary_kl_divergence",
        [[0, 1, 0, 0.5, 0, 1], [0, 1, 1, 1, 0.5, 0.5]],
        [0, 0, INF, INF, LOG2, LOG2],
        [[0] * 6, [1, -1, INF, INF, 2, -2]],
    ),
    ("binary_kl_divergence", [[1, 0.5], [0, 0]], [INF, INF], [[0] * 2, [-INF, -INF]]),
    ("binary_entropy_with_logits", [[INF, -INF, 0, 1e8]], [0, 0, LOG2, 0], [[0, 0, 0, 0]]),
    (
        "binary_cross_entropy_with_logits",
        [[1, 0, 0, 1, 0.5, 1, 0], [INF, -INF, INF, -INF, INF, 1e8, 1e8]],
        [0, 0, INF, INF, INF, 0, 1e8],
        [None, [0, 0, 1, -1, 0.5, 0, 1]],
    ),
    (
        "binary_kl_divergence_with_logits",
        [[INF, -INF, INF, 0, INF, -INF], [INF, -INF, -INF, INF, 0, 0]],
        [0, 0, INF, INF, LOG2, LOG2],
        [None, [0, 0, -1, 0.5, -0.5, 0.5]],
    ),
]


def arrays(measure, args, dtype="float32"):
    kinds = [np.int32 if kind == cases.LABELS else dtype for kind in measure.takes]
    return [jnp.asarray(a, kind) for a, kind in zip(args, kinds, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def derivatives(measure, args, tangents=None, where=None):
    """Value, reverse-mode gradients of its sum, and forward mode along the tangents, if any."""
    keywords = {} if where is None else {"where": where}
    function = functools.partial(measure.along, args=args, **keywords)
    floats = tuple(args[i] for i in measure.floating)
    value, pull = jax.vjp(function, *floats)
    pushed = jnp.zeros(()) if tangents is None else jax.jvp(function, floats, tuple(tangents))[1]
    return value, pull(jnp.ones_like(value)), pushed


def unit_tangents(measure, args):
    return [
        jnp.linspace(0.5, 1.5, args[i].size, dtype=args[i].dtype).reshape(args[i].shape)
        for i in measure.floating
    ]


def compare(got, want):
    """Six digits, and an expected 0 or inf is meant exactly."""
    if want is None:
        assert not np.isnan(got).any()
    else:
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=0)


def without_nan(compiled, measure, *args):
    """The derivatives, without a NaN in them or, if they are not compiled, in passing."""
    if not compiled:
        return watched(functools.partial(derivatives, measure), *args)
    with option("jax_debug_nans", True):
        return derivatives(measure, *args)


@COMPILED
@pytest.mark.parametrize(
    ("name", "args", "value", "grads"), EDGES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_edge(name, args, value, grads, compiled):
    measure = BY_ID[name]
    args = arrays(measure, args)
    # An infinite slope meets its opposite in the other argument: no forward mode to speak of.
    tangents = (
        None if all(g is None for g in grads) and value is INF else unit_tangents(measure, args)
    )
    got, pulled, pushed = without_nan(compiled, measure, args, tangents)
    compare(got, value)
    for mine, exact in zip(pulled, grads, strict=True):
        compare(mine, exact)
    if tangents is None:
        return
    # Forward mode agrees with reverse mode, and is not NaN even where the value is infinite.
    assert not np.isnan(pushed).any()
    total = sum(
        np.sum(np.float64(t) * np.float64(g)) for t, g in zip(tangents, pulled, strict=True)
    )
    if np.isfinite(total) and np.isfinite(pushed).all():
        np.testing.assert_allclose(np.sum(np.float64(pushed)), total, rtol=1e-5, atol=1e-6)


def test_what_hides_in_passing_is_seen():
    def hidden(x):
        return jnp.where(x > 0, jnp.log(x), 0)

    assert watched(hidden, jnp.ones(1)) == 0
    with pytest.raises(AssertionError, match="NaN in passing"):
        watched(hidden, -jnp.ones(1))


@COMPILED
def test_what_is_certain_is_0_and_not_minus_0(compiled):
    one = jnp.ones(1)
    with jax.disable_jit(not compiled):
        found = jaxce.surprisal(one)[0], jaxce.entropy(one), jaxce.cross_entropy(one, one)
    assert [str(x) for x in found] == ["0.0"] * 3


NOT_A_DISTRIBUTION = [[-INF, -INF, -INF], [INF, 0, 0], [INF, INF, 0], [NAN, 0, 0]]
GOOD = {
    "p": [0.2, 0.3, 0.5],
    "q": [0.5, 0.3, 0.2],
    "x": [0, 1, 2],
    "a": [0, 1, 2],
    "b": [2, 1, 0],
    "y": 1,
}


@pytest.mark.parametrize("measure", [m for m in MEASURES if not m.binary], ids=lambda m: m.id)
def test_what_is_not_a_distribution_is_nan(measure):
    for i in measure.floating:
        bad_rows = NOT_A_DISTRIBUTION if measure.takes[i] in cases.LOGITS else [[NAN, 0.5, 0.5]]
        for bad in bad_rows:
            args = arrays(
                measure, [bad if i == j else GOOD[kind] for j, kind in enumerate(measure.takes)]
            )
            got = np.asarray(measure(*args))
            assert np.isnan(got if measure.masks else got[0]).all(), (bad, got)


@pytest.mark.parametrize("measure", [m for m in MEASURES if m.binary], ids=lambda m: m.id)
def test_nan_in_is_nan_out_for_that_entry_alone(measure):
    rng = np.random.default_rng(0)
    for i in range(len(measure.takes)):
        args = list(measure.sample(rng, (3,)))
        args[i] = np.where(np.arange(3) == 1, np.float32(NAN), args[i])
        np.testing.assert_array_equal(np.isnan(measure(*args)), [False, True, False])


@pytest.mark.parametrize("label", [4, -1, -4, -100, 2**31 - 1, -(2**31)])
def test_label_out_of_range_is_nan_for_its_row(label):
    measure = BY_ID[CE_LABELS]
    args = arrays(measure, [[1, label, 2], [[0.5, 1, 2, 3]] * 3])
    value, (grad,), pushed = derivatives(measure, args, [jnp.ones((3, 4))])
    np.testing.assert_array_equal(np.isnan(value), [False, True, False])
    np.testing.assert_array_equal(np.isnan(pushed), [False, True, False])
    np.testing.assert_array_equal(np.isnan(grad), [[False] * 4, [True] * 4, [False] * 4])


def test_label_of_many_classes_does_not_wrap():
    measure = BY_ID[CE_LABELS]
    assert np.isnan(measure(jnp.int32(-100), jnp.zeros(200)))


def garbage(args, mask, measure, compiled):
    """The arguments with the worst imaginable numbers in the entries that do not exist.

    No NaN where every operation is watched: merely reading it would be an offence.
    """
    worst = [NAN, INF, -INF, -1e30] if compiled else [INF, -INF, -1e30]
    junk = np.resize(np.array(worst, np.float32), mask.shape)
    return [
        a if kind == cases.LABELS else np.where(mask, a, junk)
        for a, kind in zip(args, measure.takes, strict=True)
    ]


@COMPILED
@pytest.mark.parametrize("measure", CATEGORICAL, ids=lambda m: m.id)
def test_masked_equals_sliced(measure, compiled):
    rng = np.random.default_rng(1)
    sliced = measure.sample(rng, (3, 2))
    mask = np.array(
        [[True, False, True, False], [False, True, True, False], [True, True, False, False]]
    )
    full = []
    for a, kind in zip(sliced, measure.takes, strict=True):
        if kind == cases.LABELS:
            full.append(
                np.array([np.flatnonzero(m)[v] for m, v in zip(mask, a, strict=True)], np.int32)
            )
        else:
            row = np.zeros(mask.shape, np.float32)
            row[mask] = a.ravel()
            full.append(row)
    full = [jnp.asarray(a) for a in garbage(full, mask, measure, compiled)]
    tangents = [rng.standard_normal(mask.shape).astype(np.float32) for _ in measure.floating]
    value, grads, pushed = without_nan(compiled, measure, full, tangents, jnp.asarray(mask))

    def spread(values):
        result = np.zeros(mask.shape)
        result[mask] = values.ravel()
        return result

    exact = measure.value(*sliced)
    np.testing.assert_allclose(
        value, exact if measure.reduces else spread(exact), rtol=2e-6, atol=1e-7
    )
    exact = measure.grad(*sliced, *([np.ones((3, 2))] if measure.mixes else []))
    for got, want in zip(grads, map(spread, exact), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)
        assert (np.asarray(got)[~mask] == 0).all()
    # A tangent on what does not exist moves nothing.
    pushed = np.asarray(pushed if measure.reduces else pushed.sum(-1))
    moved = sum((t * spread(g)).sum(-1) for t, g in zip(tangents, exact, strict=True))
    np.testing.assert_allclose(pushed, moved, rtol=2e-6, atol=3e-6)


@pytest.mark.parametrize("measure", CATEGORICAL, ids=lambda m: m.id)
def test_nothing_left(measure):
    rng = np.random.default_rng(2)
    mask = np.zeros((3, 4), bool)
    mask[1] = True  # one ordinary row, to see that the others do not disturb it
    sample = measure.sample(rng, (3, 4))
    args = [jnp.asarray(a) for a in garbage(sample, mask, measure, compiled=True)]
    tangents = [jnp.ones_like(args[i]) for i in measure.floating]
    with option("jax_debug_nans", True):
        value, grads, pushed = derivatives(measure, args, tangents, where=jnp.asarray(mask))
    nothing = 1 if "perplexity" in measure.name else 0
    for i in range(len(mask)):
        if not mask[i].any():
            assert (np.asarray(value[i]) == nothing).all()
            assert all((np.asarray(g[i]) == 0).all() for g in grads)
            assert (np.asarray(pushed[i]) == 0).all()
        else:
            np.testing.assert_allclose(value[i], measure.value(*sample)[1].astype(float), rtol=1e-6)


def test_label_of_a_masked_entry():
    """The class does not exist: infinitely surprising. What exists has a finite gradient."""
    measure = BY_ID[CE_LABELS]
    mask = jnp.array([True, True, False])
    args = [jnp.int32(2), jnp.array([1.0, 1.0, 100.0])]
    with option("jax_debug_nans", True):
        value, (grad,), _ = derivatives(measure, args, [jnp.ones(3)], where=mask)
    assert value == INF
    np.testing.assert_allclose(grad[:2], [0.5, 0.5], rtol=1e-6)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("measure", CATEGORICAL, ids=lambda m: m.id)
def test_mask_broadcasts(measure):
    """A mask of the classes alone, and one of the examples alone."""
    args = measure.sample(np.random.default_rng(3), (3, 4))
    if cases.LABELS in measure.takes:
        args = (np.zeros(3, np.int32), args[1])
    got = measure(*args, where=np.array([True, True, True, False]))
    want = measure.value(
        *(
            a if kind == cases.LABELS else a[:, :3]
            for a, kind in zip(args, measure.takes, strict=True)
        )
    )
    np.testing.assert_allclose(
        got if measure.reduces else got[:, :3], want.astype(float), rtol=1e-6
    )
    if cases.LABELS not in measure.takes:
        got = np.asarray(measure(*args, where=np.array([[True], [False], [True]])))
        assert (got[1] == ("perplexity" in measure.name)).all()
        np.testing.assert_allclose(got[::2], measure.value(*args)[::2].astype(float), rtol=1e-6)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.id)
def test_empty(measure):
    shapes = [(0,)] if measure.binary else [(0, 4), (3, 0), (0, 0)]
    for shape in shapes:
        args = [
            np.zeros(shape, np.float32) if k != cases.LABELS else np.zeros(shape[:-1], np.int32)
            for k in measure.takes
        ]
        if measure.takes[0] == cases.LABELS and shape[-1] == 0:
            continue  # a label of no classes is out of range
        got = measure(*args)
        if not measure.reduces:
            assert got.shape == shape
        else:
            nothing = 1 if "perplexity" in measure.name else 0
            np.testing.assert_array_equal(got, np.full(shape[:-1], nothing))


@pytest.mark.parametrize("measure", [m for m in CATEGORICAL if m.reduces], ids=lambda m: m.id)
def test_axes(measure):
    """Any axis, or several together, is the last axis after a transposition."""
    args = measure.sample(np.random.default_rng(5), (5, 12))
    want = measure.value(*args).astype(float)
    if cases.LABELS in measure.takes:
        np.testing.assert_allclose(measure(args[0], args[1].T, axis=0), want, rtol=2e-6)
    else:
        middle_last = [np.moveaxis(a.reshape(5, 3, 4), 0, 1) for a in args]
        np.testing.assert_allclose(measure(*middle_last, axis=(0, -1)), want, rtol=2e-6)


def test_axis_spellings():
    measure = BY_ID["entropy_with_logits"]
    (x,) = measure.sample(np.random.default_rng(6), (5, 3, 4))
    want = measure.value(x.reshape(5, 12)).astype(float)
    for axis in itertools.permutations((1, -1)):
        np.testing.assert_allclose(measure(x, axis=axis), want, rtol=2e-6)
    for axis in (1, -2, (1,), [1]):
        np.testing.assert_allclose(
            measure(x, axis=axis), measure.value(np.moveaxis(x, 1, -1)).astype(float), rtol=2e-6
        )


def test_float16_at_its_largest():
    logits = jnp.array([65504, -65504], jnp.float16)
    measure = BY_ID["entropy_with_logits"]
    with option("jax_debug_nans", True):
        value, (grad,), _ = derivatives(measure, [logits], [jnp.ones_like(logits)])
    assert value == 0
    np.testing.assert_array_equal(grad, [0, 0])


def test_float16_surprisals_of_many_classes():
    """Their sum is past float16's range; the gradient is not."""
    logits = jnp.zeros(2**17, jnp.float16)
    grad = jax.grad(lambda x: BY_ID["surprisal_with_logits"](x).sum())(logits)
    assert grad.dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(grad, np.float32), 0, atol=1e-4)


@pytest.mark.usefixtures("x64")
def test_a_tiny_gradient_survives():
    logits = jnp.array([37.42994775023705, 0.0])
    grad = jax.grad(lambda x: BY_ID[CE_LABELS](jnp.int32(0), x))(logits)
    np.testing.assert_allclose(np.abs(grad), np.exp(-logits[0]), rtol=1e-14)
