"""Pooling: exact totals, any order, every transform, and devices."""

import functools
import importlib.util
import math
import operator
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxce import metrics
from jaxce.metrics._batch import Examples
from jaxce.metrics._totals import Total
from tests import oracles_metrics as oracles
from tests.test_losses_sharding import sent

MEMBERS = {
    "ce": metrics.CrossEntropy.empty(),
    "top1": metrics.Accuracy.empty(),
    "brier": metrics.BrierScore.empty(),
    "ece": metrics.CalibrationError.empty(bins=10),
}
ALL = metrics.Collection.empty(**MEMBERS)
BATCHES, ROWS, CLASSES = 8, 12, 20
update = jax.jit(metrics.Collection.update)


def batches(seed=0):
    """Batches in which other numbers of examples count, in one of them none."""
    rng = np.random.default_rng(seed)
    x = (2 * rng.standard_normal((BATCHES, ROWS, CLASSES))).astype(np.float32)
    labels = rng.integers(0, CLASSES, (BATCHES, ROWS)).astype(np.int32)
    labels[:, ::2] = x[:, ::2].argmax(-1)
    where = np.arange(ROWS) < np.array([12, 3, 0, 7, 1, 12, 5, 11])[:, None]
    weights = rng.exponential(size=(BATCHES, ROWS)).astype(np.float32)
    return x, labels, where, weights


def want():
    x, labels, where, weights = batches()
    result = oracles.pooled(x[where], labels[where], weights[where], bins=10)
    return {name: float(result[name]) for name in MEMBERS}


def check(state, rtol=2e-6):
    got = state.compute()
    assert got.pop("bad_labels") == 0
    for name, value in want().items():
        np.testing.assert_allclose(got[name], value, rtol=rtol, err_msg=name)


def exact(total):
    return Fraction(float(total.high)) + Fraction(float(total.low))


def test_three_billion_weighted_tokens_in_one_loop():
    """Past 2**24 and 2**31, each step a few whole numbers more: not one is lost."""
    steps, step = 40_000, 75_011  # 3.0e9 in all
    logits = jnp.zeros((3, 4))
    weights = jnp.array([step - 8.0, 7.0, 1.0])
    labels = jnp.array([0, 3, 1])
    empty = metrics.Collection.empty(top1=metrics.Accuracy.empty(), mean=metrics.Mean.empty())

    @jax.jit
    def run(state):
        return lax.fori_loop(
            0, steps, lambda _, s: s.update(logits, labels, None, weights, mean=jnp.ones(3)), state
        )

    state = run(empty)
    assert steps * step > 3e9
    assert exact(state["mean"].weight) == exact(state["mean"].total) == steps * step
    assert exact(state["top1"].total) == steps * (step - 8)
    assert exact(state["top1"].weight) == steps * step
    right = Fraction(step - 8, step)
    np.testing.assert_allclose(state["top1"].compute(), float(right), rtol=6e-8)
    assert state["mean"].compute() == 1
    # Without weights the same, doubled by merging until 2**46.
    state, times = state["top1"], 0
    while exact(state.weight) * 2 < 2**46:
        state, times = state.merge(state), times + 1
    assert exact(state.weight) == steps * step * 2**times > 2**44


