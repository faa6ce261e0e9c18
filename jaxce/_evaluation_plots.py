"""Pictures of how good predictions are; public in `jaxce.plots`."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from jaxce import _checks
from jaxce._drawing import AREA, FLOOR, PREDICTED, TRUE, axes
from jaxce.fitting import unit_name
from jaxce.metrics import CalibrationError


def reliability(metric: CalibrationError, *, ax: Axes | None = None) -> Axes:
    r"""Draw how often a classifier is right against how sure it is.

    A point is a bin of examples; the line to the diagonal is its part in the calibration error,

    $$ \text{error} = \sum_b \frac{w_b}{\sum_c w_c} |\text{accuracy}_b - \text{confidence}_b| $$

    Below the diagonal it is too sure of itself. With bins of equal width, bars show how large a
    share of the examples each has.

    Args:
        metric: What has been counted.
        ax: Where to draw.

    Returns:
        The axes. The legend tells the calibration error.

    Example:
        >>> import jax.numpy as jnp
        >>> from matplotlib.figure import Figure
        >>> metric = CalibrationError.empty(bins=10)
        >>> logits = jnp.log(jnp.array([[0.75, 0.25]] * 4))
        >>> metric = metric.update(logits, jnp.array([0, 0, 1, 1]))
        >>> ax = reliability(metric, ax=Figure().subplots())
        >>> ax.get_legend().get_texts()[1].get_text()
        'calibration error 0.25'

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """
    confidence, accuracy, weight = (np.asarray(column) for column in metric.table())
    error, drawn = float(metric.compute()), weight > 0
    share = weight / max(weight.sum(), np.finfo(np.float32).tiny)
    ax = axes(ax)
    if not metric.equal_mass:
        left = np.arange(metric.bins) / metric.bins
        ax.bar(
            left, share, 1 / metric.bins, align="edge", color=AREA, edgecolor="white", alpha=0.6,
            label="share of the examples",
        )  # fmt: skip
    ax.plot([0, 1], [0, 1], color=FLOOR, ls="--", lw=1.2, label="right as often as sure")
    ax.vlines(confidence[drawn], confidence[drawn], accuracy[drawn], color=PREDICTED, lw=2)
    name = f"calibration error {error:.3g}"
    # Perfect accuracy is on the frame, and drawn over it.
    x, y = confidence[drawn], accuracy[drawn]
    ax.plot(x, y, "o", color=PREDICTED, ms=6, clip_on=False, zorder=3, label=name)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax


def surprisal_histogram(
    surprisal: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    bins: int | Sequence[float] | np.ndarray = 50,
    mean: float | None = None,
    base: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how the surprisals of the examples are spread around their mean, the cross-entropy.

    The axis of shares is logarithmic, because a few examples that a model was sure to be otherwise
    can make most of its cross-entropy.

    Args:
        surprisal: One number per example, of shape [...]; NaN is left out.
        weights: How much each counts, of the same shape.
        bins: How many bins, or their edges. What lies beyond, infinity too, is told in the legend.
        mean: The cross-entropy, where it is known better than from `surprisal`, as when these are
            the middles of bins and `weights` what was counted there.
        base: Unit of the surprisals: None for nats, 2 for bits.
        ax: Where to draw.

    Returns:
        The axes.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = surprisal_histogram([0.5, 1.0, 3.0], base=2, ax=Figure().subplots())
        >>> ax.get_legend().get_texts()[0].get_text()
        'cross-entropy 1.5 bits'
    """
    values = np.asarray(surprisal, np.float64)
    w = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    if values.shape != w.shape:
        raise ValueError(f"weights: expected shape {values.shape}, got {w.shape}.")
    _checks.nats_per_unit(base)
    there = ~np.isnan(values) & (w > 0)
    values, w = values[there], w[there]
    finite = np.isfinite(values)
    counts, edges = np.histogram(values[finite], bins, weights=w[finite])
    total = w.sum() if w.size else 1.0
    if mean is None:
        mean = float(np.sum(values * w) / total) if w.size else np.nan
    ax = axes(ax)
    ax.stairs(counts / total, edges, fill=True, color=AREA, edgecolor=TRUE)
    if np.isfinite(mean):
        name = f"cross-entropy {mean:.4g} {unit_name(base)}"
        ax.axvline(mean, color=PREDICTED, lw=1.8, label=name)
    if (beyond := (w.sum() - counts.sum()) / total) > 1e-12:
        ax.plot([], [], " ", label=f"beyond: {beyond:.2g} of the examples")
    if counts.any():
        ax.set_yscale("log")
    ax.set(xlabel=f"surprisal [{unit_name(base)}]", ylabel="share of the examples")
    ax.set_xlim(edges[0], edges[-1])
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
    return ax
