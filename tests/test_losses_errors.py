"""Errors at trace time: each names the argument, what was expected and what came."""

import jax
import numpy as np
import pytest

import jaxce
from jaxce import losses, metrics
from tests.cases_losses import (
    binary,
    distillation,
    focal,
    general_kl,
    integer,
    kl,
    log_kl,
    poly,
    sigmoid_focal,
    soft,
    top_k,
)

X, Y = np.zeros((3, 4), np.float32), np.zeros(3, np.int32)
Q = np.full((3, 4), 0.25, np.float32)
ERRORS = {
    "integer logits": (lambda: soft(Y, Q), TypeError, "^logits: "),
    "ranks": (lambda: soft(X, Q[0]), ValueError, "labels and logits: "),
    "shapes": (lambda: soft(X, Q[:2]), ValueError, "labels and logits: "),
    "axis": (lambda: soft(X, Q, axis=2), ValueError, "^axis: "),
    "axis twice": (lambda: soft(X, Q, axis=(1, -1)), ValueError, "^axis: "),
    "where, dtype": (lambda: soft(X, Q, where=np.ones((3, 4))), TypeError, "^where: "),
    "where, shape": (lambda: soft(X, Q, where=np.ones((3, 5), bool)), ValueError, "^where: "),
    "batch where": (lambda: soft(X, Q, where=np.ones(4, bool)), ValueError, "^where: "),
    "weights": (lambda: soft(X, Q, class_weights=np.ones(3)), ValueError, "^class_weights: "),
    "weights, dtype": (
        lambda: soft(X, Q, class_weights=np.ones(4, np.int32)),
        TypeError,
        "^class_weights: ",
    ),
    "weights, axes": (
        lambda: soft(X, Q, axis=None, class_weights=np.ones(4, np.float32)),
        ValueError,
        "^axis: .*class_weights",
    ),
    "class indices": (lambda: soft(X, Y), ValueError, "^labels: .*_with_integer_labels"),
    "floating labels": (lambda: integer(X, Q[:, 0]), TypeError, "^labels: .*softmax_cross_entropy"),
    "integer, order": (lambda: integer(Y, X), TypeError, "^logits: .*predictions come first"),
    "measure, order": (
        lambda: jaxce.cross_entropy_with_logits(X, Y),
        TypeError,
        "^q_logits: .*labels come first",
    ),
    "labels, shape": (lambda: integer(X, Y[:2]), ValueError, "^labels: "),
    "labels, rank": (lambda: integer(X, Y[:, None]), ValueError, "^labels: "),
    "integer, axis": (lambda: integer(X, Y, axis=5), ValueError, "^axis: "),
    "integer, axis None": (lambda: integer(X, Y, axis=None), (TypeError, ValueError), "^axis: "),
    "integer, weights": (
        lambda: integer(X, Y, class_weights=np.ones(3, np.float32)),
        ValueError,
        "^class_weights: ",
    ),
    "integer, where": (lambda: integer(X, Y, where=np.ones(4, bool)), ValueError, "^where: "),
    "integer, where, dtype": (lambda: integer(X, Y, where=Y), TypeError, "^where: "),
    "integer, logits": (lambda: integer(X.astype(int), Y), TypeError, "^logits: "),
    "focal, labels": (lambda: focal(X, Y[:2]), ValueError, "^labels: "),
    "focal, ranks": (lambda: focal(X, Q[0]), ValueError, "labels and logits: "),
    "poly, ranks": (lambda: poly(X, Q[0]), ValueError, "labels and logits: "),
    "poly, integer labels": (lambda: poly(X, Y), TypeError, "^labels: "),
    "z_loss": (lambda: losses.z_loss(Y), TypeError, "^logits: "),
    "soft cap": (lambda: losses.soft_cap(Y, 3.0), TypeError, "^logits: "),
    "smooth_labels": (lambda: losses.smooth_labels(Y, 0.1), TypeError, "^labels: "),
    "kl": (lambda: kl(X, Q[0]), ValueError, "log_predictions and targets: "),
    "kl, targets": (lambda: kl(X, X.astype(int)), TypeError, "^targets: "),
    "kl, predictions": (lambda: kl(X.astype(int), X), TypeError, "^log_predictions: "),
    "log kl": (lambda: log_kl(X, Q[0]), ValueError, "log_predictions and log_targets: "),
    "generalized kl": (lambda: general_kl(X, Q[0]), ValueError, "log_predictions and targets: "),
    "distillation": (
        lambda: distillation(X, X[0]),
        ValueError,
        "student_logits and teacher_logits: ",
    ),
    "distillation, axis": (lambda: distillation(X, X, axis=3), ValueError, "^axis: "),
    "top k, shapes": (
        lambda: top_k(X, np.zeros((3, 2), np.int32), np.zeros((3, 1), np.float32)),
        ValueError,
        "teacher_indices and teacher_log_probs: ",
    ),
    "top k, batch": (
        lambda: top_k(X, np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float32)),
        ValueError,
        "teacher_indices and teacher_log_probs: ",
    ),
    "top k, indices": (lambda: top_k(X, X[:, :2], X[:, :2]), TypeError, "^teacher_indices: "),
    "top k, log-probabilities": (
        lambda: top_k(X, np.zeros((3, 2), np.int32), np.zeros((3, 2), np.int32)),
        TypeError,
        "^teacher_log_probs: ",
    ),
    "kl_estimate": (lambda: losses.kl_estimate(X, X, kind="k4"), ValueError, "^kind: "),
    "kl_estimate, ranks": (lambda: losses.kl_estimate(X, X[0]), ValueError, "log_p and log_q: "),
    "binary, ranks": (lambda: binary(X[:, 0], X[:, :1]), ValueError, "logits and labels: "),
    "binary, shapes": (lambda: binary(X, X[:2]), ValueError, "logits and labels: "),
    "binary, logits": (lambda: binary(Y, Y), TypeError, "^logits: "),
    "binary, weight": (lambda: binary(X, Q, pos_weight=np.ones(3)), ValueError, "pos_weight: "),
    "sigmoid focal": (lambda: sigmoid_focal(X[:, 0], X[:, :1]), ValueError, "logits and labels: "),
    "mean": (lambda: losses.mean(Y), TypeError, "^values: "),
    "mean, where": (lambda: losses.mean(X, np.ones(3, bool)), ValueError, "^where: "),
    "mean, where, dtype": (lambda: losses.mean(X, X), TypeError, "^where: "),
    "mean, weights": (lambda: losses.mean(X, None, np.ones(3)), ValueError, "^weights: "),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_argument(name):
    call, kind, text = ERRORS[name]
    with pytest.raises(kind, match=text):
        call()


CUT = np.array([2, -(2**63), 1])  # what a NaN becomes as an integer: class 0 of its last 32 bits
TAKE_LABELS = {
    "labels": lambda: integer(X, CUT),
    "labels, gradient": lambda: jax.grad(lambda x: integer(x, CUT).sum())(X),
    "labels, focal": lambda: focal(X, labels=CUT),
    "labels, linear": lambda: losses.linear_softmax_cross_entropy(X, X.T, CUT),
    "labels, metric": lambda: metrics.Accuracy.empty().update(X, CUT),
    "weights": lambda: metrics.Accuracy.empty().update(X, Y, None, CUT),
    "values": lambda: metrics.Mean.empty().update(CUT),
    "p": lambda: jaxce.cross_entropy_with_logits(CUT, X),
}


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="under x64 no integer is cut")
@pytest.mark.parametrize("name", TAKE_LABELS)
def test_integers_that_jit_would_cut_are_refused(name):
    argument = name.split(",")[0]
    with pytest.raises(ValueError, match=f"^{argument}: expected integers from .* got -922337203"):
        TAKE_LABELS[name]()
