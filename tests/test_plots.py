"""Pictures: what is drawn is what was given, named and with units."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from jaxce import plots
from jaxce.fitting import FitHistory, FitResult
from jaxce.metrics import CalibrationError

plt.switch_backend("agg")


@pytest.fixture
def ax():
    return Figure().subplots()


def fitted(starts=None, records=201, base=2.0):
    """A result made up, without a fit: the gap shrinks tenfold every ten records, then is 0."""
    p = jnp.asarray([0.5, 0.25, 0.25], jnp.float32)
    shape = () if starts is None else (starts,)
    gap = 10.0 ** -np.arange(0, records / 10, 0.1)[:records]
    gap[-1] = 0
    gap = gap.reshape(-1, *(1 for _ in shape)) * np.ones(shape) * np.linspace(1, 2, starts or 1)
    gap = gap.reshape(records, *shape).astype(np.float32)
    entropy = np.full_like(gap, 1.5)
    history = FitHistory(*map(jnp.asarray, (np.arange(records), entropy + gap, entropy, gap, gap)))
    logits = jnp.log(jnp.broadcast_to(p.reshape(*(1 for _ in shape), 3), (*shape, 3)))
    return FitResult(logits, jnp.broadcast_to(p.reshape(*(1 for _ in shape), 3), (*shape, 3)),
                     history, base)  # fmt: skip


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def line(ax, name):
    return next(drawn for drawn in ax.lines if name in str(drawn.get_label()))


def test_distributions_of_a_few_outcomes(ax):
    p, q = [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]
    assert plots.distributions(p, q, labels=["sun", "rain", "snow"], ax=ax) is ax
    assert [bar.get_height() for bar in ax.patches] == p
    assert list(line(ax, "predicted").get_ydata()) == q
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["sun", "rain", "snow"]
    assert ax.get_ylabel() == "probability"
    assert set(texts(ax)) == {"target p", "predicted q"}


def test_distributions_of_256_bytes_stay_readable(ax):
    p = np.random.default_rng(0).dirichlet(np.ones(256))
    plots.distributions(p, p[::-1], labels=[hex(i) for i in range(256)], ax=ax)
    assert not ax.patches  # no 256 bars
    assert len(ax.get_xticks()) < 15
    assert list(line(ax, "predicted").get_ydata()) == list(p[::-1])


def test_distributions_of_many_predictions(ax):
    q = np.array([[0.5, 0.5], [0.6, 0.4], [0.9, 0.1]])
    plots.distributions([0.6, 0.4], q, ax=ax)
    np.testing.assert_array_equal(line(ax, "predicted").get_ydata(), [0.6, 0.4])
    spans = [path.vertices[:, 1] for path in ax.collections[-1].get_paths()]
    np.testing.assert_array_equal(spans, [[0.5, 0.9], [0.1, 0.5]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.5], [1.0]), r"p and q: expected shapes .* got \(2,\) and \(1,\)"),
        (([[0.5, 0.5]], [[0.5, 0.5]]), "p and q: expected"),
    ],
)
def test_shapes_that_do_not_fit(arguments, message, ax):
    with pytest.raises(ValueError, match=message):
        plots.distributions(*arguments, ax=ax)


def test_labels_that_do_not_fit(ax):
    with pytest.raises(ValueError, match="labels: expected 2 names, got 1"):
        plots.distributions([0.5, 0.5], [0.5, 0.5], labels=["a"], ax=ax)


@pytest.mark.parametrize(("base", "unit"), [(2.0, "bits"), (None, "nats"), (10.0, "log 10")])
def test_history_names_floor_and_unit(base, unit, ax):
    result = fitted(base=base)
    assert plots.fit_history(result, ax=ax) is ax
    np.testing.assert_array_equal(
        line(ax, "cross-entropy").get_ydata(), result.history.cross_entropy
    )
    assert ax.get_ylabel() == f"cross-entropy [{unit}]"
    assert texts(ax)[-1] == f"entropy H(p): 1.5 {unit}"
    assert set(ax.lines[1].get_ydata()) == {1.5}


def test_gap_is_logarithmic_and_may_end_in_zero(ax):
    result = fitted()
    assert plots.fit_gap(result, ax=ax) is ax
    assert ax.get_yscale() == "log"
    np.testing.assert_array_equal(line(ax, "gap").get_ydata(), result.history.kl_divergence)
    assert 1e-22 < ax.get_ylim()[0] < 1e-19
    resolution = line(ax, "resolution").get_ydata()[0]
    assert resolution == np.finfo(np.float32).eps / 2  # of an entropy from 1 to 2
    assert ax.get_ylabel() == "KL divergence [bits]"


def test_many_starts_are_a_median_in_a_band(ax):
    result = fitted(starts=5)
    plots.fit_gap(result, ax=ax)
    gap = np.asarray(result.history.kl_divergence)
    np.testing.assert_allclose(line(ax, "median of 5").get_ydata()[:-1], gap[:-1, 2], rtol=1e-6)
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == gap[0, -1]


def test_diverged_fit_is_drawn_as_far_as_it_went(ax):
    result = fitted()
    nan = jnp.full_like(result.history.kl_divergence, jnp.nan)
    history = FitHistory(result.history.step, nan, result.history.entropy, nan, nan)
    broken = FitResult(result.logits, result.target, history, 2.0)
    plots.fit_figure(broken).draw_without_rendering()
    some = fitted(starts=5)
    gap = some.history.kl_divergence.at[:, 4].set(jnp.nan)
    history = FitHistory(some.history.step, gap, some.history.entropy, gap, gap)
    plots.fit_gap(FitResult(some.logits, some.target, history, 2.0), ax=ax)
    np.testing.assert_array_equal(line(ax, "median").get_ydata(), gap[:, 2])


@pytest.mark.parametrize("starts", [None, 4])
def test_figure_of_a_fit_can_be_saved(starts, tmp_path):
    figure = plots.fit_figure(fitted(starts=starts), labels=["a", "b", "c"], title="title")
    figure.savefig(tmp_path / "fit.png")
    assert plt.imread(tmp_path / "fit.png").shape[:2] == (1050, 1500)
    assert len(figure.axes) == 3
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)


def test_figure_of_several_targets_is_refused():
    result = fitted(starts=2)
    other = FitResult(result.logits, result.target.at[1].set(1 / 3), result.history, 2.0)
    with pytest.raises(ValueError, match="result: expected one target"):
        plots.fit_figure(other)


def test_colours_differ_in_brightness_too(ax):
    plots.distributions([0.5, 0.5], [0.4, 0.6], ax=ax)
    bar, point = ax.patches[0].get_facecolor(), line(ax, "predicted").get_color()
    luminance = [np.dot(colors.to_rgb(c), [0.2126, 0.7152, 0.0722]) for c in (bar, point)]
    assert abs(luminance[0] - luminance[1]) > 0.15


def gaussian(x, mean=0.0, sigma=1.0):
    return np.exp(-(((x - mean) / sigma) ** 2) / 2) / np.sqrt(2 * np.pi) / sigma


@pytest.mark.parametrize("mean", [0.0, 1.0, 2.0])
def test_area_is_the_cross_entropy_of_two_gaussians(mean, ax):
    x = np.linspace(-10, 10, 4001)
    assert plots.cross_entropy_area(x, gaussian(x), gaussian(x, mean), ax=ax) is ax
    exact = np.log(2 * np.pi) / 2 + (1 + mean**2) / 2
    assert texts(ax)[-1] == f"H(p, q) = {exact:.2f} nats"
    assert "nats" in ax.get_ylabel()


def test_area_where_p_is_zero_counts_nothing(ax):
    x = np.linspace(0, 2, 2001)
    p = np.where(x <= 1, 1.0, 0.0)
    q = np.where(x <= 1, 0.5, 0.0)
    plots.cross_entropy_area(x, p, q, base=2, ax=ax)
    assert texts(ax)[-1] == "H(p, q) = 1.00 bits"


def test_area_refuses_other_shapes_and_bases(ax):
    with pytest.raises(ValueError, match=r"x, p and q: expected one shape \(n,\)"):
        plots.cross_entropy_area(np.zeros(3), np.zeros(3), np.zeros(2), ax=ax)
    with pytest.raises(ValueError, match="base: expected"):
        plots.cross_entropy_area(np.zeros(3), np.zeros(3), np.zeros(3), base=1, ax=ax)


def test_without_axes_the_current_ones_are_used():
    figure, ax = plt.subplots()
    assert plots.distributions([0.5, 0.5], [0.5, 0.5]) is ax
    plt.close(figure)


def calibration(**options):
    """Two bins: of 20 examples sure to 0.55, 15 are right; of 10 sure to 0.9, 5."""
    p = jnp.array([[0.55, 0.45]] * 20 + [[0.9, 0.1]] * 10, jnp.float32)
    labels = jnp.array([0] * 15 + [1] * 5 + [0] * 5 + [1] * 5)
    return CalibrationError.empty(bins=5, **options).update(jnp.log(p), labels)


def test_reliability_of_bins_of_equal_width(ax):
    metric = calibration()
    assert plots.reliability(metric, ax=ax) is ax
    points = line(ax, "calibration error")
    np.testing.assert_allclose(points.get_xdata(), [0.55, 0.9], rtol=1e-6)
    np.testing.assert_allclose(points.get_ydata(), [0.75, 0.5], rtol=1e-6)
    error = (20 * 0.2 + 10 * 0.4) / 30
    assert points.get_label() == f"calibration error {error:.3g}"
    bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in ax.patches]
    shares = [0, 0, 2 / 3, 0, 1 / 3]
    expected = [(i / 5, 1 / 5, share) for i, share in enumerate(shares)]
    np.testing.assert_allclose(bars, expected, atol=1e-6)
    assert list(line(ax, "right as often").get_xdata()) == [0, 1]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("confidence", "accuracy")


def test_reliability_of_bins_of_equal_mass_and_of_nothing(ax):
    plots.reliability(calibration(equal_mass=True), ax=ax)
    assert not ax.patches  # all shares are the same
    assert len(line(ax, "calibration error").get_xdata()) == 2
    other = Figure().subplots()
    plots.reliability(CalibrationError.empty(), ax=other)
    assert len(line(other, "calibration error nan").get_xdata()) == 0
    other.figure.draw_without_rendering()


def test_surprisals_in_bins(ax):
    surprisal = [0.1, 0.2, 1.5, 2.5, np.inf, np.nan]
    edges = [0, 1, 2, 3]
    assert plots.surprisal_histogram(surprisal, bins=edges, mean=1.25, base=2, ax=ax) is ax
    (stairs,) = ax.patches
    np.testing.assert_allclose(stairs.get_data().values, [2 / 5, 1 / 5, 1 / 5])
    np.testing.assert_array_equal(stairs.get_data().edges, edges)
    assert texts(ax) == ["cross-entropy 1.25 bits", "beyond: 0.2 of the examples"]
    assert list(line(ax, "cross-entropy").get_xdata()) == [1.25, 1.25]
    assert ax.get_xlabel() == "surprisal [bits]"
    assert ax.get_yscale() == "log"


def test_surprisals_with_weights(ax):
    plots.surprisal_histogram([1.0, 3.0, 5.0], weights=[3, 1, 0], bins=2, ax=ax)
    np.testing.assert_allclose(ax.patches[0].get_data().values, [0.75, 0.25])
    assert texts(ax) == ["cross-entropy 1.5 nats"]
    with pytest.raises(ValueError, match=r"weights: expected shape \(2,\), got \(3,\)"):
        plots.surprisal_histogram([1.0, 2.0], weights=[1, 1, 1], ax=ax)


def test_no_surprisals(ax):
    assert plots.surprisal_histogram([], ax=ax) is ax
    ax.figure.draw_without_rendering()
    assert ax.get_legend() is None  # neither a mean nor anything beyond the bins
