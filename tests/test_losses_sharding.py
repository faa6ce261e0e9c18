"""Classes spread over eight devices: right, and only numbers per example are sent."""

import contextlib
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxce import losses
from tests import oracles_losses as oracles

ROWS, CLASSES = 16, 64
SMOOTHING = 0.1
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|"
    r"collective-broadcast|ragged-all-to-all)(?:-start)?\("
)
ARRAY = re.compile(r"\b(?:pred|[subf]\d+|bf16)\[([\d,]*)\]")
# mesh shape, mesh axis names, how logits and one number per example are spread
MESHES = {
    "classes": ((8,), ("c",), P(None, "c"), P(None)),
    "rows and classes": ((2, 4), ("r", "c"), P("r", "c"), P("r")),
}


def sent(text):
    """Kind and number of elements of each collective in a compiled program."""
    for line in text.splitlines():
        found = COLLECTIVE.search(line)
        if found:
            sizes = [
                math.prod(map(int, filter(None, dims.split(","))))
                for dims in ARRAY.findall(found[1])
            ]
            yield found[2], sum(sizes), line.strip()


def only_numbers_per_example(compiled, rows=ROWS):
    lines = list(sent(compiled.as_text()))
    # XLA may put several all-reduces into one: six numbers a row at most; a shard has 8 classes.
    bad = [line for kind, size, line in lines if kind != "all-reduce" or size > 6 * rows]
    assert not bad, "\n".join(line[:300] for line in bad)
    return lines


def mesh_of(name, kind):
    shape, axes, *_ = MESHES[name]
    assert jax.device_count() >= 8, "tests/conftest.py asks for eight devices before jax starts"
    return jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes))


@contextlib.contextmanager
def using(name, kind):
    """The mesh; explicit axes want it to be set, automatic ones are found by the arrays alone."""
    mesh = mesh_of(name, kind)
    with jax.set_mesh(mesh) if kind is AxisType.Explicit else contextlib.nullcontext():
        yield mesh


def integer(x, labels, **keywords):
    return losses.softmax_cross_entropy_with_integer_labels(x, labels, **keywords)


def soft(x, p, **keywords):
    return losses.softmax_cross_entropy(x, p, **keywords)


def exact_soft(x, p, **keywords):
    return oracles.cross_entropy(x, p, **keywords), oracles.cross_entropy_grad(x, p, **keywords)


def exact_integer(x, labels, **keywords):
    return exact_soft(x, oracles.one_hot(labels, x), **keywords)


WEIGHTS = np.linspace(0.5, 2, CLASSES).astype(np.float32)
# name: loss, its oracle, its second argument, keywords, whether it takes axis_name
CASES = {
    "integer": (integer, exact_integer, "labels", {}, True),
    "integer, smoothed": (
        integer,
        exact_integer,
        "labels",
        {"label_smoothing": SMOOTHING},
        True,
    ),
    "integer, weighted and smoothed": (
        integer,
        exact_integer,
        "labels",
        {"label_smoothing": SMOOTHING, "class_weights": WEIGHTS},
        True,
    ),
    "soft": (soft, exact_soft, "p", {}, True),
    "soft, smoothed": (soft, exact_soft, "p", {"label_smoothing": SMOOTHING}, True),
    "soft, weighted and smoothed": (
        soft,
        exact_soft,
        "p",
        {"label_smoothing": SMOOTHING, "class_weights": WEIGHTS},
        True,
    ),
    "z_loss": (
        lambda x, _: losses.z_loss(x),
        lambda x, _: (oracles.z_loss(x), oracles.z_loss_grad(x)),
        "labels",
        {},
        False,
    ),
    "poly": (
        losses.poly_loss_cross_entropy,
        lambda x, p: (oracles.poly(x, p), oracles.poly_grad(x, p)),
        "p",
        {},
        False,
    ),
    "focal": (
        losses.softmax_focal_loss,
        lambda x, y: (oracles.focal(x, y), oracles.focal_grad(x, y)),
        "labels",
        {},
        False,
    ),
}
NAMED = [name for name, case in CASES.items() if case[4]]
ALL_KEYWORDS = [name for name in CASES if "weighted" in name]
# The two-way mesh for what takes every path through the code: compiling for eight devices is slow.
SPREAD = [(case, "classes") for case in CASES] + [
    (case, "rows and classes") for case in (*ALL_KEYWORDS, "z_loss")
]


def sample(kind):
    rng = np.random.default_rng(11)
    x = (3 * rng.standard_normal((ROWS, CLASSES))).astype(np.float32)
    labels = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    x[0, labels[0]] = 30  # a confident row, for the careful sum
    x[1, 5:9] = -np.inf
    labels[1] = 63
    p = np.exp(rng.standard_normal((ROWS, CLASSES)))
    p[1, 5:9] = 0
    p = (p / p.sum(-1, keepdims=True)).astype(np.float32)
    return x, labels if kind == "labels" else p


