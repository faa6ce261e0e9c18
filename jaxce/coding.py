r"""Codes and their lengths: what a surprisal is worth in symbols.

A codeword of l symbols from an alphabet of `base` symbols (2: bits) takes base**-l of the code
space, so lengths and probabilities say the same thing twice. `code_lengths` and `huffman_lengths`
go from probabilities to lengths, `implied_distribution` goes back, and `expected_length` is what
outcomes from p cost in a code made for q: the cross-entropy. No code costs less than the entropy.

One rule throughout: an outcome of probability 0 has no codeword. Its length is `inf`, it implies
probability 0, and it adds nothing to an expected length or to a Kraft sum.

>>> import jax.numpy as jnp
>>> p = jnp.array([0.5, 0.25, 0.125, 0.125])
>>> lengths = code_lengths(p)
>>> print(lengths, implied_distribution(lengths))
[1. 2. 3. 3.] [0.5   0.25  0.125 0.125]
>>> print(expected_length(p, lengths), kraft_sum(lengths))  # in bits; the whole code space
1.75 1.0
"""

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import auto_axes
from jax.typing import ArrayLike

from jaxce import _axes, _checks, _huffman, _numerics
from jaxce._jit import jit_measure

__all__ = [
    "code_lengths",
    "expected_length",
    "huffman_lengths",
    "implied_distribution",
    "kraft_sum",
]


@jit_measure("base")
def code_lengths(p: ArrayLike, *, base: int = 2) -> jax.Array:
    r"""Shannon's codeword lengths: the surprisals, rounded up to whole symbols.

    $$ l = \lceil \log_{base} (1 / p) \rceil $$

    A prefix code with these lengths exists; it costs H(p) <= sum p l < H(p) + 1 symbols.

    The rounding up is exact: a `p` that is the float nearest to base**-n has length n, so 1/3 in
    base 3 has length 1 although no float is 1/3. One float further down, the length is n + 1.

    Args:
        p: Probabilities of any shape, in a floating dtype; each element by itself.
        base: Number of symbols in the code's alphabet, at least 2; 2 gives bits.

    Returns:
        Lengths in symbols, shaped as `p`: whole numbers in float32 or float64, with derivative 0.
        `inf` where `p` is 0 (or below the smallest normal number), NaN where it is negative,
        infinite or NaN.

    Raises:
        TypeError: If `p` is not floating, or `base` is not a number.
        ValueError: If `base` is not an integer of at least 2.

    Example:
        >>> print(code_lengths(jnp.array([0.35, 0.35, 0.1, 0.1, 0.04, 0.04, 0.01, 0.01])))
        [2. 2. 4. 4. 5. 5. 7. 7.]
        >>> print(code_lengths(jnp.array([1 / 3, 1 / 9, 0.0]), base=3))
        [ 1.  2. inf]

    Source: Shannon, "A Mathematical Theory of Communication" (1948), section 9.
    """
    given = _checks.array("p", p).dtype
    p = lax.stop_gradient(_checks.floating("p", p))
    tiny = float(jnp.finfo(p.dtype).tiny)
    # A search among the powers themselves: the logarithm of an exact power may be rounded up, and
    # its ceiling would be one too many.
    lowest, powers = _powers(_alphabet(base), given, tiny)
    table = jnp.asarray(powers, p.dtype)
    exponent = lowest - 1 + _any_sharding(lambda p: jnp.searchsorted(table, p, side="right"), p)
    lengths = jnp.where((p >= 0) & (p < jnp.inf), (-exponent).astype(p.dtype), jnp.nan)
    return jnp.where((p >= 0) & (p < tiny), jnp.inf, lengths)


@functools.cache
def _powers(base: int, dtype: np.dtype[Any], tiny: float) -> tuple[int, np.ndarray[Any, Any]]:
    """Return e and base**e, base**(e+1), ...: all from `tiny` on, rounded to `dtype`."""
    limits = jnp.finfo(dtype)
    smallest = max(Fraction(float(limits.smallest_subnormal)), Fraction(tiny))
    lowest = highest = 0
    while Fraction(1, base ** (1 - lowest)) >= smallest:
        lowest -= 1
    while base ** (highest + 1) <= Fraction(float(limits.max)):
        highest += 1
    powers = [float(Fraction(base) ** e) for e in range(lowest, highest + 1)]
    return lowest, np.asarray(powers, dtype)


