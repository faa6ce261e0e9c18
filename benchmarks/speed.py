"""Speed of the measures and losses against every peer: forward, and value with gradient.

    python -m benchmarks.speed                the tables and picture, into benchmarks/results
    python -m benchmarks.speed --seconds 5    longer, for steadier medians; per row of the table
    python -m benchmarks.speed --smoke        tiny sizes, to see that it runs
    python -m benchmarks.speed --only overhead    one part: table, confident, linear, scaling, ...

What is compared runs in turn, round after round; a ratio is the median of the rounds' ratios, so
that what drifts on a busy machine cancels. A ratio below 1 means that jaxce is faster. The JAX
peers (the textbook formula on jax.nn, optax, distrax, numpyro) are compiled whole, as is jaxce;
torch runs op by op, forward without its tape; up to 2**20 elements on one thread too. The bare
passes are a maximum and a sum of exponentials of the same logits, each compiled by itself; with
gradient a third writes as much as a gradient. Gradients are of the mean, by the predictions (the
logits of an entropy).
"""

import functools
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxce
from benchmarks import linear, peers, report, timing

LARGEST = (1024, 131072)
SHAPES = ((64, 1000), (8192, 1000), (1024, 32768), LARGEST, (65536, 10))
DTYPES = ("float32", "bfloat16")
BARE = "bare passes"
LABELS = "cross_entropy_with_logits[labels]"
# Name here: question of the peers, arguments by letter (see tests/cases.py), position of the
# argument that is differentiated.
QUESTIONS = {
    "entropy": ("entropy_with_logits", "x", 0),
    "cross-entropy, labels": (LABELS, "yx", 1),
    "cross-entropy, soft": ("cross_entropy_with_logits", "px", 1),
    "KL": ("kl_divergence_with_logits", "ab", 1),
    "binary cross-entropy": ("binary_cross_entropy_with_logits", "px", 1),
}
THREADS = os.cpu_count() or 1
FEW = 2**20  # up to so many elements, threads may cost torch more than they bring
PARTS = ("table", "confident", "linear", "scaling", "overhead")
Runs = dict[str, Callable[[], object]]


@jax.jit
def _maximum(x):
    return jnp.max(x, -1, keepdims=True).astype(jnp.float32)


@jax.jit
def _exp_sum(x, maximum):
    return jnp.sum(jnp.exp(x.astype(jnp.float32) - maximum), -1, keepdims=True)


@jax.jit
def _written(x, maximum, total):
    return (jnp.exp(x.astype(jnp.float32) - maximum) / total).astype(x.dtype)


def bare(x: jax.Array, *, gradient: bool) -> object:
    """What reading the logits twice, and writing a gradient, costs without any formula."""
    maximum = _maximum(x)
    total = _exp_sum(x, maximum)
    return _written(x, maximum, total) if gradient else total


def sample(rows: int, classes: int, dtype: str, *, confident: bool) -> tuple[jax.Array, jax.Array]:
    """Logits drawn from a normal distribution, and labels drawn evenly.

    Confident rows have their label's class 30 nats ahead: the sum over the other classes is then
    taken on its own, which is what keeps the digits of a tiny loss.
    """
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((rows, classes), np.float32)
    labels = rng.integers(0, classes, rows).astype(np.int32)
    if confident:
        logits[np.arange(rows), labels] = 30.0
    return jnp.asarray(logits).astype(dtype), jnp.asarray(labels)


def arguments(takes: str, rows: int, classes: int, dtype: str, *, confident: bool) -> tuple:
    """What a question takes, by its letters."""
    x, labels = sample(rows, classes, dtype, confident=confident)
    made: dict[str, jax.Array] = {"x": x, "b": x, "y": labels}
    if "p" in takes:
        made["p"] = jax.nn.softmax(jnp.roll(x.astype(jnp.float32), 1, 0)).astype(dtype)
    if "a" in takes:
        made["a"] = jnp.roll(x, 1, 0)
    return tuple(made[kind] for kind in takes)


def jax_step(function: Callable, wrt: int, *, gradient: bool) -> Callable:
    """Compiled mean, or mean and gradient."""

    def mean(*args):
        return function(*args).mean()

    return jax.jit(jax.value_and_grad(mean, argnums=wrt) if gradient else mean)


