"""Sums that do not stop counting: two float32 that are one number of 48 bits.

A total of whole numbers is exact up to 2**46, with or without x64, and one of any numbers is right
to about 1e-14 (in bins 1e-10); its range is that of float32. Every sum and count of a metric is a
`Total`: adding up is solved here, once.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxce._axes import own_pass, placed_alike
from jaxce._numerics import two_difference

AxisName = str | tuple[str, ...]

# Of a product's factors: 12 of 24 bits, so that the product of two parts is exact.
_HALF = {"exponent_bits": 8, "mantissa_bits": 11}
# So many numbers of 12 bits add up to one of 24.
_BLOCK = 2**12


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a + b rounded, and the rounding error; no error where the sum is not finite."""
    total = a + b
    finite = jnp.isfinite(total)
    return total, two_difference(jnp.where(finite, a, 0), -jnp.where(finite, b, 0))[1]


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a * b rounded, and the rounding error (Dekker); no error where it is not finite."""
    # Without its last bit: a rounding that no compiler takes out to fuse the product with a sum.
    product = lax.reduce_precision(a * b, exponent_bits=8, mantissa_bits=22)
    finite = jnp.isfinite(product)
    a, b = jnp.where(finite, a, 0), jnp.where(finite, b, 0)
    a_high, b_high = lax.reduce_precision(a, **_HALF), lax.reduce_precision(b, **_HALF)
    a_low, b_low = a - a_high, b - b_high
    error = (a_high * b_high - jnp.where(finite, product, 0)) + a_high * b_low + a_low * b_high
    return product, error + a_low * b_low


def _joined(a: Array, b: Array) -> Array:
    return jnp.concatenate((a, b))


def _constant(x: float) -> tuple[Array, Array]:
    high = np.float32(x)
    return jnp.asarray(high), jnp.asarray(np.float32(x - float(high)))


def pair(x: Array) -> tuple[Array, Array]:
    """Return a float32 array and what of x it misses, another."""
    if jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize == 8:
        x = x.astype(jnp.float64)
    if jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize == 4:
        # By halves: x less its rounded self may be no number of its type.
        return _two_sum((x >> 16).astype(jnp.float32) * 2**16, (x & 0xFFFF).astype(jnp.float32))
    if x.dtype != jnp.float64:
        high = x.astype(jnp.float32)
        return high, jnp.zeros_like(high)
    # Two conversions, there and back, a compiler may take out.
    high = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=23)
    low = jnp.where(jnp.isfinite(high), x - high, 0)
    return high.astype(jnp.float32), low.astype(jnp.float32)


def _weighted(values: Array, weights: Array | None) -> tuple[Array, Array]:
    """Return values times weights as pairs."""
    high, low = pair(values)
    if weights is None:
        return high, low
    weight, weight_low = pair(weights)
    product, error = _two_product(high, weight)
    cross = jnp.where(jnp.isfinite(high), high, 0) * weight_low + low * weight
    return product, jnp.where(jnp.isfinite(product), error + cross, 0)


def _add(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    high, error = two_difference(a[0], -b[0])
    return high, error + (a[1] + b[1])


def _everywhere(x: Array) -> NamedSharding | None:
    """Return the sharding of what all devices have, if the type of x says that it is spread."""
    sharding = jax.typeof(x).sharding
    is_spread = any(name is not None for name in sharding.spec)
    return NamedSharding(sharding.mesh, PartitionSpec()) if is_spread else None


def _summed(high: Array, low: Array) -> tuple[Array, Array]:
    """Return the sum of all pairs, a pair, by adding eighths to each other again and again.

    Few additions follow each other, so that what they miss stays small, and they are vectorized,
    unlike those of a reduction with a rule of its own.
    """
    if everywhere := _everywhere(high):
        high, low = (jax.sharding.reshard(x, everywhere) for x in (high, low))
    high, low = high.ravel(), low.ravel()
    while high.size != 1:
        missing = -high.size % 8 if high.size else 8
        eighths = [jnp.pad(x, (0, missing)).reshape(8, -1) for x in (high, low)]
        high, low = reduce(_add, zip(*eighths, strict=True))
    return high[0], low[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Total:
    """The number `high + low`, or an array of such numbers."""

    high: Array
    low: Array

    @staticmethod
    def empty(shape: tuple[int, ...] = ()) -> Total:
        """Zero."""
        return Total(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    @staticmethod
    def count(mask: Array) -> Total:
        """How many entries are True."""
        return Total(*pair(jnp.sum(mask.astype(jnp.int32))))

    @staticmethod
    def of_hits(hits: Array) -> Total:
        """How many of at most 2**24 numbers are 1 and not 0; NaN if any is."""
        return Total(*pair(jnp.sum(hits)))

    @staticmethod
    def count_bins(mask: Array, bins: Array, size: int) -> Total:
        """How many entries of each of `size` bins are True."""
        mask, bins = placed_alike(mask, bins)
        zeros = jnp.zeros(size, jnp.int32)
        counts = zeros.at[bins].add(
            mask.astype(jnp.int32), mode="promise_in_bounds", out_sharding=_everywhere(mask)
        )
        return Total(*pair(counts))

    @staticmethod
    def of(values: Array, weights: Array | None = None) -> Total:
        """Sum of all values, each times its weight."""
        # Written out: inside the sum what they are computed of would not be vectorized.
        values = own_pass(partial(jnp.asarray, values), partial(jnp.asarray, values))
        high, low = _summed(*_weighted(values, weights))
        return Total(high, jnp.where(jnp.isfinite(high), low, 0))

    @staticmethod
    def of_bins(values: Array, bins: Array, size: int, weights: Array | None = None) -> Total:
        """Sums of the values that share a bin, one for each of `size` bins."""
        high, low = _weighted(values, weights)
        high, bins = placed_alike(high, bins)
        low, bins = placed_alike(low, bins)
        # Of the values, 12 bits on a common grid: a block of such numbers adds up without rounding,
        # and what is left of each is too small for its rounding to matter.
        largest = jnp.max(jnp.abs(jnp.where(jnp.isfinite(high), high, 0)), initial=0)
        power = lax.reduce_precision(largest, exponent_bits=8, mantissa_bits=0)
        grid = jnp.minimum(power, 2.0**114) * 2.0**12  # a larger one would overflow
        on_grid = jnp.where(jnp.isfinite(high), (high + grid) - grid, high)
        rest = jnp.where(jnp.isfinite(high), high - on_grid, 0) + low

        block = jnp.arange(bins.size, dtype=bins.dtype).reshape(bins.shape) // _BLOCK
        blocks = max(-(-bins.size // _BLOCK), 1)

        def add_up(x: Array) -> Total:
            zeros = jnp.zeros(blocks * size, jnp.float32)
            at = bins + size * block
            sums = zeros.at[at].add(x, mode="promise_in_bounds", out_sharding=_everywhere(high))
            sums = sums.reshape(blocks, size)
            return Total(sums, jnp.zeros_like(sums))._merged()

        return add_up(on_grid).merge(add_up(rest))

    def merge(self, other: Total) -> Total:
        """Return the sum of two totals."""
        high, error = _two_sum(self.high, other.high)
        low, error_of_low = _two_sum(self.low, other.low)
        high, low = _two_sum(high, error + low)
        return Total(*_two_sum(high, low + error_of_low))

    def all_reduce(self, axis_name: AxisName) -> Total:
        """Return the sum over the devices of a mesh axis, the same on each of them."""
        size = lax.axis_size(axis_name)
        here = jnp.arange(size) == lax.axis_index(axis_name)
        here = here.reshape(-1, *[1] * self.high.ndim)

        # Each device fills a slot of its own, so nothing is rounded on the way; of a plain
        # all-gather shard_map could not tell that all devices hold the same.
        def gather(x: Array) -> Array:
            return lax.psum(jnp.where(here, x[None], 0), axis_name)

        return Total(gather(self.high), gather(self.low))._merged()

    def _merged(self) -> Total:
        """Merge what is along the first axis."""
        total, size = self, self.high.shape[0]
        while size > 1:  # halves, so that few steps do for many
            size, odd = divmod(size, 2)
            left, right, last = (
                jax.tree.map(operator.itemgetter(part), total)
                for part in (slice(size), slice(size, 2 * size), slice(2 * size, None))
            )
            total, size = jax.tree.map(_joined, left.merge(right), last), size + odd
        return jax.tree.map(operator.itemgetter(0), total)

    def apart(self, size: int) -> tuple[Total, ...]:
        """Return the totals in turn: of [a, b, c, d] and 2, [a, c] and [b, d]."""
        return tuple(Total(self.high[i::size], self.low[i::size]) for i in range(size))

    def negative(self) -> Total:
        """Return the total with the other sign."""
        return Total(-self.high, -self.low)

    def value(self) -> Array:
        """The total in the default floating dtype: float32 or, under x64, float64."""
        dtype = jnp.result_type(float)
        return self.high.astype(dtype) + self.low.astype(dtype)

    def integer(self) -> Array:
        """The total as an int32, at most the largest one."""
        fits = self.high < 2.0**31
        whole = jnp.where(fits, self.high, 0).astype(jnp.int32) + self.low.astype(jnp.int32)
        return jnp.where(fits, whole, jnp.iinfo(jnp.int32).max)

    def over(self, count: Total, factor: float = 1.0) -> tuple[Array, Array]:
        """Return factor * total / count rounded, and the rounding error; NaN for a count of 0."""
        none = count.high == 0
        divisor = jnp.where(none, 1, count.high)
        high = self.high / divisor
        finite = jnp.isfinite(high)
        product, error = _two_product(high, divisor)
        rest = (jnp.where(finite, self.high - product, 0) - error) + (self.low - high * count.low)
        low = rest / divisor
        if factor != 1:
            factor_high, factor_low = _constant(factor)
            high, error = _two_product(quotient := high, factor_high)
            low = error + (quotient * factor_low + low * factor_high)
        dtype = jnp.result_type(float)
        high, low = high.astype(dtype), jnp.where(finite, low, 0).astype(dtype)
        value, error = _two_sum(high, low)
        return jnp.where(none, jnp.nan, value), error
