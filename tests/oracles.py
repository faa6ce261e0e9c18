"""Exact values and gradients of every measure, in NumPy longdouble. Imports neither jax nor jaxce.

Each function takes arrays whose last axis holds the classes and gives the value; its ``_grad`` twin
gives one gradient per floating argument. Inputs are taken as they are: an oracle answers for the
rounded numbers the library was given, not for the numbers they were rounded from.

Longdouble has eleven bits more than float64, which is not enough for a plain sum whose terms
cancel, so such sums are rewritten here too. ``test_oracles.py`` holds them all against the plain
formulas at 500 digits.
"""

import math

import numpy as np

LD = np.longdouble
# x86 only; elsewhere longdouble is float64 and can only judge float32.
JUDGES_FLOAT64 = np.finfo(LD).eps < 1e-18


def quiet(function):
    """Longdouble arguments, and no warnings for the infinities met on the way."""

    def wrapped(*args):
        with np.errstate(all="ignore"):
            return function(
                *(a if np.asarray(a).dtype.kind in "iu" else np.asarray(a).astype(LD) for a in args)
            )

    wrapped.__name__ = function.__name__
    return wrapped


def total(terms):
    return terms.sum(-1)


def times(weight, term):
    """weight * term, where weight 0 wins over everything."""
    return np.where(weight == 0, LD(0), weight * term)


def first_max(x):
    return np.arange(x.shape[-1]) == x.argmax(-1)[..., None]


def at(x, chosen):
    """The chosen entry of each row, kept as a column."""
    return np.where(chosen, x, 0).sum(-1, keepdims=True)


def series(x, coefficients):
    """The power series with these coefficients, the first of them that of x itself."""
    result = np.zeros_like(x)
    for c in reversed(coefficients):
        result = (result + c) * x
    return result


SMALL = 0.05  # below it, a series to x**15; above it, cancellation costs longdouble five bits


def expm1_minus(t):
    """expm1(t) - t."""
    small = np.abs(t) < SMALL
    near = series(np.where(small, t, 0), [0] + [1 / LD(math.factorial(k)) for k in range(2, 14)])
    return np.where(small, near, np.expm1(t) - t)


def minus_log1p(r):
    """r - log1p(r)."""
    small = np.abs(r) < SMALL
    near = series(np.where(small, r, 0), [0] + [(-1) ** k / LD(k) for k in range(2, 16)])
    return np.where(small, near, r - np.log1p(r))


def js_kernel(u):
    """(1-u) log(1-u) + (1+u) log(1+u)."""
    small = np.abs(u) < SMALL
    near = series(np.where(small, u * u, 0), [1 / (LD(k) * (2 * k - 1)) for k in range(1, 9)])
    return np.where(small, near, times(1 - u, np.log1p(-u)) + times(1 + u, np.log1p(u)))


def log_softmax(x):
    """Two non-positive terms, so nothing cancels, also where the probability is almost 1."""
    m, chosen = x.max(-1, keepdims=True), first_max(x)
    rest = np.where(chosen, 0, np.exp(x - m)).sum(-1, keepdims=True)
    return (x - m) - np.log1p(rest)


# --- one distribution ---------------------------------------------------------------------------


@quiet
def surprisal(p):
    return -np.log(p)


@quiet
def surprisal_grad(p):
    return (np.where(p == 0, 0, -1 / p),)


@quiet
def entropy(p):
    return total(-times(p, np.log(p)))


@quiet
def entropy_grad(p):
    return (np.where(p == 0, 0, -(np.log(p) + 1)),)


@quiet
def perplexity(p):
    return np.exp(entropy(p))


@quiet
def perplexity_grad(p):
    return (perplexity(p)[..., None] * entropy_grad(p)[0],)


@quiet
def log_normalizer(x):
    chosen = first_max(x)
    return total(at(x, chosen)) - total(at(log_softmax(x), chosen))


@quiet
def log_normalizer_grad(x):
    return (np.exp(log_softmax(x)),)


@quiet
def surprisal_with_logits(x):
    return -log_softmax(x)


@quiet
def surprisal_with_logits_grad(x, cotangent):
    lp = log_softmax(x)
    others = cotangent.sum(-1, keepdims=True) - cotangent
    return (cotangent * np.expm1(lp) + others * np.exp(lp),)


@quiet
def entropy_with_logits(x):
    lp = log_softmax(x)
    return total(-times(np.exp(lp), lp))


@quiet
def entropy_with_logits_grad(x):
    return (-from_mean(np.exp(log_softmax(x)), x),)


@quiet
def perplexity_with_logits(x):
    return np.exp(entropy_with_logits(x))


@quiet
def perplexity_with_logits_grad(x):
    return (perplexity_with_logits(x)[..., None] * entropy_with_logits_grad(x)[0],)


# --- two distributions, as probabilities --------------------------------------------------------


@quiet
def cross_entropy(p, q):
    return total(-times(p, np.log(q)))


@quiet
def cross_entropy_grad(p, q):
    return np.where(p == 0, 0, -np.log(q)), -times(p, 1 / q)


def exact_difference(p, q):
    """sum(p) - sum(q), rounded once to longdouble. The entries must be float64 numbers."""
    terms = [*map(float, p), *map(float, -q)]
    high = math.fsum(terms)
    return LD(high) + LD(math.fsum([*terms, -high]))