@pytest.mark.parametrize("bins", [None, 3])
def test_one_large_batch(bins):
    """A million numbers in one update: whole ones exactly, others to ten digits or more."""
    rng = np.random.default_rng(0)
    size = 1_000_003
    bin_of = rng.integers(0, bins or 1, size).astype(np.int32)

    @jax.jit
    def total(values):
        if bins is None:
            return Total.of(values)
        return Total.of_bins(values, jnp.asarray(bin_of), bins)

    whole = rng.integers(0, 2**24, size).astype(np.float32)
    same = np.full(size, 0.1, np.float32)  # the same rounding a million times would add up
    skewed = (rng.exponential(size=size) * np.exp(rng.uniform(-9, 9, size))).astype(np.float32)
    for values, bound in ((whole, 0), (same, 1e-12), (skewed, 1e-10 if bins else 1e-12)):
        sums = total(values)
        for b in range(bins or 1):
            right = Fraction(math.fsum(values[bin_of == b]))
            got = exact(jax.tree.map(lambda x, b=b: jnp.ravel(x)[b], sums))
            assert abs(got - right) <= bound * right


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.uint32, np.bool_])
@pytest.mark.parametrize("bins", [False, True])
def test_integers_are_added_up_exactly(dtype, bins):
    """The largest and the smallest too, which no float32 holds, as values and as weights."""
    if dtype == np.bool_:
        values = np.array([True, False, True])
    else:
        info = np.iinfo(dtype)
        values = np.array([info.max, info.min, info.max - 1, 3, info.max // 2 + 2], dtype)
    if bins:
        ones = jnp.ones(len(values))
        weight = Examples(values.shape, None, values).totals(ones, jnp.zeros(values.shape, int), 1)
        assert exact(jax.tree.map(operator.itemgetter(0), weight)) == values.sum(dtype=object)
        return
    assert exact(metrics.Mean.empty().update(values).total) == values.sum(dtype=object)
    state = metrics.Mean.empty().update(jnp.full(values.shape, 2.0), None, values)
    assert exact(state.weight) == values.sum(dtype=object)
    assert exact(state.total) == 2 * values.sum(dtype=object)


def test_hits_past_what_float32_counts():
    hits = jnp.ones(2**24 + 3)
    assert exact(Examples(hits.shape, None, None).hits(hits)) == 2**24 + 3
    assert exact(Total.of_hits(hits[: 2**24])) == 2**24


def test_bad_labels_past_int32():
    state = metrics.Collection.empty(ce=metrics.CrossEntropy.empty())
    state = state.update(jnp.zeros((3, 2)), jnp.array([-1, 2, 5]))
    for _ in range(29):
        state = state.merge(state)
    assert state.compute()["bad_labels"] == 3 * 2**29
    assert state.merge(state).compute()["bad_labels"] == 2**31 - 1


def test_mean_of_a_million_batches():
    """Within 1e-7 of float64, where a plain float32 sum is off by more than 1e-5."""
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(1000, 8)).astype(np.float32)
    values[0] = 0.1  # the same rounding a million times would add up
    weights = rng.exponential(size=(1000, 8)).astype(np.float32)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state, values, weights):
        def batch(i, carry):
            state, plain = carry
            state = state.update(values[i % 1000], None, weights[i % 1000])
            return state, plain + jnp.sum(values[i % 1000] * weights[i % 1000])

        return lax.fori_loop(0, 1_000_000, batch, (state, jnp.float32(0)))

    state, plain = run(metrics.Mean.empty(), values, weights)
    v, w = values.astype(np.longdouble), weights.astype(np.longdouble)
    assert abs(float(plain) / float(1000 * (v * w).sum()) - 1) > 1e-5
    for total, right in ((state.total, (v * w).sum()), (state.weight, w.sum())):
        assert abs(float(exact(total) / Fraction(float(1000 * right))) - 1) < 1e-12
    np.testing.assert_allclose(state.compute(), float((v * w).sum() / w.sum()), rtol=1e-7)


NUMBERS = st.floats(-(2.0**40), 2.0**40, width=32).filter(lambda x: x == 0 or abs(x) > 2**-40)


def total_of(pair):
    high, low = pair
    return Total(jnp.float32(high), jnp.float32(0)).merge(
        Total(jnp.float32(low * 2.0**-24), jnp.float32(0))
    )


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=3))
def test_totals_merge_in_any_order(numbers):
    a, b, c = map(total_of, numbers)
    scale = sum(abs(exact(t)) for t in (a, b, c)) or 1
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert abs(exact(left) - exact(a) - exact(b) - exact(c)) <= scale * Fraction(2) ** -44
    assert abs(exact(left) - exact(right)) <= scale * Fraction(2) ** -44
    assert exact(a.merge(b)) == exact(b.merge(a))
    assert exact(a.merge(Total.empty())) == exact(a)


def test_merge_in_any_order_equals_concatenation():
    states = [update(ALL, *batch) for batch in zip(*batches(), strict=True)]
    check(functools.reduce(metrics.Collection.merge, states))
    forward = functools.reduce(lambda a, b: a.merge(b), states).compute()
    backward = functools.reduce(lambda a, b: b.merge(a), reversed(states)).compute()
    x, labels, where, weights = (a.reshape(-1, *a.shape[2:]) for a in batches())
    at_once = update(ALL, x, labels, where, weights).compute()
    for name, value in forward.items():
        np.testing.assert_allclose(backward[name], value, rtol=1e-7)
        np.testing.assert_allclose(at_once[name], value, rtol=1e-7)
    same = states[0].merge(ALL)
    assert jax.tree.all(jax.tree.map(operator.eq, same.compute(), states[0].compute()))


def test_whole_numbers_merge_associatively_to_the_last_bit():
    rng = np.random.default_rng(1)
    a, b, c = (
        Total.of(jnp.asarray(rng.integers(0, 2**24, 500), jnp.float32) * 256) for _ in range(3)
    )
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert (left.high, left.low) == (right.high, right.low)


def test_scan_vmap_and_donation():
    x, labels, where, weights = batches()
    step = jax.jit(lambda s, *batch: s.update(*batch), donate_argnums=0)
    state = jax.tree.map(jnp.copy, ALL)
    for batch in zip(x, labels, where, weights, strict=True):
        state = step(state, *batch)
    check(state)
    check(jax.jit(lambda *b: lax.scan(lambda s, x: (s.update(*x), None), ALL, b)[0])(*batches()))

    def each(*batch):
        return ALL.update(*batch)

    many = jax.jit(jax.vmap(each))(x, labels, where, weights)
    check(
        functools.reduce(
            metrics.Collection.merge,
            [jax.tree.map(lambda a, i=i: a[i], many) for i in range(BATCHES)],
        )
    )
    reduced = jax.jit(jax.vmap(lambda *b: each(*b).all_reduce("batch"), axis_name="batch"))
    check(jax.tree.map(lambda a: a[5], reduced(x, labels, where, weights)))