def value_and_gradient(loss):
    def run(x, target, *more):
        value, pull = jax.vjp(lambda x: loss(x, target, *more), x)
        return value, pull(jnp.ones_like(value))[0]

    return run


def compare(got, exact):
    for mine, want in zip(got, exact, strict=True):
        want = want.astype(float)
        np.testing.assert_allclose(mine, want, rtol=5e-6, atol=1e-9 + 1e-6 * np.abs(want).mean())


def second_spec(kind, by_class, by_row):
    return by_row if kind == "labels" else by_class


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize(("case", "mesh"), SPREAD)
def test_sharded_arrays(case, types, mesh):
    loss, exact, kind, keywords, _ = CASES[case]
    x, target = sample(kind)
    *_, by_class, by_row = MESHES[mesh]
    with using(mesh, types) as the_mesh:
        spread = (
            jax.device_put(x, NamedSharding(the_mesh, by_class)),
            jax.device_put(target, NamedSharding(the_mesh, second_spec(kind, by_class, by_row))),
        )
        if types is AxisType.Explicit:
            assert jax.typeof(spread[0]).sharding.spec == by_class
        loss = functools.partial(loss, **{k: jnp.asarray(v) for k, v in keywords.items()})
        run = jax.jit(value_and_gradient(loss)).lower(*spread).compile()
        value, grad = run(*spread)
        assert only_numbers_per_example(run)
    assert grad.sharding.shard_shape(grad.shape) == spread[0].sharding.shard_shape(x.shape)
    compare((value, grad), exact(x, target, **keywords))


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("by_class", [P("r", "c"), P("r", None)], ids=["both", "rows"])
@pytest.mark.parametrize("case", ["integer", *ALL_KEYWORDS])
def test_sharded_bfloat16(case, by_class, types):
    """Narrow logits go ways of their own."""
    loss, exact, kind, keywords, _ = CASES[case]
    x, target = sample(kind)
    narrow, by_row = x.astype(jnp.bfloat16), P("r")
    with using("rows and classes", types) as the_mesh:
        spread = (
            jax.device_put(narrow, NamedSharding(the_mesh, by_class)),
            jax.device_put(target, NamedSharding(the_mesh, second_spec(kind, by_class, by_row))),
        )
        loss = functools.partial(loss, **{k: jnp.asarray(v) for k, v in keywords.items()})
        run = jax.jit(value_and_gradient(loss)).lower(*spread).compile()
        value, grad = run(*spread)
        assert only_numbers_per_example(run)
    want, want_grad = exact(narrow.astype(np.float32), target, **keywords)
    compare((value,), (want,))
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        grad.astype(np.float32), want_grad.astype(float), rtol=2**-8, atol=1e-9
    )


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_many_classes(types):
    """Rows so long that they are summed in pieces: no piece is cut by a device's border."""
    classes = 3 * 2**15
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, classes)).astype(np.float32)
    x[0, 5] = 30  # a confident row, for the careful sum
    p = np.exp(rng.standard_normal((2, classes)))
    p = (p / p.sum(-1, keepdims=True)).astype(np.float32)
    *_, by_class, _ = MESHES["classes"]
    with using("classes", types) as the_mesh:
        spread = [jax.device_put(a, NamedSharding(the_mesh, by_class)) for a in (x, p)]
        run = jax.jit(value_and_gradient(soft)).lower(*spread).compile()
        assert only_numbers_per_example(run, 2)
        compare(run(*spread), exact_soft(x, p))


@pytest.mark.parametrize(("case", "mesh"), [row for row in SPREAD if row[0] in NAMED])
def test_shard_map(case, mesh):
    """axis_name: the loss sees its own classes only, and the labels count over all of them."""
    loss, exact, kind, keywords, _ = CASES[case]
    x, target = sample(kind)
    *_, by_class, by_row = MESHES[mesh]
    weights = [jnp.asarray(keywords["class_weights"])] if "class_weights" in keywords else []
    rest = {k: v for k, v in keywords.items() if k != "class_weights"}

    def local(x, target, *weights):
        named = dict(zip(("class_weights",), weights, strict=False))
        return loss(x, target, axis_name="c", **named, **rest)

    the_mesh = mesh_of(mesh, AxisType.Auto)
    specs = by_class, second_spec(kind, by_class, by_row), *([P("c")] * len(weights))
    mapped = jax.shard_map(local, mesh=the_mesh, in_specs=specs, out_specs=by_row)
    inside = jax.shard_map(
        value_and_gradient(local), mesh=the_mesh, in_specs=specs, out_specs=(by_row, by_class)
    )
    args = [
        jax.device_put(a, NamedSharding(the_mesh, spec))
        for a, spec in zip((x, target, *weights), specs, strict=True)
    ]
    ways = [value_and_gradient(mapped)]
    if case in ALL_KEYWORDS and mesh == "classes":
        ways.append(inside)  # the derivative taken on each device
    for function in ways:
        run = jax.jit(function).lower(*args).compile()
        assert only_numbers_per_example(run)
        compare(run(*args), exact(x, target, **keywords))


