"""How a linear loss is cut: memory, chunks of tokens, and parts of the kernel's gradient."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import losses
from jaxce.losses import _chunks, _linear_layer
from tests.conftest import thorough
from tests.test_linear import close, exact, one_device, problem

__all__ = ["one_device"]  # a fixture


def temporary_bytes(tokens, features, classes, reduction="mean", **keywords):
    def loss(x, w, labels):
        return losses.linear_softmax_cross_entropy(
            x, w, labels, reduction=reduction, **keywords
        ).mean()

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    shapes = ((tokens, features), (features, classes))
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    compiled = step.lower(*arguments, jax.ShapeDtypeStruct((tokens,), jnp.int32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("reduction", ["mean", None])
def test_memory(reduction):
    """One chunk of logits, a part of the kernel, and nothing of the size of all tokens."""
    few, many, ragged = (
        temporary_bytes(n, 64, 8192, reduction, chunk_size=64) for n in (512, 4096, 4099)
    )
    chunk, part = 4 * 64 * 8192, 4 * _chunks._PART_ELEMENTS
    assert few < chunk + part + 2**18
    # A byte or two for a token's input, not the input itself.
    assert max(many, ragged) - few < 4096 * 64
    assert temporary_bytes(2048, 256, 33003, reduction) < 40e6
    for more in ({}, {"label_smoothing": 0.1, "z_loss": 1e-3}, {"soft_cap": 30.0}):
        assert temporary_bytes(2048, 256, 32768, reduction, **more) < 40e6


@pytest.mark.parametrize("reduction", ["mean", None])
@pytest.mark.parametrize("arguments", [(0, 1), (0, 1, 2, 3)])
def test_memory_of_a_teacher(reduction, arguments):
    """Both logits, and two more while sums or gradients are made of them."""

    def loss(*heads):
        return losses.linear_distillation_loss(
            *heads, temperature=2.0, reduction=reduction, chunk_size=64
        ).mean()

    shapes = ((2048, 64), (64, 8192)) * 2
    heads = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    compiled = jax.jit(jax.value_and_grad(loss, arguments)).lower(*heads).compile()
    chunk, part = 4 * 64 * 8192, 4 * _chunks._PART_ELEMENTS
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * chunk + part + 2**18


@pytest.mark.parametrize("reduction", ["mean", None])
def test_memory_of_second_derivatives(reduction):
    """Not of the size of all tokens, whichever mode is taken of which."""

    def temporaries(tokens, function):
        def loss(w):
            x, labels = jnp.ones((tokens, 16)), jnp.zeros(tokens, jnp.int32)
            return losses.linear_softmax_cross_entropy(
                x, w, labels, reduction=reduction, chunk_size=64
            ).mean()

        compiled = jax.jit(function(loss)).lower(jnp.ones((16, 8192))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for function in (
        lambda loss: jax.grad(lambda w: jnp.sum(jax.grad(loss)(w) ** 2)),
        lambda loss: jax.grad(lambda w: jax.jvp(loss, (w,), (w,))[1]),
        lambda loss: lambda w: jax.jvp(jax.grad(loss), (w,), (w,))[1],
    ):
        few, many = (temporaries(n, function) for n in (256, 1024))
        assert many - few < 4 * 64 * 8192, f"{few} {many}"  # less than a chunk


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("alive", [1, 2])
@pytest.mark.parametrize(("features", "enough"), [(3, 64), (64, 128), (4096, 256)])
def test_default_chunks_are_not_tiny(spread, alive, features, enough):
    wanted = 7 * 2**20
    for tokens in (1, 63, 2048, 8519, 10_007, 100_003):
        for classes in (2, 1000, 32_768, 33_003, 131_072, 262_144):
            chunk = _linear_layer._chunk_size(tokens, features, classes, alive, spread=spread)
            numbers = chunk * alive * classes
            assert 1 <= chunk <= tokens
            assert numbers <= max(wanted * 1.5, enough * classes)
            assert 4 * numbers >= min(wanted * 0.5, tokens * alive * classes)
            assert chunk >= min(enough // alive, tokens) // 2
            if spread and tokens == 2048:
                assert tokens % chunk == 0


@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_default_chunks_at_ragged_sizes(scale):
    """More tokens than a chunk of the default size, neither of them a nice number."""
    x, w, b, labels = problem(tokens=1031, features=16, classes=8209, scale=scale)
    weights = np.ones(len(labels), np.float32)
    loss, gradients = exact(x, w, b, labels, weights)

    @jax.jit
    def run(x, w, b):
        return jax.value_and_grad(
            lambda *a: losses.linear_softmax_cross_entropy(
                *a[:2], labels, bias=a[2], reduction="mean"
            ),
            (0, 1, 2),
        )(x, w, b)

    value, ours = run(x, w, b)
    close(value, loss.mean())
    for a, g in zip(ours, gradients, strict=True):
        close(a, g / len(labels))


@pytest.mark.parametrize("class_axis", [0, 1])
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    ("classes", "dtype"),
    thorough(
        itertools.product((256, 896, 1003), ("float32", "bfloat16")),
        lambda classes, dtype: dtype == "float32" or classes == 896,
    ),
)
def test_parts_of_a_kernel(classes, class_axis, dtype, devices, monkeypatch):
    """One part or several, the first of which may reach into the second."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    jax.clear_caches()  # or a program for another number of devices would be taken
    x, w, _, labels = problem(tokens=21, features=1401, classes=classes, scale=0.02)
    x, w = jnp.asarray(x, dtype), jnp.asarray(w, dtype)
    weights = np.linspace(0, 1, 21, dtype=np.float32)
    loss, (over_x, over_w, _) = exact(x, w, None, labels, weights)

    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def ours(x, kernel):
        return losses.linear_softmax_cross_entropy(
            x,
            kernel,
            labels,
            weights=weights,
            reduction="sum",
            class_axis=class_axis,
            chunk_size=8,
            gradient_dtype=jnp.float32,
        )

    value, (dx, dw) = jax.jit(ours)(x, w if class_axis else w.T)
    tolerance = 1e-5 if dtype == "float32" else 2**-7  # both factors of a term rounded, and the sum
    close(value, loss @ weights)
    close(dx.astype(np.float32), over_x, tolerance)
    close((dw if class_axis else dw.T).astype(np.float32), over_w, tolerance)
    jax.clear_caches()


def test_one_program_for_a_loop_of_steps(traces):
    x, w, _, labels = problem()
    step = jax.jit(
        jax.grad(functools.partial(losses.linear_softmax_cross_entropy, reduction="mean"))
    )
    for _ in range(3):
        jax.block_until_ready(step(x, w, labels))
    assert len(traces) == 1
