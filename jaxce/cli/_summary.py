"""What `jaxce evaluate` tells: a table on the terminal, and a folder with numbers and pictures."""

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxce
from jaxce.cli._examples import Examples
from jaxce.cli._files import replacing
from jaxce.cli._scoring import PER_BIT, Scores
from jaxce.metrics import CalibrationError, CrossEntropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("metrics.json", "reliability.png", "surprisal.png")
_BARS = 60  # in the histogram, at most


@dataclass(frozen=True)
class Summary:
    """The results, as plain numbers.

    Attributes:
        content: Of metrics.json.
        calibration: The calibration metric, to draw it.
        surprisals: Weight per bin of surprisal, the last one for what lies beyond.
    """

    content: dict[str, Any]
    calibration: CalibrationError
    surprisals: np.ndarray


def summarize(scores: Scores, examples: Examples, rows: int) -> Summary:
    """Compute the results of `rows` examples, in float64: the totals have the digits for it."""
    calibration, ce = scores.collection["calibration"], scores.collection["cross_entropy"]
    assert isinstance(calibration, CalibrationError)
    assert isinstance(ce, CrossEntropy)
    with jax.enable_x64(True):
        values = scores.collection.compute()
        table = calibration.table()
        weight, surprisals = ce.weight.value(), np.asarray(scores.surprisals.compute())
    plain = {name: value.item() for name, value in values.items() if value.ndim == 0}
    results = {
        "cross_entropy_bits": plain["cross_entropy"] / math.log(2),
        "cross_entropy_nats": plain["cross_entropy"],
        "perplexity": plain["perplexity"],
        "bits_per_byte": plain.get("bits_per_byte"),
        "top1_accuracy": plain["top1"],
        "top5_accuracy": plain.get("top5"),
        "brier_score": plain["brier"],
        "calibration_error": plain["calibration"],
        "mean_entropy_bits": plain["entropy"] / math.log(2),
        "bad_labels": plain["bad_labels"],
        "weight": weight.item(),
    }
    content = {
        "jaxce": jaxce.__version__,
        "logits": str(examples.logits.path),
        "labels": str(examples.labels.path),
        "classes": examples.classes,
        "examples": examples.logits.length,
        "examples_read": rows,
        "metrics": results,
        "calibration": {name: np.asarray(v).tolist() for name, v in table._asdict().items()},
        "surprisal": {"bins_per_bit": PER_BIT, "weight": surprisals.tolist()},
    }
    return Summary(content, calibration, surprisals)


def show(summary: Summary) -> None:
    """Print the table."""
    content, results = summary.content, summary.content["metrics"]
    read, all_of_them = content["examples_read"], content["examples"]
    counted = f"{all_of_them} examples of {content['classes']} classes"
    if read < all_of_them:
        counted += f", of which {read} were read"
    table = Table()
    table.add_column("measure")
    table.add_column("value", justify="right")
    rows = (
        ("cross-entropy [bits]", "cross_entropy_bits"),
        ("cross-entropy [nats]", "cross_entropy_nats"),
        ("perplexity", "perplexity"),
        ("bits per byte", "bits_per_byte"),
        ("top-1 accuracy", "top1_accuracy"),
        ("top-5 accuracy", "top5_accuracy"),
        ("Brier score", "brier_score"),
        ("calibration error", "calibration_error"),
        ("mean predictive entropy [bits]", "mean_entropy_bits"),
        ("bad labels", "bad_labels"),
        ("weight of what counts", "weight"),
    )
    for name, key in rows:
        if (value := results[key]) is not None:
            table.add_row(name, _figure(value))
    # The path is a user's: no markup in it, no smileys, no colours.
    console = Console(markup=False, emoji=False, highlight=False)
    for line in (f"logits  {content['logits']}", f"labels  {content['labels']}", counted):
        console.print(line, soft_wrap=True)
    console.print(table)


def _figure(value: float) -> str:
    if float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.5f}" if 1e-3 <= value < 1e6 else f"{value:.4e}"


def write(folder: Path, summary: Summary) -> None:
    """Write numbers and pictures; each file becomes visible when all of them are there."""
    with contextlib.ExitStack() as stack:
        numbers, reliability, surprisal = (
            stack.enter_context(replacing(f"--report {name}", folder / name)) for name in FILES
        )
        text = json.dumps(_plain(summary.content), indent=1, allow_nan=False)
        numbers.write_text(text + "\n", "utf-8")
        _reliability_figure(summary).savefig(reliability, format="png")
        _surprisal_figure(summary).savefig(surprisal, format="png")


# Matplotlib is imported where it draws: it takes a while, and without a report nothing is drawn.
def _reliability_figure(summary: Summary) -> "Figure":
    from matplotlib.figure import Figure

    from jaxce import plots

    figure = Figure(figsize=(6, 6), dpi=150, layout="constrained")
    plots.reliability(summary.calibration, ax=figure.subplots())
    return figure


def _surprisal_figure(summary: Summary) -> "Figure":
    from matplotlib.figure import Figure

    from jaxce import plots

    counts, results = summary.surprisals, summary.content["metrics"]
    used = int(np.flatnonzero(counts[:-1]).max(initial=0)) + 1
    merged = -(-used // _BARS)  # neighbours to one bar
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    ax = plots.surprisal_histogram(
        (np.arange(len(counts)) + 0.5) / PER_BIT,
        weights=counts,
        bins=np.arange(0, used + merged, merged) / PER_BIT,
        mean=results["cross_entropy_bits"],
        base=2,
        ax=figure.subplots(),
    )
    guess = math.log2(summary.content["classes"])
    if guess < ax.get_xlim()[1]:
        name = f"an even guess, {guess:.4g} bits"
        ax.axvline(guess, color="black", ls="--", lw=1.2, label=name)
        ax.legend(frameon=False)
    return figure


def _plain(value: Any) -> Any:
    """Return the same to 12 digits, with null for the numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.12g}") if math.isfinite(value) else None
