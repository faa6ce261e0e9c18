"""Where other libraries go wrong: one test for each, for the losses and for the measures.

The names say what some peer gives there, where it is not a refusal. Losses have the predictions
first, measures the true distribution.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from jaxce import losses
from tests import oracles_losses as exact
from tests.cases_losses import (
    INF,
    LOG2,
    LOG3,
    NAN,
    binary,
    compare,
    integer,
    kl,
    log_kl,
    safe,
    soft,
)
from tests.conftest import option

ce = jaxce.cross_entropy_with_logits
IGNORED = np.array([-100, -100], np.int32)
FIRST_TWO = np.array([True, True, False])


def at(function, *before, **keywords):
    """The function of its floating arguments, class indices or a mask being given."""
    return lambda *floats: function(*floats, *map(np.int32, before), **keywords)


def of_class(label, **keywords):
    """The integer-label loss and the measure, as functions of the logits."""
    return (
        at(integer, label, **keywords),
        lambda x: ce(np.int32(label), x, **keywords),
    )


def both(loss, measure):
    """The loss and the measure of the same two arguments, in the loss's order."""
    return loss, lambda x, p: measure(p, x)


# What a peer gets wrong: the functions, their arguments, the value, and a gradient per argument
# (None: finite where the value is, never NaN).
ROWS = {
    "label 4 of 4: the value is NaN, the gradient is not": (
        of_class(4),
        [[0.5, 1, 2, 3]],
        NAN,
        [[NAN] * 4],
    ),
    "label -1 is the last class": (of_class(-1), [[0.5, 1, 2, 3]], NAN, [[NAN] * 4]),
    "label -100 of 200 is class 100": (of_class(-100), [[0.0] * 200], NAN, [[NAN] * 200]),
    "label -100, ignored": (
        [at(integer, -100, ignore_index=-100)],
        [[0.0] * 200],
        0,
        [[0] * 200],
    ),
    "label of a masked class: -98.31": (
        of_class(2, where=FIRST_TWO),
        [[1.0, 1, 100]],
        INF,
        [[0.5, 0.5, 0]],
    ),
    "logits of 1e8: 0": (of_class(0), [[1e8] * 3], LOG3, [[-2 / 3, 1 / 3, 1 / 3]]),
    "logit -inf, target 0: NaN": (
        (*both(soft, ce), safe),
        [[-INF, 0.0], [0.0, 1.0]],
        0,
        [[0, 0], None],
    ),
    "logit -inf beside others: NaN in forward mode": (
        (*both(soft, ce), safe),
        [[-INF, 0.0, 0.0], [0.0, 1.0, 0.0]],
        LOG2,
        [[0, -0.5, 0.5], None],
    ),
    "KL, target 0: NaN gradient": (
        [kl],
        [np.log([0.25] * 4), [0, 0.4, 0.6, 0]],
        0.4 * np.log(1.6) + 0.6 * np.log(2.4),
        [[0.25, -0.15, -0.35, 0.25], None],
    ),
    "KL of probabilities, target 0: NaN gradient": (
        [jaxce.kl_divergence],
        [[0, 0.4, 0.6, 0], [0.25] * 4],
        0.4 * np.log(1.6) + 0.6 * np.log(2.4),
        [None, [0, -1.6, -2.4, 0]],
    ),
    "KL, target 0 where nothing is predicted: NaN": (
        [kl],
        [[-INF, -LOG2, -LOG2], [0, 0.5, 0.5]],
        0,
        [[0, 0, 0], None],
    ),
    "KL, both -inf: NaN": (
        both(log_kl, jaxce.kl_divergence_with_logits),
        [[-LOG2, -LOG2, -INF], [-LOG2, -LOG2, -INF]],
        0,
        [[0, 0, 0], [0, 0, 0]],
    ),
    "relative entropy class by class": (
        [jaxce.kl_divergence],
        [[[0.7], [0.3], [0], [0]], [[0], [0.3], [0.7], [0]]],
        [INF, 0, 0, 0],
        [None, None],
    ),
    "KL of what has nothing in common": (
        [jaxce.kl_divergence],
        [[0.7, 0.3, 0, 0], [0, 0.3, 0.7, 0]],
        INF,
        [None, None],
    ),
    "KL loss of what has nothing in common": (
        [kl],
        [[-INF, np.log(0.3), np.log(0.7), -INF], [0.7, 0.3, 0, 0]],
        INF,
        [None, None],
    ),
    "KL of a distribution with a hole to itself": (
        [jaxce.kl_divergence],
        [[0.5, 0.5, 0], [0.5, 0.5, 0]],
        0,
        [None, [-1, -1, 0]],
    ),
    "KL of what the other has no probability for": (
        [jaxce.kl_divergence],
        [[0.3, 0.3, 0.4], [0.5, 0.5, 0]],
        INF,
        [None, None],
    ),
    "KL loss of what the other has no probability for": (
        [kl],
        [[-LOG2, -LOG2, -INF], [0.3, 0.3, 0.4]],
        INF,
        [[0.2, 0.2, -0.4], None],
    ),
    "entropy of logits with -inf: NaN gradient": (
        [jaxce.entropy_with_logits],
        [[0, 0, -INF]],
        LOG2,
        [[0, 0, 0]],
    ),
    "entropy of one-hot probabilities: NaN gradient": (
        [jaxce.entropy],
        [[0, 1.0, 0]],
        0,
        [None],
    ),
    "binary, certain: NaN": (
        both(binary, jaxce.binary_cross_entropy_with_logits),
        [[INF, -INF], [1.0, 0]],
        [0, 0],
        [[0, 0], None],
    ),
    "a soft label of zeros: its gradient is softmax": (
        both(soft, ce),
        [[1.0, 2, 3], [0.0, 0, 0]],
        0,
        [[0, 0, 0], None],
    ),
    "mean over ignored labels alone: NaN": (
        [lambda x: losses.mean(integer(x, IGNORED, ignore_index=-100), IGNORED != -100)],
        [[[1.0, 2.0], [3.0, 4.0]]],
        0,
        [[[0, 0], [0, 0]]],
    ),
    "smoothing over a logit of -inf: inf": (
        [at(integer, 1, label_smoothing=0.2)],
        [[-INF, 0.0, 0.0]],
        LOG2,
        [[0, -0.4, 0.4]],
    ),
    "smoothing over a masked class": (
        [at(integer, 0, label_smoothing=0.2, where=FIRST_TWO)],
        [[0.0, 0.0, 100.0]],
        LOG2,
        [[-0.4, 0.4, 0]],
    ),
    "smoothing of soft labels over a logit of -inf: inf": (
        [lambda x, p: soft(x, p, label_smoothing=0.2)],
        [[-INF, 0.0, 0.0], [0.0, 1.0, 0.0]],
        LOG2,
        [[0, -0.4, 0.4], None],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_value_and_derivatives(name):
    functions, args, value, grads = ROWS[name]
    args = [jnp.asarray(a, jnp.float32) for a in args]

    # An infinite derivative times a tangent of 0 has no answer: forward mode is left out there.
    slope_is_finite = np.isfinite(value).all() or None not in grads

    def run(*args):
        for function in functions:
            got, pull = jax.vjp(function, *args)
            both = [pull(jnp.ones_like(got))]
            if slope_is_finite:
                jacobians = [jax.jacfwd(function, i)(*args) for i in range(len(args))]
                both.append([j.sum(tuple(range(got.ndim))) for j in jacobians])
            yield got, both

    with option("jax_debug_nans", not np.isnan(value).any()):
        results = jax.jit(lambda *args: list(run(*args)))(*args)
    for got, modes in results:
        compare(got, value)
        for mode in modes:
            for mine, want in zip(mode, grads, strict=True):
                if want is None:
                    assert not np.isnan(mine).any()
                    assert np.isfinite(mine).all() or not np.isfinite(value).all()
                else:
                    np.testing.assert_allclose(mine, want, rtol=2e-6, atol=1e-7)


def test_binary_shapes_are_not_an_outer_product():
    """Elsewhere (3,) against (3, 1) is a silent (3, 3)."""
    x, y = jnp.zeros(3), jnp.zeros((3, 1))
    for call in (
        lambda: binary(x, y),
        lambda: losses.sigmoid_focal_loss(x, y),
        lambda: jaxce.binary_cross_entropy_with_logits(y, x),
    ):
        with pytest.raises(ValueError, match=r"\(3,\) and \(3, 1\)|\(3, 1\) and \(3,\)"):
            call()


def test_float16_at_its_largest():
    """Elsewhere the entropy's gradient is NaN."""
    x = jnp.array([65504, -65504], jnp.float16)
    value, grad = jax.value_and_grad(jaxce.entropy_with_logits)(x)
    assert value == 0
    np.testing.assert_array_equal(grad, [0, 0])
    for function in of_class(0):
        value, grad = jax.value_and_grad(function)(x)
        assert value == 0
        np.testing.assert_array_equal(grad, [0, 0])
    value, grad = jax.value_and_grad(at(integer, 1))(x)
    assert value == 2 * 65504
    np.testing.assert_array_equal(grad, [1, -1])


def test_float16_sum_of_surprisals_of_many_classes():
    """It is past float16's range; elsewhere so is its gradient."""
    x = jnp.zeros(2**17, jnp.float16)
    for function in (
        lambda x: jaxce.surprisal_with_logits(x).sum(),
        lambda x: soft(x, jnp.ones(2**17, jnp.float16)),
    ):
        value, grad = jax.value_and_grad(function)(x)
        compare(value, 2**17 * np.log(2**17))
        assert grad.dtype == jnp.float16
        np.testing.assert_allclose(np.asarray(grad, np.float32), 0, atol=1e-4)


@pytest.mark.usefixtures("x64")
def test_a_tiny_gradient_survives():
    """Elsewhere it is 0."""
    x, one_hot = jnp.array([37.42994775023705, 0.0]), jnp.array([1.0, 0.0])
    functions = *of_class(0), lambda x: soft(x, one_hot), lambda x: ce(one_hot, x)
    for function in functions:
        grad = jax.grad(function)(x)
        compare(grad, np.array([-1, 1]) / (1 + np.exp(x[0])), rtol=1e-14)


@pytest.mark.parametrize("classes", [50257, 131072])
def test_bfloat16_of_a_large_vocabulary_is_not_rounded(classes):
    """Elsewhere the result is a bfloat16, up to 0.07 off."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(8 * rng.standard_normal((2, classes)), jnp.bfloat16)
    labels = np.array([17, classes - 1], np.int32)
    want = exact.cross_entropy(np.asarray(x, np.float32), labels)
    for value in (integer(x, labels), ce(labels, x)):
        assert value.dtype == jnp.float32
        compare(value, want)


def test_both_weighted_means():
    """Elsewhere 133.33 or 2000 with nothing that says which; here both are had by name."""
    x = np.array([[-100.0, 100], [-100, 100]], np.float32)
    labels, weights = np.array([0, 1], np.int32), jnp.array([20.0, 10.0])
    weighted = integer(x, labels, class_weights=weights)
    compare(losses.mean(weighted), 20 * 200 / 2)
    compare(losses.mean(integer(x, labels), weights=weights[labels]), 20 * 200 / 30)
    compare(weighted.sum() / weights[labels].sum(), 20 * 200 / 30)
