"""Means of losses: what counts, over devices and microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import losses
from tests.cases_losses import COMPILED, INF, NAN, array, compare, integer, pulled, sample
from tests.conftest import option


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
    """All examples ignored: elsewhere NaN."""

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


def test_gradient_over_weights_of_zero():
    def mean(weights, values):
        return losses.mean(values, weights=weights)

    weights = jnp.array([0.0, 1.0, 1.0])
    gradient = jax.grad(mean)(weights, jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(gradient, [(1 - 2.5) / 2, -0.25, 0.25], rtol=1e-6)
    for hidden in (NAN, INF):
        gradients = jax.grad(mean, (0, 1))(weights, jnp.array([hidden, 2.0, 3.0]))
        np.testing.assert_allclose(gradients[0][1:], [-0.25, 0.25], rtol=1e-6)
        np.testing.assert_array_equal(gradients[1], [0, 0.5, 0.5])


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
