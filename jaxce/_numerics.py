"""The floating-point room: functions and sums that keep their digits.

Nothing here knows about distributions. Series are written as their formulas; they are cut where the
next term falls below half an ulp of float64.
"""

import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax


def wide_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype to compute in: float32 for anything narrower, else the dtype itself."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def is_narrow(x: jax.Array) -> bool:
    """Whether the numbers of x are narrower than float32, in which they are computed."""
    return wide_dtype(x.dtype) != x.dtype


def wide(x: jax.Array) -> jax.Array:
    """Return x in the dtype to compute in."""
    return x.astype(wide_dtype(x.dtype))


def where_nonzero(p: jax.Array, value: jax.Array) -> jax.Array:
    """Return `value`, and 0 with gradient 0 where `p == 0`: off the support nothing counts."""
    return jnp.where(p == 0, jnp.zeros_like(value), value)


@jax.custom_jvp
def still_at_zero(p: jax.Array) -> jax.Array:
    """Return p; where it is 0 its derivative is 0: `where_nonzero(p, p)` without a selection."""
    return p


@still_at_zero.defjvp
def _(primals, tangents):
    (p,), (dp,) = primals, tangents
    return p, where_nonzero(p, dp)


@jax.custom_jvp
def reciprocal(x: jax.Array) -> jax.Array:
    """Return 1 / x; its derivative does not form x**2, which underflows."""
    return 1 / x


@reciprocal.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    r = reciprocal(x)
    return r, -(r * dx) * r


@jax.custom_jvp
def log(x: jax.Array) -> jax.Array:
    """Return the natural logarithm, with `reciprocal` as its derivative."""
    return jnp.log(x)


@log.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return log(x), reciprocal(x) * dx


