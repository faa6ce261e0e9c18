"""Values and derivatives against the oracles, in ulp, over the whole corpus.

``python -m tests.test_accuracy [function ...]`` prints the worst case of each function instead.
"""

import functools
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases, corpus, oracles
from tests.conftest import class_by_class, option, thorough

LD = np.longdouble
# float64 is checked at fewer sizes: what a large row adds, float32 shows sooner.
SIZES = {"float32": corpus.SIZES, "float64": (2, 10, 1000)}
EVERY = [
    (m.id, dtype, n)
    for dtype, sizes in SIZES.items()
    for m in cases.MEASURES
    for n in ((1,) if m.binary else sizes)
]
# Where few classes are taken one by one.
BY_CLASS = {("float32", 10), ("float64", 2)}
# Compiling them is slow: first derivatives everywhere, the others at these sizes.
FORWARD, SECOND = (1, 10, 1000), (1, 10)
DAILY = {("float32", n) for n in (1, 10, 1000, 131072)} | {("float64", n) for n in (1, 10)}
RELATIVE = {"float32": 1e-5, "float64": 1e-12}  # of Hessian-vector products


@dataclass
class Worst:
    what: str
    row: str
    ratio: float  # of the error to what is allowed
    ulps: float
    got: float
    exact: float

    def __str__(self):
        return (
            f"{self.what:12} {self.ulps:10.3g} ulp = {self.ratio:8.3g} of the bound, "
            f"got {self.got:.9g}, exact {self.exact:.9g}: {self.row}"
        )


def ulp(size, dtype):
    """The spacing of dtype's numbers at this size; never below that of the smallest normal."""
    info = np.finfo(dtype)
    _, exponent = np.frexp(np.maximum(size, LD(info.smallest_normal)))
    return np.ldexp(LD(1), exponent - 1 - info.nmant)


def worst(what, names, got, exact, size, allowed, dtype, terms=1):
    """The worst row, or a ratio of inf where an infinity or a NaN stands in the wrong place.

    So many terms may be flushed to zero when they fall below the smallest normal number. What they
    are multiplied with is at most the surprisal of such a number.
    """
    got, exact = np.asarray(got).astype(LD), np.asarray(exact)
    tiny = LD(np.finfo(dtype).smallest_normal)
    with np.errstate(all="ignore"):
        unit = ulp(np.where(np.isfinite(size), size, 0), dtype)
        error = np.where(got == exact, 0, np.abs(got - exact) / unit)
        error = np.where(np.isnan(error), np.inf, error)
        ratio = np.broadcast_to(error / (allowed + terms * tiny * -np.log(tiny) / unit), got.shape)
    place = np.unravel_index(np.argmax(ratio), ratio.shape)
    exact = np.broadcast_to(exact, got.shape)
    return Worst(what, names[place[0]], *(float(v[place]) for v in (ratio, error, got, exact)))


@functools.cache
def program(name, order):
    """Compiled: value and gradients; from order 1 forward mode too, from order 2 its gradients."""
    measure = cases.BY_ID[name]

    def run(args, tangents, cotangent):
        function = functools.partial(measure.along, args=args)

        def reverse(*floats):
            value, pull = jax.vjp(function, *floats)
            return value, pull(cotangent)

        floats = tuple(args[i] for i in measure.floating)
        if order == 2:
            return jax.jvp(reverse, floats, tuple(tangents))
        forward = jax.jvp(function, floats, tuple(tangents))[1] if order else None
        return reverse(*floats), (forward, None)

    return jax.jit(run)


def directions(measure, args, rng):
    """Random tangents; for probabilities in proportion to them, so that 1e-30 is not moved to 1."""
    size = [
        np.abs(args[i]) if measure.takes[i] in cases.PROBABILITIES else 1 for i in measure.floating
    ]
    normals = [rng.standard_normal(args[i].shape) for i in measure.floating]
    return [
        (z * s).astype(args[i].dtype)
        for z, s, i in zip(normals, size, measure.floating, strict=True)
    ]


