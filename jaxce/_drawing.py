"""What all pictures share: colours that everyone tells apart, and axes to draw on."""

from matplotlib.axes import Axes

# From the palette of Okabe and Ito.
TRUE, PREDICTED, AREA, FLOOR = "#0072B2", "#D55E00", "#56B4E9", "#000000"


def axes(ax: Axes | None) -> Axes:
    """Return the axes, or pyplot's current ones."""
    if ax is not None:
        return ax
    # Imported here, because it picks a window system: not wanted by whoever brings an `ax`.
    from matplotlib import pyplot as plt

    return plt.gca()
