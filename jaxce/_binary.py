r"""Measures of Bernoulli distributions, elementwise: the probability, or the logit, of outcome 1.

With z = |x| and \(\sigma\) the logistic function, everything is a sum of terms of one sign in
\(\sigma(-z)\), \(\log(1 + e^{-z})\) and z, so that a confident prediction keeps its digits.

>>> import jax.numpy as jnp
>>> import jaxce
>>> print(f"{jaxce.binary_entropy(jnp.array(0.5), base=2):.1f} bit")
1.0 bit
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxce import _checks
from jaxce._jit import jit_measure
from jaxce._numerics import expm1_minus, kl_term, log1p, log_ratio, reciprocal, where_nonzero


def times(p: Array, value: Array) -> Array:
    """Return p * value, 0 where p is 0 even if the value is infinite."""
    return where_nonzero(p, p * where_nonzero(p, value))


def finite(x: Array) -> Array:
    """Return `x`, 0 where it is infinite: the derivative at an edge that has none."""
    return jnp.where(jnp.isinf(x), 0, x)


@jax.custom_jvp
def _logit(p: Array) -> Array:
    """log(p / (1 - p)), exact near 1/2."""
    middle = jnp.abs(p - 0.5) < 0.25
    m = jnp.where(middle, p, 0.5)
    return jnp.where(middle, log1p((2 * m - 1) / (1 - m)), jnp.log(p) - log1p(-p))


@_logit.defjvp
def _(primals, tangents):
    (p,), (dp,) = primals, tangents
    return _logit(p), (finite(reciprocal(p)) + finite(reciprocal(1 - p))) * dp


def _log_inverse(p: Array) -> Array:
    return -jnp.log(p)


def _log_inverse_complement(p: Array) -> Array:
    return -log1p(-p)


@jax.custom_jvp
def _entropy(p: Array) -> Array:
    return times(p, _log_inverse(p)) + times(1 - p, _log_inverse_complement(p))


@_entropy.defjvp
def _(primals, tangents):
    (p,), (dp,) = primals, tangents
    return _entropy(p), -finite(_logit(p)) * dp


@jax.custom_jvp
def _cross_entropy(p: Array, q: Array) -> Array:
    return times(p, _log_inverse(q)) + times(1 - p, _log_inverse_complement(q))


@_cross_entropy.defjvp
def _(primals, tangents):
    (p, q), (dp, dq) = primals, tangents
    return _cross_entropy(p, q), _slope(p, q) * dq - finite(_logit(q)) * dp


@jax.custom_jvp
def _slope(p: Array, q: Array) -> Array:
    """Derivative of the cross-entropy over q, (q - p) / (q (1 - q)); by terms at the edges."""
    inside = (q > 0) & (q < 1)
    q_ = jnp.where(inside, q, 0.5)
    edge = (1 - p) / jnp.where(p == 1, 1, 1 - q) - p / jnp.where(p == 0, 1, q)
    return jnp.where(inside, (q_ - p) / q_ / (1 - q_), edge)


@_slope.defjvp
def _(primals, tangents):
    (p, q), (dp, dq) = primals, tangents
    r, r_complement = finite(reciprocal(q)), finite(reciprocal(1 - q))
    over_q = (p * r) * (r * dq) + ((1 - p) * r_complement) * (r_complement * dq)
    return _slope(p, q), over_q - (r + r_complement) * dp


@jax.custom_jvp
def _kl(p: Array, q: Array) -> Array:
    """Sum over both outcomes of p log(p / q) - p + q: what was added cancels exactly."""
    return kl_term(p, q, q - p) + kl_term(1 - p, 1 - q, p - q)


@_kl.defjvp
def _(primals, tangents):
    (p, q), (dp, dq) = primals, tangents
    # H(p, q) has the same derivative over q: H(p) does not depend on it.
    return _kl(p, q), _slope(p, q) * dq + finite(_logit_difference(p, q)) * dp


@jax.custom_jvp
def _logit_difference(p: Array, q: Array) -> Array:
    """Return logit(p) - logit(q), accurate also where they nearly agree; 0 at p = 0 and 1."""
    inside = (p > 0) & (p < 1)
    p_ = jnp.where(inside, p, 0.5)
    of_1, of_0 = log_ratio(p_, q, q - p_), log_ratio(1 - p_, 1 - q, p_ - q)
    return jnp.where(inside, of_0 - of_1, 0)


@_logit_difference.defjvp
def _(primals, tangents):
    (p, q), (dp, dq) = primals, tangents
    over_p = finite(reciprocal(p)) + finite(reciprocal(1 - p))
    over_q = finite(reciprocal(q)) + finite(reciprocal(1 - q))
    inside = (p > 0) & (p < 1)
    return _logit_difference(p, q), jnp.where(inside, over_p * dp - over_q * dq, 0)


@jax.custom_jvp
def softplus(x: Array) -> Array:
    """log(1 + exp(x)): the surprisal of outcome 0 at logit x."""
    return jnp.maximum(x, 0) + log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return softplus(x), sigmoid(x) * dx


@jax.custom_jvp
def sigmoid(x: Array) -> Array:
    small = jnp.exp(-jnp.abs(x))
    return jnp.where(x < 0, small, 1) / (1 + small)


@sigmoid.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return sigmoid(x), variance(x) * dx


@jax.custom_jvp
def variance(x: Array) -> Array:
    """sigmoid(x) sigmoid(-x): the derivative of the logistic function."""
    return sigmoid(x) * sigmoid(-x)


@variance.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return variance(x), -variance(x) * jnp.tanh(x / 2) * dx


@jax.custom_jvp
def _entropy_logits(x: Array) -> Array:
    z = jnp.abs(x)
    return log1p(jnp.exp(-z)) + times(sigmoid(-z), z)


@_entropy_logits.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _entropy_logits(x), -times(variance(x), x) * dx


@jax.custom_jvp
def cross_entropy_of_logit(p: Array, x: Array) -> Array:
    # p softplus(-x) + (1 - p) softplus(x): what both have in common, and |x| if x is wrong
    wrong = jnp.where(x > 0, 1 - p, p)
    return log1p(jnp.exp(-jnp.abs(x))) + times(wrong, jnp.abs(x))


@cross_entropy_of_logit.defjvp
def _(primals, tangents):
    (p, x), (dp, dx) = primals, tangents
    # sigmoid(x) - p without cancellation at p = 0 and p = 1
    over_x = (1 - p) * sigmoid(x) - p * sigmoid(-x)
    return cross_entropy_of_logit(p, x), over_x * dx - finite(x) * dp


@jax.custom_jvp
def _sigmoid_difference(a: Array, b: Array) -> Array:
    """sigmoid(b) - sigmoid(a), by the product of the far tails: nothing cancels."""
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    change = jnp.where(a == b, 0, high - jnp.where(a == b, 0, low))
    size = -jnp.expm1(-jnp.where(a == b, 0, change)) * sigmoid(high) * sigmoid(-low)
    return jnp.where(b < a, -size, size)


@_sigmoid_difference.defjvp
def _(primals, tangents):
    (a, b), (da, db) = primals, tangents
    over_a, over_b = variance(a), variance(b)
    return _sigmoid_difference(a, b), over_b * db - over_a * da


@jax.custom_jvp
def _kl_logits(a: Array, b: Array) -> Array:
    """As for softmax, with the likelier outcome under p as the reference.

    e is the logit change of the other outcome and t = log(q / p) of each outcome.
    """
    certain = jnp.isinf(a)
    z = jnp.where(certain, 0, jnp.abs(a))
    y = jnp.where(certain, 0, jnp.where(a < 0, -b, b))  # both as if outcome 1 were the likelier
    e = jnp.minimum(z - y, jnp.finfo(a.dtype).max)
    unlikely = sigmoid(-z)
    u = unlikely * jnp.expm1(jnp.minimum(e, 1))
    c = jnp.where(e < 1, log1p(u), softplus(-y) - softplus(-z))
    t_likely, t_unlikely = -c, e - c
    near = t_unlikely < 1
    s = jnp.where(near, t_unlikely, 0)
    rise = _sigmoid_difference(-z, -y)
    other = jnp.where(
        near, unlikely * expm1_minus(s), rise - times(unlikely, jnp.where(near, 0, t_unlikely))
    )
    value = sigmoid(z) * expm1_minus(t_likely) + other
    return jnp.where(certain, softplus(jnp.where(a < 0, b, -b)), value)


@_kl_logits.defjvp
def _(primals, tangents):
    (a, b), (da, db) = primals, tangents
    slope = variance(a)
    over_a = times(slope, jnp.where(slope == 0, 0, a) - finite(b))
    return _kl_logits(a, b), _sigmoid_difference(a, b) * db + over_a * da


@jit_measure("base")
def binary_entropy(p: ArrayLike, *, base: float | None = None) -> Array:
    r"""Entropy of a Bernoulli distribution, elementwise.

    $$ H(p) = p \log \frac{1}{p} + (1 - p) \log \frac{1}{1 - p} $$

    Args:
        p: Probabilities of outcome 1, any shape.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        Entropies in the shape of `p`. At p = 0 and p = 1 it is 0; the slope, which is infinite
        there, is given as 0.

    Raises:
        TypeError: If `p` is not floating or `base` is not a number.
        ValueError: If `base` is not a finite number above 1.

    Example:
        >>> print(f"{binary_entropy(jnp.array(0.75), base=2):.2f} bits")
        0.81 bits

    Source: Shannon, "A Mathematical Theory of Communication" (1948).
    """
    unit = _checks.nats_per_unit(base)
    return _entropy(_checks.floating("p", p)) / unit


@jit_measure("base")
def binary_cross_entropy(p: ArrayLike, q: ArrayLike, *, base: float | None = None) -> Array:
    r"""Cross-entropy of Bernoulli q under Bernoulli p, elementwise.

    $$ H(p, q) = p \log \frac{1}{q} + (1 - p) \log \frac{1}{1 - q} $$

    Args:
        p: True probabilities of outcome 1.
        q: Predicted probabilities; the ranks are equal and the shapes broadcast.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        Cross-entropies in the broadcast shape; `inf` where q rules out what p allows, with the
        infinite slope over q. Where the slope over p is infinite it is given as 0.

    Raises:
        TypeError: If an input is not floating or `base` is not a number.
        ValueError: If ranks differ, or the shapes or `base` do not fit.

    Example:
        >>> print(binary_cross_entropy(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.0]), base=2))
        [1. 0.]

    Source: Cover & Thomas, "Elements of Information Theory" (2006), section 5.4.
    """
    unit = _checks.nats_per_unit(base)
    return _cross_entropy(*_checks.floating_pair("p", p, "q", q)) / unit


@jit_measure("base")
def binary_kl_divergence(p: ArrayLike, q: ArrayLike, *, base: float | None = None) -> Array:
    r"""Kullback-Leibler divergence of Bernoulli q from Bernoulli p, elementwise.

    $$ \operatorname{KL}(p \| q) = p \log \frac{p}{q} + (1 - p) \log \frac{1 - p}{1 - q} $$

    Args:
        p: True probabilities of outcome 1.
        q: Predicted probabilities; the ranks are equal and the shapes broadcast.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        Divergences in the broadcast shape, never negative; `inf` where q rules out what p allows,
        with the infinite slope over q. Where the slope over p is infinite it is given as 0.

    Raises:
        TypeError: If an input is not floating or `base` is not a number.
        ValueError: If ranks differ, or the shapes or `base` do not fit.

    Example:
        >>> print(f"{binary_kl_divergence(jnp.array(0.5), jnp.array(0.25), base=2):.4f} bits")
        0.2075 bits

    Source: Kullback & Leibler, "On Information and Sufficiency" (1951).
    """
    unit = _checks.nats_per_unit(base)
    return _kl(*_checks.floating_pair("p", p, "q", q)) / unit


@jit_measure("base")
def binary_entropy_with_logits(logits: ArrayLike, *, base: float | None = None) -> Array:
    r"""Entropy of a Bernoulli distribution given by its logit, elementwise.

    $$ H = \log(1 + e^{-|x|}) + |x| \, \sigma(-|x|) $$

    Args:
        logits: Logits of outcome 1, log(p / (1 - p)), any shape; infinite logits are certainty.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        Entropies in the shape of `logits`.

    Raises:
        TypeError: If `logits` is not floating or `base` is not a number.
        ValueError: If `base` is not a finite number above 1.

    Example:
        >>> print(binary_entropy_with_logits(jnp.array([0.0, jnp.inf]), base=2))
        [1. 0.]

    Source: Shannon, "A Mathematical Theory of Communication" (1948).
    """
    unit = _checks.nats_per_unit(base)
    return _entropy_logits(_checks.floating("logits", logits)) / unit


@jit_measure("base")
def binary_cross_entropy_with_logits(
    p: ArrayLike, q_logits: ArrayLike, *, base: float | None = None
) -> Array:
    r"""Cross-entropy of a Bernoulli given by its logit, under Bernoulli p, elementwise.

    $$ H(p, q) = p \log(1 + e^{-x}) + (1 - p) \log(1 + e^{x}) $$

    Args:
        p: True probabilities of outcome 1.
        q_logits: Predicted logits; the ranks are equal and the shapes broadcast. Infinite logits
            are certainty.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        Cross-entropies in the broadcast shape. The gradient over the logits is sigmoid - p; where
        the two nearly agree its error is a few ulp of the two, not of their difference.

    Raises:
        TypeError: If an input is not floating or `base` is not a number.
        ValueError: If ranks differ, or the shapes or `base` do not fit.

    Example:
        >>> print(f"{binary_cross_entropy_with_logits(jnp.array(1.0), jnp.array(40.0)):.4e}")
        4.2484e-18

    Source: Cover & Thomas, "Elements of Information Theory" (2006), section 5.4.
    """
    unit = _checks.nats_per_unit(base)
    return cross_entropy_of_logit(*_checks.floating_pair("p", p, "q_logits", q_logits)) / unit


@jit_measure("base")
def binary_kl_divergence_with_logits(
    p_logits: ArrayLike, q_logits: ArrayLike, *, base: float | None = None
) -> Array:
    r"""Kullback-Leibler divergence of one Bernoulli from another, both by logits, elementwise.

    $$ \operatorname{KL}(p \| q) = \sum_{o \in \{0, 1\}} p_o (e^{t_o} - 1 - t_o),
       \qquad t_o = \log \frac{q_o}{p_o} $$

    Args:
        p_logits: True logits of outcome 1.
        q_logits: Predicted logits; the ranks are equal and the shapes broadcast.
        base: Unit of the result: None for nats, 2 for bits.

    Returns:
        Divergences in the broadcast shape, never negative, accurate to their last digits also
        where the two nearly agree; `inf` where q is certain and p is not of the same mind.

    Raises:
        TypeError: If an input is not floating or `base` is not a number.
        ValueError: If ranks differ, or the shapes or `base` do not fit.

    Example:
        >>> x = jnp.array(1.0)
        >>> print(f"{binary_kl_divergence_with_logits(x, x + 2.0**-13):.3e}")
        1.465e-09

    Source: Kullback & Leibler, "On Information and Sufficiency" (1951).
    """
    unit = _checks.nats_per_unit(base)
    return _kl_logits(*_checks.floating_pair("p_logits", p_logits, "q_logits", q_logits)) / unit
