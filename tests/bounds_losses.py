"""How near the exact result each loss must be: the size that ulps are of, and how many.

16 ulp of the result, except where the function itself turns a rounding of its inputs into more:
each bound says where that comes from. A bound takes both arguments and the exact result.
"""

import numpy as np

from tests import cases, oracles
from tests import oracles_losses as exact
from tests.cases import ULPS
from tests.oracles_binary import sigmoid


def own(x, y, want):
    return np.abs(want), ULPS


def largest(x, y, want):
    """Judged against the largest component of the row."""
    return cases.row_size(want), ULPS


def by_class(weights):
    """The cross-entropy whose surprisals have these weights: see cases.of_each_class."""

    def bound(x, y, want):
        return cases.of_each_weight((x, weights(x, y)), (want,))[0]

    return bound


def steeper(bound, gamma):
    """An ulp more for each nat of a power's logarithm: what rounding an exponent costs."""

    def steep(x, y, want):
        size, ulps = bound(x, y, want)
        with np.errstate(all="ignore"):
            missed = -np.expm1(oracles.log_softmax(x))
            nats = np.where((exact.distribution(y, x) > 0) & (missed > 0), -np.log(missed), 0)
        nats = gamma * nats.max(-1, keepdims=np.ndim(size) == x.ndim)
        return size, ulps + nats

    return steep


def binary_terms(x, y, want, weight=1):
    """Of the larger of the two terms that the gradient is the difference of."""
    size = np.maximum((1 - y) * sigmoid(x), weight * y * sigmoid(-x))
    return size, ULPS + np.abs(x)


def binary_focal(gamma, alpha, *, gradient):
    def bound(x, y, want):
        with np.errstate(all="ignore"):
            nats = -np.log(y * sigmoid(-x) + (1 - y) * sigmoid(x))
        ulps = ULPS + gamma * np.where(np.isinf(nats), 0, nats) + gradient * np.abs(x)
        terms = np.abs(exact.sigmoid_focal_terms(x, y, alpha, gamma))
        return (terms.max(0) if gradient else np.abs(want)), ulps

    return bound


def z_size(x):
    """Where log Z is near 0 by cancellation the logits set the scale: see log_normalizer."""
    log_z = np.abs(oracles.log_normalizer(x))
    return np.maximum(log_z, np.where(np.isinf(x), 0, np.abs(x)).max(-1))


def z_value(x, _, want):
    return 2 * z_size(x) * np.abs(oracles.log_normalizer(x)), ULPS


def z_gradient(x, _, want):
    lp = oracles.log_softmax(x)
    return 2 * np.exp(lp) * z_size(x)[..., None], ULPS - np.where(np.isinf(lp), 0, lp)


def rounded_log(x, p, want):
    """What the rounding of log p costs, as kl_divergence says."""
    with np.errstate(all="ignore"):
        log_p = np.log(p)
        apart = np.abs(log_p - oracles.log_softmax(x))
        return np.where(p == 0, 0, p * apart * (1 + np.abs(log_p))).sum(-1) + np.abs(want), ULPS


def rounded_change(x, p, want):
    """What the rounding of log q - log p costs."""
    with np.errstate(all="ignore"):
        size = np.maximum(np.abs(x), np.abs(np.log(p)))
        terms = np.where((p == 0) | np.isinf(x), np.exp(x), np.abs(np.exp(x) - p) * (1 + size))
    return terms.sum(-1) + np.abs(want), ULPS


def rounded_change_each(x, p, want):
    with np.errstate(all="ignore"):
        size = np.maximum(np.abs(x), np.abs(np.log(p)))
        size = np.where((p == 0) | np.isinf(x), np.exp(x), np.exp(x) * (1 + size))
    return size + np.abs(want), ULPS


def rounded_difference(p, q, want):
    return np.abs(want), ULPS + np.abs(p - q)


CAP = 8.0


def capped(x, _, want):
    return want, ULPS + 2 * np.abs(x) / CAP
