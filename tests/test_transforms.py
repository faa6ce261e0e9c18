"""Every measure under every transformation, against its plain call and its oracle.

Running operation by operation is the "watched" half of test_edges.py.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests import cases
from tests.cases import CATEGORICAL, MEASURES
from tests.conftest import class_by_class

ROWS, CLASSES = 8, 4
EVERY = pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.id)
SENT = r"= \S+ (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\("


def sample(measure):
    return tuple(map(jnp.asarray, measure.sample(np.random.default_rng(7), (ROWS, CLASSES))))


def floats(measure, args):
    return tuple(args[i] for i in measure.floating)


def gradients(measure, function=None):
    """Of the sum of the results, over the floating arguments."""
    function = function or measure

    def run(*args):
        def loss(*f):
            full = list(args)
            for i, value in zip(measure.floating, f, strict=True):
                full[i] = value
            return function(*full).sum()

        places = tuple(range(len(measure.floating)))
        return jax.grad(loss, places)(*floats(measure, args))

    return run


def turned(measure, args):
    """The rows along the last axis, and the in_axes that say so."""
    axes = tuple(0 if kind == cases.LABELS else 1 for kind in measure.takes)
    return [a if axis == 0 else a.T for a, axis in zip(args, axes, strict=True)], axes


def in_many_ways(measure, *args):
    """Values and gradients by every route that must give the same."""

    def scanned(function):
        return lambda *rows: jax.lax.scan(lambda carry, row: (carry, function(*row)), 0, rows)[1]

    columns, axes = turned(measure, args)
    values = {
        "vmap over columns": jax.vmap(measure, in_axes=axes)(*columns),
        "scan": scanned(measure)(*args),
    }
    slopes = {
        "vmap of grad": jax.vmap(gradients(measure))(*args),
        "grad of scan of remat": gradients(measure, scanned(jax.checkpoint(measure)))(*args),
    }
    return values, slopes


@EVERY
def test_all_routes_agree(measure):
    args = sample(measure)
    wide = [np.asarray(a) for a in args]
    values, slopes = jax.jit(functools.partial(in_many_ways, measure))(*args)
    value = measure.value(*wide).astype(float)
    pulled = [*wide, np.ones(wide[0].shape)] if measure.mixes else wide
    exact = [g.astype(float) for g in measure.grad(*pulled)]
    for route, got in values.items():
        np.testing.assert_allclose(got, value, rtol=2e-6, atol=5e-7, err_msg=route)
    for route, got in slopes.items():
        for mine, want in zip(got, exact, strict=True):
            np.testing.assert_allclose(mine, want, rtol=2e-6, atol=2e-6, err_msg=route)


@pytest.mark.parametrize("measure", [m for m in MEASURES if len(m.takes) == 2], ids=lambda m: m.id)
def test_vmap_over_one_argument(measure):
    """in_axes=(None, 0): one target against many predictions."""
    target, predictions = sample(measure)
    got = jax.vmap(measure, in_axes=(None, 0))(target[0], predictions)
    want = measure.value(np.broadcast_to(target[:1], target.shape), np.asarray(predictions))
    np.testing.assert_allclose(got, want.astype(float), rtol=2e-6, atol=5e-7)


@EVERY
def test_hessian(measure):
    """The whole Hessian of one row, forward over reverse, against the oracle's columns."""
    args = tuple(a[0] for a in sample(measure))
    places = tuple(range(len(measure.floating)))
    hessian = jax.hessian(lambda *f: measure.along(*f, args=args).sum(), places)
    got = jax.jit(hessian)(*floats(measure, args))
    wide = [np.asarray(a) for a in args]
    for j in places:
        for k in range(CLASSES):
            tangents = [np.zeros(CLASSES) for _ in places]
            tangents[j][k] = 1
            column = measure.hvp(*wide, *tangents)
            for i in places:
                want = column[i].astype(float)
                np.testing.assert_allclose(
                    got[i][j][:, k], want, rtol=1e-5, atol=1e-5 * (1 + np.abs(want).max())
                )


@pytest.mark.parametrize(
    "name", ["kl_divergence", "kl_divergence_with_logits", "perplexity_with_logits"]
)
def test_reverse_over_reverse(name):
    measure = cases.BY_ID[name]
    args = sample(measure)
    rng = np.random.default_rng(8)
    tangents = [rng.standard_normal(a.shape).astype(np.float32) for a in floats(measure, args)]

    @jax.jit
    def along(*f):
        def slope(*inner):
            slopes = jax.grad(lambda *g: measure.along(*g, args=args).sum(), tuple(range(len(f))))(
                *inner
            )
            return sum((s * t).sum() for s, t in zip(slopes, tangents, strict=True))

        return jax.grad(slope, tuple(range(len(f))))(*f)

    want = measure.hvp(*map(np.asarray, args), *tangents)
    for got, exact in zip(along(*floats(measure, args)), want, strict=True):
        exact = exact.astype(float)
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() >= ROWS, "tests/conftest.py asks for eight devices before jax starts"
    return jax.make_mesh((ROWS,), ("rows",), axis_types=(AxisType.Auto,))


