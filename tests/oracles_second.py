"""Exact Hessian-vector products: the derivative of each oracle's gradients along given tangents.

``hvp(args, tangents)`` of a measure; one tangent per floating argument, one answer per gradient.
"""

import numpy as np

from tests import oracles as first
from tests.oracles import (
    at,
    first_max,
    from_mean,
    log_mixture,
    log_ratio,
    log_softmax,
    one_hot,
    quiet,
    softplus,
    times,
)
from tests.oracles_binary import sigmoid


def row_sum(x):
    return x.sum(-1, keepdims=True)


def moved_from_mean(p, w, v, moved_w):
    """The derivative of from_mean(p, w), when the logits of p move along v and w along moved_w."""
    star = first_max(p)
    w, moved_w = w - at(w, star), moved_w - at(moved_w, star)
    moved_p = from_mean(p, v)
    mean = row_sum(times(p, w))
    moved_mean = row_sum(times(moved_p, w) + times(p, moved_w))
    return times(moved_p, w - mean) + times(p, moved_w - moved_mean)


def off_mean(p, v):
    """v less its mean under p, exact at the most probable class too."""
    v = v - at(v, first_max(p))
    return v - row_sum(times(p, v))


@quiet
def surprisal(p, v):
    return (np.where(p == 0, 0, v / p / p),)


@quiet
def entropy(p, v):
    return (np.where(p == 0, 0, -v / p),)


def of_exponential(value, grad, hvp, x, v):
    (g,), (h,) = grad(x), hvp(x, v)
    return (value(x)[..., None] * (row_sum(g * v) * g + h),)


@quiet
def perplexity(p, v):
    return of_exponential(first.perplexity, first.entropy_grad, entropy, p, v)


@quiet
def perplexity_with_logits(x, v):
    return of_exponential(
        first.perplexity_with_logits, first.entropy_with_logits_grad, entropy_with_logits, x, v
    )


@quiet
def cross_entropy(p, q, vp, vq):
    return -times(p != 0, vq / q), -times(p != 0, vp / q) + times(p, vq / q / q)


@quiet
def kl_divergence(p, q, vp, vq):
    return times(p != 0, vp / p - vq / q), cross_entropy(p, q, vp, vq)[1]


@quiet
def js_divergence(p, q, vp, vq):
    twist = (vp * q - vq * p) / (p + q) / 2
    return np.where(p == 0, 0, twist / p), np.where(q == 0, 0, -twist / q)


@quiet
def log_normalizer(x, v):
    return (from_mean(np.exp(log_softmax(x)), v),)


@quiet
def surprisal_with_logits(x, v, *weights):
    """Of the sum of the surprisals, with weights or plain."""
    weight = row_sum(weights[0] if weights else np.ones_like(x))
    return (weight * from_mean(np.exp(log_softmax(x)), v),)


@quiet
def entropy_with_logits(x, v):
    return (-moved_from_mean(np.exp(log_softmax(x)), x, v, v),)


@quiet
def cross_entropy_with_logits(p, x, vp, vx):
    lp = log_softmax(x)
    others = row_sum(vp) - vp
    to_x = row_sum(p) * from_mean(np.exp(lp), vx) + vp * np.expm1(lp) + others * np.exp(lp)
    return -times(p != 0, off_mean(np.exp(lp), vx)), to_x


@quiet
def cross_entropy_with_labels(labels, x, v):
    return cross_entropy_with_logits(one_hot(labels, x), x, np.zeros_like(x), v)[1:]


@quiet
def kl_divergence_with_logits(a, b, va, vb):
    t, p, q = log_ratio(a, b)
    return -moved_from_mean(p, t, va, vb - va), from_mean(q, vb) - from_mean(p, va)


@quiet
def js_divergence_with_logits(a, b, va, vb):
    t, p, q = log_ratio(a, b)
    moved = off_mean(q, vb) - off_mean(p, va)
    result = []
    for weight, ratio, v, moved_ratio in ((p, t, va, moved), (q, -t, vb, -moved)):
        slope = times(np.exp(-softplus(-ratio)), moved_ratio)
        result.append(moved_from_mean(weight, log_mixture(weight, ratio), v, slope) / -2)
    return tuple(result)


@quiet
def binary_entropy(p, v):
    return (np.where((p == 0) | (p == 1), 0, -v / (p * (1 - p))),)


@quiet
def binary_cross_entropy(p, q, vp, vq):
    by_both = 1 / (q * (1 - q))
    by_q = times(p, 1 / q / q) + times(1 - p, 1 / (1 - q) ** 2)
    return -times(vq, by_both), times(vq, by_q) - times(vp, by_both)


@quiet
def binary_kl_divergence(p, q, vp, vq):
    # At p = 0 or 1 the first derivative by p is infinite, for which the library's answer is 0.
    inside = vp / (p * (1 - p)) - vq / (q * (1 - q))
    return np.where((p == 0) | (p == 1), 0, inside), binary_cross_entropy(p, q, vp, vq)[1]


def variance(x):
    return sigmoid(x) * sigmoid(-x)


@quiet
def binary_entropy_with_logits(x, v):
    return (-variance(x) * (1 - x * np.tanh(x / 2)) * v,)


@quiet
def binary_cross_entropy_with_logits(p, x, vp, vx):
    return -vx, variance(x) * vx - vp


@quiet
def binary_kl_divergence_with_logits(a, b, va, vb):
    by_a = variance(a) * (1 - (a - b) * np.tanh(a / 2))
    return by_a * va - variance(a) * vb, variance(b) * vb - variance(a) * va