def test_one_trace_for_all_batches(traces):
    x, labels, where, weights = batches()
    step = jax.jit(lambda s, *batch: s.update(*batch))
    state = step(ALL, x[0], labels[0], where[0], weights[0])
    compiled = len(traces)
    for i in range(1, BATCHES):
        state = step(state, x[i], labels[i], where[i], weights[i])
    assert len(traces) == compiled
    check(state)


def test_all_reduce_is_merge():
    """Inside shard_map, devices that count other numbers of examples, one of them none."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    args = batches()

    def local(state, *batch):
        batch = (a[0] for a in batch)
        return state.merge(metrics.Collection.update(ALL, *batch).all_reduce(("a", "b")))

    spec = P(("a", "b"))
    run = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=(P(), spec, spec, spec, spec), out_specs=P())
    )
    check(run(ALL, *args))
    first = update(ALL, *(a[0] for a in args))
    twice = run(first, *args)
    assert exact(twice["ce"].weight) == exact(
        run(ALL, *args)["ce"].weight.merge(first["ce"].weight)
    )
    # The totals keep the digits that a plain sum over devices would lose.
    parts = jnp.array([2.0**30, 1, 2.0**-20, -(2.0**30), 3, 0, 1, 0]).reshape(2, 4)
    total = jax.jit(
        jax.shard_map(
            lambda x: metrics.Mean.empty().update(x).all_reduce(("a", "b")).total.value(),
            mesh=mesh,
            in_specs=P("a", "b"),
            out_specs=P(),
        )
    )(parts)
    assert total == 5 + 2.0**-20


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("spec", [P("d"), P(None, "d")], ids=["rows", "classes"])
def test_sharded_arrays(types, spec):
    """Rows or classes spread over devices: only numbers per example are sent."""
    x, labels, where, weights = (a.reshape(-1, *a.shape[2:]) for a in batches())
    x = np.pad(x, ((0, 0), (0, 4)), constant_values=-np.inf)  # 24 classes, 3 to a device
    mesh = jax.make_mesh((8,), ("d",), axis_types=(types,))
    by_row = NamedSharding(mesh, P(*spec[:1]))
    args = (
        jax.device_put(x, NamedSharding(mesh, spec)),
        *(jax.device_put(a, by_row) for a in (labels, where, weights)),
    )
    with jax.set_mesh(mesh):
        run = update.lower(ALL, *args).compile()
        state = run(ALL, *args)
    check(jax.device_get(state))
    sizes = [size for _, size, _ in sent(run.as_text())]
    assert sizes
    assert sum(sizes) <= 15 * len(x)  # for all metrics together; the logits are 24 an example


def test_logits_that_are_spread_and_labels_that_are_not():
    x, labels, where, weights = (a.reshape(-1, *a.shape[2:]) for a in batches())
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
    spread = jax.device_put(x, NamedSharding(mesh, P("d")))
    soft = jax.nn.softmax(x[::-1])
    for target in (labels, soft):
        want = update(ALL, x, target, where, weights).compute()
        with jax.set_mesh(mesh):
            got = update(ALL, spread, target, where, weights).compute()
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=2e-6, err_msg=name)


@pytest.mark.skipif(importlib.util.find_spec("orbax") is None, reason="orbax is not installed")
def test_checkpoint(tmp_path):
    import orbax.checkpoint as ocp

    states = [update(ALL, *batch) for batch in zip(*batches(), strict=True)]
    half = functools.reduce(metrics.Collection.merge, states[:4])
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "half", half)
        saver.wait_until_finished()
        restored = saver.restore(tmp_path / "half", ALL)
    assert jax.tree.structure(restored) == jax.tree.structure(ALL)
    assert jax.tree.all(jax.tree.map(np.array_equal, restored, half))
    check(functools.reduce(metrics.Collection.merge, states[4:], restored))


def test_structures_tell_kinds_apart():
    """Static fields that are equal do not make two kinds of metric one, for jit or for merge."""
    empty = [
        metrics.CrossEntropy.empty(base=2),
        metrics.Accuracy.empty(top_k=2),
        metrics.Entropy.empty(base=2),
        metrics.BrierScore.empty(),
        metrics.Perplexity.empty(),
    ]
    structures = [jax.tree.structure(metric) for metric in empty]
    assert sum(a == b for a in structures for b in structures) == len(empty)
    with pytest.raises(TypeError, match="same kind"):
        empty[0].merge(empty[1])
