"""Values and gradients of the losses against the oracles, in ulp, over the corpus of the measures.

``python -m tests.test_losses_accuracy [loss ...]`` prints the worst case of each loss instead.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import losses
from tests import corpus, oracles
from tests import oracles_losses as exact
from tests.bounds_losses import (
    CAP,
    binary_focal,
    binary_terms,
    by_class,
    capped,
    largest,
    own,
    rounded_change,
    rounded_change_each,
    rounded_difference,
    rounded_log,
    steeper,
    z_gradient,
    z_value,
)
from tests.conftest import class_by_class, option, thorough
from tests.test_accuracy import worst

LD = np.longdouble


@dataclass(frozen=True)
class Loss:
    function: Callable  # of two arguments, the first of them differentiated
    takes: str  # which rows of the corpus, in its order: the losses take the second first
    value: Callable
    grad: Callable
    value_bound: Callable = own  # (x, y, exact) -> the size that ulps are of, how many
    grad_bound: Callable = largest
    keywords: dict = field(default_factory=dict)

    @property
    def binary(self):
        return self.takes.startswith("binary")


def weighted(x, **keywords):
    """The same weights at every size: those of a class."""
    weights = 0.5 + (np.arange(x.shape[-1]) % 8) / 8
    return keywords | {"class_weights": weights.astype(keywords.get("dtype", x.dtype))}


def cross_entropy(name, takes, *, classes_weighted=False, **keywords):
    function = getattr(losses, name)

    def call(x, y):
        return function(x, y, **(weighted(x, **keywords) if classes_weighted else keywords))

    def spread(x, y):
        more = weighted(x, **keywords) if classes_weighted else keywords
        return exact.target_weights(
            x, y, None, *map(more.get, ("label_smoothing", "class_weights"))
        )

    def value(x, y):
        return oracles.cross_entropy_with_logits(spread(x, y)[1], x)

    def grad(x, y):
        return oracles.cross_entropy_with_logits_grad(spread(x, y)[1], x)[1]

    return Loss(call, takes, value, grad, grad_bound=by_class(lambda x, y: spread(x, y)[1]))


def simple(function, takes, value, grad, *bounds, **keywords):
    call, value, grad = (functools.partial(f, **keywords) for f in (function, value, grad))
    return Loss(call, takes, value, grad, *bounds)


def focal(takes, gamma):
    bound = by_class(lambda x, y: exact.focal_weights(x, y, gamma))
    bounds = steeper(own, gamma), steeper(bound, gamma)
    return simple(
        losses.softmax_focal_loss, takes, exact.focal, exact.focal_grad, *bounds, gamma=gamma
    )


def poly(epsilon):
    bound = by_class(lambda x, y: exact.poly_weights(x, y, epsilon))
    function = losses.poly_loss_cross_entropy
    return simple(function, "px", exact.poly, exact.poly_grad, own, bound, epsilon=epsilon)


def binary_cross_entropy(**keywords):
    return simple(
        losses.sigmoid_binary_cross_entropy,
        "binary px",
        exact.sigmoid_cross_entropy,
        exact.sigmoid_cross_entropy_grad,
        own,
        functools.partial(binary_terms, weight=keywords.get("pos_weight", 1)),
        **keywords,
    )


def sigmoid_focal(gamma, alpha):
    return simple(
        losses.sigmoid_focal_loss,
        "binary px",
        exact.sigmoid_focal,
        exact.sigmoid_focal_grad,
        binary_focal(gamma, alpha, gradient=False),
        binary_focal(gamma, alpha, gradient=True),
        gamma=gamma,
        alpha=alpha,
    )


def distillation(temperature):
    function = losses.distillation_loss
    oracle = exact.distillation, exact.distillation_grad
    return simple(function, "ab", *oracle, own, largest, temperature=temperature)


def estimate(kind):
    bounds = rounded_difference, rounded_difference
    oracle = exact.kl_estimate, exact.kl_estimate_grad
    return simple(losses.kl_estimate, "binary ab, modest", *oracle, *bounds, kind=kind)


INTEGER = "softmax_cross_entropy_with_integer_labels"
LOSSES = {
    "integer": cross_entropy(INTEGER, "yx"),
    "integer, smoothed": cross_entropy(INTEGER, "yx", label_smoothing=0.125),
    "integer, weighted": cross_entropy(INTEGER, "yx", classes_weighted=True),
    "integer, both": cross_entropy(INTEGER, "yx", classes_weighted=True, label_smoothing=0.125),
    "soft": cross_entropy("softmax_cross_entropy", "px"),
    "soft, both": cross_entropy(
        "softmax_cross_entropy", "px", classes_weighted=True, label_smoothing=0.125
    ),
    "focal of labels": focal("yx", 2.0),
    "focal of labels, 0.5": focal("yx", 0.5),
    "focal of distributions": focal("px", 2.0),
    "poly": poly(2.0),
    "poly, 0.5": poly(0.5),
    "z_loss": simple(
        lambda x, _: losses.z_loss(x),
        "yx",
        lambda x, _: exact.z_loss(x),
        lambda x, _: exact.z_loss_grad(x),
        z_value,
        z_gradient,
    ),
    "log targets": simple(
        losses.kl_divergence_with_log_targets,
        "ab",
        exact.kl_log_targets,
        exact.kl_log_targets_grad,
    ),
    "kl": simple(
        losses.kl_divergence,
        "px",
        exact.kl,
        exact.kl_grad,
        rounded_log,
        by_class(lambda x, p: p),
    ),
    "generalized kl": simple(
        losses.generalized_kl_divergence,
        "px, modest",
        exact.generalized_kl,
        exact.generalized_kl_grad,
        rounded_change,
        rounded_change_each,
    ),
    "distillation": distillation(1.0),
    "distillation, 2": distillation(2.0),
    "distillation, 3": distillation(3.0),
    "binary": binary_cross_entropy(),
    "binary, weighted": binary_cross_entropy(pos_weight=3.0),
    "sigmoid focal": sigmoid_focal(2.0, None),
    "sigmoid focal, 0.5": sigmoid_focal(0.5, 0.25),
    "k2": estimate("k2"),
    "k3": estimate("k3"),
    "soft cap": simple(
        lambda x, _: losses.soft_cap(x, CAP),
        "binary px",
        lambda x, _: exact.soft_cap(x, CAP),
        lambda x, _: exact.soft_cap_grad(x, CAP),
        own,
        capped,
    ),
}
SIZES = {"float32": (2, 10, 20, 1000), "float64": (10,)}
BY_CLASS = {("float32", 10)}  # where few classes are taken one by one
# All that these compute another does too: both keywords at once, a steeper polynomial, or quotients
# that are rounded, which by 2 they are not.
ALIKE = ("integer, smoothed", "integer, weighted", "poly, 0.5", "distillation, 2")
LARGE = ("integer", "integer, both", "soft", "z_loss", "distillation")
EVERY = [
    (name, dtype, n)
    for dtype, sizes in SIZES.items()
    for name, loss in LOSSES.items()
    for n in ((1,) if loss.binary else sizes)
] + [(name, "float32", 131072) for name in LARGE]


def rows_of(loss, n, dtype):
    kind = loss.takes.removesuffix(", modest")
    rows = corpus.KINDS[kind](n)
    if kind != loss.takes:  # no exponential of the logits overflows
        rows = {
            name: (y, x)
            for name, (y, x) in rows.items()
            if (np.max(np.abs(x - y)) if "ab" in kind else np.max(x)) < 80
        }
    names, (y, x) = corpus.rounded(rows, dtype)
    return names, x, y


def judge(name, dtype, n):
    if dtype == "float64" and not oracles.JUDGES_FLOAT64:
        pytest.skip("longdouble is no wider than float64 here")
    with option("jax_enable_x64", dtype == "float64"), class_by_class((dtype, n) in BY_CLASS):
        loss = LOSSES[name]
        names, x, y = rows_of(loss, n, dtype)

        @jax.jit
        def run(x, y):
            value, pull = jax.vjp(lambda x: loss.function(x, y), x)
            return value, pull(jnp.ones_like(value))[0]

        value, grad = run(x, y)
        x, y = (a if a.dtype.kind in "iu" else a.astype(LD) for a in (x, y))
        want = loss.value(x, y)
        value_bound, slope = loss.value_bound(x, y, want), loss.grad(x, y)
        return [
            worst("value", names, value, want, *value_bound, dtype, n),
            worst("gradient", names, grad, slope, *loss.grad_bound(x, y, slope), dtype, n),
        ]


@pytest.mark.parametrize(
    ("name", "dtype", "n"),
    thorough(
        EVERY,
        lambda name, dtype, n: (
            n not in (2, 20)
            and name not in ALIKE
            and (dtype == "float32" or n == 1 or name in LARGE)
        ),
    ),
)
def test_values_and_gradients(name, dtype, n):
    bad = [str(w) for w in judge(name, dtype, n) if not w.ratio <= 1]
    assert not bad, "\n" + "\n".join(bad)


TINY = {
    "confident by 20": [20.0, 0.0],
    "confident by 80": [80.3, 0.7, 0.69, 0.71, -3.0],
    "tied after the first": [50.0, 10.0, 10.0, 10.0],
    "certain, almost": [88.0, 1.5],
}


@pytest.mark.parametrize("row", TINY)
@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if loss.takes == "yx"])
def test_tiny_losses(name, row):
    """The right class is nearly certain: peers print 0."""
    loss = LOSSES[name]
    x, label = np.array([TINY[row]], np.float32), np.zeros(1, np.int32)
    value, grad = jax.value_and_grad(lambda x: loss.function(x, label).sum())(x)
    wide = x.astype(LD)
    want, slope = loss.value(wide, label), loss.grad(wide, label)
    results = [
        worst("value", [row], value[None], want, *loss.value_bound(wide, label, want), "float32"),
        worst("gradient", [row], grad, slope, *loss.grad_bound(wide, label, slope), "float32"),
    ]
    assert all(r.ratio <= 1 for r in results), [str(r) for r in results]
    if name == "integer":
        assert 0 < value < 1e-8


def report(wanted):
    """The worst case of each loss, dtype and size; X marks one out of bounds."""
    for name, dtype, n in EVERY:
        if wanted and not any(w in name for w in wanted):
            continue
        try:
            for result in judge(name, dtype, n):
                mark = " " if result.ratio <= 1 else "X"
                print(f"{mark} {name:24} {dtype:8} {n:6} {result}", flush=True)
        except Exception as error:
            print(f"X {name:24} {dtype:8} {n:6} {type(error).__name__}: {error}"[:300], flush=True)


if __name__ == "__main__":
    report(sys.argv[1:])


@pytest.mark.parametrize("unit", [1.0, 3.0])
def test_a_target_with_nearly_all_of_its_mass_on_one_class(unit):
    """Its gradient there is what the other classes lack: mass less p, rounded, would hide it."""
    rest = np.geomspace(1e-7, 4e-7, 6)
    p = np.float32(unit) * np.float32([1 - rest.sum(), *rest])
    x = np.log(p / p.sum() * [1, *np.geomspace(0.9, 1.2, 6)]).astype(np.float32)
    gradient = np.asarray(jax.grad(losses.softmax_cross_entropy)(x, p), np.longdouble)
    q = np.exp(x.astype(np.longdouble))
    exact = p.astype(np.longdouble).sum() * q / q.sum() - p
    np.testing.assert_allclose(gradient, exact, rtol=0, atol=1e-4 * np.abs(exact).max())
