"""Exact values and gradients of the losses, in longdouble; predictions first, classes last.

See oracles.py, on which these are built. Imports neither jax nor jaxce. Each function gives one
loss per row, its ``_grad`` twin the gradient over the first argument. Classes that do not exist
(`where` False, or a logit of -inf) have no probability and no share of the smoothing.
"""

import numpy as np

from tests import oracles
from tests.oracles import LD, expm1_minus, log_softmax, one_hot, softplus, times
from tests.oracles_binary import sigmoid

__all__ = ["log_softmax", "one_hot"]


def wide(*arrays):
    return [np.asarray(a).astype(LD) for a in arrays]


def distribution(y, x):
    """Class indices as one-hot rows; distributions as they are."""
    return one_hot(y, x) if np.asarray(y).dtype.kind in "iu" else np.asarray(y).astype(LD)


def smoothed(p, exists, smoothing):
    count = np.maximum(exists.sum(-1, keepdims=True), 1)
    smoothing = LD(smoothing)
    return (1 - smoothing) * p + np.where(exists, smoothing / count, 0)


def target_weights(x, y, where, label_smoothing, class_weights):
    """Logits with -inf for what does not exist, and what multiplies each surprisal."""
    (x,) = wide(x)
    x = x if where is None else np.where(where, x, -np.inf)
    p = distribution(y, x)
    if label_smoothing:
        p = smoothed(p, x > -np.inf, label_smoothing)
    if class_weights is not None:
        p = p * np.asarray(class_weights).astype(LD)
    return x, p


def cross_entropy(x, y, where=None, label_smoothing=0, class_weights=None):
    x, w = target_weights(x, y, where, label_smoothing, class_weights)
    return oracles.cross_entropy_with_logits(w, x)


def cross_entropy_grad(x, y, where=None, label_smoothing=0, class_weights=None):
    x, w = target_weights(x, y, where, label_smoothing, class_weights)
    return oracles.cross_entropy_with_logits_grad(w, x)[1]


def surprisal_weights_grad(x, w):
    """The gradient of sum w s over x, with each w held."""
    return oracles.cross_entropy_with_logits_grad(w, x)[1]


def focal_weights(x, y, gamma):
    """The derivative of each term by its surprisal."""
    (x,) = wide(x)
    gamma = LD(gamma)
    lp = log_softmax(x)
    p, missed = distribution(y, x), -np.expm1(lp)
    with np.errstate(all="ignore"):
        power = np.where(missed == 0, 0, missed ** (gamma - 1))
        slope = missed**gamma - gamma * power * times(np.exp(lp), lp)
    return times(p, slope)


def focal(x, y, gamma=2.0):
    (x,) = wide(x)
    lp = log_softmax(x)
    with np.errstate(all="ignore"):
        return times(distribution(y, x), -((-np.expm1(lp)) ** LD(gamma)) * lp).sum(-1)


def focal_grad(x, y, gamma=2.0):
    return surprisal_weights_grad(x, focal_weights(x, y, gamma))


def poly_weights(x, y, epsilon):
    (x,) = wide(x)
    return distribution(y, x) * (1 + LD(epsilon) * np.exp(log_softmax(x)))


def poly(x, y, epsilon=2.0):
    (x,) = wide(x)
    lp = log_softmax(x)
    with np.errstate(all="ignore"):
        return times(distribution(y, x), -lp - LD(epsilon) * np.expm1(lp)).sum(-1)


def poly_grad(x, y, epsilon=2.0):
    return surprisal_weights_grad(x, poly_weights(x, y, epsilon))


def z_loss(x):
    return oracles.log_normalizer(x) ** 2


def z_loss_grad(x):
    (softmax,) = oracles.log_normalizer_grad(x)
    return 2 * oracles.log_normalizer(x)[..., None] * softmax


def sigmoid_cross_entropy(x, y, pos_weight=1):
    x, y, w = wide(x, y, pos_weight)
    with np.errstate(all="ignore"):
        return times(w * y, softplus(-x)) + times(1 - y, softplus(x))


def sigmoid_cross_entropy_grad(x, y, pos_weight=1):
    x, y, w = wide(x, y, pos_weight)
    return (1 - y) * sigmoid(x) - w * y * sigmoid(-x)


def alpha_of(y, alpha):
    return 1 if alpha is None else LD(alpha) * y + (1 - LD(alpha)) * (1 - y)


def sigmoid_focal(x, y, alpha=None, gamma=2.0):
    x, y = wide(x, y)
    wrong = y * sigmoid(-x) + (1 - y) * sigmoid(x)
    return alpha_of(y, alpha) * times(wrong ** LD(gamma), sigmoid_cross_entropy(x, y))