def _any_sharding(function: Callable[[jax.Array], jax.Array], p: jax.Array) -> jax.Array:
    """Apply a shape-keeping function that looks things up, also to an explicitly sharded array."""
    sharding = jax.typeof(p).sharding
    if explicit := sharding.mesh.explicit_axes:
        function = cast(Any, auto_axes(function, axes=explicit, out_sharding=sharding))
    return function(p)


def _alphabet(base: int) -> int:
    try:
        symbols = int(base)
    except (TypeError, ValueError):
        raise TypeError(f"base: expected an integer number of symbols, got {base!r}.") from None
    if symbols < 2 or symbols != base:
        raise ValueError(f"base: expected an integer of at least 2 symbols, got {base!r}.")
    return symbols


@jit_measure("axis")
def huffman_lengths(p: ArrayLike, *, axis: int = -1) -> jax.Array:
    r"""Codeword lengths of Huffman's binary code: no prefix code is shorter on average.

    $$ \min_l \; \sum_i p_i l_i \quad \text{where} \quad \sum_i 2^{-l_i} \le 1 $$

    The two least probable outcomes are merged, again and again until one is left; a length counts
    the merges that its outcome went through. The mean is at least H(p) and less than H(p) + 1 bits.
    Of several optimal codes it is the one whose longest word is shortest.

    It is as much JAX as the rest: under `jit`, `vmap`, on any device. But n outcomes need n - 1
    merges one after another, so a single very large alphabet is quickest on a CPU.

    Args:
        p: Probabilities along `axis`, in a floating dtype. Positive weights such as counts do too.
        axis: The axis of the outcomes. All others are a batch of codes.

    Returns:
        Lengths in bits, shaped as `p`: whole numbers in float32 or float64, with derivative 0.
        `inf` where `p` is 0; 0 for the only outcome that is possible, as nothing needs to be said.
        NaN all along the axis if an element there is negative, infinite or NaN.

    Raises:
        TypeError: If `p` is not floating, or `axis` is not an integer.
        ValueError: If `axis` is out of range.

    Example:
        >>> print(huffman_lengths(jnp.array([0.3, 0.3, 0.2, 0.1, 0.1])))
        [2. 2. 2. 3. 3.]
        >>> print(huffman_lengths(jnp.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])))
        [[ 1.  1. inf]
         [inf  0. inf]]

    Source: Huffman, "A Method for the Construction of Minimum-Redundancy Codes" (1952).
    """
    p = lax.stop_gradient(_checks.floating("p", p))
    axes = _checks.axes(axis, p.ndim, "p")
    if len(axes) != 1:
        raise ValueError(f"axis: expected a single axis, got {axis!r}.")
    if not p.size:
        return p
    depths = _any_sharding(lambda p: jnp.apply_along_axis(_huffman.depths, axes[0], p), p)
    lengths = jnp.where(p == 0, jnp.inf, depths.astype(p.dtype))
    valid = jnp.all((p >= 0) & (p < jnp.inf), axis=axes, keepdims=True)
    return jnp.where(valid, lengths, jnp.nan)


@jit_measure("axis")
def expected_length(p: ArrayLike, lengths: ArrayLike, *, axis: _checks.Axis = -1) -> jax.Array:
    r"""Mean codeword length of outcomes that come from p.

    $$ L = \sum_i p_i l_i $$

    In bits, it is `cross_entropy(p, implied_distribution(lengths), base=2)`.

    Args:
        p: True probabilities. Where `p` is 0, the length does not matter: 0 · inf is 0.
        lengths: Codeword lengths in symbols, floating or integer, of the same rank as `p`.
        axis: The axis, or axes, of the outcomes.

    Returns:
        Symbols per outcome for each example: `p` without `axis`, in float32 or float64. `inf` where
        an outcome that happens has no codeword.

    Raises:
        TypeError: If `p` is not floating, or `lengths` is neither floating nor integer.
        ValueError: If the ranks differ, the shapes do not broadcast, or `axis` is out of range.

    Example:
        >>> p = jnp.array([0.35, 0.35, 0.1, 0.1, 0.04, 0.04, 0.01, 0.01])
        >>> lengths = jnp.array([2, 2, 3, 3, 4, 4, 5, 5])
        >>> print(f"{expected_length(p, lengths):.2f} {expected_length(p[::-1], lengths):.2f}")
        2.42 4.58

    Source: Cover & Thomas, "Elements of Information Theory" (2006), sections 5.3 and 5.4.
    """
    p = _checks.floating("p", p)
    p, lengths = _checks.floating_pair("p", p, "lengths", _lengths(lengths, p.dtype))
    axes = _checks.axes(axis, p.ndim, "p")
    return jnp.sum(_axes.products(p, _numerics.where_nonzero(p, lengths)), axes)