def power(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """Return x**exponent for x >= 0 with derivative 0 at 0, also for exponents below 1."""
    vanishes = x < float(jnp.finfo(x.dtype).smallest_normal)
    value = jnp.exp(exponent * log(jnp.where(vanishes, 1, x)))
    return jnp.where(vanishes, jnp.where(exponent == 0, 1, 0), value)


def added(terms: Iterable[jax.Array]) -> jax.Array:
    """Return the sum of arrays, taken in pairs: one after the other, equal ones round alike."""
    some = list(terms)
    while len(some) > 1:
        pairs = [a + b for a, b in zip(some[::2], some[1::2], strict=False)]
        some = pairs + some[2 * len(pairs) :]
    return some[0]


def two_difference(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return `a - b` rounded, and the rounding error (Knuth): their sum is exactly `a - b`."""
    high = a - b
    b_rounded = a - high
    a_rounded = high + b_rounded
    return high, (a - a_rounded) - (b - b_rounded)


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split x into two numbers of half as many digits: products of such halves are exact."""
    info = jnp.finfo(x.dtype)
    high = lax.reduce_precision(x, info.nexp, (info.nmant - 1) // 2)
    return high, x - high


def quotient_and_rest(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a quotient q of a and b, to two ulp, and the rest, exactly a - q b.

    Every product and difference below is exact (Dekker), so that it does not matter whether the
    compiler fuses them. The last bit of q is cleared: a rounding that no compiler takes out.
    """
    info = jnp.finfo(a.dtype)
    q = lax.reduce_precision(a / b, info.nexp, info.nmant - 1)
    (q_high, q_low), (b_high, b_low) = _halves(q), _halves(b)
    return q, ((a - q_high * b_high) - q_high * b_low - q_low * b_high) - q_low * b_low


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def exact_sum(high: jax.Array, low: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return the sum of `high + low` over `axes`, accumulated in two floats.

    The error is about `eps**2` times the sum of magnitudes: for a sum that nearly cancels.
    """

    def add(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]):
        total, error = two_difference(a[0], -b[0])
        error = error + (a[1] + b[1])
        # Kept small against the total, so that it has digits of its own in sums of any length.
        whole = total + error
        return whole, error - (whole - total)

    zero = jnp.zeros((), high.dtype)
    high, low = lax.reduce((high, low), (zero, zero), add, axes)
    return high + low


@exact_sum.defjvp
def _(axes, primals, tangents):
    return exact_sum(*primals, axes), jnp.sum(tangents[0] + tangents[1], axes)


def _polynomial(x: jax.Array, coefficients: list[float]) -> jax.Array:
    """Return sum_k coefficients[k] x**k by Horner's rule."""
    zero = jnp.zeros_like(x)
    return functools.reduce(lambda total, c: total * x + c, reversed(coefficients), zero)


def _terms(x: jax.Array, float32: int, float64: int) -> int:
    return float32 if x.dtype == jnp.float32 else float64


def exp_series(s: jax.Array) -> jax.Array:
    r"""Return \(e^s - 1 - s = \sum_{k \ge 2} s^k / k!\) for s in [-1, 1]."""
    return s * s * _polynomial(s, [1 / math.factorial(k + 2) for k in range(_terms(s, 10, 17))])


def _expm1_parts(t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Split t into s in [-1, 1] and the rest w; return s, w, exp(s) - 1 - s and exp(t) - exp(s).

    In plain arithmetic: a selection inside a sum would stop the compiler from vectorizing it.
    """
    s = jnp.clip(t, -1, 1)
    w = t - s
    series = exp_series(s)
    return s, w, series, (1 + (s + series)) * (jnp.exp(w) - 1)


def _below_overflow(t: jax.Array) -> jax.Array:
    """Return t, at most the largest integer whose exponential is finite: inf * 0 would be NaN."""
    return jnp.minimum(t, float(int(math.log(jnp.finfo(t.dtype).max))))


@jax.custom_jvp
def expm1(t: jax.Array) -> jax.Array:
    """Return exp(t) - 1 to a few ulp (XLA's own was off by 4.4 in float32 until jax 0.11)."""
    s, _, series, beyond = _expm1_parts(t)
    return (s + series) + beyond


@expm1.defjvp
def _(primals, tangents):
    (t,), (dt,) = primals, tangents
    return expm1(t), jnp.exp(_below_overflow(t)) * dt


@jax.custom_jvp
def expm1_minus(t: jax.Array) -> jax.Array:
    r"""Return \(e^t - 1 - t \ge 0\), accurate also where it is about t**2 / 2."""
    _, w, series, beyond = _expm1_parts(t)
    # No inf - inf at t = inf.
    return series + (beyond - jnp.minimum(w, float(jnp.finfo(t.dtype).max)))


@expm1_minus.defjvp
def _(primals, tangents):
    (t,), (dt,) = primals, tangents
    return expm1_minus(t), expm1(_below_overflow(t)) * dt


# Up to where |r / (2 + r)| is in the series of r - log(1 + r).
_SMALL = 0.4


def _small_ratio(r: jax.Array) -> jax.Array:
    return jnp.abs(r) < _SMALL * (2 + r)


def _convex_series(p: jax.Array | int, change: jax.Array, s: jax.Array) -> jax.Array:
    """Return p (r - log(1 + r)) for r = change / p and s = r / (2 + r), small.

    log(1 + r) = 2 atanh(s) and r - 2 s = r s.
    """
    square = s * s
    # 2 atanh(s) - 2 s = 2 s^3 (1/3 + s^2/5 + s^4/7 + ...)
    tail = _polynomial(square, [1 / (2 * k + 3) for k in range(_terms(s, 9, 20))])
    return s * (change - p * (2 * square * tail))


def minus_log1p(r: jax.Array) -> jax.Array:
    r"""Return \(r - \log(1 + r) \ge 0\), accurate also where it is about r**2 / 2."""
    small = _small_ratio(r)
    near, other = jnp.where(small, r, 0), jnp.where(small, 1, r)
    series = _convex_series(1, near, near / (2 + near))
    return jnp.where(small, series, other - jnp.log(1 + other))


def log1p(r: jax.Array) -> jax.Array:
    """Return log(1 + r) to a few ulp (XLA's own float64 version loses 7 bits near r = -0.41)."""
    if r.dtype == jnp.float32:
        return jnp.log1p(r)
    small = _small_ratio(r)
    x = jnp.where(small, r, 0)
    return jnp.where(small, x - minus_log1p(x), jnp.log(1 + jnp.where(small, 0, r)))


def kl_parts(
    p: jax.Array, q: jax.Array, change: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Return where p and q are near, \(p \log(p / q) - p + q\) there, \(p \log(p / q)\) elsewhere.

    For change = q - p; nothing is near p = 0, and the last is not meant for it. In it stand roots,
    whose quotient does not overflow.
    """
    one = jnp.where(p == 0, 1, p)
    half = change / 2
    mean = one + half
    s = jnp.clip(half / mean, -_SMALL, _SMALL)
    near = (jnp.abs(change) * (0.5 / _SMALL) < mean) & (p != 0)  # where half is 0 for tiny p, too
    far = one * (2 * jnp.log(jnp.sqrt(one) / jnp.sqrt(q)))
    return near, _convex_series(p, change, s), far


def kl_term(p: jax.Array, q: jax.Array, change: jax.Array) -> jax.Array:
    r"""Return \(p \log(p / q) - p + q \ge 0\) for p >= 0, q >= 0 and change = q - p."""
    near, close, far = kl_parts(p, q, change)
    return jnp.where(p == 0, q, jnp.where(near, close, change + far))


@jax.custom_jvp
def log_ratio(p: jax.Array, q: jax.Array, change: jax.Array) -> jax.Array:
    """Return log(q / p) for p > 0 and change = q - p, accurate also where they nearly agree."""
    r = change / p
    near = _small_ratio(r)
    return jnp.where(near, log1p(jnp.where(near, r, 0)), jnp.log(q) - jnp.log(p))


@log_ratio.defjvp
def _(primals, tangents):
    (p, q, _), (dp, dq, _) = primals, tangents
    return log_ratio(*primals), reciprocal(q) * dq - reciprocal(p) * dp
