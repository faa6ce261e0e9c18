"""Every transformation of every loss, and what it costs."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import losses
from tests import oracles_losses as exact
from tests.cases_losses import (
    binary,
    close,
    distillation,
    focal,
    general_kl,
    integer,
    kl,
    log_kl,
    poly,
    sample,
    second,
    sigmoid_focal,
    soft,
    top_k,
)
from tests.conftest import option

WEIGHTS = np.array([0.5, 1, 2, 3], np.float32)
TRANSFORMED = {
    "soft": (soft, "p"),
    "integer": (integer, "labels"),
    "integer, smoothed": (
        functools.partial(integer, label_smoothing=0.25, ignore_index=-1),
        "labels",
    ),
    "integer, all": (
        functools.partial(integer, label_smoothing=0.25, class_weights=WEIGHTS, ignore_index=-1),
        "labels",
    ),
    "soft, all": (functools.partial(soft, label_smoothing=0.25, class_weights=WEIGHTS), "p"),
    "focal": (focal, "labels"),
    "focal of distributions": (focal, "p"),
    "poly": (poly, "p"),
    "z_loss": (lambda x, _: losses.z_loss(x), "labels"),
    "kl": (kl, "p"),
    "log kl": (log_kl, "logits"),
    "generalized kl": (general_kl, "p"),
    "distillation": (functools.partial(distillation, temperature=2.0), "logits"),
    "top k": (lambda s, y: top_k(s, y[..., None], jnp.full((*y.shape, 1), -0.5)), "labels"),
    "binary": (lambda x, p: binary(x, p).sum(-1), "p"),
    "binary, weighted": (lambda x, p: binary(x, p, pos_weight=3.0).sum(-1), "p"),
    "sigmoid focal": (lambda x, p: sigmoid_focal(x, p, alpha=0.25).sum(-1), "p"),
    "k3": (lambda x, p: losses.kl_estimate(x, 3 * p).sum(-1), "p"),
    "soft cap": (lambda x, _: losses.soft_cap(x, 5.0).sum(-1), "p"),
}


# What shares its core with another is transformed with that one.
ALIKE = (
    *("soft", "integer", "integer, smoothed", "log kl"),
    *("binary", "soft cap", "focal of distributions"),
)
ROUTED = [n for n in TRANSFORMED if n not in (*ALIKE, "generalized kl", "binary, weighted")]


@pytest.mark.parametrize("name", ROUTED)
def test_all_routes_agree(name):
    function, kind = TRANSFORMED[name]
    x, labels, p, _ = sample(6, 4)
    target = jnp.asarray(second(kind, x, labels, p))
    rng = np.random.default_rng(3)
    tangent = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)

    def scanned(x):
        step = jax.checkpoint(function)
        return jax.lax.scan(lambda c, row: (c, step(*row)), 0, (x, target))[1]

    def both(function, x):
        value, pull = jax.vjp(function, x)
        return value, pull(jnp.ones_like(value))[0]

    @jax.jit
    def routes(x):
        columns = jax.vmap(function, in_axes=(1, 0))
        by_column = both(lambda x: columns(x, target), x.T)
        return {
            "vmap over columns": (by_column[0], by_column[1].T),
            "scan of remat": both(scanned, x),
        }, jax.jvp(lambda x: function(x, target), (x,), (tangent,))[1]

    value, grad = jax.jit(functools.partial(both, lambda x: function(x, target)))(x)
    assert value.shape == (6,)
    others, forward = routes(x)
    for route, (again, slope) in others.items():
        np.testing.assert_allclose(again, value, rtol=2e-6, atol=1e-6, err_msg=route)
        np.testing.assert_allclose(slope, grad, rtol=2e-6, atol=1e-6, err_msg=route)
    np.testing.assert_allclose(forward, (grad * tangent).sum(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["integer, all", "soft, all", "focal", "distillation"])
def test_reverse_over_reverse(name):
    function, kind = TRANSFORMED[name]
    x, labels, p, _ = sample(6, 4)
    target = second(kind, x, labels, p)
    tangent = jnp.asarray(np.random.default_rng(4).standard_normal(x.shape), jnp.float32)

    @jax.jit
    def both(x):
        slope = jax.grad(lambda x: function(x, target).sum())
        return jax.grad(lambda x: (slope(x) * tangent).sum())(x), jax.jvp(slope, (x,), (tangent,))[
            1
        ]

    again, forward = both(x)
    np.testing.assert_allclose(again, forward, rtol=1e-5, atol=1e-6)


# Their gradients by the oracle: Hessian-vector products are their differences in longdouble.
HESSIANS = {
    "soft": exact.cross_entropy_grad,
    "integer": exact.cross_entropy_grad,
    "soft, all": functools.partial(
        exact.cross_entropy_grad, label_smoothing=0.25, class_weights=WEIGHTS
    ),
    "integer, all": functools.partial(
        exact.cross_entropy_grad, label_smoothing=0.25, class_weights=WEIGHTS
    ),
    "focal": exact.focal_grad,
    "focal of distributions": exact.focal_grad,
    "poly": exact.poly_grad,
    "z_loss": lambda x, _: exact.z_loss_grad(x),
    "kl": exact.kl_grad,
    "log kl": exact.kl_log_targets_grad,
    "generalized kl": exact.generalized_kl_grad,
    "distillation": functools.partial(exact.distillation_grad, temperature=2.0),
    "binary": exact.sigmoid_cross_entropy_grad,
    "binary, weighted": functools.partial(exact.sigmoid_cross_entropy_grad, pos_weight=3.0),
    "sigmoid focal": functools.partial(exact.sigmoid_focal_grad, alpha=0.25),
    "soft cap": lambda x, _: exact.soft_cap_grad(x, 5.0),
}


@pytest.mark.parametrize("name", HESSIANS)
def test_second_derivatives(name):
    function, kind = TRANSFORMED[name]
    oracle = HESSIANS[name]
    x, labels, p, _ = sample(6, 4)
    target = second(kind, x, labels, p)
    tangent = np.random.default_rng(4).standard_normal(x.shape)

    @jax.jit
    def product(x, tangent):
        slope = jax.grad(lambda x: function(x, target).sum())
        return jax.jvp(slope, (x,), (tangent,))[1]

    step, wide = np.longdouble(1e-6), x.astype(np.longdouble)
    want = (
        (oracle(wide + step * tangent, target) - oracle(wide - step * tangent, target)) / 2 / step
    )
    got = product(x, tangent.astype(np.float32))
    np.testing.assert_allclose(got, want.astype(float), rtol=2e-5, atol=2e-6)


FAR = np.array([0, 1, 20, 60, 80, 86, 87.5, 88, 95, 103, 1e4, 1e8], np.float32)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_second_derivatives_of_focal_losses_far_out(gamma):
    """Finite in every order of modes, where 1 - p underflows and where p does."""

    def binary_focal(x):
        return jnp.stack([sigmoid_focal(x, jnp.full_like(x, y), gamma=gamma) for y in (0, 1, 0.3)])

    def of_two(x):
        return focal(jnp.stack([x, -x / 2], -1), jnp.zeros(x.shape, jnp.int32), gamma=gamma)

    def run(x, ones):
        for function in (binary_focal, of_two):
            slope = jax.grad(lambda x, f=function: f(x).sum())
            yield jax.jvp(slope, (x,), (ones,))[1]
            yield jax.grad(lambda x, s=slope: s(x).sum())(x)

    x = np.concatenate([FAR, -FAR])
    with option("jax_debug_nans", True):
        results = jax.jit(lambda x, ones: list(run(x, ones)))(x, np.ones_like(x))
    for again, product in zip(results[::2], results[1::2], strict=True):
        assert np.isfinite(again).all()
        np.testing.assert_allclose(again, product, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("name", ["integer", "soft", "binary"])
def test_eager_call_compiles_once(name, traces):
    function, kind = TRANSFORMED[name]
    if name == "binary":
        function = binary
    x, labels, p, _ = sample(3, 7)
    args = [jnp.asarray(a) for a in (x, second(kind, x, labels, p))]
    traces.clear()
    jax.block_until_ready(function(*args))
    assert len(traces) <= 1
    jax.block_until_ready(function(*args))
    assert len(traces) <= 1


def test_keywords_may_be_traced():
    """Schedules of smoothing, temperature, gamma: no new compilation."""
    x, labels, p, _ = sample(3, 4)

    @jax.jit
    def run(v):
        return (
            integer(x, labels, label_smoothing=v, ignore_index=jnp.int32(-1)).sum(),
            focal(x, labels, gamma=v).sum(),
            poly(x, p, epsilon=v).sum(),
            distillation(x, p, temperature=v).sum(),
            sigmoid_focal(x, p, alpha=v, gamma=v).sum(),
        )

    v = np.float32(0.75)
    want = (
        exact.cross_entropy(x, labels, label_smoothing=v).sum(),
        exact.focal(x, labels, v).sum(),
        exact.poly(x, p, v).sum(),
        exact.distillation(x, p, v).sum(),
        exact.sigmoid_focal(x, p, v, v).sum(),
    )
    close(np.array(run(v)), np.array(want))


def test_smoothing_of_each_example_and_its_derivatives():
    """The loss is linear in the smoothing, so the oracle at 0 and at 1 gives its derivatives."""
    x, labels, *_ = sample(5, 7)
    x[1, (labels[1] + 1) % 7] = -np.inf
    rates = np.linspace(0, 0.9, 5).astype(np.float32)

    def loss(x, rates):
        return integer(x, labels, label_smoothing=rates)

    want, want_x = (
        np.array([f(x[i], labels[i], label_smoothing=r) for i, r in enumerate(rates)])
        for f in (exact.cross_entropy, exact.cross_entropy_grad)
    )
    change, change_x = (
        f(x, labels, label_smoothing=1) - f(x, labels)
        for f in (exact.cross_entropy, exact.cross_entropy_grad)
    )
    value, pull = jax.vjp(loss, x, rates)
    close(value, want)
    for got, expected in zip(pull(jnp.ones(5)), (want_x, change), strict=True):
        close(got, expected)
    # Along the smoothing the gradient over the logits moves, and the other way round.
    ones = jnp.ones_like(rates)
    over_x = jax.grad(lambda x, r: loss(x, r).sum())
    close(jax.jvp(lambda r: over_x(x, r), (rates,), (ones,))[1], change_x)
    slope = jax.grad(lambda r, x: loss(x, r).sum())
    along = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)
    close(
        jax.jvp(lambda x: slope(rates, x), (x,), (along,))[1],
        (along * change_x).sum(-1),
    )


@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize("lowest", [1, 3])
def test_the_lowest_finite_logit_is_a_class_for_the_smoothing_too(lowest, classes):
    """A mask of finfo.min is not one of -inf, and several of them do not overflow."""
    x, labels, *_ = sample(6, classes)
    labels[:] = 0
    x[:, 1 : 1 + lowest] = np.finfo(np.float32).min
    x[::2, -1] = -np.inf
    loss = functools.partial(integer, labels=labels, label_smoothing=0.25)
    value, pull = jax.vjp(loss, x)
    close(value, exact.cross_entropy(x, labels, label_smoothing=0.25))
    close(pull(jnp.ones(6))[0], exact.cross_entropy_grad(x, labels, label_smoothing=0.25))


def test_an_impossible_label_smoothed_is_infinite_with_finite_derivatives():
    x, label = np.array([0.0, -np.inf, 1.0], np.float32), np.array(1)
    loss = functools.partial(integer, labels=label, label_smoothing=0.25)
    want = exact.cross_entropy_grad(x, label, label_smoothing=0.25)
    value, along = jax.jvp(loss, (x,), (np.ones(3, np.float32),))
    assert value == np.inf
    close(along, want.sum())
    close(jax.grad(loss)(x), want)


def full_size_work(function, *args):
    """Exponentials, reductions over the full size, and bytes read or written, as compiled."""
    compiled = jax.jit(function).lower(*args).compile()
    rows, classes = args[0].shape
    reduces = re.findall(
        rf"f32\[{rows}(?:,1)?\]\S* reduce\(f32\[{rows},{classes}\]", spelled(compiled)
    )
    cost = compiled.cost_analysis()
    return np.array([cost["transcendentals"], len(reduces), cost["bytes accessed"]])


def spelled(compiled):
    """The program with the type of each operand written where it is used."""
    text = compiled.as_text()
    types = dict(re.findall(r"(%[\w.-]+) = (\S+)", text))
    return re.sub(r"\((%[\w.-]+)", lambda m: f"({types.get(m[1], '')} {m[1]}", text)


def test_z_loss_shares_the_passes_of_the_cross_entropy():
    """Under one jit the maximum and the sum of exponentials are taken once for both."""
    x, labels, *_ = sample(16, 512)

    def both(x, labels):
        return integer(x, labels) + 1e-4 * losses.z_loss(x)

    def z_alone(x, _):
        return losses.z_loss(x)

    def step(loss):
        return lambda x, labels: jax.value_and_grad(lambda x: loss(x, labels).mean())(x)

    numbers = 64 * len(x) * np.array([1, 0, 4])  # what is computed once per example is free
    alone, z, together = (full_size_work(f, x, labels) for f in (integer, z_alone, both))
    assert (alone > 0).all()
    assert (z > 0).all()
    assert (together <= alone + numbers).all(), (alone, z, together)
    # With the gradient: one more exponential and one more look at each logit, and no reduction.
    alone, z, together = (full_size_work(step(f), x, labels) for f in (integer, z_alone, both))
    once_more = np.array([x.size, 0, x.nbytes])
    assert (together <= alone + once_more + numbers).all(), (alone, z, together)