def test_labels_that_all_devices_have():
    x, labels = sample("labels")
    where = np.arange(len(labels)) % 3 > 0
    want = integer(x, labels, where=where, ignore_index=1)
    with using("rows and classes", AxisType.Explicit) as mesh:
        spread = jax.device_put(x, NamedSharding(mesh, P("r", None)))
        got = integer(spread, labels, where=where, ignore_index=1)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_masks_bad_and_ignored_labels(types):
    """What an example's edge is does not depend on where its classes are."""
    x, labels = sample("labels")
    labels[2:5] = -1, CLASSES, -100
    where = np.ones(x.shape, bool)
    where[:, 8:24] = False  # two whole devices have nothing left
    labels[6] = 9
    loss = functools.partial(
        losses.softmax_cross_entropy_with_integer_labels, ignore_index=-100, label_smoothing=0.1
    )

    @jax.jit
    def run(x, labels, where):
        return value_and_gradient(lambda x, y: loss(x, y, where=where))(x, labels)

    want = run(x, labels, where)
    with using("classes", types) as mesh:
        by_class = NamedSharding(mesh, P(None, "c"))
        args = [jax.device_put(a, s) for a, s in ((x, by_class), (where, by_class))]
        args.insert(1, jax.device_put(labels, NamedSharding(mesh, P(None))))
        compiled = run.lower(*args).compile()
        assert only_numbers_per_example(compiled)
        got = compiled(*args)
    assert np.isnan(want[0][2:4]).all()
    assert want[0][4] == 0
    assert want[0][6] == np.inf
    for mine, whole in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, whole, rtol=5e-6, atol=1e-8)


def test_shard_map_masks_bad_and_ignored_labels():
    x, labels = sample("labels")
    labels[2:5] = -1, CLASSES, -100
    where = np.ones(x.shape, bool)
    where[:, 8:24] = False
    labels[6] = 9
    mesh = mesh_of("classes", AxisType.Auto)

    def loss(x, labels, where, axis_name=None):
        return losses.softmax_cross_entropy_with_integer_labels(
            x, labels, where=where, ignore_index=-100, label_smoothing=0.1, axis_name=axis_name
        )

    want = jax.jit(value_and_gradient(loss))(x, labels, where)
    specs = P(None, "c"), P(None), P(None, "c")
    mapped = jax.shard_map(
        functools.partial(loss, axis_name="c"), mesh=mesh, in_specs=specs, out_specs=P(None)
    )
    got = jax.jit(value_and_gradient(mapped))(x, labels, where)
    for mine, whole in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, whole, rtol=5e-6, atol=1e-8)


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_training_step_over_rows_and_classes(types):
    """The masked mean of the loss over a 2 x 4 mesh, and its gradient."""
    x, labels = sample("labels")
    labels[::3] = -100
    with using("rows and classes", types) as mesh:
        args = (
            jax.device_put(x, NamedSharding(mesh, P("r", "c"))),
            jax.device_put(labels, NamedSharding(mesh, P("r"))),
        )

        def step(x, labels):
            loss = losses.softmax_cross_entropy_with_integer_labels(x, labels, ignore_index=-100)
            return losses.mean(loss, where=labels != -100)

        compiled = jax.jit(jax.value_and_grad(step)).lower(*args).compile()
        only_numbers_per_example(compiled)
        value, grad = compiled(*args)
    keep = labels != -100
    exact, slope = exact_integer(x[keep], labels[keep])
    want = np.zeros(x.shape)
    want[keep] = slope / keep.sum()
    compare((value, grad), (exact.mean(), want))


def test_mean_over_devices_is_the_mean_of_all():
    """However many examples each device has; a mean of means is another number."""
    values = np.arange(16, dtype=np.float32)
    where = (values % 5 == 0) | (values > 13)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    run = jax.shard_map(
        lambda v, w: losses.mean(v, where=w, axis_name="d"),
        mesh=mesh,
        in_specs=(P("d"), P("d")),
        out_specs=P(),
    )
    np.testing.assert_allclose(jax.jit(run)(values, where), values[where].mean(), rtol=1e-6)
    grad = jax.jit(jax.grad(run))(values, where)
    np.testing.assert_allclose(grad, where / where.sum(), rtol=1e-6)
    assert jax.jit(run)(values, np.zeros(16, bool)) == 0


def test_the_reader_of_programs_can_condemn():
    mesh = mesh_of("classes", AxisType.Auto)
    x = jax.device_put(sample("p")[0], NamedSharding(mesh, P(None, "c")))
    gathered = jax.jit(jnp.sort).lower(x).compile()
    with pytest.raises(AssertionError):
        only_numbers_per_example(gathered)
