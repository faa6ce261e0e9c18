"""The losses along any axis, over several axes, and in every dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import losses
from tests import oracles_losses as exact
from tests.cases_losses import (
    KEYWORDS,
    MASKED,
    close,
    compare,
    derivatives,
    integer,
    pulled,
    sample,
    second,
    soft,
)


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


def along_axes(name):
    """The loss, the kind of its second argument, and its oracle."""
    if name == "z_loss":
        return lambda x, _, **keywords: losses.z_loss(x, **keywords), *MASKED[name][1:]
    return MASKED[name]


@pytest.mark.parametrize("name", [n for n in MASKED if n != "integer"])
def test_other_losses_along_any_axis(name):
    function, kind, oracle = along_axes(name)
    x, labels, p, _ = sample(2, 3, 4)
    target = np.asarray(second(kind, x, labels, p))
    moved = target if kind == "labels" else np.moveaxis(target, -1, 1)
    close(function(np.moveaxis(x, -1, 1), moved, axis=1), oracle(x, target))
    batch = np.array([[True, False, True]] * 2)
    got = function(np.moveaxis(x, -1, 1), moved, axis=1, where=batch)
    close(got, np.where(batch, oracle(x, target), 0))


def slopes(oracle, x):
    """The gradient of the sum of an oracle, by differences in longdouble."""
    x, step = x.astype(np.longdouble), np.longdouble(1e-5)
    moves = step * np.eye(x.shape[-1])
    return np.stack([oracle(x + move) - oracle(x - move) for move in moves], -1) / (2 * step)


@pytest.mark.parametrize("name", list(MASKED))
def test_classes_first(name):
    """Few of them, more than within a row, are read one by one where examples are many."""
    function, kind, oracle = along_axes(name)
    x, labels, p, _ = sample(600, 16)
    target = np.asarray(second(kind, x, labels, p))
    moved = target if kind == "labels" else target.T

    @jax.jit
    def both(x):
        value, pull = jax.vjp(lambda x: function(x, moved, axis=0), x)
        return value, pull(jnp.ones_like(value))[0]

    value, slope = both(x.T)
    close(value, oracle(x, target))
    close(slope.T, slopes(lambda x: oracle(x, target), x))


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
@pytest.mark.parametrize("axis", [(1, 2), (-1, 0), [0, 1], None])
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
