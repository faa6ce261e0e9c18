"""jaxce.coding against the textbook's worked examples, exact arithmetic and exhaustive search."""

import heapq
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxce
from jaxce import coding

EIGHT = (0.35, 0.35, 0.1, 0.1, 0.04, 0.04, 0.01, 0.01)
EIGHT_LENGTHS = (2, 2, 3, 3, 4, 4, 5, 5)


def f32(x):
    return jnp.asarray(x, jnp.float32)


def entropy_bits(p):
    return -math.fsum(x * math.log2(x) for x in p if x)


def minimal_cost(weights):
    """Sum of the merged weights of Huffman's algorithm: the least sum of weight * length."""
    heap, cost = [Fraction(w) for w in weights if w], Fraction(0)
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        cost += merged
        heapq.heappush(heap, merged)
    return cost


def exact_length(p, base=2):
    """ceil(log_base(1 / p)) for the exact value of a float, by counting up or down."""
    p, n = Fraction(float(p)), 0
    while Fraction(base) ** -n > p:
        n += 1
    while Fraction(base) ** -(n - 1) <= p:
        n -= 1
    return n


class TestTextbook:
    @pytest.mark.parametrize(("n", "bits"), [(1, 0), (2, 1), (4, 2), (8, 3), (1024, 10)])
    def test_equal_outcomes(self, n, bits):
        p = jnp.full((n,), 1 / n, jnp.float32)
        assert (coding.code_lengths(p) == bits).all()
        assert (coding.huffman_lengths(p) == bits).all()
        assert coding.expected_length(p, coding.code_lengths(p)) == bits
        np.testing.assert_allclose(jaxce.entropy(p, base=2), bits, rtol=1e-6)

    def test_three_quarters(self):
        p = f32([0.75, 0.25])
        surprisal = jaxce.surprisal(p, base=2)
        np.testing.assert_allclose(surprisal, [math.log2(4 / 3), 2], rtol=1e-6)
        np.testing.assert_allclose(surprisal, [0.415, 2], atol=5e-4)
        np.testing.assert_allclose(jaxce.entropy(p, base=2), 0.81, atol=5e-3)
        assert coding.code_lengths(p).tolist() == [1, 2]
        assert coding.huffman_lengths(p).tolist() == [1, 1]

    def test_eight_unequal_outcomes(self):
        p, lengths = f32(EIGHT), jnp.asarray(EIGHT_LENGTHS)
        q = coding.implied_distribution(lengths)
        assert q.tolist() == [2.0**-n for n in EIGHT_LENGTHS]
        entropy, cost = jaxce.entropy(p, base=2), coding.expected_length(p, lengths)
        cost_reversed = coding.expected_length(p[::-1], lengths)
        np.testing.assert_allclose(entropy, entropy_bits(EIGHT), rtol=1e-6)
        np.testing.assert_allclose([entropy, cost, cost_reversed], [2.23, 2.42, 4.58], atol=5e-3)
        np.testing.assert_allclose(
            [cost, cost_reversed],
            [np.dot(EIGHT, EIGHT_LENGTHS), np.dot(EIGHT[::-1], EIGHT_LENGTHS)],
            rtol=1e-6,
        )
        for true, expected in ((p, cost), (p[::-1], cost_reversed)):
            cross = jaxce.cross_entropy(true, q, base=2)
            np.testing.assert_allclose(cross, expected, rtol=1e-6)
            kl = jaxce.kl_divergence(true, q, base=2)
            np.testing.assert_allclose(kl, cross - jaxce.entropy(true, base=2), rtol=1e-5)

    def test_shannon_and_huffman_on_the_same_outcomes(self):
        p = f32(EIGHT)
        assert coding.code_lengths(p).tolist() == [math.ceil(-math.log2(x)) for x in EIGHT]
        assert coding.huffman_lengths(p).tolist() == [1, 2, 3, 4, 5, 6, 7, 7]


