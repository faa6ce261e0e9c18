"""Speed and memory of `jaxce evaluate`, on a memory-mapped file of float32 logits.

    python -m benchmarks.evaluation                     the table
    python -m benchmarks.evaluation --gigabytes 2       a larger file
    python -m benchmarks.evaluation --torch PYTHON      torchmetrics as well, in that Python
    python -m benchmarks.evaluation --smoke             a tiny size, to see that it runs

The bare passes are a maximum and a sum of exponentials of every example, each jitted, over the same
file in the same batches: what reading the logits and the cheapest cross-entropy cost. Reading
is part of all times; compiling and importing are not. Memory is the most that the command
held, what the system can drop and read again (the file's pages) left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import timing
from jaxce.cli import _examples
from jaxce.cli._job import Job

ROOT = Path(__file__).parent.parent
LOOP = Path(__file__).with_name("torchmetrics_loop.py")


def write(folder: Path, rows: int, classes: int) -> tuple[Path, Path]:
    """Write logits, in which labels stand out by a few nats, and the labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    logits = np.lib.format.open_memmap(
        folder / "logits.npy", "w+", np.float32, shape=(rows, classes)
    )
    for first in range(0, rows, 1024):
        block = logits[first : first + 1024]
        block[:] = 2 * rng.standard_normal(block.shape, np.float32)
        block[np.arange(len(block)), labels[first : first + 1024]] += 6 * rng.random(len(block))
    logits.flush()
    np.save(folder / "labels.npy", labels)
    return folder / "logits.npy", folder / "labels.npy"


@jax.jit
def _maximum(x: jax.Array) -> jax.Array:
    return jnp.max(x, -1, keepdims=True)


@jax.jit
def _exp_sum(x: jax.Array, maximum: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(x - maximum), -1)


def bare(logits: Path, size: int) -> Callable[[], object]:
    """A pass for the maximum and one for the sum, of all batches."""

    def run() -> list[jax.Array]:
        x = np.load(logits, mmap_mode="r")
        sums: list[jax.Array] = []
        for first in range(0, len(x), size):
            block = jax.device_put(np.asarray(x[first : first + size]))
            sums.append(_exp_sum(block, _maximum(block)))
        return sums

    return run


def ours(logits: Path, labels: Path) -> tuple[Callable[[], object], int]:
    """The command's work without its table; and its batch size."""

    def job() -> Job:
        examples = _examples.opened(logits, labels, None, None, None, None)
        examples.check(skip_bad_labels=False)
        return Job(examples, None, log_probs=False, skip_bad_labels=False)

    return lambda: job().run(None, resume=False).metrics, job().size


def torch_times(python: str, logits: Path, labels: Path, size: int) -> list[float]:
    """Seconds of each round of a torchmetrics loop, and its versions."""
    command = [python, str(LOOP), str(logits), str(labels), str(size)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def peak_memory(logits: Path, labels: Path) -> int:
    """The most anonymous memory, in bytes, that the command held: sampled, on Linux."""
    command = [sys.executable, "-m", "jaxce", "evaluate", "--logits", logits, "--labels", labels]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    peak = 0
    with subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            held = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
            peak = max(peak, *(1024 * int(kilobytes) for kilobytes in held), 0)
            time.sleep(0.01)
    assert process.returncode == 0
    return peak


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one tiny size")
    parser.add_argument("--gigabytes", type=float, default=0.5, help="size of the file")
    parser.add_argument("--classes", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch", metavar="PYTHON", help="one that has torch and torchmetrics")
    options = parser.parse_args()
    classes = 100 if options.smoke else options.classes
    rows = 1000 if options.smoke else int(options.gigabytes * 1e9 / 4 / classes)
    title = f"jaxce evaluate, {rows} x {classes} float32, memory-mapped"
    table = Table(title=title, caption=timing.environment("numpy"))
    table.add_column("what")
    for column in ("seconds", "GB/s", "ratio to bare passes"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        logits, labels = write(Path(folder), rows, classes)
        run, size = ours(logits, labels)
        runs = {"bare passes: max, exp-sum": bare(logits, size), "jaxce evaluate": run}
        times = timing.interleaved(runs, 0, 3 if options.smoke else options.rounds)
        reference = times["bare passes: max, exp-sum"]
        if options.torch:
            times["torchmetrics loop"] = torch_times(options.torch, logits, labels, size)
        for name, seconds in times.items():
            typical = statistics.median(seconds)
            of_bare = (
                timing.ratio(seconds, reference)
                if len(seconds) == len(reference)
                else typical / statistics.median(reference)
            )
            speed = logits.stat().st_size / 1e9 / typical
            table.add_row(name, f"{typical:.3f}", f"{speed:.2f}", f"{of_bare:.2f}")
        console = Console(width=110)
        console.print(table)
        if sys.platform == "linux" and not options.smoke:
            (Path(folder) / "small").mkdir()
            small = write(Path(folder) / "small", 1000, classes)
            for held in (small, (logits, labels)):
                size_on_disk = held[0].stat().st_size / 1e6
                peak = peak_memory(*held) / 1e6
                console.print(f"{size_on_disk:.0f} MB of logits: at most {peak:.0f} MB of memory")


if __name__ == "__main__":
    main()
