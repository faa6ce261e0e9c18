"""Memory of the losses: what the compiled programs hold beside their inputs, against the size.

    python -m benchmarks.memory            the tables and picture, into benchmarks/results
    python -m benchmarks.memory --smoke    tiny sizes, to see that it runs

Programs are compiled for the device at hand and not run. Temporaries are what a program allocates
for itself; the peak adds inputs and outputs. Outputs are the value and its gradient, by the logits
or by the inputs and the kernel of the linear loss (256 features).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure

import jaxce
from benchmarks import report
from jaxce import losses

HIDDEN = 256
STYLES = {"jaxce": ("#000000", "o", "-"), "optax": ("#D55E00", "s", "--")}
# Rows grow at one number of classes, classes grow at one number of rows.
ROWS = [(rows, 8192) for rows in (256, 1024, 4096, 16384, 65536)]
CLASSES = [(2048, classes) for classes in (1024, 4096, 16384, 65536, 262144)]


@dataclass(frozen=True)
class Held:
    """Bytes of a compiled program."""

    question: str
    library: str
    rows: int
    classes: int
    temporary: int
    peak: int


def questions() -> dict[str, dict[str, Callable]]:
    """By library: mean losses of the arguments that `shapes` gives, differentiated by the first."""

    def optax_kl(a, b):
        log_p, log_q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
        return optax.losses.kl_divergence_with_log_targets(log_q, log_p)

    integer = optax.losses.softmax_cross_entropy_with_integer_labels
    return {
        "integer-label loss": {
            "jaxce": losses.softmax_cross_entropy_with_integer_labels,
            "optax": integer,
        },
        "KL divergence": {
            "jaxce": lambda b, a: jaxce.kl_divergence_with_logits(a, b),
            "optax": lambda b, a: optax_kl(a, b),
        },
        "linear loss": {
            "jaxce": lambda xw, y: losses.linear_softmax_cross_entropy(*xw, y, reduction="mean"),
            "optax": lambda xw, y: integer(xw[0] @ xw[1], y),
        },
    }


def shapes(question: str, rows: int, classes: int) -> tuple:
    """Arguments of a question, without their numbers."""
    logits = jax.ShapeDtypeStruct((rows, classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
    if question == "KL divergence":
        return logits, logits
    if question == "linear loss":
        inputs = jax.ShapeDtypeStruct((rows, HIDDEN), jnp.float32)
        return (inputs, jax.ShapeDtypeStruct((HIDDEN, classes), jnp.float32)), labels
    return logits, labels


def measured(sizes: Sequence[tuple[int, int]]) -> Iterator[Held]:
    """Compile everything."""
    for question, libraries in questions().items():
        for library, loss in libraries.items():
            step = jax.jit(jax.value_and_grad(lambda x, y, loss=loss: loss(x, y).mean()))
            for rows, classes in sizes:
                program = step.lower(*shapes(question, rows, classes)).compile()
                m = program.memory_analysis()
                temporary = m.temp_size_in_bytes
                whole = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
                peak = whole + temporary  # nothing is freed before the end
                yield Held(question, library, rows, classes, temporary, peak)


def table(results: Sequence[Held]) -> report.Table:
    """In MB, and in units of one array of logits."""
    rows = []
    found = {(h.question, h.rows, h.classes, h.library): h for h in results}
    for question, r, c in dict.fromkeys((h.question, h.rows, h.classes) for h in results):
        cells = []
        for library in STYLES:
            held = found[question, r, c, library]
            part = held.temporary / (4 * r * c)
            cells += [f"{held.temporary / 1e6:.3g}", f"{part:.2g}", f"{held.peak / 1e6:.4g}"]
        rows.append([question, f"{r} x {c}", *cells])
    kinds = ("temporaries MB", "of the logits", "peak MB")
    columns = ["value and gradient", "rows x classes", *(f"{n} {k}" for n in STYLES for k in kinds)]
    return report.Table("Memory of compiled programs, float32", columns, rows, left=2)


def picture(results: Sequence[Held], sweeps: dict[str, Sequence[tuple[int, int]]]) -> Figure:
    """Temporaries against rows and against classes."""
    names = list(dict.fromkeys(h.question for h in results))
    figure = Figure(figsize=(10, 6), layout="constrained")
    grid = figure.subplots(len(sweeps), len(names), sharey=True, squeeze=False)
    for line, (axis, sizes) in zip(grid, sweeps.items(), strict=True):
        for ax, question in zip(line, names, strict=True):
            for library, (color, marker, style) in STYLES.items():
                at = {
                    (h.rows, h.classes): h.temporary
                    for h in results
                    if (h.question, h.library) == (question, library)
                }
                x = [r if axis == "rows" else c for r, c in sizes]
                y = [max(at[size], 1) for size in sizes]
                ax.plot(x, y, color=color, marker=marker, ls=style, label=library)
            ax.plot(x, [4 * r * c for r, c in sizes], color="0.6", ls=":", label="the logits")
            ax.set(xscale="log", yscale="log", xlabel=axis, title=question)
            ax.grid(alpha=0.3)
        line[0].set_ylabel("temporaries [bytes]")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def main() -> None:
    """Print and write the table and the picture."""
    options = report.arguments(__doc__).parse_args()
    sweeps = {"rows": ROWS, "classes": CLASSES}
    if options.smoke:
        sweeps = {"rows": [(64, 128), (128, 128)], "classes": [(64, 128)]}
    results = list(measured(list(dict.fromkeys(s for sizes in sweeps.values() for s in sizes))))
    out = report.Report("memory", "Memory", options.out, report.environment(["optax"]))
    out.say(" ".join((__doc__ or "").split("\n\n")[-1].split()))
    out.table(table(results))
    out.picture(picture(results, sweeps), "Temporaries against rows and classes, log-log")
    out.write()


if __name__ == "__main__":
    main()