def torch_steps(function: Callable, wrt: int, args: Sequence[Any], *, gradient: bool) -> Runs:
    """The same in torch, of tensors made from the JAX arrays: on all threads and on one."""
    import torch

    def tensor(a):
        if a.dtype.kind in "iu":
            return torch.from_numpy(np.array(a, np.int64))
        made = torch.from_numpy(np.array(a, np.float32))
        return made.bfloat16() if a.dtype == jnp.bfloat16 else made

    tensors = [tensor(a) for a in args]

    def run(threads):
        torch.set_num_threads(threads)
        if not gradient:
            with torch.no_grad():
                return function(*tensors)  # the mean is left to it: of an eager call a part
        x = tensors[wrt].requires_grad_()
        return torch.autograd.grad(function(*tensors).mean(), x)[0]

    runs: Runs = {"torch": functools.partial(run, THREADS)}
    if tensors[wrt].numel() <= FEW:
        runs["torch, 1 thread"] = functools.partial(run, 1)
    return runs


def compared(name: str, found: dict, args: tuple, *, gradient: bool) -> Runs:
    """All that have the question, jaxce first, and the bare passes."""
    question, _, wrt = QUESTIONS[name]
    ours = getattr(jaxce, question.partition("[")[0])
    steps = {"jaxce": ours} | {
        library if i == 0 else f"{library} {i + 1}": function
        for library, table in found.items()
        for i, function in enumerate(table.get(question, ()))
    }
    runs: Runs = {}
    for library, function in steps.items():
        if library.split()[0] == "torch":
            made = torch_steps(function, wrt, args, gradient=gradient)
            runs |= {n.replace("torch", library): run for n, run in made.items()}
        else:
            runs[library] = functools.partial(jax_step(function, wrt, gradient=gradient), *args)
    if not question.startswith("binary"):  # which reduces nothing: another floor
        runs[BARE] = functools.partial(bare, args[-1], gradient=gradient)
    return runs


def typical(times: Sequence[float]) -> str:
    """Milliseconds."""
    return f"{1e3 * statistics.median(times):.3g}"


def fastest(times: dict[str, list[float]], names: Sequence[str]) -> str | None:
    """By median."""
    return min(names, key=lambda n: statistics.median(times[n]), default=None)


def row(times: dict[str, list[float]]) -> list[str]:
    """Ours in ms; the best JAX peer, the best of torch, the bare passes: ms and ratios."""
    cells = [typical(times["jaxce"])]
    others = [n for n in times if n not in ("jaxce", BARE)]
    of_torch = [n for n in others if n.startswith("torch")]
    for best in (
        fastest(times, [n for n in others if n not in of_torch]),
        fastest(times, of_torch),
    ):
        if best is None:
            cells += ["", "–", "–"]
        else:
            cells += [best, typical(times[best]), ratio(times, best)]
    return [*cells, ratio(times, BARE) if BARE in times else "–"]


def ratio(times: dict[str, list[float]], other: str) -> str:
    """Of ours to another."""
    return f"{timing.ratio(times['jaxce'], times[other]):.2f}"


COLUMNS = [
    *("jaxce ms", "best JAX peer", "ms", "ratio", "torch", "ms", "ratio"),
    "ratio to bare passes",
]


def passes() -> Iterator[tuple[str, bool]]:
    yield from (("forward", False), ("with gradient", True))


def table(
    title: str, found: dict, cases: Sequence[tuple], seconds: float, *, confident: bool = False
) -> report.Table:
    """A row for each (question, shape, dtype), forward and with gradient."""
    rows = []
    for name, (n, classes), dtype in cases:
        takes = QUESTIONS[name][1]
        args = arguments(takes, n, classes, dtype, confident=confident)
        for label, gradient in passes():
            runs = compared(name, found, args, gradient=gradient)
            times = timing.interleaved(runs, seconds, 3)
            rows.append([name, f"{n} x {classes}", dtype, label, *row(times)])
        jax.clear_caches()
    columns = ["question", "rows x classes", "dtype", "pass", *COLUMNS]
    return report.Table(title, columns, rows, left=4)


def overhead(seconds: float, found: dict) -> report.Table:
    """An eager call on few numbers: what a notebook waits for."""
    x, labels = sample(4, 10, "float32", confident=False)
    runs: Runs = {"jaxce": lambda: jaxce.cross_entropy_with_logits(labels, x)}
    for library in ("optax", "jax"):
        if library in found:
            runs[library] = functools.partial(found[library][LABELS][0], labels, x)
    if "torch" in found:
        runs |= torch_steps(found["torch"][LABELS][0], 1, (labels, x), gradient=False)
    times = timing.interleaved(runs, seconds, 50)
    rows = [
        [n, f"{1e6 * statistics.median(t):.0f}", f"{timing.ratio(times['jaxce'], t):.2f}"]
        for n, t in times.items()
    ]
    return report.Table(
        "Eager call: cross-entropy of labels, 4 x 10", ["library", "µs", "jaxce to it"], rows
    )


