"""Linear losses over eight devices: right, and no matrix but a gradient is ever sent."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxce import losses
from tests.test_linear import close, exact, problem
from tests.test_losses_sharding import sent

TOKENS, FEATURES, CLASSES = 64, 24, 101
PADDED = 104  # what eight devices divide
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01}
# mesh shape, axis names, how tokens and classes are spread
MESHES = {
    "classes": ((8,), ("c",), None, "c"),
    "tokens": ((8,), ("t",), "t", None),
    "both": ((2, 4), ("t", "c"), "t", "c"),
}


@functools.cache
def setting():
    """Operands with padded classes, and the exact mean and its gradients."""
    x, w, b, labels = problem(TOKENS, FEATURES, PADDED)
    labels = (labels % CLASSES).astype(np.int32)
    weights = np.full(TOKENS, 1 / TOKENS, np.float32)
    loss, gradients = exact(x, w, b, labels, weights, classes=CLASSES, **OPTIONS)
    return (x, w, b, labels), loss.mean(), gradients


def agrees(value, gradients):
    _, exact_value, exact_gradients = setting()
    close(value, exact_value)
    for a, g in zip(gradients, exact_gradients, strict=True):
        close(a, g)


def mean_loss(x, w, b, labels, *, reduction, chunk_size, **keywords):
    loss = losses.linear_softmax_cross_entropy(
        x, w, labels, bias=b, num_classes=CLASSES, reduction=reduction, chunk_size=chunk_size,
        **OPTIONS, **keywords,
    )  # fmt: skip
    return loss if reduction else loss.mean()


def sent_in_loop_and_after(text):
    """Sizes of what is sent in each turn of a loop, and of what is sent once."""
    in_loop, once = [], []
    for kind, size, line in sent(text):
        assert kind == "all-reduce", line[:300]
        (in_loop if "while/body" in line else once).append(size)
    return in_loop, once


@pytest.mark.parametrize("reduction", ["mean", None])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda k: k.name)
@pytest.mark.parametrize("name", MESHES)
def test_arrays_that_are_spread(name, kind, reduction):
    shape, axes, tokens, classes = MESHES[name]
    mesh = jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes))
    specs = (P(tokens, None), P(None, classes), P(classes), P(tokens))
    # Under automatic sharding a chunk is counted over all devices, otherwise on each.
    chunk = 16 if kind is AxisType.Auto else 16 // (shape[0] if tokens else 1)
    function = functools.partial(mean_loss, reduction=reduction, chunk_size=chunk)
    explicit = kind is AxisType.Explicit
    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
        operands = [
            jax.device_put(a, NamedSharding(mesh, s))
            for a, s in zip(setting()[0], specs, strict=True)
        ]
        step = jax.jit(jax.value_and_grad(function, (0, 1, 2))).lower(*operands).compile()
        agrees(*step(*operands))
    over_tokens, over_classes = (shape[axes.index(a)] if a else 1 for a in (tokens, classes))
    numbers = 4 * 16  # a few per token of a chunk, in one message
    input_gradient = TOKENS // over_tokens * FEATURES
    kernel_gradient = (FEATURES + 1) * PADDED // over_classes + 1
    in_loop, once = sent_in_loop_and_after(step.as_text())
    if explicit:
        assert max(in_loop, default=0) <= numbers
        allowed = input_gradient * (classes is not None) + kernel_gradient * (tokens is not None)
        assert sum(once) <= allowed + numbers
    else:  # a chunk's share of the input's gradient, or a sum of the kernel's gradient over tokens
        assert max(once, default=0) <= numbers
        share = 16 // over_tokens * FEATURES if classes else 0
        kernel = kernel_gradient if tokens else 0
        assert max(in_loop, default=0) <= max(share, kernel) + numbers


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("reduction", ["sum", None])
@pytest.mark.parametrize("name", ["classes", "both"])
def test_shard_map(name, reduction, check_vma):
    shape, axes, tokens, classes = MESHES[name]
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))

    def on_device(x, w, b, labels):
        loss = losses.linear_softmax_cross_entropy(
            x, w, labels, bias=b, num_classes=CLASSES, reduction=reduction, chunk_size=8,
            axis_name=classes, **OPTIONS,
        )  # fmt: skip
        total = jnp.sum(loss)
        return (jax.lax.psum(total, tokens) if tokens else total) / TOKENS

    mapped = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(P(tokens, None), P(None, classes), P(classes), P(tokens)),
        out_specs=P(),
        check_vma=check_vma,
    )
    step = jax.jit(jax.value_and_grad(mapped, (0, 1, 2))).lower(*setting()[0]).compile()
    agrees(*step(*setting()[0]))
    in_loop, once = sent_in_loop_and_after(step.as_text())
    assert max(in_loop) <= 4 * 8
    over_classes = shape[axes.index(classes)]
    kernel_gradient = (FEATURES + 1) * PADDED // over_classes if tokens else 0
    assert sum(once) <= TOKENS * FEATURES + kernel_gradient + 8


@pytest.mark.parametrize("tokens", [None, "c", ("t", "c")], ids=str)
def test_statistics_and_distillation_over_classes(tokens):
    """The entropy, the normalizer and a teacher see all classes, not the ones of a device.

    Tokens may be spread over the same devices: all tokens meet all classes.
    """
    (x, w, b, labels), *_ = setting()
    mesh = jax.make_mesh((2, 4), ("t", "c"), axis_types=(AxisType.Explicit,) * 2)

    def both(x, w, b):
        statistics = losses.linear_softmax_statistics(x, w, labels, bias=b, chunk_size=16)
        divergence = losses.linear_distillation_loss(
            x, w, -x, 0.5 * w, student_bias=b, reduction="mean", chunk_size=16
        )
        loss = losses.linear_softmax_cross_entropy(
            x, w, labels, bias=b, weights=jnp.arange(TOKENS), reduction="sum", chunk_size=16
        )
        return sum(s.sum() for s in statistics) + divergence + loss

    step = jax.jit(jax.value_and_grad(both, (0, 1, 2)))
    wanted, wanted_gradients = step(x, w, b)
    with jax.set_mesh(mesh):
        spread = [
            jax.device_put(a, NamedSharding(mesh, s))
            for a, s in zip((x, w, b), (P(tokens), P(None, "c"), P("c")), strict=True)
        ]
        value, gradients = step(*spread)
    close(value, wanted)
    jax.tree.map(close, gradients, wanted_gradients)
