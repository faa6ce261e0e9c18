"""Seeded inputs chosen to hurt: named rows for each kind of argument and number of classes.

Every row is float64 and is rounded to the dtype under test afterwards, so that the oracles see
what the library sees.
"""

import zlib

import numpy as np

SIZES = (1, 2, 10, 20, 1000, 32768, 131072)
HEAVY = 10_000  # from here on a few rows only: they cost tens of milliseconds each
HEAVIEST = 100_000  # and from here on every other one of these
SCALES = (1e-6, 1e-3, 1.0, 10.0, 1e2, 1e4, 1e8)
GAPS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


def generator(*key):
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def keep(rows, light, n):
    light = light[::2] if n > HEAVIEST else light
    return {name: rows[name] for name in light if name in rows} if n > HEAVY else rows


def rounded(rows, dtype):
    """Arguments stacked over the rows, and the names of the rows."""
    columns = zip(*rows.values(), strict=True)
    stacked = [np.stack(column) for column in columns]
    return list(rows), tuple(a if a.dtype.kind in "iu" else a.astype(dtype) for a in stacked)


def with_holes(x, rng):
    """-inf in about half of the entries, the largest kept."""
    holes = rng.random(x.size) < 0.5
    holes[x.argmax()] = False
    return np.where(holes, -np.inf, x)