def scaling(sizes: Sequence[tuple[int, int]], seconds: float) -> dict[tuple[str, int, int], float]:
    """Seconds of cross-entropy with gradient and of KL with gradient, by shape."""
    times = {}
    for name in ("cross-entropy, labels", "KL", "entropy"):
        question, takes, wrt = QUESTIONS[name]
        function = getattr(jaxce, question.partition("[")[0])
        step = jax_step(function, wrt, gradient=True)
        for n, classes in sizes:
            args = arguments(takes, n, classes, "float32", confident=False)
            runs: Runs = {"jaxce": functools.partial(step, *args)}
            measured = timing.interleaved(runs, seconds, 5)["jaxce"]
            times[name, n, classes] = statistics.median(measured)
    return times


def scaling_picture(times: dict, sweeps: dict[str, Sequence[tuple[int, int]]]) -> Figure:
    """Cost against size: straight lines, no cliff."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    styles = (("#000000", "o", "-"), ("#D55E00", "s", "--"), ("#0072B2", "^", ":"))
    for ax, (axis, sizes) in zip(figure.subplots(1, 2, sharey=True), sweeps.items(), strict=True):
        x = [n if axis == "rows" else c for n, c in sizes]
        for name, (color, marker, style) in zip(
            dict.fromkeys(k[0] for k in times), styles, strict=True
        ):
            y = [1e3 * times[name, *size] for size in sizes]
            ax.plot(x, y, color=color, marker=marker, ls=style, label=name)
        fixed = sizes[0][1] if axis == "rows" else sizes[0][0]
        other = "classes" if axis == "rows" else "rows"
        ax.set(xscale="log", yscale="log", xlabel=axis, title=f"{fixed} {other}")
        ax.grid(alpha=0.3)
        ax.set_ylabel("value and gradient [ms]")
        ax.legend(frameon=False)
    return figure


def main() -> None:
    """Print and write the tables and the picture."""
    parser = report.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="time per row of the tables")
    parser.add_argument("--only", choices=PARTS, action="append", help="parts to run")
    options = parser.parse_args()
    smoke, parts = options.smoke, options.only or PARTS
    seconds = 0.02 if smoke else options.seconds
    found, missing = peers.load([n for n in peers.LIBRARIES if n not in ("scipy", "torchmetrics")])
    if jax.default_backend() != "cpu" and "torch" in found:
        missing.append("torch (timed on CPUs only)")
        del found["torch"]
    shapes, dtypes = (((64, 100),), ("float32",)) if smoke else (SHAPES, DTYPES)
    out = report.Report(
        "speed", "Speed against peers", options.out, report.environment(list(found))
    )
    out.say(" ".join((__doc__ or "").split("\n\n")[-1].split()))
    if missing:
        out.say("Left out: " + ", ".join(missing) + ".")
    if "table" in parts:
        cases = [(q, s, d) for q in QUESTIONS for d in dtypes for s in shapes]
        # In bfloat16 the largest shape would add minutes and no news.
        cases = [c for c in cases if c[1] != LARGEST or c[2] == "float32"]
        cases = cases[1:2] if smoke else cases
        out.table(table("Ordinary logits", found, cases, seconds))
    if "confident" in parts and not smoke:
        cases = [("cross-entropy, labels", s, d) for d in dtypes for s in shapes]
        out.table(table("One class 30 nats ahead", found, cases, seconds, confident=True))
    if "linear" in parts:
        sizes = ((64, 16, 100),) if smoke else ((2048, 256, 32768), (8192, 256, 8192))
        out.table(linear.compare(sizes, seconds))
    if "overhead" in parts:
        out.table(overhead(seconds, found))
    if "scaling" in parts:
        sweeps = {
            "rows": [(4**k, 1000) for k in range(1, 9)],
            "classes": [(64, 4**k) for k in range(1, 10)],
        }
        if smoke:
            sweeps = {axis: [(4, 16)] for axis in sweeps}
        sizes = list(dict.fromkeys(s for each in sweeps.values() for s in each))
        times = scaling(sizes, min(seconds, 0.5))
        out.picture(scaling_picture(times, sweeps), "Milliseconds against size, log-log")
    out.write()


if __name__ == "__main__":
    main()
