"""Cost of the metrics, in forward passes of a cross-entropy over the same batch.

    python -m benchmarks.metrics            the table
    python -m benchmarks.metrics --smoke    a tiny size, to see that it runs

A collection computes what its metrics share once. `guessed` labels are drawn evenly, `likely` ones
from the predictions; `confident` rows have one class 30 nats ahead.
"""

import argparse
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxce
from benchmarks import timing
from benchmarks.speed import sample
from jaxce import metrics

KINDS = ("guessed", "likely", "confident")
SHAPES = ((1024, 32768), (8192, 1000), (65536, 10))
FIVE = {
    "cross-entropy": metrics.CrossEntropy.empty(),
    "perplexity": metrics.Perplexity.empty(),
    "accuracy": metrics.Accuracy.empty(),
    "entropy": metrics.Entropy.empty(),
    "calibration": metrics.CalibrationError.empty(),
}
MORE = {"top 5": metrics.Accuracy.empty(top_k=5), "brier": metrics.BrierScore.empty()}
COLLECTIONS = {
    "cross-entropy alone": {"ce": metrics.CrossEntropy.empty()},
    "five": FIVE,
    "five, top 5, Brier": FIVE | MORE,
}


def batch(rows: int, classes: int, kind: str) -> tuple[jax.Array, jax.Array]:
    """Logits, and labels as the module's docstring has them."""
    x, labels = sample(rows, classes, "float32", confident=kind == "confident")
    if kind == "likely":
        noise = np.random.default_rng(1).gumbel(size=x.shape).astype(np.float32)
        labels = jnp.argmax(x + noise, -1).astype(labels.dtype)
    return x, labels


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one tiny size and kind")
    parser.add_argument("--seconds", type=float, default=4.0, help="time per row of the table")
    options = parser.parse_args()
    table = Table(
        title="one update, ratio to a forward cross-entropy", caption=timing.environment()
    )
    for column in ("rows x classes", "labels"):
        table.add_column(column)
    for column in ("forward ms", *COLLECTIONS, "each on its own"):
        table.add_column(column, justify="right")
    for rows, classes in ((64, 100),) if options.smoke else SHAPES:
        for kind in KINDS[:1] if options.smoke else KINDS:
            x, labels = batch(rows, classes, kind)
            runs = {"forward": jax.jit(lambda x, y: jaxce.cross_entropy_with_logits(y, x))}
            for name, members in COLLECTIONS.items():
                runs[name] = jax.jit(metrics.Collection.empty(**members).update)
            alone = {n: jax.jit(m.update) for n, m in FIVE.items()}
            runs["each"] = lambda x, y, alone=alone: [update(x, y) for update in alone.values()]
            bound = {name: functools.partial(run, x, labels) for name, run in runs.items()}
            times = timing.interleaved(bound, 0.05 if options.smoke else options.seconds)
            forward = times.pop("forward")
            table.add_row(
                f"{rows} x {classes}",
                kind,
                f"{1e3 * statistics.median(forward):.2f}",
                *(f"{timing.ratio(t, forward):.2f}" for t in times.values()),
            )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
