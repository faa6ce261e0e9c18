"""The linear softmax loss: time against three bare matrix products, and memory.

    python -m benchmarks.linear                the tables and picture, into benchmarks/results
    python -m benchmarks.linear --seconds 60   longer, for steadier medians; per shape
    python -m benchmarks.linear --smoke        a tiny size, to see that it runs

Value and all gradients of the mean, float32. The three products of a linear layer (logits, gradient
of the inputs, gradient of the kernel) are what no loss can do without; they run one after the
other, each by itself. Temporaries are those of the compiled program, beside the gradients.
"""

import functools
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks import report, timing
from jaxce import losses

Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = ((2048, 256, 32768), (2048, 256, 33003), (1024, 256, 131072))
PRODUCTS = "three products"
OURS = "jaxce, mean"
TIED = "jaxce, mean, [classes, features]"


@functools.cache
def peers() -> dict[str, Callable]:
    """Mean losses of (inputs, kernel, labels) in JAX; a peer that is not installed is left out."""
    fused = losses.linear_softmax_cross_entropy
    found: dict[str, Callable] = {
        OURS: functools.partial(fused, reduction="mean"),
        TIED: functools.partial(fused, reduction="mean", class_axis=0),
        "jaxce, per token": lambda x, w, y: fused(x, w, y).mean(),
    }
    try:
        from optax.losses import softmax_cross_entropy_with_integer_labels as integer
    except ImportError:
        return found
    found["optax on logits"] = lambda x, w, y: integer(x @ w, y).mean()
    try:
        with warnings.catch_warnings(action="ignore"):
            import tokamax
            from absl import flags

            flags.FLAGS(["benchmarks"])  # or tokamax reads our command line
            loss = tokamax.linear_softmax_cross_entropy_loss
            jax.eval_shape(
                functools.partial(loss, reduction="mean", implementation="chunked_xla"),
                *(
                    jax.ShapeDtypeStruct(s, d)
                    for s, d in (((8, 8), "f"), ((8,), "i"), ((8, 8), "f"))
                ),
            )
    except Exception:  # not installed, or a version without it
        return found
    found["tokamax chunked_xla"] = lambda x, w, y: loss(
        x, y, w, reduction="mean", implementation="chunked_xla"
    )
    return found


def operands(tokens: int, features: int, classes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((tokens, features), np.float32)
    w = rng.standard_normal((features, classes), np.float32) / features**0.5
    y = rng.integers(0, classes, tokens).astype(np.int32)
    return jnp.asarray(x), jnp.asarray(w), jnp.asarray(y)


def three_products(x: jax.Array, w: jax.Array) -> Callable[[], object]:
    logits = jax.jit(lambda x, w: x @ w)
    to_inputs = jax.jit(lambda g, w: g @ w.T)
    to_kernel = jax.jit(lambda x, g: x.T @ g)
    g = jnp.full((x.shape[0], w.shape[1]), 1e-3, x.dtype)

    def run() -> None:
        for product, a, b in ((logits, x, w), (to_inputs, g, w), (to_kernel, x, g)):
            jax.block_until_ready(product(a, b))

    return run


def of_torch(x: jax.Array, w: jax.Array, y: jax.Array) -> Callable[[], object] | None:
    """torch's loss of torch's product, on the CPU."""
    if jax.default_backend() != "cpu":
        return None
    try:
        import torch
    except ImportError:
        return None
    a, b = (torch.from_numpy(np.array(v)).requires_grad_() for v in (x, w))
    labels = torch.from_numpy(np.array(y, np.int64))

    def run() -> object:
        return torch.autograd.grad(torch.nn.functional.cross_entropy(a @ b, labels), (a, b))

    return run


def step(loss: Callable, *operands: jax.Array) -> jax.stages.Compiled:
    """Value and both gradients, compiled."""
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*operands).compile()


def megabytes(program: jax.stages.Compiled) -> float:
    memory: Any = program.memory_analysis()
    return memory.temp_size_in_bytes / 1e6