class TestCodeLengths:
    @pytest.mark.parametrize("base", [2, 3, 7, 10, 256])
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
    def test_a_power_has_its_exponent_and_its_lower_neighbour_one_more(self, base, dtype):
        with jax.enable_x64(dtype == "float64"):
            dtype = jnp.dtype(dtype)
            smallest = float(jnp.finfo(dtype).tiny)
            n = np.arange(1, 1 + math.floor(-math.log(smallest) / math.log(base) - 1e-9))
            powers = np.asarray([float(Fraction(1, base ** int(k))) for k in n], dtype)
            below = np.nextafter(powers, np.zeros_like(powers))
            above = np.nextafter(powers, np.ones_like(powers))
            inside = below >= smallest
            np.testing.assert_array_equal(coding.code_lengths(powers, base=base), n)
            np.testing.assert_array_equal(coding.code_lengths(above, base=base), n)
            got = coding.code_lengths(below, base=base)
            np.testing.assert_array_equal(got[inside], (n + 1)[inside])

    @settings(max_examples=200, deadline=None)
    @given(
        p=st.floats(float(np.finfo(np.float32).tiny), 1, width=32),
        base=st.sampled_from([2, 3, 10]),
    )
    def test_is_the_exact_ceiling(self, p, base):
        exact = exact_length(p, base)
        got = int(coding.code_lengths(f32(p), base=base))
        # A power that no float holds counts as its nearest float, which may lie just below it.
        nearest_power = np.float32(float(base) ** (1 - exact)) == np.float32(p)
        assert got == exact - (nearest_power and base != 2)

    def test_above_one_the_formula_holds_as_written(self):
        assert coding.code_lengths(f32([1.0, 1.5, 2.0, 4.0])).tolist() == [0, 0, -1, -2]
        assert not np.signbit(coding.code_lengths(f32([1.0, 1.5]))).any()

    def test_edges(self):
        got = coding.code_lengths(f32([0.0, -0.0, 1e-45, -0.1, jnp.inf, -jnp.inf, jnp.nan]))
        np.testing.assert_array_equal(got, [np.inf] * 3 + [np.nan] * 4)
        assert coding.code_lengths(jnp.zeros((0, 3))).shape == (0, 3)

    def test_small_float16_values_are_no_zeros(self):
        smallest = np.finfo(np.float16).smallest_subnormal
        assert coding.code_lengths(jnp.asarray(smallest)) == 24


class TestHuffman:
    @pytest.mark.parametrize("n", [2, 3, 4, 5])
    def test_no_prefix_code_is_shorter(self, n):
        codes = [
            lengths
            for lengths in itertools.product(range(1, n), repeat=n)
            if sum(Fraction(1, 2**k) for k in lengths) <= 1
        ] or [(1, 1)]
        weights = np.random.default_rng(n).integers(1, 30, (50, n))
        best = (weights[:, None, :] * np.asarray(codes)[None]).sum(-1).min(-1)
        got = np.asarray(coding.huffman_lengths(f32(weights)))
        np.testing.assert_array_equal((got * weights).sum(-1), best)

    @pytest.mark.parametrize("n", [1, 2, 3, 9, 64])
    def test_costs_what_exact_arithmetic_costs(self, n):
        @settings(max_examples=60, deadline=None)
        @given(st.lists(st.integers(0, 1000), min_size=n, max_size=n))
        def check(weights):
            lengths = np.asarray(coding.huffman_lengths(f32(weights)))
            positive = np.asarray(weights) > 0
            assert (lengths[~positive] == np.inf).all()
            assert np.dot(np.asarray(weights)[positive], lengths[positive]) == minimal_cost(weights)
            if positive.sum() > 1:
                assert coding.kraft_sum(lengths) == 1
            elif positive.any():
                assert lengths[positive] == 0

        check()

    def test_a_chain_as_long_as_the_alphabet(self):
        n = 100
        p = 2.0 ** -np.arange(1, n + 1)
        expected = [*range(1, n), n - 1]
        assert coding.huffman_lengths(f32(p)).tolist() == expected
        np.testing.assert_array_equal(coding.huffman_lengths(f32(p[::-1])), expected[::-1])

    def test_on_ties_the_longest_word_is_short_and_the_first_outcome_comes_first(self):
        # 0.4 to 0.1 has two optimal codes: lengths 1, 2, 3, 4, 4 and 2, 2, 2, 3, 3.
        assert coding.huffman_lengths(f32([4, 2, 2, 1, 1])).tolist() == [2, 2, 2, 3, 3]
        assert coding.huffman_lengths(f32([1, 1, 1])).tolist() == [1, 2, 2]

    def test_every_batch_and_every_axis_is_the_single_row(self):
        rng = np.random.default_rng(0)
        p = f32(rng.dirichlet(np.ones(6), (2, 3)) * (rng.random((2, 3, 6)) < 0.8))
        rows = np.stack([[coding.huffman_lengths(row) for row in rows] for rows in p])
        np.testing.assert_array_equal(coding.huffman_lengths(p), rows)
        np.testing.assert_array_equal(jax.vmap(coding.huffman_lengths)(p), rows)
        moved = jnp.moveaxis(p, -1, 0)
        np.testing.assert_array_equal(
            coding.huffman_lengths(moved, axis=0), np.moveaxis(rows, -1, 0)
        )

    def test_edges(self):
        nan, inf = np.nan, np.inf
        cases = [
            ([1.0], [0]),
            ([0.0], [inf]),
            ([0.0, 0.0], [inf, inf]),
            ([0.0, 0.5, 0.0, 0.5], [inf, 1, inf, 1]),
            ([0.5, -0.1, 0.6], [nan] * 3),
            ([0.5, nan, 0.5], [nan] * 3),
            ([inf, 1.0], [nan] * 2),
        ]
        for p, expected in cases:
            np.testing.assert_array_equal(coding.huffman_lengths(f32(p)), expected, str(p))
        for shape in ((0,), (0, 3), (3, 0)):
            assert coding.huffman_lengths(jnp.zeros(shape)).shape == shape


