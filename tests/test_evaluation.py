"""The evaluation loop: one compilation, no waiting, nothing lost by Ctrl-C or a restart."""

import functools
import io
import itertools
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxce import metrics
from jaxce._progress import RunningValues
from jaxce.evaluation import Evaluation, evaluate

ROWS, CLASSES = 103, 7
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(ROWS, CLASSES)) * 2).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, ROWS).astype(np.int32)
EMPTY = metrics.Collection.empty(
    ce=metrics.CrossEntropy.empty(),
    top1=metrics.Accuracy.empty(),
    calibration=metrics.CalibrationError.empty(bins=5),
)


def expected(rows=ROWS):
    x = LOGITS[:rows].astype(np.float64)
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    ce = -log_p[np.arange(rows), LABELS[:rows]].mean()
    return {"ce": ce, "top1": (x.argmax(1) == LABELS[:rows]).mean()}


def check(result, rows=ROWS):
    found = result.metrics.compute()
    for name, value in expected(rows).items():
        np.testing.assert_allclose(found[name], value, rtol=3e-7)
    np.testing.assert_array_equal(np.sum(result.metrics["calibration"].table().weight), rows)
    assert found["bad_labels"] == 0


def batches(size=10, make=lambda x, y: {"x": x, "y": y}):
    for i in range(0, ROWS, size):
        yield make(LOGITS[i : i + size], LABELS[i : i + size])


def counting():
    """A step, and a list that grows whenever it is traced."""
    traced = []

    @jax.jit
    def step(state, batch, where):
        traced.append(where.shape)
        return state.update(batch["x"], batch["y"], where=where)

    return step, traced


def leaves(tree):
    return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(tree)]


def test_ragged_last_batch_compiles_nothing_new():
    step, traced = counting()
    result = evaluate(step, batches(), EMPTY)
    check(result)
    assert (result.steps, result.interrupted) == (11, False)
    assert traced == [(10,)]
    assert step._cache_size() == 1