@quiet
def kl_divergence(p, q):
    # sum p log(p/q) as written: where they are near, the convex p (r - log(1 + r)) and p - q,
    # whose sums need not agree; elsewhere p - q would drown the tiny product.
    p, q = np.broadcast_arrays(p, q)
    r = (q - p) / p
    near = np.abs(r) < SMALL
    parts = np.where(near, p * minus_log1p(r), -p * np.log(q / p))
    rows = zip(*(v.reshape(-1, p.shape[-1]) for v in (p, q, near)), strict=True)
    gap = np.array([exact_difference(a[n], b[n]) for a, b, n in rows], LD)
    return total(np.where(p == 0, 0, parts)) + gap.reshape(p.shape[:-1])


@quiet
def kl_divergence_grad(p, q):
    r = (q - p) / p
    ratio = np.where(np.abs(r) < 0.5, np.log1p(r), np.log(q / p))
    return np.where(p == 0, 0, 1 - ratio), -times(p, 1 / q)


@quiet
def js_divergence(p, q):
    u = np.where(p + q == 0, 0, (q - p) / (p + q))
    return total((p + q) / 4 * js_kernel(u))


@quiet
def js_divergence_grad(p, q):
    def against_mixture(v, w):
        r = (v - w) / (v + w)
        ratio = np.where(np.abs(r) < 0.5, np.log1p(r), np.log(2 * v / (v + w)))
        return np.where(v == 0, 0, ratio / 2)

    return against_mixture(p, q), against_mixture(q, p)


# --- two distributions, from logits -------------------------------------------------------------


@quiet
def cross_entropy_with_logits(p, x):
    return total(-times(p, log_softmax(x)))


@quiet
def cross_entropy_with_logits_grad(p, x):
    lp = log_softmax(x)
    others = p.sum(-1, keepdims=True) - p
    return np.where(p == 0, 0, -lp), p * np.expm1(lp) + others * np.exp(lp)


def one_hot(labels, x):
    return (np.arange(x.shape[-1]) == labels[..., None]).astype(LD)


@quiet
def cross_entropy_with_labels(labels, x):
    return cross_entropy_with_logits(one_hot(labels, x), x)


@quiet
def cross_entropy_with_labels_grad(labels, x):
    return cross_entropy_with_logits_grad(one_hot(labels, x), x)[1:]


def log_ratio(a, b, divisor=1):
    """t = log q - log p with the small differences kept, and p, q themselves.

    b - a is split exactly in two (Knuth's two-sum): a constant shift of the logits costs nothing.
    """
    lp, lq = (log_softmax((x - x.max(-1, keepdims=True)) / divisor) for x in (a, b))
    p, q = np.exp(lp), np.exp(lq)
    both = np.isfinite(a) & np.isfinite(b)
    star = first_max(np.where(both, a, -np.inf))
    high = b - a
    minus_a = high - b
    low = (b - (high - minus_a)) - (a + minus_a)
    e = np.where(both, (high - at(high, star)) + (low - at(low, star)), 0) / divisor
    u = (b - at(b, star)) / divisor + at(lp, star)  # log(p exp(e)), also where p = 0
    gain = np.where(e > 1, np.exp(u) - p, p * np.expm1(e))
    gain = np.where(both, gain, np.exp(u) - p).sum(-1, keepdims=True)
    top = u.max(-1, keepdims=True)
    plain = top + np.log(np.exp(u - top).sum(-1, keepdims=True))
    c = np.where((gain > -0.5) & (gain < 1), np.log1p(gain), plain)
    t = np.where(
        both, e - c, np.where(np.isfinite(b), np.inf, np.where(np.isfinite(a), -np.inf, 0))
    )
    return t, p, q


def from_mean(p, t):
    """p (t - mean of t), t referenced at the most probable class, where most of the mean is."""
    t = t - at(t, first_max(p))
    return times(p, t - times(p, t).sum(-1, keepdims=True))


@quiet
def kl_divergence_with_logits(a, b, divisor=1):
    t, p, q = log_ratio(*np.broadcast_arrays(a, b), divisor)
    far = q - p - times(p, t)
    return total(np.where(t < SMALL, times(p, expm1_minus(t)), far))


@quiet
def kl_divergence_with_logits_grad(a, b, divisor=1):
    t, p, q = log_ratio(*np.broadcast_arrays(a, b), divisor)
    return -from_mean(p, t), np.where(np.abs(t) < 1, p * np.expm1(t), q - p)


def softplus(t):
    return np.maximum(t, 0) + np.log1p(np.exp(-np.abs(t)))


def log_mixture(p, t):
    """log(1 + exp(t)) less its value at the most probable class, which would drown the rest."""
    star = at(t, first_max(p))
    near = np.log1p(np.exp(-softplus(-star)) * np.expm1(t - star))
    return np.where(np.abs(t - star) < 1, near, softplus(t) - softplus(star))


@quiet
def js_divergence_with_logits(a, b):
    t, p, q = log_ratio(*np.broadcast_arrays(a, b))
    return total((p + q) / 4 * js_kernel(np.tanh(t / 2)))


@quiet
def js_divergence_with_logits_grad(a, b):
    t, p, q = log_ratio(*np.broadcast_arrays(a, b))
    grads = []
    for weight, ratio in ((p, t), (q, -t)):
        grads.append(from_mean(weight, log_mixture(weight, ratio)) / -2)
    return tuple(grads)
