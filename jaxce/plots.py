"""Pictures of distributions, fits and evaluations, on matplotlib axes.

Every function draws on `ax` (None: pyplot's current axes) and returns it, so that a caller can go
on with labels and titles of his own. Colours are from the palette of Okabe and Ito, which readers
with any kind of colour vision tell apart; lines also differ in style, for print.

This module needs matplotlib, which `import jaxce` does not: `pip install 'jaxce[plots]'`.
"""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxce import _checks
from jaxce._drawing import AREA, FLOOR, PREDICTED, TRUE, axes
from jaxce._evaluation_plots import reliability, surprisal_histogram
from jaxce.fitting import FitResult, unit_name

__all__ = [
    "cross_entropy_area",
    "distributions",
    "fit_figure",
    "fit_gap",
    "fit_history",
    "reliability",
    "surprisal_histogram",
]

_FEW = 40  # outcomes that can have a bar and a name each


def distributions(
    p: ArrayLike,
    q: ArrayLike,
    *,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a true distribution as bars and a predicted one as points on them.

    Args:
        p: True probabilities, of shape [classes].
        q: Predicted ones, of shape [classes], or [n, classes] for n predictions: then the points
            are medians and lines go from the least to the largest.
        labels: Names of the classes, shown where there is room. None: their indices.
        ax: Where to draw.

    Returns:
        The axes.

    Raises:
        ValueError: If the shapes or the number of labels do not fit.

    Example:
        >>> ax = distributions([0.7, 0.2, 0.1], [0.6, 0.3, 0.1], ax=Figure().subplots())
        >>> ax.get_ylabel()
        'probability'
    """
    p, q = np.asarray(p), np.asarray(q)
    if p.ndim != 1 or q.ndim not in (1, 2) or q.shape[-1:] != p.shape:
        raise ValueError(
            f"p and q: expected shapes (classes,) and (classes,) or (n, classes), "
            f"got {p.shape} and {q.shape}."
        )
    if labels is not None and len(labels) != len(p):
        raise ValueError(f"labels: expected {len(p)} names, got {len(labels)}.")
    ax = axes(ax)
    index, middle = np.arange(len(p)), np.median(np.atleast_2d(q), 0)
    few = len(p) <= _FEW
    if few:
        ax.bar(index, p, width=0.8, color=AREA, edgecolor=TRUE, label="target p")
    else:
        ax.fill_between(index, p, step="mid", color=AREA, edgecolor=TRUE, label="target p")
    ax.plot(index, middle, "D", color=PREDICTED, ms=6 if few else 2, label="predicted q")
    if q.ndim == 2:
        ax.vlines(index, q.min(0), q.max(0), color=PREDICTED, lw=1.5)
    if few and labels is not None:
        long = max(map(len, labels)) * len(p) > 60
        ax.set_xticks(index, labels, rotation=45 if long else 0, ha="right" if long else "center")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 5, 8, 10]))
    ax.set(xlabel="outcome", ylabel="probability", ylim=(0, None))
    ax.margins(x=0.02)
    ax.legend(frameon=False)
    return ax


def fit_history(result: FitResult, *, ax: Axes | None = None) -> Axes:
    """Draw cross-entropy falling onto the entropy of the target, step by step.

    Args:
        result: What `fit_distribution` returned. Of several problems, the median is drawn as a line
            and the range from least to largest as a band.
        ax: Where to draw.

    Returns:
        The axes.
    """
    ax = axes(ax)
    history = result.history
    _band(ax, history.step, history.cross_entropy, TRUE, "cross-entropy H(p, q)")
    floor = np.asarray(history.entropy).reshape(len(history.step), -1)[0]
    for height in np.unique(floor)[:8]:
        ax.axhline(height, color=FLOOR, ls="--", lw=1.2)
    name = (
        f"entropy H(p): {floor[0]:.4g} {unit_name(result.base)}"
        if np.ptp(floor) == 0
        else "entropy"
    )
    ax.plot([], [], color=FLOOR, ls="--", lw=1.2, label=name)
    _steps(ax, history.step)
    if np.asarray(history.step)[-1] > 100:  # most of the fall is in the first steps
        ax.set_xscale("symlog", linthresh=10)
    ax.set_ylabel(f"cross-entropy [{unit_name(result.base)}]")
    ax.legend(frameon=False)
    return ax


def fit_gap(result: FitResult, *, ax: Axes | None = None) -> Axes:
    """Draw the gap between cross-entropy and entropy, KL(p‖q), on a logarithmic axis.

    A dotted line marks where the difference of the two ends in rounding: half a unit in the last
    place of the entropy. The recorded gap goes on below it.

    Args:
        result: What `fit_distribution` returned; several problems as in `fit_history`.
        ax: Where to draw.

    Returns:
        The axes.
    """
    ax = axes(ax)
    history = result.history
    _band(ax, history.step, history.kl_divergence, PREDICTED, "gap KL(p‖q)")
    entropy = np.asarray(history.entropy)
    resolution = np.spacing(entropy.max()) / 2 if entropy.size else 0
    if resolution > 0:
        name = f"resolution of H(p, q) − H(p) in {entropy.dtype}"
        ax.axhline(resolution, color=FLOOR, ls=":", lw=1.2, label=name)
    ax.set_yscale("log")
    _steps(ax, history.step)
    ax.set_ylabel(f"KL divergence [{unit_name(result.base)}]")
    ax.legend(frameon=False)
    return ax


def fit_figure(
    result: FitResult, *, labels: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """Return a figure of a fit: both distributions, cross-entropy on its floor, and the gap.

    Args:
        result: A fit of one target, from one start or of shape [n, classes] from n starts.
        labels: Names of the classes.
        title: A line above it all.

    Returns:
        A figure without a window; `figure.savefig("fit.png")` writes it.

    Raises:
        ValueError: If the fit is of several targets.
    """
    targets = np.asarray(result.target)
    targets = targets.reshape(-1, targets.shape[-1])
    if result.target.ndim > 2 or (targets != targets[:1]).any():
        raise ValueError(
            "result: expected one target of shape (classes,), or the same in every row of "
            f"(n, classes), got targets of shape {result.target.shape}."
        )
    figure = Figure(figsize=(10, 7), dpi=150, layout="constrained")
    panels = figure.subplot_mosaic([["distributions"] * 2, ["history", "gap"]])
    distributions(targets[0], result.probabilities, labels=labels, ax=panels["distributions"])
    fit_history(result, ax=panels["history"])
    fit_gap(result, ax=panels["gap"])
    figure.suptitle(title)
    return figure


def cross_entropy_area(
    x: ArrayLike, p: ArrayLike, q: ArrayLike, *, base: float | None = None, ax: Axes | None = None
) -> Axes:
    r"""Draw the cross-entropy of two densities as the area that it is.

    $$ H(p, q) = \int p(x) \log \frac{1}{q(x)} \, dx $$

    Args:
        x: A grid, of shape [n], rising.
        p: True density on the grid.
        q: Predicted density on the grid.
        base: Unit: None for nats, 2 for bits.
        ax: Where to draw.

    Returns:
        The axes. The legend tells the area, by the trapezoidal rule; it is the differential
        cross-entropy, which depends on the unit of x and may be negative.

    Raises:
        TypeError: If `base` is not a number.
        ValueError: If the three shapes differ, or `base` is not a finite number above 1.

    Example:
        >>> x = np.linspace(-6, 6, 1001)
        >>> p = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
        >>> ax = cross_entropy_area(x, p, p, base=2, ax=Figure().subplots())
        >>> ax.get_legend().get_texts()[-1].get_text()  # log2(2πe) / 2
        'H(p, q) = 2.05 bits'
    """
    x, p, q = np.asarray(x), np.asarray(p), np.asarray(q)
    if x.ndim != 1 or not x.shape == p.shape == q.shape:
        raise ValueError(
            f"x, p and q: expected one shape (n,), got {x.shape}, {p.shape} and {q.shape}."
        )
    with np.errstate(divide="ignore"):
        surprisal = -np.log(np.where(p > 0, q, 1)) / _checks.nats_per_unit(base)
    height = p * surprisal
    area = float(np.sum((height[1:] + height[:-1]) / 2 * np.diff(x)))
    ax = axes(ax)
    ax.plot(x, p, color=TRUE, label="true density p(x)")
    ax.plot(x, q, color=PREDICTED, ls="--", label="predicted density q(x)")
    name = f"H(p, q) = {area:.2f} {unit_name(base)}"
    ax.fill_between(x, height, color=AREA, alpha=0.5, label=name)
    ax.set(xlabel="x", ylabel=f"density; p(x) log 1/q(x) [{unit_name(base)}] per unit of x")
    ax.legend(frameon=False)
    return ax


def _band(ax: Axes, step: ArrayLike, values: ArrayLike, color: str, label: str) -> None:
    """Draw [records, ...] as a line, or as the median's line in the band of all."""
    step, rows = np.asarray(step), np.asarray(values).reshape(len(np.asarray(step)), -1)
    many = rows.shape[1] > 1
    # What diverged counts as infinite: above the rest, and not drawn.
    rows = np.where(np.isfinite(rows), rows, np.inf)
    low, middle, high = (
        np.where(np.isfinite(at), at, np.nan)
        for at in (rows.min(1), np.median(rows, 1), rows.max(1))
    )
    ax.plot(
        step, middle, color=color, label=f"{label}, median of {rows.shape[1]}" if many else label
    )
    if many:
        ax.fill_between(step, low, high, color=color, alpha=0.25, lw=0, label="least to largest")


def _steps(ax: Axes, step: ArrayLike) -> None:
    ax.set(xlabel="step", xlim=(0, max(int(np.asarray(step)[-1]), 1)))
    ax.grid(alpha=0.3)