@pytest.mark.parametrize("size", [1, 16, 103, 500])
def test_larger_batches_are_cut_and_smaller_ones_filled_up(size):
    step, traced = counting()
    whole = {"x": LOGITS, "y": LABELS}
    result = evaluate(step, [whole], EMPTY, batch_size=size)
    check(result)
    assert result.steps == -(-ROWS // size)
    assert traced == [(size,)]


def test_growing_batches_are_cut_to_the_first_and_empty_ones_are_nothing():
    step, traced = counting()
    cuts = [0, 0, 4, 4, 20, 21, 103]
    pieces = ({"x": LOGITS[a:b], "y": LABELS[a:b]} for a, b in itertools.pairwise(cuts))
    result = evaluate(step, pieces, EMPTY)
    check(result)
    assert traced == [(4,)]
    assert result.steps == 1 + 1 + 4 + 1 + 21


class Tensor:
    """What another library's array looks like to NumPy."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return self._array

    @property
    def shape(self):
        return self._array.shape

    @property
    def ndim(self):
        return self._array.ndim


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: (x, y),
        lambda x, y: [jnp.asarray(x), jnp.asarray(y)],
        lambda x, y: (Tensor(x), Tensor(y.astype(np.int64))),
        lambda x, y: {"inner": (x, y), "scale": np.float32(1), "none": None},
    ],
    ids=["tuple", "jax", "foreign", "tree"],
)
def test_batches_of_any_kind(make):
    @jax.jit
    def step(state, batch, where):
        x, y = batch["inner"] if isinstance(batch, dict) else batch
        x = x * batch["scale"] if isinstance(batch, dict) else x
        return state.update(x, y, where=where)

    check(evaluate(step, batches(make=make), EMPTY))


def test_a_bare_array_and_any_state():
    step = jax.jit(lambda total, batch, where: total + jnp.sum(batch, where=where))
    result = evaluate(step, np.split(np.arange(10.0, dtype=np.float32), [4, 8]), jnp.float32(0))
    assert result.metrics == 45


def test_rows_that_fill_up_are_rows_of_the_batch():
    """Zeros could be an input that a model divides by."""
    seen = []

    def step(state, batch, where):
        seen.append((np.asarray(batch).tolist(), np.asarray(where).tolist()))
        return state

    evaluate(step, [np.array([1, 2, 3]), np.array([4, 5])], jnp.zeros(()))
    assert seen == [([1, 2, 3], [True] * 3), ([4, 5, 4], [True, True, False])]


def test_weights_are_arguments_and_padding_masks_combine():
    @jax.jit
    def step(scale, state, batch, where):
        return state.update(batch["x"] * scale, batch["y"], where=batch["mask"] & where)

    data = {"x": LOGITS, "y": LABELS, "mask": np.arange(ROWS) < 50}
    result = evaluate(functools.partial(step, jnp.float32(1)), [data], EMPTY, batch_size=20)
    check(result, 50)


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(
    "place",
    [
        lambda: jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,)),
        lambda: jax.make_mesh((4, 2), ("rows", "model"), axis_types=(AxisType.Auto,) * 2),
        lambda: NamedSharding(
            jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=(AxisType.Auto,) * 3),
            PartitionSpec(("a", "c")),
        ),
    ],
    ids=["one axis", "first of two", "two of three"],
)
def test_rows_are_spread_over_a_mesh(place, donate):
    mesh = place()
    ways = {"NamedSharding": 4}.get(type(mesh).__name__) or mesh.devices.shape[0]
    traced, shapes = [], set()

    def update(state, batch, where):
        traced.append(where.shape)
        return state.update(batch["x"], batch["y"], where=where)

    compiled = jax.jit(update, donate_argnums=(0,) if donate else ())

    def step(state, batch, where):
        shapes.update(shard.data.shape for shard in batch["x"].addressable_shards)
        shapes.update(shard.data.shape for shard in where.addressable_shards)
        return compiled(state, batch, where)

    result = evaluate(step, batches(), jax.tree.map(jnp.copy, EMPTY), mesh=mesh)
    check(result)
    size = -(-10 // ways) * ways
    assert traced == [(size,)]
    assert compiled._cache_size() == 1
    assert shapes == {(size // ways, CLASSES), (size // ways,)}


@pytest.mark.parametrize("many", [False, True])
def test_batches_that_are_on_devices_already(many):
    """What is committed to devices compiles once too: no state, no filled batch is another kind."""
    place = jax.devices()[1]
    if many:
        mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
        place = NamedSharding(mesh, PartitionSpec())
    step, _ = counting()
    given = list(batches(make=lambda x, y: jax.device_put({"x": x, "y": y}, place)))
    check(evaluate(step, given, EMPTY))
    assert step._cache_size() == 1


def test_explicit_axes():
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,))
    step, traced = counting()
    check(evaluate(step, batches(), EMPTY, mesh=mesh))
    assert len(traced) == 1


@pytest.mark.parametrize("jitted", [True, False])
def test_nothing_is_sent_unasked_where_that_is_forbidden(jitted):
    step, _ = counting()
    with jax.transfer_guard("disallow"):
        result = evaluate(step if jitted else functools.partial(step), batches(), EMPTY)
    check(result)


def test_only_a_jitted_step_is_given_numpy_arrays():
    given = []

    def step(state, batch, where):
        given.extend((*batch.values(), where))
        return state.update(batch["x"], batch["y"], where=where)

    check(evaluate(step, batches(), EMPTY))
    assert all(isinstance(array, jax.Array) for array in given)


def test_a_loader_may_reuse_its_array():
    """Steps run later than they are asked for, and jax borrows NumPy's memory."""
    buffer = np.empty((1 << 18,), np.float32)

    def refilled():
        for i in range(20):
            buffer[:] = i
            yield buffer

    step = jax.jit(lambda total, batch, where: total + jnp.mean(jnp.cos(batch * 0) * batch))
    assert evaluate(step, refilled(), jnp.float32(0)).metrics == sum(range(20))


def test_batches_are_read_while_the_device_works_but_not_many_ahead():
    """The step of three ago has always ended when a batch is read, and the last one need not have.

    How often it still runs is the machine's affair; a loop that waited for it would never see that.
    """
    batch = np.zeros(1 << 22, np.float32)
    batch.flags.writeable = False
    states, ready = [], []

    @jax.jit
    def step(state, batch, where):
        return state + jnp.sum(lax.fori_loop(0, 5, lambda _, x: jnp.sin(jnp.cos(x)), batch))

    def read():
        for _ in range(12):
            if len(states) >= 3:
                ready.append([state.is_ready() for state in states[-3:]])
            yield batch

    evaluate(step, read(), jnp.float32(0), on_step=lambda reached: states.append(reached.metrics))
    assert len(ready) == 9
    assert all(of_three_ago for of_three_ago, _, _ in ready)
    assert not all(of_last for _, _, of_last in ready)


def ctrl_c_after(steps):
    def on_step(reached):
        if reached.steps == steps:
            signal.raise_signal(signal.SIGINT)

    return on_step


def test_ctrl_c_keeps_what_was_reached_and_a_second_call_goes_on():
    step, traced = counting()
    part = evaluate(step, batches(), EMPTY, on_step=ctrl_c_after(4))
    assert (part.steps, part.interrupted) == (4, True)
    check(part, 40)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    result = evaluate(step, batches(), part)
    assert (result.steps, result.interrupted) == (11, False)
    assert leaves(result.metrics) == leaves(evaluate(step, batches(), EMPTY).metrics)
    assert len(traced) == 1


def test_ctrl_c_while_a_batch_is_read():
    def stuck():
        yield from list(batches())[:3]
        signal.raise_signal(signal.SIGINT)  # it does not come through
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one waited")

    result = evaluate(counting()[0], stuck(), EMPTY)
    assert (result.steps, result.interrupted) == (3, True)
    check(result, 30)


def test_going_on_from_a_saved_state():
    """Saved in the middle of a donating evaluation, as arrays in a file."""
    step = jax.jit(
        lambda state, batch, where: state.update(batch["x"], batch["y"], where=where),
        donate_argnums=0,
    )
    file = io.BytesIO()

    def save(reached):
        if reached.steps == 6:
            np.savez(file, *jax.tree.leaves(reached))

    def start():
        return jax.tree.map(jnp.copy, EMPTY)

    whole = evaluate(step, batches(), start(), on_step=save)
    file.seek(0)
    with np.load(file) as arrays:
        saved = jax.tree.unflatten(jax.tree.structure(Evaluation(EMPTY)), arrays.values())
    result = evaluate(step, batches(), saved)
    assert result.steps == 11
    assert leaves(result) == leaves(whole)


def test_errors_of_a_loader_come_through():
    def broken():
        yield from list(batches())[:2]
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        evaluate(counting()[0], broken(), EMPTY)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, r"batch\['y'\]: expected 3 examples .* got 4"),
        ({"x": np.float32(1)}, "batch: expected arrays with an axis of examples, got none"),
        (np.array([1, 2**32]), "batch: expected integers from -2147483648 to 2147483647, or"),
    ],
)
def test_batches_that_do_not_fit(batch, message):
    with pytest.raises(ValueError, match=message):
        evaluate(lambda state, batch, where: state, [batch], jnp.zeros(()))


