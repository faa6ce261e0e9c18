"""A linear function with a transpose of its own behaves as the plain function does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce.losses._linear_map import linear_map


def operands():
    rng = np.random.default_rng(0)

    def arr(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return arr(3, 4), jnp.int32(1), arr(4), arr(3)


@pytest.fixture
def ours():
    """A linear function, the same with its transpose written out, and the calls of that."""
    calls = []

    def function(given, x):
        (a, shift), (u, v) = given, x
        y = jnp.sin(a) @ u
        return {"y": y, "z": jnp.roll(y, shift) + v}

    def transpose(given, y):
        calls.append(None)
        a, shift = given
        return jnp.sin(a).T @ (y["y"] + jnp.roll(y["z"], -shift)), y["z"]

    return function, lambda given, x: linear_map(function, transpose, given, x), calls


def derivatives(f):
    """Of every kind and order, over what is given, over x and over both."""
    a, shift, u, v = operands()
    along = jax.tree.map(jnp.cos, (a, u, v))

    def loss(a, u, v):
        y = f((a, shift), (u, v))
        return jnp.sum(jnp.square(y["y"])) + jnp.sum(jnp.sin(y["z"]))

    def one_result(a, u, v):
        return jnp.sum(f((a, shift), (u, v))["z"] ** 3)

    def pulled(cotangent):
        """Differentiated over the cotangent and over what the function depends on."""
        _, pull = jax.vjp(lambda u, v: f((jnp.exp(cotangent[0]) * a, shift), (u, v)), u, v)
        return sum(jnp.sum(jnp.square(g)) for g in pull({"y": cotangent, "z": cotangent}))

    everything = (0, 1, 2)
    return {
        "value": loss(a, u, v),
        "reverse": jax.grad(loss, everything)(a, u, v),
        "over some": [jax.grad(loss, i)(a, u, v) for i in everything],
        "of one result": jax.grad(one_result, everything)(a, u, v),
        "forward": jax.jvp(loss, (a, u, v), along)[1],
        "reverse, reverse": jax.jacrev(jax.grad(loss, everything), everything)(a, u, v),
        "forward, reverse": jax.jacfwd(jax.grad(loss, everything), everything)(a, u, v),
        "reverse, forward": jax.jacrev(jax.jacfwd(loss, everything), everything)(a, u, v),
        "over cotangents": jax.grad(pulled)(jnp.arange(3.0)),
        "third": jax.grad(lambda v: jnp.sum(jax.hessian(loss, 2)(a, u, v)))(v),
        "mapped": jax.vmap(jax.grad(loss, everything), (0, None, 1))(
            jnp.stack([a, 2 * a]), u, jnp.stack([v, -v], 1)
        ),
        "checkpoint": jax.grad(jax.checkpoint(loss), everything)(a, u, v),
        "scan": jax.grad(
            lambda a: jax.lax.scan(lambda c, u: (c + loss(a, u, v), None), 0.0, jnp.ones((2, 4)))[0]
        )(a),
    }


@pytest.mark.parametrize("jit", [True, False])
def test_every_derivative(ours, jit):
    function, mapped, calls = ours
    wanted = derivatives(function)
    assert not calls
    found = jax.jit(lambda: derivatives(mapped))() if jit else derivatives(mapped)
    assert calls
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5), found, wanted)


def test_transposed_by_what_was_given():
    """A transpose that is another function than JAX's is the one that is taken."""
    found = jax.grad(lambda x: linear_map(jnp.multiply, lambda a, y: 100 * a * y, 2.0, x))(3.0)
    assert found == 200
