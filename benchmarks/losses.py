"""Speed of the integer-label loss against optax: forward, and value with gradient.

    python -m benchmarks.losses            the table
    python -m benchmarks.losses --smoke    a tiny size, to see that it runs

A ratio below 1 is faster than optax. `confident` rows have one class 30 nats ahead: the sum over
the other classes is then taken on its own, which is what keeps the digits of a tiny loss.
"""

import argparse
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from benchmarks import timing
from jaxce import losses

SHAPES = (
    (1024, 32768, "float32"),
    (8192, 1000, "float32"),
    (65536, 10, "float32"),
    (64, 1000, "float32"),
    (1024, 32768, "bfloat16"),
)
LOSSES = {
    "jaxce": losses.softmax_cross_entropy_with_integer_labels,
    "optax": optax.losses.softmax_cross_entropy_with_integer_labels,
}


def sample(rows: int, classes: int, dtype: str, *, confident: bool) -> tuple[jax.Array, jax.Array]:
    """Logits drawn from a normal distribution, and labels drawn evenly."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((rows, classes)).astype(np.float32)
    labels = rng.integers(0, classes, rows).astype(np.int32)
    if confident:
        logits[np.arange(rows), labels] = 30.0
    return jnp.asarray(logits).astype(dtype), jnp.asarray(labels)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one tiny size")
    parser.add_argument("--seconds", type=float, default=4.0, help="time per row of the table")
    options = parser.parse_args()
    table = Table(title="integer-label loss, ratio to optax", caption=timing.environment("optax"))
    for column in ("rows x classes", "dtype", "logits", "pass"):
        table.add_column(column)
    for column in ("jaxce ms", "optax ms", "ratio"):
        table.add_column(column, justify="right")
    for rows, classes, dtype in ((64, 100, "float32"),) if options.smoke else SHAPES:
        for confident in (False, True):
            logits, labels = sample(rows, classes, dtype, confident=confident)
            for with_gradient in (False, True):
                runs = {}
                for name, loss in LOSSES.items():

                    def mean(x, y, loss=loss):
                        return loss(x, y).mean()

                    step = jax.jit(jax.value_and_grad(mean) if with_gradient else mean)
                    runs[name] = functools.partial(step, logits, labels)
                times = timing.interleaved(runs, 0.05 if options.smoke else options.seconds)
                table.add_row(
                    f"{rows} x {classes}",
                    dtype,
                    "confident" if confident else "normal",
                    "value and gradient" if with_gradient else "forward",
                    *(f"{1e3 * statistics.median(times[name]):.2f}" for name in LOSSES),
                    f"{timing.ratio(times['jaxce'], times['optax']):.2f}",
                )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
