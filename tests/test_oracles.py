"""The oracles against the plain textbook formulas at 500 digits, derivatives included."""

import mpmath
import numpy as np
import pytest
from mpmath import mp, mpf

from tests import oracles, oracles_binary, oracles_second

NEAR = [(0.3, -1.2, 0.5), (0.3 + 1e-7, -1.2 - 2e-7, 0.5)]
LOGIT_PAIRS = [
    NEAR,
    (NEAR[0], tuple(v + 1000.0 for v in NEAR[1])),
    ((80.3, 0.7, 0.1), (80.3, 0.7, 0.1001)),
    ((20.0, 0.0, -3.0), (-20.0, 5.0, 1.0)),
    ((300.0, 0.0, 3.0), (0.0, 1.0, 280.0)),
    ((0.5, 0.1, 0.2), (0.5, 0.1 + 1e-3, -60.0)),
    ((1e8, 1e8 + 1, 1e8 - 2), (1e8, 1e8, 1e8 - 2)),
]
PROBABILITY_PAIRS = [
    ((0.2, 0.3, 0.5), (0.2, 0.3 + 1e-7, 0.5 - 1e-7)),
    ((0.2, 0.3, 0.5), (0.9, 0.05, 0.05)),
    ((1e-30, 0.25, 0.75), (0.5, 0.25, 0.25)),
    ((0.5, 0.25, 0.125), (0.25, 0.25, 0.25)),
]
BINARY_PAIRS = [
    (0.3, 0.3 + 1e-7),
    (0.5, 0.5 - 1e-9),
    (1e-30, 0.25),
    (0.999999, 0.1),
    (0.2, 1e-20),
    (0.7, 0.1),
]
LOGIT_SCALARS = [
    (0.1, 0.1 + 1e-7),
    (40.0, -3.0),
    (-50.0, 2.0),
    (90.0, 90.001),
    (0.0, 1e-6),
    (200.0, -200.0),
]


def softmax(x):
    weights = [mpmath.exp(v) for v in x]
    return [w / sum(weights) for w in weights]


def xlog(p, ratio):
    return p * mpmath.log(ratio) if p else mpf(0)


def entropy(p):
    return -sum(xlog(v, v) for v in p)


def cross_entropy(p, q):
    return -sum(xlog(a, b) for a, b in zip(p, q, strict=True))


def kl(p, q):
    return sum(xlog(a, a / b if a else 1) for a, b in zip(p, q, strict=True))


def js(p, q):
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, m) + kl(q, m)) / 2


def pair(p):
    return [1 - p, p]


def sigmoid(x):
    return softmax([mpf(0), x])


def surprisals(x, cotangent=(1.0, 0.25, 3.0)):
    return -sum(c * mpmath.log(v) for c, v in zip(cotangent, softmax(x), strict=True))


CATEGORICAL = {
    "entropy": (entropy, PROBABILITY_PAIRS, 1),
    "perplexity": (lambda p: mpmath.exp(entropy(p)), PROBABILITY_PAIRS, 1),
    "cross_entropy": (cross_entropy, PROBABILITY_PAIRS, 2),
    "kl_divergence": (kl, PROBABILITY_PAIRS, 2),
    "js_divergence": (js, PROBABILITY_PAIRS, 2),
    "log_normalizer": (lambda x: mpmath.log(sum(map(mpmath.exp, x))), LOGIT_PAIRS, 1),
    "entropy_with_logits": (lambda x: entropy(softmax(x)), LOGIT_PAIRS, 1),
    "perplexity_with_logits": (lambda x: mpmath.exp(entropy(softmax(x))), LOGIT_PAIRS, 1),
    "kl_divergence_with_logits": (lambda a, b: kl(softmax(a), softmax(b)), LOGIT_PAIRS, 2),
    "js_divergence_with_logits": (lambda a, b: js(softmax(a), softmax(b)), LOGIT_PAIRS, 2),
    "cross_entropy_with_logits": (
        lambda p, x: cross_entropy(p, softmax(x)),
        [(p, x) for (p, _), (x, _) in zip(PROBABILITY_PAIRS, LOGIT_PAIRS, strict=False)],
        2,
    ),
}
BINARY = {
    "entropy": (lambda p: entropy(pair(p)), BINARY_PAIRS, 1),
    "cross_entropy": (lambda p, q: cross_entropy(pair(p), pair(q)), BINARY_PAIRS, 2),
    "kl_divergence": (lambda p, q: kl(pair(p), pair(q)), BINARY_PAIRS, 2),
    "entropy_with_logits": (lambda x: entropy(sigmoid(x)), LOGIT_SCALARS, 1),
    "cross_entropy_with_logits": (
        lambda p, x: cross_entropy(pair(p), sigmoid(x)),
        [(p, x) for (p, _), (x, _) in zip(BINARY_PAIRS, LOGIT_SCALARS, strict=True)],
        2,
    ),
    "kl_divergence_with_logits": (lambda a, b: kl(sigmoid(a), sigmoid(b)), LOGIT_SCALARS, 2),
}


def same(got, exact, scale):
    """To 2e-17, a tenth of a float64 ulp; 1e-400 is the differences' own error at a slope of 0."""
    digits = mpf(np.format_float_scientific(np.longdouble(got), precision=25))
    assert abs(digits - exact) <= 2e-17 * abs(scale) + mpf(10) ** -400, (got, exact)