def sigmoid_focal_terms(x, y, alpha=None, gamma=2.0):
    """What the gradient is the sum of: for soft labels the four may nearly cancel."""
    x, y = wide(x, y)
    gamma = LD(gamma)
    wrong = y * sigmoid(-x) + (1 - y) * sigmoid(x)
    with np.errstate(all="ignore"):
        power = gamma * np.where(wrong == 0, 0, wrong ** (gamma - 1))
        turning = power * sigmoid(x) * sigmoid(-x) * sigmoid_cross_entropy(x, y)
        terms = (1 - y) * turning, -y * turning
        slope = (1 - y) * sigmoid(x), -y * sigmoid(-x)
        return [alpha_of(y, alpha) * t for t in (*terms, *(wrong**gamma * v for v in slope))]


def sigmoid_focal_grad(x, y, alpha=None, gamma=2.0):
    return sum(sigmoid_focal_terms(x, y, alpha, gamma))


def smooth_labels(p, alpha, where=None):
    (p,) = wide(p)
    exists = np.ones(p.shape, bool) if where is None else np.broadcast_to(where, p.shape)
    return np.where(exists, smoothed(p, exists, alpha), 0)


def soft_cap(x, cap):
    x, cap = wide(x, cap)
    return cap * np.tanh(x / cap)


def soft_cap_grad(x, cap):
    x, cap = wide(x, cap)
    return np.cosh(np.clip(x / cap, -5000, 5000)) ** -2


# --- divergences --------------------------------------------------------------------------------


def kl_log_targets(log_q, log_p):
    """Both are logits: each is normalized."""
    return oracles.kl_divergence_with_logits(log_p, log_q)


def kl_log_targets_grad(log_q, log_p):
    return oracles.kl_divergence_with_logits_grad(log_p, log_q)[1]


def kl(log_q, p):
    """sum p log(p / q) with p as written, q normalized; far from q = p only."""
    log_q, p = wide(log_q, p)
    with np.errstate(all="ignore"):
        return times(p, np.log(p) - log_softmax(log_q)).sum(-1)


def kl_grad(log_q, p):
    log_q, p = wide(log_q, p)
    return surprisal_weights_grad(log_q, p)


def generalized_kl(log_q, p):
    """sum p log(p / q) - p + q, neither normalized."""
    log_q, p = wide(log_q, p)
    with np.errstate(all="ignore"):
        change = log_q - np.log(p)
        terms = np.where(change < 1, p * expm1_minus(change), np.exp(log_q) - p - p * change)
    return np.where(p == 0, np.exp(log_q), terms).sum(-1)


def generalized_kl_grad(log_q, p):
    log_q, p = wide(log_q, p)
    with np.errstate(all="ignore"):
        change = log_q - np.log(p)
        return np.where(np.abs(change) < 1, p * np.expm1(change), np.exp(log_q) - p)


def distillation(student, teacher, temperature=1.0):
    student, teacher, temperature = wide(student, teacher, temperature)
    return temperature**2 * oracles.kl_divergence_with_logits(teacher, student, temperature)


def distillation_grad(student, teacher, temperature=1.0):
    student, teacher, temperature = wide(student, teacher, temperature)
    return temperature * oracles.kl_divergence_with_logits_grad(teacher, student, temperature)[1]


def coarse(log_probs, indices):
    """Log-probabilities of the named classes, and of all the others as one."""
    named = (indices[..., None] == np.arange(log_probs.shape[-1])).any(-2)
    picked = np.take_along_axis(log_probs, indices, -1)
    with np.errstate(all="ignore"):
        rest = np.log(np.where(named, 0, np.exp(log_probs)).sum(-1, keepdims=True))
    return np.concatenate([picked, rest], -1)


def distillation_top_k(student, indices, log_probs):
    """KL of the two coarse-grained distributions, by the plain formula."""
    student, t = wide(student, log_probs)
    s = coarse(log_softmax(student), indices)
    with np.errstate(all="ignore"):
        left = np.log1p(-np.exp(t).sum(-1, keepdims=True))
        t = np.concatenate([t, left], -1)
        return times(np.exp(t), t - s).sum(-1)


def kl_estimate(log_p, log_q, kind):
    log_p, log_q = wide(log_p, log_q)
    r = log_p - log_q
    return {"k1": -r, "k2": r * r / 2, "k3": expm1_minus(r)}[kind]


def kl_estimate_grad(log_p, log_q, kind):
    log_p, log_q = wide(log_p, log_q)
    r = log_p - log_q
    return {"k1": -np.ones_like(r), "k2": r, "k3": np.expm1(r)}[kind]