@EVERY
def test_sharded_batch(measure, mesh):
    """Rows spread over eight devices stay there: nothing is sent, and the result is spread too."""
    stays_spread(measure, mesh)


@pytest.mark.parametrize("measure", CATEGORICAL, ids=lambda m: m.id)
def test_sharded_batch_class_by_class(measure, mesh):
    with class_by_class():
        stays_spread(measure, mesh)


def stays_spread(measure, mesh):
    args = sample(measure)
    by_row = PartitionSpec("rows")
    spread = [jax.device_put(a, NamedSharding(mesh, by_row)) for a in args]
    gradient = gradients(measure)

    def both(*rows):
        return measure(*rows), gradient(*rows)

    ways = {
        "jit": jax.jit(both),
        "shard_map": jax.jit(jax.shard_map(both, mesh=mesh, in_specs=by_row, out_specs=by_row)),
    }
    wide = [np.asarray(a) for a in args]
    pulled = [*wide, np.ones(wide[0].shape)] if measure.mixes else wide
    for way, function in ways.items():
        compiled = function.lower(*spread).compile()
        lines = [line for line in compiled.as_text().splitlines() if re.search(SENT, line)]
        # On CPU alone single numbers are agreed on: whether any row needs the careful sum.
        agreed = r"= (pred|s32)\[\] all-reduce\("
        assert all(re.search(agreed, line) for line in lines), (way, lines)
        value, slopes = compiled(*spread)
        for got in (value, *slopes):
            assert got.sharding.shard_shape(got.shape)[0] == 1, way
        np.testing.assert_allclose(value, measure.value(*wide).astype(float), rtol=2e-6, atol=5e-7)
        for got, want in zip(slopes, measure.grad(*pulled), strict=True):
            np.testing.assert_allclose(got, want.astype(float), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("cross_entropy", 0),
        ("kl_divergence", 0),
        ("js_divergence", 1),
        ("binary_kl_divergence", 0),
        ("cross_entropy_with_logits", 0),
        ("kl_divergence_with_logits", 0),
        ("kl_divergence_with_logits", 1),
    ],
)
def test_one_of_two_is_the_same_for_all_devices(name, fixed):
    """A target, or a prediction, that is one for all rows: its gradient is summed over devices."""
    measure = cases.BY_ID[name]
    args = list(sample(measure))
    args[fixed] = args[fixed][:1]
    value, slopes = jax.jit(measure)(*args), jax.jit(gradients(measure))(*args)
    specs = [PartitionSpec("rows")] * 2
    specs[fixed] = PartitionSpec()
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Explicit,))
    mapped = jax.shard_map(
        measure, mesh=mesh, in_specs=tuple(specs), out_specs=PartitionSpec("rows")
    )
    placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(args, specs, strict=True)]
    with jax.set_mesh(mesh):
        for function in (mapped, measure):
            run = jax.jit(lambda *a, f=function: (f(*a), gradients(measure, f)(*a)))
            got, got_slopes = run(*placed)
            np.testing.assert_allclose(got, value, rtol=2e-6, atol=5e-7)
            for mine, exact in zip(got_slopes, slopes, strict=True):
                np.testing.assert_allclose(mine, exact, rtol=5e-6, atol=2e-6)


def test_second_call_is_not_traced_again(traces):
    """Nor is a call with the same keywords in another order; another shape is."""
    measure = cases.BY_ID["kl_divergence_with_logits"]
    args = sample(measure)
    mask = jnp.array([True, True, True, False])
    measure(*args, axis=-1, base=2, where=mask)
    traces.clear()
    measure(*args, where=mask, base=2, axis=-1)
    assert not traces
    measure(*(a[:5] for a in jax.device_get(args)), where=mask, base=2)
    assert traces


@EVERY
def test_a_call_is_one_kernel(measure, traces):
    """Eager use in a notebook: the first call compiles one program, the second none."""
    args = tuple(jnp.asarray(a) for a in measure.sample(np.random.default_rng(9), (3, 7)))
    traces.clear()
    jax.block_until_ready(measure(*args))
    assert traces == ["compiled"]
    jax.block_until_ready(measure(*args))
    assert traces == ["compiled"]
