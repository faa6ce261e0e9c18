"""Identities and inequalities that hold for every distribution, on hypothesis's examples."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxce
from tests import cases
from tests.cases import BY_ID, CATEGORICAL, MEASURES

SHAPE = (2, 5)  # one shape, so that nothing is compiled twice
LOG2 = np.log(2)
# Multiples of 1/64, so that shifting by an integer is exact.
LOGITS = hnp.arrays(np.float32, SHAPE, elements=st.integers(-1280, 1280).map(lambda k: k / 64))
HOLES = hnp.arrays(bool, SHAPE).filter(lambda mask: mask.any(-1).all())
SHIFTS = st.integers(-4000, 4000)
GAPS = st.integers(-8, 0).map(lambda k: 10.0**k)
OF_LOGITS = [m for m in CATEGORICAL if m.takes[-1] in cases.LOGITS]
TWO_FORMS = [m for m in MEASURES if f"{m.name}_with_logits" in BY_ID]


def name(measure):
    return measure.id


def softmax(x):
    e = np.exp(np.float64(x) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def probabilities(x, holes=None):
    return softmax(x if holes is None else np.where(holes, x, -np.inf)).astype(np.float32)


def arguments(measure, *drawn):
    """Drawn logits, turned into what the measure takes."""
    result = []
    for kind, x in zip(measure.takes, drawn, strict=False):
        if kind == cases.LABELS:
            result.append(np.argsort(x, -1)[:, 0].astype(np.int32))
        elif kind in cases.LOGITS:
            result.append(x)
        else:
            result.append(jax.nn.sigmoid(x) if measure.binary else probabilities(x))
    return [np.asarray(a) for a in result]


def close(got, want, rtol=2e-6, atol=1e-6):
    np.testing.assert_allclose(got, np.asarray(want, np.float64), rtol=rtol, atol=atol)


@given(LOGITS, LOGITS, HOLES)
def test_cross_entropy_is_entropy_plus_divergence(a, b, holes):
    p, q = probabilities(a, holes), probabilities(b)
    close(jaxce.cross_entropy(p, q), jaxce.entropy(p) + jaxce.kl_divergence(p, q), atol=3e-6)


@given(LOGITS, LOGITS)
def test_cross_entropy_is_entropy_plus_divergence_from_logits(a, b):
    cross = jaxce.cross_entropy_with_logits(probabilities(a), b)
    close(cross, jaxce.entropy_with_logits(a) + jaxce.kl_divergence_with_logits(a, b), atol=1e-5)


@given(LOGITS, LOGITS, GAPS, SHIFTS)
def test_divergence_is_not_negative(a, b, gap, shift):
    near = (a + gap * b).astype(np.float32)
    for other in (b, near, (near + shift).astype(np.float32)):
        assert (jaxce.kl_divergence_with_logits(a, other) >= 0).all()
        assert (jaxce.js_divergence_with_logits(a, other) >= 0).all()
        assert (jaxce.binary_kl_divergence_with_logits(a, other) >= 0).all()
        p, q = probabilities(a), probabilities(other)
        # As written, so a negative number is no more than the rounding of the two sums.
        assert (
            jaxce.kl_divergence(p, q)
            >= np.minimum(0, np.float64(p).sum(-1) - np.float64(q).sum(-1)) - 1e-12
        ).all()
        assert (jaxce.js_divergence(p, q) >= 0).all()


@given(LOGITS)
def test_divergence_from_itself_is_zero(a):
    for result in (
        jaxce.kl_divergence_with_logits(a, a),
        jaxce.js_divergence_with_logits(a, a),
        jaxce.kl_divergence(probabilities(a), probabilities(a)),
        jaxce.js_divergence(probabilities(a), probabilities(a)),
        jaxce.binary_kl_divergence_with_logits(a, a),
    ):
        assert (result == 0).all()


@given(LOGITS, LOGITS, HOLES)
def test_jensen_shannon_is_symmetric_and_at_most_one_bit(a, b, holes):
    for function, one, other in (
        (jaxce.js_divergence_with_logits, a, b),
        (jaxce.js_divergence_with_logits, np.where(holes, a, -np.inf), b),
        (jaxce.js_divergence, probabilities(a, holes), probabilities(b)),
    ):
        forth, back = function(one, other), function(other, one)
        close(forth, back, rtol=2e-6, atol=0)
        assert (forth <= LOG2 * (1 + 2e-6)).all()


@given(LOGITS)
def test_entropy_is_between_zero_and_log_classes(x):
    for result in (jaxce.entropy_with_logits(x), jaxce.entropy(probabilities(x))):
        assert (result >= 0).all()
        assert (result <= np.log(SHAPE[-1]) * (1 + 1e-6)).all()


@given(LOGITS)
def test_perplexity_is_the_exponential_of_entropy(x):
    close(jaxce.perplexity_with_logits(x), np.exp(jaxce.entropy_with_logits(x)))
    close(jaxce.perplexity(probabilities(x)), np.exp(jaxce.entropy(probabilities(x))))


@pytest.mark.parametrize("measure", OF_LOGITS, ids=name)
@given(LOGITS, LOGITS, SHIFTS)
def test_shift_invariance(measure, a, b, shift):
    args = arguments(measure, a, b)
    want = measure(*args)
    for i, kind in enumerate(measure.takes):
        if kind in cases.LOGITS:
            moved = [v + np.float32(shift) if i == j else v for j, v in enumerate(args)]
            by = shift if measure.name == "log_normalizer" else 0
            # Nothing is lost: the differences of the logits are the same numbers.
            close(
                measure(*moved), want + np.float32(by), rtol=2e-6, atol=1e-30 if by == 0 else 5e-4
            )


@pytest.mark.parametrize("measure", CATEGORICAL, ids=name)
@given(LOGITS, LOGITS, HOLES)
def test_mask_equals_slice(measure, a, b, mask):
    args = arguments(measure, a, b)
    if cases.LABELS in measure.takes:
        args[0] = mask.argmax(-1).astype(np.int32)
    got = np.asarray(measure(*args, where=mask))
    for i, row in enumerate(mask):
        sliced = []
        for v, kind in zip(args, measure.takes, strict=True):
            label = np.array([row[: v[i]].sum()], np.int32) if kind == cases.LABELS else None
            sliced.append(v[i][row][None] if label is None else label)
        want = measure.value(*sliced)[0]
        assert measure.reduces or (got[i][~row] == 0).all()
        close(got[i] if measure.reduces else got[i][row], want)


@pytest.mark.parametrize("measure", CATEGORICAL, ids=name)
@given(LOGITS, LOGITS, st.permutations(range(SHAPE[-1])))
def test_order_of_the_classes_does_not_matter(measure, a, b, order):
    args = arguments(measure, a, b)
    mixed = [
        v if kind == cases.LABELS else v[:, order]
        for v, kind in zip(args, measure.takes, strict=True)
    ]
    if cases.LABELS in measure.takes:
        mixed[0] = np.argsort(order)[args[0]].astype(np.int32)
    want = np.asarray(measure(*args))
    close(measure(*mixed), want if measure.reduces else want[:, order])


@pytest.mark.parametrize("measure", TWO_FORMS, ids=name)
@given(LOGITS, LOGITS)
def test_logit_form_equals_probability_form(measure, a, b):
    other = BY_ID[f"{measure.name}_with_logits"]
    args = arguments(measure, *(np.clip(v, -8, 8) for v in (a, b)))
    got = other(*arguments(other, *(np.clip(v, -8, 8) for v in (a, b))))
    # A probability near 1 has lost the digits of its complement.
    close(measure(*args), got, rtol=1e-5, atol=2e-6 if not measure.binary else 5e-4)


@pytest.mark.parametrize("measure", [m for m in MEASURES if m.base], ids=name)
def test_base_divides_by_its_logarithm(measure):
    args = measure.sample(np.random.default_rng(0), SHAPE)
    close(measure(*args, base=2), np.asarray(measure(*args), np.float64) / LOG2, rtol=3e-7, atol=0)


def test_any_base_above_one():
    x = np.array([0.3, 1.0, -2.0], np.float32)
    nats = float(jaxce.entropy_with_logits(x))
    for base in (1.5, np.e, 10, np.float64(256)):
        close(jaxce.entropy_with_logits(x, base=base), nats / np.log(base), rtol=3e-7)


@pytest.mark.parametrize("measure", CATEGORICAL, ids=name)
def test_a_batch_is_its_rows(measure):
    args = measure.sample(np.random.default_rng(1), SHAPE)
    got = np.asarray(measure(*args))
    for i, row in enumerate(got):
        close(row, measure(*(a[i] for a in args)), atol=0)
