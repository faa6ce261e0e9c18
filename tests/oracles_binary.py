"""Exact values and gradients of the binary measures, elementwise, in longdouble: see oracles.py."""

import numpy as np

from tests import oracles
from tests.oracles import SMALL, minus_log1p, quiet, softplus, times


def finite(gradient):
    """The library's rule for a derivative that is infinite: 0."""
    return np.where(np.isfinite(gradient), gradient, 0)


def sigmoid(x):
    return np.exp(-softplus(-x))


@quiet
def entropy(p):
    return -times(p, np.log(p)) - times(1 - p, np.log1p(-p))


@quiet
def entropy_grad(p):
    r = (1 - 2 * p) / p
    return (finite(np.where(np.abs(r) < 0.5, np.log1p(r), np.log1p(-p) - np.log(p))),)


@quiet
def cross_entropy(p, q):
    return -times(p, np.log(q)) - times(1 - p, np.log1p(-q))


def by_q(p, q):
    """Of the cross-entropy and of KL alike: (q - p) / (q (1 - q)), and its one-sided limits."""
    inside = (q - p) / (q * (1 - q))
    return finite(np.where(p == 0, 1 / (1 - q), np.where(p == 1, -1 / q, inside)))


@quiet
def cross_entropy_grad(p, q):
    r = (1 - 2 * q) / q
    return finite(np.where(np.abs(r) < 0.5, np.log1p(r), np.log1p(-q) - np.log(q))), by_q(p, q)


@quiet
def kl_divergence(p, q):
    r = (q - p) / p
    ones = np.where(np.abs(r) < SMALL, p * minus_log1p(r), (q - p) - times(p, np.log(q / p)))
    zeros = times(1 - p, minus_log1p((p - q) / (1 - p)))
    return np.where(p == 0, -np.log1p(-q), np.where(p == 1, -np.log(q), ones + zeros))


@quiet
def kl_divergence_grad(p, q):
    r = (p - q) / (q * (1 - p))
    far = np.log(p / q) + np.log1p(-q) - np.log1p(-p)
    return finite(np.where(np.abs(r) < 0.5, np.log1p(r), far)), by_q(p, q)


@quiet
def entropy_with_logits(x):
    size = np.abs(x)
    return np.log1p(np.exp(-size)) + times(sigmoid(-size), size)


@quiet
def entropy_with_logits_grad(x):
    return (-times(sigmoid(x) * sigmoid(-x), x),)


@quiet
def cross_entropy_with_logits(p, x):
    return times(p, softplus(-x)) + times(1 - p, softplus(x))


@quiet
def cross_entropy_with_logits_grad(p, x):
    return -x, (1 - p) * sigmoid(x) - p * sigmoid(-x)


def two_classes(x):
    return np.stack([np.zeros_like(x), x], -1)


@quiet
def kl_divergence_with_logits(a, b):
    return oracles.kl_divergence_with_logits(two_classes(a), two_classes(b))


@quiet
def kl_divergence_with_logits_grad(a, b):
    near = sigmoid(b) * sigmoid(-a) * -np.expm1(a - b)
    return times(sigmoid(a) * sigmoid(-a), a - b), np.where(
        a < b, near, sigmoid(a) * sigmoid(-b) * np.expm1(b - a)
    )