@pytest.mark.parametrize("lengths_of", [coding.code_lengths, coding.huffman_lengths])
@pytest.mark.parametrize("n", [2, 5, 40])
def test_both_codes_exist_and_cost_less_than_a_bit_over_the_entropy(lengths_of, n):
    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.integers(0, 10**6), min_size=n, max_size=n).filter(any))
    def check(weights):
        p = f32(np.asarray(weights) / sum(weights))
        lengths = lengths_of(p)
        assert coding.kraft_sum(lengths) <= 1
        cost, entropy = coding.expected_length(p, lengths), entropy_bits(p.tolist())
        assert entropy * (1 - 1e-6) <= cost < entropy + 1 + 1e-6

    check()


class TestExpectedLength:
    def test_no_codeword_is_needed_where_nothing_happens(self):
        lengths = f32([1, 1, jnp.inf])
        assert coding.expected_length(f32([0.5, 0.5, 0]), lengths) == 1
        assert coding.expected_length(f32([0.5, 0.25, 0.25]), lengths) == jnp.inf

    def test_gradients(self):
        p, lengths = f32([0.75, 0.25, 0]), f32([1, 2, jnp.inf])
        for grad in (jax.grad, jax.jacfwd):
            d_p, d_lengths = grad(coding.expected_length, argnums=(0, 1))(p, lengths)
            assert d_p.tolist() == [1, 2, 0]
            assert d_lengths.tolist() == p.tolist()

    def test_axes_and_broadcasting(self):
        p = f32(np.random.default_rng(1).dirichlet(np.ones(6), 4))
        lengths = jnp.arange(1, 7)[None]
        expected = (np.asarray(p) * np.asarray(lengths)).sum(-1)
        np.testing.assert_allclose(coding.expected_length(p, lengths), expected, rtol=1e-6)
        np.testing.assert_allclose(
            coding.expected_length(p.T, lengths.T, axis=0), expected, rtol=1e-6
        )
        np.testing.assert_allclose(
            coding.expected_length(p.reshape(4, 2, 3), lengths.reshape(1, 2, 3), axis=(1, -1)),
            expected,
            rtol=1e-6,
        )