def compare(shapes: Sequence[Shape], seconds: float) -> report.Table:
    """Time of each loss, in three products of the same run."""
    rows = []
    for shape in shapes:
        x, w, y = operands(*shape)
        given = {name: (x, w.T if name == TIED else w, y) for name in peers()}
        programs = {name: step(loss, *given[name]) for name, loss in peers().items()}
        runs = {name: functools.partial(run, *given[name]) for name, run in programs.items()}
        runs = {PRODUCTS: three_products(x, w), **runs}
        if (torch := of_torch(x, w, y)) is not None:
            runs["torch on logits"] = torch
        times = timing.interleaved(runs, seconds, 5)
        rows += [
            [
                " x ".join(map(str, shape)),
                name,
                f"{1e3 * statistics.median(taken):.1f}",
                f"{timing.ratio(taken, times[PRODUCTS]):.2f}",
                f"{megabytes(programs[name]):.1f}" if name in programs else "",
            ]
            for name, taken in times.items()
        ]
    columns = ["tokens x features x classes", "loss", "ms", "of three products", "temporaries MB"]
    return report.Table("Linear loss: value and gradients", columns, rows, left=2)


def sweep(seconds: float) -> dict[str, list[tuple[int, float, float]]]:
    """Size, ms and MB of temporaries: over tokens, then over classes, doubled and one more."""
    sizes = [int(n) + odd for n in 2 ** np.arange(8, 16) for odd in (0, 1)]
    found: dict[str, list[tuple[int, float, float]]] = {"tokens": [], "classes": []}
    for what, rows in found.items():
        for n in sizes:
            x, w, y = operands(*((n, 64, 8192) if what == "tokens" else (1024, 64, n)))
            program = step(peers()[OURS], x, w, y)
            times = timing.interleaved({OURS: functools.partial(program, x, w, y)}, seconds, 3)
            rows.append((n, 1e3 * min(times[OURS]), megabytes(program)))
    return found


def cost(found: dict[str, list[tuple[int, float, float]]]) -> report.Table:
    rows = [
        [what, str(size), f"{ms:.1f}", f"{1e3 * ms / size:.2f}", f"{mb:.1f}"]
        for what, sizes in found.items()
        for size, ms, mb in sizes
    ]
    return report.Table(
        "Cost against size", ["of", "size", "ms", "µs each", "temporaries MB"], rows
    )


def picture(found: dict[str, list[tuple[int, float, float]]]) -> Figure:
    """On log axes cost in proportion to size is a straight line."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (what, rows) in zip(axes, found.items(), strict=True):
        size, ms, mb = map(np.array, zip(*rows, strict=True))
        ax.loglog(size, ms, "o-", color="#000000", label="time [ms]")
        ax.loglog(size, mb, "s--", color="#D55E00", label="temporaries [MB]")
        ax.loglog(size, ms[-1] * size / size[-1], ":", color="0.5", label="in proportion")
        other = "64 features, 8192 classes" if what == "tokens" else "1024 tokens, 64 features"
        ax.set(xlabel=what, title=other)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("ms, MB")
    axes[0].legend(frameon=False)
    return figure


def main() -> None:
    """Print and write the tables and the picture."""
    parser = report.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="time per shape")
    options = parser.parse_args()
    out = report.Report(
        "linear",
        "The linear softmax loss",
        options.out,
        report.environment(["optax", "tokamax", "torch"]),
    )
    out.say(" ".join((__doc__ or "").split("\n\n")[-1].split()))
    smoke = options.smoke
    out.table(compare(((64, 8, 101),) if smoke else SHAPES, 0.05 if smoke else options.seconds))
    if not smoke:
        found = sweep(options.seconds / 30)
        out.table(cost(found))
        out.picture(picture(found), "Time and temporaries against tokens and classes, log-log")
    out.write()


if __name__ == "__main__":
    main()
