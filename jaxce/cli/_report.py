"""What `jaxce fit` tells: a table on the terminal, a JSON file, a picture."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxce
from jaxce.cli._files import InputError, replacing
from jaxce.cli._targets import Outcomes
from jaxce.fitting import FitResult, unit_name

_ROWS = 20  # of a long alphabet


def show(outcomes: Outcomes, result: FitResult) -> None:
    """Print the measures at the start and at the end, and target against predicted."""
    # Labels come from the user's file: no markup in them, no smileys, no colours.
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(_measures(outcomes, result))
    console.print(_distributions(outcomes, result))
    if outcomes.kind == "byte":
        bits = float(np.mean(result.history.cross_entropy[-1])) * math.log2(result.base or math.e)
        console.print(
            f"{bits:.3f} bits per byte against 8: "
            f"{outcomes.size} bytes, coded one by one, would take {bits * outcomes.size / 8:.0f}"
        )


def _measures(outcomes: Outcomes, result: FitResult) -> Table:
    history = result.history
    unit = f"{unit_name(result.base)} per {outcomes.kind}"
    several = history.cross_entropy.ndim > 1
    after = "Interrupted after" if result.interrupted else "After"
    table = Table(title=f"{after} {int(history.step[-1])} steps, in {unit}", title_justify="left")
    table.add_column("measure")
    for name in ["start, median", "least", "median", "largest"] if several else ["start", "end"]:
        table.add_column(name, justify="right")
    for name, values in (
        ("cross-entropy H(p, q)", history.cross_entropy),
        ("entropy H(p)", history.entropy),
        ("gap KL(p||q)", history.kl_divergence),
        ("gradient norm [nats]", history.gradient_norm),
    ):
        first, last = np.median(values[0]), np.asarray(values[-1])
        ends = [last.min(), np.median(last), last.max()] if several else [last]
        table.add_row(name, *(_figure(float(value)) for value in [first, *ends]))
    return table


def _figure(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.4f}" if 1e-3 <= value < 1e6 else f"{value:.2e}"


def _distributions(outcomes: Outcomes, result: FitResult) -> Table:
    q = np.atleast_2d(np.asarray(result.probabilities, np.float64))
    middle = np.median(q, 0)
    order = np.arange(len(outcomes.p))
    if len(order) > _ROWS:
        order = np.argsort(-outcomes.p, kind="stable")
    table = Table()
    table.add_column(outcomes.kind)
    names = ["target p", "predicted q", "q - p"]
    for name in [*names, *(["spread of q"] if len(q) > 1 else [])]:
        table.add_column(name, justify="right")

    def add(label: str, rows: np.ndarray) -> None:
        p, each = outcomes.p[rows].sum(), q[:, rows].sum(1)
        cells = [f"{p:.6f}", f"{middle[rows].sum():.6f}", f"{middle[rows].sum() - p:+.1e}"]
        if len(q) > 1:
            cells.append(f"{np.ptp(each):.1e}")
        table.add_row(label, *cells)

    for i in order[:_ROWS]:
        add(outcomes.labels[i], np.array([i]))
    if len(order) > _ROWS:
        add(f"{len(order) - _ROWS} others", order[_ROWS:])
    return table


def write_json(
    option: str, path: Path, outcomes: Outcomes, result: FitResult, told: dict[str, Any]
) -> None:
    """Write target, prediction and history; numbers that JSON has no word for become null."""
    history = {
        field: _plain(getattr(result.history, field))
        for field in ("step", "cross_entropy", "kl_divergence", "gradient_norm")
    }
    content = {
        "jaxce": jaxce.__version__,
        "target": outcomes.source,
        "units": unit_name(result.base),
        "interrupted": result.interrupted,
        **told,
        "entropy": float(f"{np.ravel(result.history.entropy)[0]:.9g}"),
        "labels": outcomes.labels,
        "p": _plain(outcomes.p),
        "q": _plain(result.probabilities),
        "logits": _plain(result.logits),
        "history": history,
    }
    with replacing(option, path) as draft:
        draft.write_text(json.dumps(content, allow_nan=False) + "\n", "utf-8")


def _plain(values: jax.Array | np.ndarray) -> Any:
    """Return nested lists; float32 as the shortest decimals that mean it."""
    array = np.asarray(values)
    if array.dtype == np.float32:
        array = array.astype("U32").astype(np.float64)
    plain = array.astype(object)
    plain[~np.isfinite(array)] = None
    return plain.tolist()


def check_picture(option: str, path: Path) -> None:
    """Refuse a picture format that matplotlib does not write, before any long work."""
    # Imported here: it takes a while, and most runs draw nothing.
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in known:
        endings = ", .".join(sorted(known))
        raise InputError(f"{option}: expected a name that ends in .{endings}; got {path.name!r}")


def write_picture(option: str, path: Path, outcomes: Outcomes, result: FitResult) -> None:
    """Draw the distributions, cross-entropy and the gap."""
    from jaxce import plots

    title = f"Fit of {outcomes.source}, {int(result.history.step[-1])} steps"
    title += " (interrupted)" if result.interrupted else ""
    figure = plots.fit_figure(result, labels=outcomes.labels, title=title.replace("$", r"\$"))
    figure.axes[0].set_xlabel("byte value" if outcomes.kind == "byte" else outcomes.kind)
    with replacing(option, path) as draft:
        figure.savefig(draft, format=path.suffix.lstrip(".").lower())