class TestImpliedDistributionAndKraft:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_whole_bits_are_exact(self, dtype):
        with jax.enable_x64(dtype == "float64"):
            n = np.arange(-100, -int(np.finfo(dtype).minexp) + 1)
            q = coding.implied_distribution(jnp.asarray(n, dtype))
            assert q.dtype == dtype
            np.testing.assert_array_equal(q, np.ldexp(np.ones(1, dtype), -n))

    def test_inverts_the_code_lengths(self):
        p = f32([0.5, 0.25, 0.125, 0.125, 0])
        for lengths_of in (coding.code_lengths, coding.huffman_lengths):
            np.testing.assert_array_equal(coding.implied_distribution(lengths_of(p)), p)

    def test_fractional_lengths_and_their_gradient(self):
        lengths = f32([0.3, 1.7, 10.25])
        q = 2.0 ** -np.asarray(lengths, np.float64)
        np.testing.assert_allclose(coding.implied_distribution(lengths), q, rtol=2e-7)
        d_lengths = jax.grad(coding.kraft_sum)(lengths)
        np.testing.assert_allclose(d_lengths, -math.log(2) * q, rtol=4e-7)

    def test_other_alphabets(self):
        lengths = coding.code_lengths(f32([1 / 3] * 3), base=3)
        assert coding.kraft_sum(lengths, base=3) == 1
        np.testing.assert_allclose(
            coding.implied_distribution(jnp.asarray([1, 2]), base=10), [0.1, 0.01], rtol=2e-7
        )

    def test_normalized(self):
        q = coding.implied_distribution(f32([[1, 2, 3, jnp.inf]]), normalize=True)
        np.testing.assert_allclose(q, [[4 / 7, 2 / 7, 1 / 7, 0]], rtol=2e-7)
        far = coding.implied_distribution(jnp.asarray([5000, 5001]), normalize=True)
        np.testing.assert_allclose(far, [2 / 3, 1 / 3], rtol=2e-7)
        columns = coding.implied_distribution(jnp.asarray([[1, 5], [2, 5]]), normalize=True, axis=0)
        np.testing.assert_allclose(columns, [[2 / 3, 1 / 2], [1 / 3, 1 / 2]], rtol=2e-7)
        d_lengths = jax.grad(
            lambda x: coding.implied_distribution(x, normalize=True)[0]  # q0 with q0 + q1 = 1
        )(f32([1, 2, jnp.inf]))
        expected = math.log(2) * 2 / 9  # ln 2 * q0 q1
        np.testing.assert_allclose(d_lengths, [-expected, expected, 0], rtol=1e-6)

    def test_nothing_has_a_codeword(self):
        nothing = f32([jnp.inf, jnp.inf])
        assert coding.kraft_sum(nothing) == 0
        assert coding.implied_distribution(nothing).tolist() == [0, 0]
        assert np.isnan(coding.implied_distribution(nothing, normalize=True)).all()
        assert coding.kraft_sum(jnp.zeros((2, 0))).tolist() == [0, 0]

    def test_shapes(self):
        lengths = jnp.asarray(np.arange(24).reshape(2, 3, 4) % 5 + 1)
        q = coding.implied_distribution(lengths)
        assert q.shape == lengths.shape
        for axis in (-1, 0, (0, 2), (-2, -1)):
            np.testing.assert_array_equal(
                coding.kraft_sum(lengths, axis=axis), np.asarray(q).sum(axis)
            )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray([0.5, 0.5], dtype)
        result = "float64" if dtype == "float64" else "float32"
        for got in (
            coding.code_lengths(x),
            coding.huffman_lengths(x),
            coding.expected_length(x, x),
            coding.expected_length(x, jnp.asarray([1, 1])),
            coding.implied_distribution(x),
            coding.implied_distribution(x, normalize=True),
            coding.kraft_sum(x),
        ):
            assert got.dtype == result
        for f in (coding.kraft_sum, lambda x: coding.expected_length(x, x)):
            assert jax.grad(f)(x).dtype == dtype


