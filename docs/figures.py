"""The figures of the site: how many digits are right, here and in the usual formulas.

The exact results are computed with 50 decimal digits from the very float32 numbers that go in.
"""

import decimal
from decimal import Decimal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxce

OURS, USUAL = "#0072B2", "#D55E00"  # told apart with any kind of colour vision
EPS = float(np.finfo(np.float32).eps)
decimal.getcontext().prec = 50


def _error(got: jax.Array, exact: list[Decimal]) -> np.ndarray:
    """Relative errors; one too small to be drawn is drawn at the bottom."""
    errors = [
        abs(Decimal(float(g)) - e) / abs(e) for g, e in zip(np.asarray(got), exact, strict=True)
    ]
    return np.clip([float(e) for e in errors], EPS / 30, None)


def _compare(
    ax: Axes, x: np.ndarray, usual: np.ndarray, ours: np.ndarray, names: list[str]
) -> None:
    ax.plot(x, usual, "o--", color=USUAL, ms=4, lw=1, label=names[0])
    ax.plot(x, ours, "s-", color=OURS, ms=3, lw=1, label=names[1])
    ax.axhline(1, color="black", lw=1, ls=":")
    ax.axhline(EPS, color="gray", lw=1, ls=":")
    ax.set(yscale="log", ylim=(EPS / 60, 1e4))
    ax.set_yticks([1e-8, 1e-6, 1e-4, 1e-2, 1, 1e2])
    ax.text(0.02, 1.3, "no digit is right", transform=ax.get_yaxis_transform(), fontsize=8)
    ax.text(
        0.98, 1.5 * EPS, "1 float32 ulp", transform=ax.get_yaxis_transform(), fontsize=8, ha="right"
    )
    ax.legend(frameon=False, loc="upper right", fontsize=8)
    ax.grid(alpha=0.25)


def confident() -> Figure:
    """The loss of a right answer, and its gradient, against how sure the answer is."""
    margin = np.linspace(1, 40, 60, dtype=np.float32)
    logits = jnp.stack([jnp.asarray(margin), jnp.zeros(len(margin))], axis=-1)
    odds = [(-Decimal(float(d))).exp() for d in margin]
    loss = [(1 + o).ln() for o in odds]
    slope = [-o / (1 + o) for o in odds]

    def usual(x: jax.Array) -> jax.Array:
        return -jax.nn.log_softmax(x)[0]

    def ours(x: jax.Array) -> jax.Array:
        return jaxce.cross_entropy_with_logits(jnp.int32(0), x)

    figure = Figure(figsize=(8.6, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for ax, view, exact, title in (
        (left, jax.vmap, loss, "loss"),
        (right, lambda f: jax.vmap(jax.grad(f)), slope, "gradient at the label"),
    ):
        got = []
        for function in (usual, ours):
            value = jax.jit(view(function))(logits)
            got.append(_error(value if value.ndim == 1 else value[:, 0], exact))
        _compare(ax, margin, *got, ["−log_softmax(x)[label]", "jaxce"])
        ax.set(title=title, xlabel="lead of the label's logit [nats]")
    left.set_ylabel("relative error [1]")
    return figure


def near() -> Figure:
    """The divergence of two distributions against how near they are."""
    rng = np.random.default_rng(0)
    base, direction = rng.normal(size=(2, 100)).astype(np.float32)
    sizes = np.logspace(-5, 0, 26)
    p = np.broadcast_to(base, (len(sizes), 100))
    q = p + (sizes[:, None] * direction).astype(np.float32)

    def exact(a: np.ndarray, b: np.ndarray) -> Decimal:
        a_, b_ = ([Decimal(float(v)) for v in row] for row in (a, b))
        log_a, log_b = (sum(v.exp() for v in row).ln() for row in (a_, b_))
        return sum(
            ((x - log_a).exp() * ((x - log_a) - (y - log_b)) for x, y in zip(a_, b_, strict=True)),
            Decimal(0),
        )

    expected = [exact(a, b) for a, b in zip(p, q, strict=True)]

    @jax.jit
    def usual(a: jax.Array, b: jax.Array) -> jax.Array:
        log_p, log_q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)

    figure = Figure(figsize=(5.4, 3.7), layout="constrained")
    ax = figure.subplots()
    got = [_error(f(p, q), expected) for f in (usual, jaxce.kl_divergence_with_logits)]
    _compare(ax, sizes, *got, ["Σ p (log p − log q)", "jaxce"])
    ax.set(xscale="log", xlabel="distance of the logits [nats]", ylabel="relative error [1]")
    ax.set_title("KL divergence, 100 classes")
    return figure


def draw(folder: Path) -> None:
    """Write the figures into the folder, unless they are newer than this file."""
    for make in (confident, near):
        path = folder / f"{make.__name__}.svg"
        if not path.exists() or path.stat().st_mtime < Path(__file__).stat().st_mtime:
            make().savefig(path, metadata={"Date": None})
