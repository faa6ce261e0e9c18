"""What the tests of the losses share: names, samples, and derivatives that are watched for NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import losses
from tests import oracles_losses as exact
from tests.conftest import option
from tests.watching import watched

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
    return watched(run, *args)


def compare(got, want, rtol=2e-6):
    """Six digits, and an expected 0 or inf is meant exactly."""
    np.testing.assert_allclose(got, np.asarray(want, float), rtol=rtol, atol=0)


def close(got, want):
    np.testing.assert_allclose(got, np.asarray(want, float), rtol=1e-5, atol=1e-6)


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