@pytest.mark.parametrize("f", [coding.code_lengths, coding.huffman_lengths])
def test_lengths_have_derivative_zero(f):
    p = f32([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    value, tangent = jax.jvp(f, (p,), (jnp.ones_like(p),))
    np.testing.assert_array_equal(value, f(p))
    assert not tangent.any()
    _, pullback = jax.vjp(f, p)
    assert not pullback(jnp.ones_like(p))[0].any()


def test_jit_and_vmap_change_nothing():
    p = f32(np.random.default_rng(2).dirichlet(np.ones(5), 3))
    lengths = coding.code_lengths(p)
    for f, args in (
        (coding.code_lengths, (p,)),
        (coding.huffman_lengths, (p,)),
        (coding.expected_length, (p, lengths)),
        (coding.implied_distribution, (lengths,)),
        (coding.kraft_sum, (lengths,)),
    ):
        np.testing.assert_array_equal(jax.jit(f)(*args), f(*args))
        np.testing.assert_array_equal(jax.vmap(f)(*args), f(*args))


ROWS = f32(np.random.default_rng(3).dirichlet(np.ones(8), 8))
FUNCTIONS = [
    coding.code_lengths,
    coding.huffman_lengths,
    lambda p: coding.expected_length(p, p + 1),
    coding.implied_distribution,
    lambda p: coding.implied_distribution(p, normalize=True),
    coding.kraft_sum,
]


@pytest.mark.parametrize("f", FUNCTIONS)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [PartitionSpec("x"), PartitionSpec(None, "x")])
def test_sharded_arrays(f, kind, spec):
    expected = f(ROWS)
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        got = f(jax.device_put(ROWS, NamedSharding(mesh, spec)))
    np.testing.assert_allclose(got, expected, rtol=3e-7)


@pytest.mark.parametrize("f", FUNCTIONS)
def test_inside_shard_map(f):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("x")
    got = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=rows, out_specs=rows))(ROWS)
    np.testing.assert_allclose(got, f(ROWS), rtol=3e-7)


@pytest.mark.usefixtures("no_nans")
def test_no_nan_on_the_way():
    p = f32([0.5, 0.25, 0.25, 0])
    lengths = coding.huffman_lengths(p)
    assert lengths.tolist() == coding.code_lengths(p).tolist() == [1, 2, 2, np.inf]
    for f in (
        lambda p, x: coding.expected_length(p, x),
        lambda p, x: coding.implied_distribution(x, normalize=True)[0],
        lambda p, x: coding.kraft_sum(x),
    ):
        for grad in (jax.grad, jax.jacfwd):
            assert all(np.isfinite(g).all() for g in grad(f, argnums=(0, 1))(p, lengths))


P, L = jnp.full((2, 3), 1 / 3), jnp.ones((2, 3), jnp.int32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: coding.code_lengths(L), TypeError, "^p: expected a floating dtype, got int32"),
        (lambda: coding.huffman_lengths(L > 0), TypeError, "^p: .* got bool"),
        (lambda: coding.expected_length(L, L), TypeError, "^p: .* got int32"),
        (lambda: coding.expected_length(P, L > 0), TypeError, "^lengths: .* got bool"),
        (lambda: coding.implied_distribution(P * 1j), TypeError, "^lengths: .* got complex64"),
        (lambda: coding.kraft_sum(L > 0), TypeError, "^lengths: .* got bool"),
        (lambda: coding.code_lengths(P, base=1), ValueError, "^base: .* got 1"),
        (lambda: coding.code_lengths(P, base=2.5), ValueError, "^base: .* got 2.5"),
        (lambda: coding.kraft_sum(L, base=None), TypeError, "^base: .* got None"),
        (lambda: coding.kraft_sum(L, base=0), ValueError, "^base: .* got 0"),
        (lambda: coding.kraft_sum(L, axis=2), ValueError, "^axis: .* lengths has 2 .* got 2"),
        (lambda: coding.huffman_lengths(P, axis=-3), ValueError, "^axis: .* p has 2 .* got -3"),
        (lambda: coding.huffman_lengths(P, axis=(0, 1)), ValueError, "^axis: .* got .0, 1."),
        (lambda: coding.expected_length(P, L[0]), ValueError, "^p and lengths: .* and .3,."),
        (lambda: coding.expected_length(P, L[:, :2]), ValueError, "^p and lengths: .*.2, 2."),
    ],
)
def test_errors_name_the_argument_and_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()