def test_the_step_comes_first():
    with pytest.raises(TypeError, match=r"^step: expected a function .* got generator"):
        evaluate(batches(), counting()[0], EMPTY)


def test_a_mesh_is_a_mesh():
    for wrong in (jax.devices(), PartitionSpec("rows")):
        with pytest.raises(TypeError, match=r"mesh: expected a .*Mesh or NamedSharding"):
            evaluate(counting()[0], batches(), EMPTY, mesh=wrong)
    whole = NamedSharding(jax.make_mesh((8,), ("rows",)), PartitionSpec())
    check(evaluate(counting()[0], batches(), EMPTY, mesh=whole))


def test_batch_size_is_positive():
    with pytest.raises(ValueError, match="batch_size: expected a positive number, got 0"):
        evaluate(counting()[0], batches(), EMPTY, batch_size=0)


def test_nothing_to_evaluate():
    result = evaluate(counting()[0], [], EMPTY)
    assert (result.steps, result.interrupted) == (0, False)
    assert np.isnan(result.metrics.compute()["ce"])


def on_a_terminal(monkeypatch):
    from rich import console

    screen = io.StringIO()
    terminal = functools.partial(console.Console, file=screen, force_terminal=True, width=150)
    monkeypatch.setattr(console, "Console", lambda stderr: terminal())
    return screen


@pytest.mark.parametrize("known", [True, False])
def test_bar_with_running_values(monkeypatch, known):
    monkeypatch.setattr("jaxce._progress._SECONDS", 0)
    screen = on_a_terminal(monkeypatch)
    given = list(batches()) if known else batches()
    ready = ctrl_c_after(0)

    def wait(reached):
        jax.block_until_ready(reached.metrics)
        ready(reached)

    check(evaluate(counting()[0], given, EMPTY, on_step=wait))
    shown = screen.getvalue()
    assert "compiling" in shown
    assert "evaluating" in shown
    assert ("11/11" if known else "11/?") in shown
    assert "top1 0." in shown
    assert "bad_labels 0" in shown


def test_a_bar_does_without_values_that_cannot_be_compiled(monkeypatch):
    class Seen:
        def __init__(self, count):
            self.count = count

        def compute(self):
            return float(self.count)

    jax.tree_util.register_pytree_node(Seen, lambda s: ((s.count,), None), lambda _, c: Seen(*c))
    monkeypatch.setattr("jaxce._progress._SECONDS", 0)
    screen = on_a_terminal(monkeypatch)
    step = jax.jit(lambda seen, batch, where: Seen(seen.count + where.sum()))
    assert evaluate(step, list(batches()), Seen(jnp.int32(0))).metrics.compute() == ROWS
    assert "11/11" in screen.getvalue()


def test_no_bar_unless_wanted(monkeypatch):
    screen = on_a_terminal(monkeypatch)
    evaluate(counting()[0], batches(), EMPTY, progress=False)
    assert screen.getvalue() == ""


def test_no_bar_without_a_terminal_or_without_rich(monkeypatch, capfd):
    evaluate(counting()[0], batches(), EMPTY)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    check(evaluate(counting()[0], batches(), EMPTY))
    assert capfd.readouterr() == ("", "")


def test_running_values_are_never_waited_for():
    class Slow:
        ndim = 0

        def __init__(self):
            self.there = False

        def is_ready(self):
            return self.there

        def item(self):
            assert self.there
            return 2.5

    values, slow = RunningValues(), Slow()
    values._coming = [("ce", slow)]
    values.look(None)
    assert values.text == ""
    slow.there = True
    values.look(None)
    assert values.text == "ce 2.5"


def test_import_needs_no_rich():
    code = "import sys, jaxce.evaluation; print('rich' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