def _lengths(lengths: ArrayLike, dtype: np.dtype[Any]) -> jax.Array:
    """Return lengths as a floating array: integer ones in `dtype`."""
    lengths = _checks.array("lengths", lengths)
    if jnp.issubdtype(lengths.dtype, jnp.integer):
        return lengths.astype(dtype)
    if not jnp.issubdtype(lengths.dtype, jnp.floating):
        raise TypeError(f"lengths: expected a floating or integer dtype, got {lengths.dtype}.")
    return _checks.floating("lengths", lengths)


@jit_measure("normalize", "axis", "base")
def implied_distribution(
    lengths: ArrayLike, *, normalize: bool = False, axis: _checks.Axis = -1, base: int = 2
) -> jax.Array:
    r"""The distribution that a code is made for.

    $$ q_i = base^{-l_i} $$

    As written it sums to the Kraft sum, less than 1 for a code with room to spare. That is a sound
    second argument of a cross-entropy: the missing mass is what the code wastes.

    Args:
        lengths: Codeword lengths in symbols, floating or integer. `inf` means no codeword.
        normalize: Divide by the sum over `axis`, also where the powers alone would underflow.
        axis: The axis, or axes, of the outcomes; used by `normalize=True` only.
        base: Number of symbols in the code's alphabet.

    Returns:
        Probabilities shaped as `lengths`, in float32 or float64 (JAX's default float
        for integers). With `normalize=True`, NaN where no outcome has a codeword.

    Raises:
        TypeError: If `lengths` is neither floating nor integer, or `base` is not a number.
        ValueError: If `base` is not an integer of at least 2, or `axis` is out of range.

    Example:
        >>> print(implied_distribution(jnp.array([1, 2, 3])))
        [0.5   0.25  0.125]
        >>> print(implied_distribution(jnp.array([1, 2, 3]), normalize=True) * 7)
        [4. 2. 1.]

    Source: Cover & Thomas, "Elements of Information Theory" (2006), section 5.3.
    """
    lengths = _lengths(lengths, jnp.result_type(float))
    symbols = jnp.asarray(_alphabet(base), lengths.dtype)
    if not normalize:
        return symbols**-lengths  # not exp2: XLA's is off by 30 ulp, even at whole numbers
    axes = _checks.axes(axis, lengths.ndim, "lengths")
    shortest = jnp.min(lengths, axis=axes, keepdims=True, initial=jnp.inf)
    q = symbols ** -(lengths - jnp.where(jnp.isfinite(shortest), shortest, 0))
    return q / jnp.sum(q, axis=axes, keepdims=True)


@jit_measure("axis", "base")
def kraft_sum(lengths: ArrayLike, *, axis: _checks.Axis = -1, base: int = 2) -> jax.Array:
    r"""Kraft's sum: the share of the code space that a code takes.

    $$ K = \sum_i base^{-l_i} $$

    A prefix code with these lengths exists exactly if it is at most 1; at 1, no word can be added.

    Args:
        lengths: Codeword lengths in symbols, floating or integer. `inf` adds nothing.
        axis: The axis, or axes, of the outcomes.
        base: Number of symbols in the code's alphabet.

    Returns:
        One number for each code, without unit: `lengths` without `axis`, in float32 or float64
        (JAX's default float for integers).

    Raises:
        TypeError: If `lengths` is neither floating nor integer, or `base` is not a number.
        ValueError: If `base` is not an integer of at least 2, or `axis` is out of range.

    Example:
        >>> print(kraft_sum(jnp.array([1, 2, 3, 3])), kraft_sum(jnp.array([1, 1, 2])))
        1.0 1.25

    Source: Kraft, "A Device for Quantizing, Grouping, and Coding Amplitude-Modulated Pulses"
    (1949); Cover & Thomas, "Elements of Information Theory" (2006), section 5.2.
    """
    q = implied_distribution(lengths, base=base)
    return jnp.sum(q, axis=_checks.axes(axis, q.ndim, "lengths"))