def check(name, dtype, n):
    measure, rng = cases.BY_ID[name], corpus.generator(name, n)
    order = (n in FORWARD) + (n in SECOND)
    rows, args = corpus.rounded(corpus.KINDS[measure.corpus](n), dtype)
    tangents = directions(measure, args, rng)
    shape = args[-1].shape[: args[-1].ndim - measure.reduces]
    cotangent = np.ones(shape, dtype)
    if measure.mixes:  # a hole's surprisal is infinite: no weight there
        cotangent = np.where(np.isinf(args[0]), 0, 0.5 + rng.random(shape)).astype(dtype)
    (value, grads), (forward, products) = program(name, order)(args, tangents, cotangent)

    args = [a if a.dtype.kind in "iu" else a.astype(LD) for a in args]
    weights = [cotangent.astype(LD)] if measure.mixes else []
    exact = measure.value(*args)
    yield worst("value", rows, value, exact, *measure.value_bound(args, exact), dtype)
    exact = measure.grad(*args, *weights)
    bounds = measure.grad_bound([*args, *weights], exact)
    for i, got, gradient, bound in zip(measure.floating, grads, exact, bounds, strict=True):
        yield worst(f"gradient {measure.takes[i]}", rows, got, gradient, *bound, dtype)
    if order >= 1:
        if measure.mixes:
            forward = (np.where(cotangent == 0, 0, forward) * weights[0]).sum(-1)
        yield worst("forward", rows, forward, *along(measure, tangents, exact, bounds), dtype, n)
    if order == 2:
        yield from check_second_order(measure, rows, args, tangents, weights, products, dtype)


def along(measure, tangents, grads, bounds):
    """What forward mode should give, its size and ulps: a sum of products, sized like them."""
    exact, size = 0, 0
    for tangent, gradient, (scale, ulps) in zip(tangents, grads, bounds, strict=True):
        scale = scale if scale.shape == gradient.shape else np.abs(gradient)
        ulps = np.where(scale == 0, 1, ulps)
        product, sized = tangent * gradient, np.abs(tangent) * scale * ulps / cases.ULPS
        apart = measure.reduces or measure.mixes
        exact = exact + (product.sum(-1) if apart else product)
        size = size + (sized.sum(-1) if apart else sized)
    return exact, size, 2 * cases.ULPS


def check_second_order(measure, rows, args, tangents, weights, got, dtype):
    exact = measure.hvp(*args, *tangents, *weights)
    # The arguments' parts may cancel, so they are sized apart.
    parts = []
    for i in range(len(tangents)):
        alone = [t if i == j else np.zeros_like(t) for j, t in enumerate(tangents)]
        parts.append(measure.hvp(*args, *alone, *weights))
    ulps = RELATIVE[dtype] / np.finfo(dtype).eps
    for k, i in enumerate(measure.floating):
        size = sum(np.abs(part[k]) for part in parts)
        size = cases.row_size(size) if measure.reduces or measure.mixes else size
        n = 1 if measure.binary else size.shape[-1]
        yield worst(f"Hessian {measure.takes[i]}", rows, got[k], exact[k], size, ulps, dtype, n)


def judge(name, dtype, n):
    if dtype == "float64" and not oracles.JUDGES_FLOAT64:
        pytest.skip("longdouble is no wider than float64 here")
    with option("jax_enable_x64", dtype == "float64"), class_by_class((dtype, n) in BY_CLASS):
        return list(check(name, dtype, n))


@pytest.mark.parametrize(
    ("name", "dtype", "n"), thorough(EVERY, lambda _, dtype, n: (dtype, n) in DAILY)
)
def test_values_and_derivatives(name, dtype, n):
    bad = [str(w) for w in judge(name, dtype, n) if not w.ratio <= 1]
    assert not bad, "\n" + "\n".join(bad)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_is_as_exact_as_float32(dtype):
    """The result of half-precision logits is not rounded to half precision."""
    rng = corpus.generator(dtype)
    x = jnp.asarray(8 * rng.standard_normal((4, 50257)), dtype)
    labels = rng.integers(0, x.shape[-1], 4).astype(np.int32)
    wide = np.asarray(x.astype(np.float32))
    for name, args, exact_args in (
        ("cross_entropy_with_logits[labels]", (labels, x), (labels, wide)),
        ("entropy_with_logits", (x,), (wide,)),
    ):
        measure = cases.BY_ID[name]
        exact = measure.value(*exact_args)
        result = worst(
            "value", "abcd", measure(*args), exact, np.abs(exact), cases.ULPS, np.float32
        )
        assert result.ratio <= 1, result


def test_the_judge_can_condemn():
    one = np.ones(1, np.float32)
    for got, ulps in (
        (one + 2**-23, 1),
        (one - np.float32(np.inf), np.inf),
        (one * np.float32(np.nan), np.inf),
    ):
        assert worst("value", ["row"], got, one.astype(LD), one, 1, np.float32).ulps == ulps


def report(wanted):
    """The worst case of each function, dtype, size and check; X marks one out of bounds."""
    for name, dtype, n in EVERY:
        if wanted and not any(w in name for w in wanted):
            continue
        try:
            for result in judge(name, dtype, n):
                mark = " " if result.ratio <= 1 else "X"
                print(f"{mark} {name:36} {dtype:8} {n:6} {result}", flush=True)
        except Exception as error:
            text = f"{type(error).__name__}: {str(error)[:200]}"
            print(f"X {name:36} {dtype:8} {n:6} {text}", flush=True)


if __name__ == "__main__":
    report(sys.argv[1:])