def chunks(flat, n):
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def gradient(plain, flat):
    """Central differences, with digits to spare."""
    result = []
    for i, here in enumerate(flat):
        step = mpf(10) ** -25 * (abs(here) or 1)
        sides = [
            [v + (sign * step if j == i else 0) for j, v in enumerate(flat)] for sign in (1, -1)
        ]
        result.append((plain(sides[0]) - plain(sides[1])) / (2 * step))
    return result


def second(plain, flat, tangents):
    step = mpf(10) ** -20
    sides = [[v + sign * step * t for v, t in zip(flat, tangents, strict=True)] for sign in (1, -1)]
    return [(a - b) / (2 * step) for a, b in zip(*(gradient(plain, s) for s in sides), strict=True)]


def largest(values):
    return max(map(abs, values))


@pytest.mark.parametrize("name", CATEGORICAL)
def test_categorical(name):
    plain, rows, arity = CATEGORICAL[name]
    with mp.workdps(500):
        for row in (r[:arity] for r in rows):
            inputs = [np.array([v]) for v in row]
            flat = [mpf(v) for r in row for v in r]

            def function(values):
                return plain(*chunks(values, 3))

            same(getattr(oracles, name)(*inputs)[0], function(flat), function(flat))
            got = getattr(oracles, f"{name}_grad")(*inputs)
            for mine, exact in zip(got, chunks(gradient(function, flat), 3), strict=True):
                for a, b in zip(mine[0], exact, strict=True):
                    same(a, b, largest(exact))
            tangents = [
                v * 2.0 ** (i % 3)
                for i, v in enumerate([1.0, -0.5, 0.25, 3.0, -2.0, 1.0][: 3 * arity])
            ]
            if "logits" not in name:  # in proportion, so that 1e-30 is not moved past 0
                tangents = [t * float(v) for t, v in zip(tangents, flat, strict=True)]
            got = getattr(oracles_second, name)(
                *inputs, *(np.array([t]) for t in chunks(tangents, 3))
            )
            for mine, exact in zip(got, chunks(second(function, flat, tangents), 3), strict=True):
                for a, b in zip(mine[0], exact, strict=True):
                    same(a, b, largest(exact))


@pytest.mark.parametrize("name", BINARY)
def test_binary(name):
    plain, rows, arity = BINARY[name]
    with mp.workdps(500):
        for row in (r[:arity] for r in rows):
            flat = [mpf(v) for v in row]

            def function(values):
                return plain(*values)

            same(getattr(oracles_binary, name)(*row), function(flat), function(flat))
            got = getattr(oracles_binary, f"{name}_grad")(*row)
            for a, b in zip(got, gradient(function, flat), strict=True):
                same(a, b, b)
            tangents = (
                [1.5, -0.75][:arity]
                if "logits" in name
                else [1.5 * row[0], -0.75 * row[-1]][:arity]
            )
            got = getattr(oracles_second, f"binary_{name}")(*row, *tangents)
            for a, b in zip(got, second(function, flat, tangents), strict=True):
                same(a, b, b)


def test_surprisals():
    with mp.workdps(500):
        for x, _ in LOGIT_PAIRS:
            p = softmax([mpf(v) for v in x])
            for got, exact in zip(oracles.surprisal_with_logits(np.array([x]))[0], p, strict=True):
                same(got, -mpmath.log(exact), mpmath.log(exact))
        x = LOGIT_PAIRS[0][0]
        (grad,) = oracles.surprisal_with_logits_grad(np.array([x]), np.array([[1.0, 0.25, 3.0]]))
        for got, exact in zip(grad[0], gradient(surprisals, [mpf(v) for v in x]), strict=True):
            same(got, exact, 1)
        same(oracles.surprisal(np.array(1 - 1e-9)), -mpmath.log(mpf(1 - 1e-9)), 1e-9)
        same(oracles.surprisal_grad(np.array(0.3))[0], -1 / mpf(0.3), 3)


def test_missing_classes():
    inf = float("inf")
    rows = [
        (0.5, -inf, 2.0),
        (-inf, 1.0, 0.3),
        (1.0, -inf, -inf),
        (0.1, 0.2, 0.3),
        (-inf, 2.0, -inf),
    ]
    with mp.workdps(60):
        for a in rows:
            for b in rows:
                p, q = (softmax([mpf(v) for v in row]) for row in (a, b))
                got = oracles.js_divergence_with_logits(np.array([a]), np.array([b]))[0]
                same(got, js(p, q), 1 if a == b else js(p, q))
                if all(w or not v for v, w in zip(p, q, strict=True)):
                    got = oracles.kl_divergence_with_logits(np.array([a]), np.array([b]))[0]
                    same(got, kl(p, q), 1 if a == b else kl(p, q))
            same(
                oracles.entropy_with_logits(np.array([a]))[0],
                entropy(softmax(list(map(mpf, a)))),
                1,
            )


def test_labels_are_one_hot_rows():
    x = np.array([LOGIT_PAIRS[2][0], LOGIT_PAIRS[3][1]])
    labels = np.array([0, 2])
    hot = np.eye(3)[labels]
    assert (
        oracles.cross_entropy_with_labels(labels, x) == oracles.cross_entropy_with_logits(hot, x)
    ).all()
    (got,), (_, want) = (
        oracles.cross_entropy_with_labels_grad(labels, x),
        oracles.cross_entropy_with_logits_grad(hot, x),
    )
    assert (got == want).all()


def test_the_check_can_fail():
    with mp.workdps(30), pytest.raises(AssertionError):
        same(np.longdouble(1) + np.longdouble(1e-16), mpf(1), 1)
