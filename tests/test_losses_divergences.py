"""Divergences, distillation and estimates against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import losses
from tests import oracles_losses as exact
from tests.cases_losses import (
    COMPILED,
    INF,
    NAN,
    close,
    compare,
    distillation,
    general_kl,
    kl,
    log_kl,
    pulled,
    sample,
    top_k,
)


def test_divergences():
    x, _, p, _ = sample(5, 4)
    value, grads, _ = pulled(kl, x, p)
    close(value, exact.kl(x, p))
    close(grads[0], exact.kl_grad(x, p))
    value, grads, _ = pulled(log_kl, x, 3 * p)
    close(value, exact.kl_log_targets(x, 3 * p))
    close(grads[0], exact.kl_log_targets_grad(x, 3 * p))
    value, grads, _ = pulled(general_kl, x, 3 * p)
    close(value, exact.generalized_kl(x, 3 * p))
    close(grads[0], exact.generalized_kl_grad(x, 3 * p))
    close(grads[1], np.log(3 * p) - x)


def test_kl_takes_targets_as_written():
    x, _, p, _ = sample(5, 4)
    for mass in (0.5, 2.0, 100.0):
        close(kl(x, mass * p), exact.kl(x, (mass * p).astype(np.float32)))
    close(
        jax.grad(lambda p: kl(x, p).sum())(p),
        np.log(p) + 1 - exact.log_softmax(x.astype(np.longdouble)),
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation(temperature):
    x, _, p, _ = sample(5, 4)
    teacher = 5 * p
    call = functools.partial(distillation, temperature=temperature)
    value, grads, _ = pulled(call, x, teacher)
    close(value, exact.distillation(x, teacher, temperature))
    close(grads[0], exact.distillation_grad(x, teacher, temperature))
    same = pulled(call, x, x)
    for result in (same[0], *same[1], same[2]):
        assert (np.asarray(result) == 0).all()


def test_distillation_near_the_teacher_keeps_its_digits():
    x, *_ = sample(4, 1000)
    near = (x + 1e-4 * sample(4, 1000, seed=1)[0]).astype(np.float32)
    compare(distillation(near, x, temperature=2.0), exact.distillation(near, x, 2.0), rtol=3e-6)


@pytest.mark.parametrize("temperature", [1e-30, 0.3, 7.0, 1e5])
def test_distillation_of_logits_far_from_zero(temperature):
    """Divided before they are compared they would lose as many digits as they are large."""
    near = np.array([[0, -1, -2.5], [-1, 0, 0], [0, -20, -21]], np.float32)
    x, teacher = (1e6 + near * temperature).astype(np.float32), np.float32(1e6) - near
    call = functools.partial(distillation, temperature=np.float32(temperature))
    value, grads, _ = pulled(call, x, teacher)
    close(value, exact.distillation(x, teacher, np.float32(temperature)))
    close(grads[0], exact.distillation_grad(x, teacher, np.float32(temperature)))


@pytest.mark.parametrize("temperature", [0.3, 7.0])
def test_other_derivatives_of_distillation_far_from_zero(temperature):
    near = np.array([0, -1, -2.5], np.float32)
    x, teacher, v = near + np.float32(1e6), near[::-1] + np.float32(1e6), np.float32([1, -2, 0.5])
    temperature = np.float32(temperature)

    def loss(x, temperature):
        return distillation(x, jnp.asarray(teacher), temperature=temperature)

    product = jax.jvp(lambda x: jax.grad(loss)(x, temperature), (jnp.asarray(x),), (v,))[1]
    q = np.exp(exact.log_softmax(near.astype(np.longdouble) / temperature))
    np.testing.assert_allclose(product, np.float64(q * (v - (q * v).sum())), rtol=3e-6)
    slope = jax.grad(loss, 1)(x, jnp.asarray(temperature))
    # Logits that lie near zero have the same derivative, and nothing to lose.
    wanted = jax.grad(lambda temperature: distillation(near, near[::-1], temperature=temperature))(
        jnp.asarray(temperature)
    )
    np.testing.assert_allclose(slope, wanted, rtol=3e-6)


def teacher_of(x, k, temper=1.0):
    """The k likeliest classes of a teacher and their log-probabilities."""
    log_p = exact.log_softmax(x.astype(np.longdouble) * temper).astype(np.float32)
    indices = np.argsort(-log_p, -1)[..., :k].astype(np.int32)
    return indices, np.take_along_axis(log_p, indices, -1)


def test_top_k_of_none():
    """All others are one class for both."""
    none = np.zeros((4, 0), np.float32)
    value, (grad, _), _ = pulled(
        lambda s, t: top_k(s, np.zeros((4, 0), int), t), sample(4, 6)[0], none
    )
    np.testing.assert_array_equal(value, np.zeros(4))
    np.testing.assert_array_equal(grad, np.zeros((4, 6)))


@pytest.mark.parametrize(("k", "shape"), [(1, (4, 6)), (2, (6,)), (5, (2, 3, 6))])
def test_top_k_distillation_is_the_divergence_of_coarse_distributions(k, shape):
    student, teacher = sample(*shape)[0], sample(*shape, seed=1)[0]
    indices, log_p = teacher_of(teacher, k)
    value, (grad, _), _ = pulled(lambda s, t: top_k(s, indices, t), student, log_p)
    close(value, exact.distillation_top_k(student, indices, log_p))
    assert (value <= exact.distillation(student, teacher).astype(float) + 1e-6).all()
    step = 1e-3 * np.random.default_rng(2).standard_normal(shape)
    wide = student.astype(np.longdouble)
    up, down = (exact.distillation_top_k(wide + s * step, indices, log_p).sum() for s in (1, -1))
    np.testing.assert_allclose(float((grad * step).sum()), float(up - down) / 2, rtol=1e-4)


def test_top_k_of_all_classes_is_the_whole_divergence():
    student, teacher = sample(4, 5)[0], sample(4, 5, seed=1)[0]
    log_p = exact.log_softmax(teacher.astype(np.longdouble)).astype(np.float32)
    indices = np.argsort(-log_p, -1).astype(np.int32)
    picked = np.take_along_axis(log_p, indices, -1)
    got, grad = jax.value_and_grad(lambda s: top_k(s, indices, picked).sum())(student)
    close(got, exact.distillation(student, log_p).sum())
    close(grad, exact.distillation_grad(student, log_p))


@pytest.mark.parametrize("apart", [0, 1e-4, 1e-2, 1, 30])
def test_top_k_keeps_its_digits(apart):
    """Within 16 ulp, and 16 times what an ulp in each logit and log-probability amounts to.

    Near the teacher that is more than the value's own ulp, and no formula avoids it: the
    probability that is left is 1 - sum(exp(t)) of rounded t, and enters with log(left / rest).
    """
    teacher = sample(3, 50)[0]
    indices, log_p = teacher_of(teacher, 8)
    student = (teacher + apart * sample(3, 50, seed=1)[0]).astype(np.float32)
    value, (grad, _), _ = pulled(lambda s, t: top_k(s, indices, t), student, log_p)
    value, grad, wide = (np.asarray(v, np.longdouble) for v in (value, grad, student))
    q = np.exp(exact.coarse(exact.log_softmax(wide), indices))
    p = np.exp(log_p.astype(np.longdouble))
    p = np.concatenate([p, 1 - p.sum(-1, keepdims=True)], -1)
    large = np.abs(wide).max(-1, keepdims=True)
    eps = 16 * np.finfo(np.float32).eps
    want = exact.distillation_top_k(student, indices, log_p)
    felt = (np.abs(p - q) * (large + np.abs(np.log(p)))).sum(-1) + np.abs(np.log(p / q))[..., -1]
    assert (np.abs(value - want) <= eps * (want + felt)).all()
    assert (value >= 0).all()
    slope = np.exp(exact.log_softmax(wide)) * (1 - p / q)[..., -1:]
    np.put_along_axis(slope, indices, (q - p)[..., :-1], -1)
    assert (
        np.abs(grad - slope)
        <= eps * (1 + large) * np.abs(slope).max(-1, keepdims=True)
        + eps * (p + q).max(-1, keepdims=True) * large
    ).all()


def test_top_k_bad_index_is_nan_for_its_row():
    student = sample(5, 5)[0]
    indices, log_p = teacher_of(student, 2)
    indices[1:, 0] = 5, -1, -5, 2**31 - 1
    value, (grad, *_), _ = pulled(top_k, student, indices, log_p, debug=False)
    bad = np.array([False, True, True, True, True])
    np.testing.assert_array_equal(np.isnan(value), bad)
    np.testing.assert_array_equal(np.isnan(grad), np.stack([bad] * 5, -1))


def test_top_k_masked_examples_do_not_count():
    student = sample(4, 5)[0]
    indices, log_p = teacher_of(sample(4, 5, seed=1)[0], 2)
    keep = np.array([True, False, True, False])
    want = exact.distillation_top_k(student, indices, log_p)[keep]
    student[1], student[3], log_p[3], indices[3, 0] = NAN, INF, NAN, -7
    value, grads, pushed = pulled(top_k, student, indices, log_p, where=keep)
    close(value[keep], want)
    for result in (value, *grads, pushed):
        assert (np.asarray(result)[~keep] == 0).all()
        assert np.isfinite(result).all()


def test_top_k_of_low_precision_student():
    student = jnp.asarray(sample(4, 5)[0], jnp.bfloat16)
    indices, log_p = teacher_of(np.asarray(student, np.float32), 2, 0.5)
    value, grad = jax.value_and_grad(lambda s: top_k(s, indices, log_p).sum())(student)
    assert (value.dtype, grad.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimate(kind):
    rng = np.random.default_rng(0)
    log_p, log_q = (-np.abs(rng.standard_normal((2, 30))) * 5).astype(np.float32)
    value, grads, _ = pulled(functools.partial(losses.kl_estimate, kind=kind), log_p, log_q)
    compare(value, exact.kl_estimate(log_p, log_q, kind), rtol=3e-6)
    slope = exact.kl_estimate_grad(log_p, log_q, kind)
    compare(grads[0], slope, rtol=3e-6)
    compare(grads[1], -slope, rtol=3e-6)


def test_kl_estimate_of_nearly_equal_policies():
    """exp(r) - 1 - r as written has no digit left below 1e-4."""
    log_q = np.full(6, -1.0, np.float32)
    log_p = (log_q + np.float32(2.0) ** -np.arange(3, 21, 3)).astype(np.float32)
    got = losses.kl_estimate(log_p, log_q)
    compare(got, exact.kl_estimate(log_p, log_q, "k3"), rtol=5e-7)
    assert (got > 0).all()
    assert losses.kl_estimate(log_p, log_p).sum() == 0


def test_kl_estimate_estimates():
    """Over all outcomes of q, weighted with their probabilities, k1 and k3 give KL(q || p)."""
    x, other = (sample(5, seed=s)[0] for s in (0, 1))
    log_p, log_q = (
        exact.log_softmax(v.astype(np.longdouble)).astype(np.float32) for v in (x, other)
    )
    want = exact.kl_log_targets(log_p, log_q)
    for kind in ("k1", "k3"):
        close((np.exp(log_q) * losses.kl_estimate(log_p, log_q, kind=kind)).sum(), want)


@COMPILED
def test_kl_estimate_overflows_without_nan(compiled):
    args = [0.0, 0.0, -200.0], [-100.0, -1e4, 0.0]
    value, (grad, _), _ = pulled(losses.kl_estimate, *args, compiled=compiled)
    compare(value, [INF, INF, 199])
    assert grad[2] == -1
    # The largest that there is, more or less: inf would be NaN where it meets a 0.
    assert np.isfinite(grad).all()
    assert (grad[:2] > 1e38).all()


@COMPILED
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimate_of_the_impossible(kind, compiled):
    """A sample of probability 0 under p only is infinite news; under both it does not count."""
    run = functools.partial(losses.kl_estimate, kind=kind)
    value, (grad, _), _ = pulled(run, [-INF, -INF], [-1.0, -INF], compiled=compiled)
    compare(value, [INF, 0])
    assert grad[0] == -1 if kind != "k2" else -INF < grad[0] < -1e38
    assert grad[1] == 0