def logits(n):
    rng = generator("logits", n)
    z = rng.standard_normal(n)
    rows = {f"normal * {s:g}": s * z for s in SCALES}
    rows |= {f"all {v:g}": np.full(n, v) for v in (0.0, 0.1, -3e4, 1e8)}
    rows["uniform + 1e-6"] = 1e-6 * rng.random(n)
    rows["offset 1000"] = z + 1000
    rows["log-probabilities"] = np.log(softmax(z))
    rows["peaked log-probabilities"] = np.log(softmax(5 * z))
    for lead in (5.0, 20.0, 40.0, 80.3):
        first = np.arange(n) == 0
        rows[f"confident {lead:g}, rest 0"] = np.where(first, lead, 0)
        rows[f"confident {lead:g}, rest noisy"] = np.where(first, lead + np.log(n), 0.7 + z / 10)
    if n > 1:
        rows["two tied"] = np.where(np.arange(n) < 2, 7.0, z)
        rows["tied pair far ahead"] = np.where(np.arange(n) < 2, 60.0, z)
        rows["almost tied"] = np.where(
            np.arange(n) == 0, 9.0, np.where(np.arange(n) == 1, 9.0 - 1e-4, z)
        )
        rows["holes"] = with_holes(z, rng)
        rows["one finite"] = np.where(np.arange(n) == n // 2, 3.0, -np.inf)
        rows["ramp"] = -np.linspace(0, 100, n)
        rows["last is largest"] = np.where(np.arange(n) == n - 1, 30.0, 0)
    light = [
        "normal * 1",
        "normal * 10",
        "normal * 1e-06",
        "all 0.1",
        "confident 20, rest noisy",
        "holes",
    ]
    return keep(rows, light, n)


def probabilities(n):
    rng = generator("probabilities", n)
    rows = {
        f"softmax of {name}": softmax(x) for name, x in logits(n).items() if "1e+08" not in name
    }
    rows["one-hot"] = np.eye(1, n, n // 2)[0]
    rows["2**-lengths"] = np.maximum(2.0 ** -(1 + rng.permutation(n).astype(float)), 1e-30)
    if n > 1:
        rows["tiny entries"] = np.where(rng.random(n) < 0.5, 1e-30, softmax(rng.standard_normal(n)))
        rows["almost certain"] = np.where(np.arange(n) == 0, 1 - 1e-6, 1e-6 / (n - 1))
    # No subnormals, which XLA may flush: 0 or at least 1e-30.
    rows = {name: np.where(p < 1e-30, 0, p) for name, p in rows.items()}
    return keep(
        rows,
        [f"softmax of {v}" for v in ("normal * 1", "normal * 10", "all 0.1", "holes")]
        + ["one-hot"],
        n,
    )


def logit_pairs(n):
    rng = generator("pairs", n)
    z, other = rng.standard_normal((2, n))
    spike = np.eye(1, n, n - 1)[0]
    rows = {}
    bases = {
        "normal": z,
        "normal * 10": 10 * z,
        "flat": 0 * z,
        "confident": np.where(np.arange(n) == 0, 20.0, z),
    }
    for name, base in bases.items():
        for gap in GAPS:
            rows[f"{name}, {gap:g} apart"] = base, base + gap * other
            rows[f"{name}, {gap:g} apart, shifted by 1000"] = base, base + gap * other + 1000.0
    rows["far"] = z, other
    rows["very far"] = 100 * z, 100 * other
    rows["equal"] = z, z
    rows["equal but shifted"] = z, z + 3.0
    rows["large, 1 apart"] = 1e4 * z, 1e4 * z + other
    rows["confident, in agreement"] = (
        np.where(spike == 1, 80.3, 0.7),
        np.where(spike == 1, 75.0, 0.7 + 1e-3 * other),
    )
    for lead in (5.0, 80.0, 1e4):
        rows[f"one class {lead:g} lower"] = z, z - lead * spike
        rows[f"one class {lead:g} higher"] = z, z + lead * spike
        rows[f"near, but one class {lead:g} lower"] = (
            z - 60 * spike,
            z + 1e-4 * other - (60 + lead) * spike,
        )
    if n > 1:
        holes = with_holes(z, rng)
        rows["confident, opposed"] = 40.0 * spike, -40.0 * spike
        rows["holes in the true one"] = holes, other
        rows["the same holes"] = holes, holes + 1e-3 * other
        rows["the same holes, shifted"] = holes, holes + 1e-5 * other - 1000.0
    light = ["normal, 0.01 apart", "normal, 1e-05 apart", "far", "one class 80 higher"]
    return keep(
        rows, [*light, "confident, in agreement", "confident, opposed", "the same holes"], n
    )


def symmetric_pairs(n):
    """For Jensen-Shannon, which is finite whatever is missing where."""
    rng = generator("symmetric pairs", n)
    rows = logit_pairs(n)
    if 1 < n < HEAVY:
        z, other = rng.standard_normal((2, n))
        even = np.arange(n) % 2 == 0
        first = np.arange(n) == 0
        rows["holes in the predicted one"] = z, np.where(even, other, -np.inf)
        rows["only one class in the predicted one"] = 0.1 * z, np.where(first, -1.0, -np.inf)
        rows["only one class in the true one"] = np.where(first, -1.0, -np.inf), 0.1 * z
        rows["nothing in common"] = np.where(even, z, -np.inf), np.where(even, -np.inf, z)
        rows["other holes"] = np.where(even, z, -np.inf), np.where(even & ~first, -np.inf, z)
    return rows


def probability_pairs(n):
    rng = generator("probability pairs", n)
    p, other = softmax(rng.standard_normal(n)), rng.standard_normal(n)
    rows = {f"{gap:g} apart": (p, p * (1 + gap * other / 5)) for gap in GAPS}
    rows = {name: (a, b / b.sum()) for name, (a, b) in rows.items()}
    rows["far"] = p, softmax(other)
    rows["very far"] = softmax(5 * other), p
    rows["equal"] = p, p
    rows["one-hot target"] = np.eye(1, n, n // 2)[0], p
    rows["Kraft sum below one"] = (
        p,
        np.maximum(2.0 ** -(2 + rng.permutation(n).astype(float)), 1e-30),
    )
    if n > 1:
        zeros = np.where((rng.random(n) < 0.5) & (np.arange(n) > 0), 0, p)
        rows["zeros in the true one"] = zeros / zeros.sum(), p
        rows["the same zeros"] = zeros / zeros.sum(), np.where(zeros > 0, softmax(other), 0)
        rows["tiny entries"] = (
            np.where(np.arange(n) % 2, 1e-30, p),
            np.where(np.arange(n) % 3, 1e-20, p),
        )
    light = ["0.01 apart", "1e-05 apart", "one-hot target", "Kraft sum below one"]
    return keep(rows, [*light, "zeros in the true one", "the same zeros"], n)


def targets_and_logits(n):
    rng = generator("targets", n)
    dense = softmax(rng.standard_normal(n))
    rows = {}
    for name, x in logits(n).items():
        finite = np.isfinite(x)
        here = np.where(finite, dense, 0)
        certain = np.eye(1, n, int(x.argmax()))[0]
        rows[f"{name}; dense"] = here / here.sum(), x
        if n > HEAVY and "holes" not in name:
            continue
        rows[f"{name}; one-hot, likely"] = certain, x
        rows[f"{name}; one-hot, unlikely"] = (
            np.eye(1, n, int(np.where(finite, x, np.inf).argmin()))[0],
            x,
        )
        if n < HEAVY:
            rows[f"{name}; smoothed"] = np.where(finite, 0.9 * certain + 0.1 / n, 0), x
            rows[f"{name}; sum 0.5"] = here / 2, x
    return rows


def labels_and_logits(n):
    rng = generator("labels", n)
    rows = {}
    for name, x in logits(n).items():
        finite = np.flatnonzero(np.isfinite(x))
        labels = {"likely": x.argmax(), "unlikely": finite[x[finite].argmin()]}
        if n < HEAVY:
            labels["random"] = rng.choice(finite)
        rows |= {
            f"{name}; {which}": (np.array(label, np.int32), x) for which, label in labels.items()
        }
    return rows


def binary_probabilities(_):
    rng = generator("binary")
    near = [10.0**-k for k in range(1, 8)]
    p = [
        *rng.random(30),
        *near,
        *[1 - v for v in near],
        *[0.5 + v for v in near],
        0.5,
        1e-30,
        1e-20,
        0.25,
        0.75,
    ]
    return {f"p={v!r}": (np.array(v),) for v in map(float, p)}


def binary_probability_pairs(_):
    rng = generator("binary pairs")
    p = [*rng.random(10), 0.5, 0.999, 1e-3, 1e-30]
    pairs = [
        (v, v + sign * gap * min(v, 1 - v)) for v in p for gap in (0, *GAPS) for sign in (1, -1)
    ]
    pairs += [(a, b) for a in p for b in rng.random(3)]
    pairs += [(a, b) for a in (0.0, 1.0) for b in (0.3, 1e-20, 0.999)]
    return {
        f"p={a!r}, q={b!r}": (np.array(a), np.array(b))
        for a, b in ((float(a), float(b)) for a, b in pairs)
    }


BINARY_LOGITS = (
    0.0,
    1e-6,
    1e-3,
    0.1,
    0.5,
    1.0,
    2.0,
    5.0,
    15.0,
    20.0,
    37.42994775023705,
    60.0,
    80.0,
    1e4,
    1e8,
)


def binary_logits(_):
    return {f"x={s * v!r}": (np.array(s * v),) for v in BINARY_LOGITS for s in (1, -1)}


def binary_targets_and_logits(_):
    targets = (0.0, 1.0, 0.5, 0.3, 1e-6, 1 - 1e-6)
    return {
        f"p={p!r}, x={s * v!r}": (np.array(p), np.array(s * v))
        for p in targets
        for v in BINARY_LOGITS
        for s in (1, -1)
    }


def binary_logit_pairs(_):
    values = [s * v for v in (0.0, 1e-3, 0.3, 1.0, 7.0, 20.0, 60.0, 1e4) for s in (1.0, -1.0)]
    pairs = [(a, a + s * gap) for a in values for gap in GAPS for s in (1, -1)]
    pairs += [(a, b) for a in values for b in values]
    return {f"a={a!r}, b={b!r}": (np.array(a), np.array(b)) for a, b in pairs}


def single(rows):
    return lambda n: {name: (row,) for name, row in rows(n).items()}


KINDS = {
    "p": single(probabilities),
    "x": single(logits),
    "pq": probability_pairs,
    "px": targets_and_logits,
    "yx": labels_and_logits,
    "ab": logit_pairs,
    "ab, symmetric": symmetric_pairs,
    "binary p": binary_probabilities,
    "binary x": binary_logits,
    "binary pq": binary_probability_pairs,
    "binary px": binary_targets_and_logits,
    "binary ab": binary_logit_pairs,
}
