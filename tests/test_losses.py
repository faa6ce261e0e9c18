"""Each loss against its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from jaxce import losses
from tests import oracles_losses as exact
from tests.cases_losses import (
    INF,
    KEYWORDS,
    NAN,
    binary,
    close,
    compare,
    focal,
    integer,
    log_kl,
    poly,
    pulled,
    sample,
    sigmoid_focal,
    soft,
)
from tests.conftest import option


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
    # Over the labels: a difference of two losses, at 0 and 1 too.
    over_labels = weights * np.logaddexp(0, -x) - np.logaddexp(0, x)
    for labels in (p, np.zeros_like(p), np.ones_like(p)):
        grads = pulled(functools.partial(binary, pos_weight=weights), x, labels)[1]
        compare(grads[1], over_labels, rtol=1e-4)
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


def test_predictions_come_first():
    """As in optax; the measures have the true distribution first."""
    x, _, p, _ = sample(3, 4)
    compare(soft(x, p), jaxce.cross_entropy_with_logits(p, x))
    compare(log_kl(x, 3 * p), jaxce.kl_divergence_with_logits(3 * p, x))
