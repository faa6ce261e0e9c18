"""A fit in float32 with our losses and with optax's: how near it comes, and what it shows of that.

    python -m benchmarks.convergence            the table and picture, into benchmarks/results
    python -m benchmarks.convergence --smoke    a few steps, to see that it runs

Logits start even and are trained by Adam, with the settings of `jaxce.fitting`, towards two
targets: one of frequencies that fall as powers of the rank, and one where a single class has nearly
all of the mass, as in a confident teacher. The true KL is computed in extended precision from the
float32 logits at every step. The shown gap is what the loop itself can report in float32: a
divergence, or a cross-entropy less the entropy of the target; for jaxce always the divergence. Line
searches (L-BFGS) compare losses, so they stop where these stop falling.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxce
from benchmarks import report
from jaxce import fitting

LD = np.longdouble
# Colour and line style.
STYLES = {
    "jaxce KL": ("#000000", "-"),
    "jaxce cross-entropy": ("#0072B2", "--"),
    "optax KL": ("#D55E00", "-"),
    "optax cross-entropy": ("#E69F00", "--"),
}


def losses() -> dict[str, tuple[Callable, Callable]]:
    """The loss that is trained, and the gap that a loop would log with it, of (logits, p)."""

    def entropy(p):
        return jnp.sum(jax.scipy.special.entr(p))

    def optax_kl(x, p):
        return optax.losses.kl_divergence(jax.nn.log_softmax(x), p)

    def optax_ce(x, p):
        return optax.losses.softmax_cross_entropy(x, p)

    def our_kl(x, p):
        return jaxce.kl_divergence_with_logits(jnp.log(p), x)

    def our_ce(x, p):
        return jaxce.cross_entropy_with_logits(p, x)

    return {
        "jaxce KL": (our_kl, our_kl),
        "jaxce cross-entropy": (our_ce, our_kl),
        "optax KL": (optax_kl, optax_kl),
        "optax cross-entropy": (optax_ce, lambda x, p: optax_ce(x, p) - entropy(p)),
    }


def targets(classes: int) -> dict[str, np.ndarray]:
    """Distributions in float32: they are the truth, as rounded."""
    ranks = np.arange(1, classes + 1, dtype=np.float64)
    falling = ranks**-2.0
    sure = np.where(ranks == 1, 0, 1 / ranks)
    sure = np.where(ranks == 1, 1 - 1e-6, 1e-6 * sure / sure.sum())
    return {
        "frequencies, rank⁻²": (falling / falling.sum()).astype(np.float32),
        "one class of 1 − 10⁻⁶": sure.astype(np.float32),
    }


@dataclass(frozen=True)
class Run:
    """One fit: by step, the true KL and the one that the loop could show."""

    true: np.ndarray
    shown: np.ndarray


@functools.partial(jax.jit, static_argnames=("loss", "gap", "optimizer", "steps"))
def trained(p: jax.Array, loss: Callable, gap: Callable, optimizer: object, steps: int) -> tuple:
    """Logits and shown gap before each step and after the last."""
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        x, state = carry
        line_search = optax.tree.get(state, "value") is not None
        value, grad = (
            value_and_grad(x, p, state=state) if line_search else jax.value_and_grad(loss)(x, p)
        )
        more = {"value": value, "grad": grad, "value_fn": lambda x: loss(x, p)}
        updates, after = optax.with_extra_args_support(optimizer).update(grad, state, x, **more)
        return (optax.apply_updates(x, updates), after), (x, gap(x, p))

    start = jnp.zeros_like(p)
    return jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[1]


def true_kl(logits: np.ndarray, p: np.ndarray) -> np.ndarray:
    """KL of the distribution that p stands for, in extended precision, without cancellation.

    p sums to 1 up to its own rounding only; it is normalized first, as the floor of any fit is.
    """
    x, p = logits.astype(LD), p.astype(LD)
    p = p / p.sum()
    top = x.max(-1, keepdims=True)
    log_q = x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))
    t = log_q - np.log(p)
    terms = np.where(np.abs(t) < 1e-3, t * t / 2 + t**3 / 6 + t**4 / 24, np.expm1(t) - t)
    return (p * terms).sum(-1).astype(float)


def fits(classes: int, steps: int, lbfgs_steps: int) -> dict[tuple[str, str, str], Run]:
    """By optimizer, target and loss."""
    runs, questions = {}, losses()
    optimizers = {
        "Adam": (fitting.default_optimizer(steps), steps),
        "L-BFGS": (optax.lbfgs(), lbfgs_steps),
    }
    for optimizer, (transformation, count) in optimizers.items():
        for target, p in targets(classes).items():
            for name, (loss, gap) in questions.items():
                logits, shown = trained(jnp.asarray(p), loss, gap, transformation, count)
                runs[optimizer, target, name] = Run(
                    true_kl(np.asarray(logits), p), np.asarray(shown, np.float64)
                )
    return runs


def last(values: np.ndarray) -> np.ndarray:
    """The last tenth of the steps."""
    return values[-max(1, len(values) // 10) :]


def table(runs: dict[tuple[str, str, str], Run]) -> report.Table:
    """Where each fit ends."""
    rows = []
    for (optimizer, target, name), run in runs.items():
        error = np.abs(last(run.shown) - last(run.true)) / last(run.true)
        off = f"{np.median(error):.1e}"
        negative = f"{100 * np.mean(run.shown < 0):.0f} %"
        end = f"{np.median(last(run.true)):.1e}"
        reached = int(np.argmax(run.true <= 2 * np.median(last(run.true))))
        rows.append([optimizer, target, name, end, str(reached), off, negative])
    columns = [
        *("optimizer", "target", "loss", "true KL at the end [nats]", "first step within twice it"),
        *("relative error of the shown gap", "steps where it is negative"),
    ]
    return report.Table("Where the fits end (medians of the last tenth of steps)", columns, rows, 3)


def picture(runs: dict[tuple[str, str, str], Run]) -> Figure:
    """KL against step: the truth, and what the loop shows."""
    names = list(dict.fromkeys(target for _, target, _ in runs))
    panels = [
        *((("Adam", names[0]), part) for part in ("true", "shown")),
        (("Adam", names[1]), "true"),
        (("L-BFGS", names[1]), "true"),
    ]
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    for ax, ((optimizer, target), part) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name, (color, style) in STYLES.items():
            run = runs[optimizer, target, name]
            values = getattr(run, part)
            step = np.arange(len(values))
            # Four curves that often coincide: thinner ones on top.
            width = 2.6 - 0.5 * list(STYLES).index(name)
            above = np.where(values > 0, values, np.nan)
            ax.plot(step, above, color=color, ls=style, lw=width, label=name)
            if (values < 0).any():
                below = np.where(values < 0, -values, np.nan)
                ax.plot(step, below, ls="", marker=".", ms=2, color=color, alpha=0.5)
        ax.set_yscale("log")
        what = "true KL" if part == "true" else "shown in float32 (dots: negative)"
        ax.set_title(f"{optimizer}, {target}: {what}", fontsize=9)
        ax.set(xlabel="step", ylabel="KL(p‖q) [nats]")
        ax.grid(alpha=0.3)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def main() -> None:
    """Print and write the table and the picture."""
    options = report.arguments(__doc__).parse_args()
    steps, lbfgs_steps = (60, 5) if options.smoke else (2000, 400)
    runs = fits(10 if options.smoke else 1000, steps, lbfgs_steps)
    out = report.Report(
        "convergence", "Fits in float32", options.out, report.environment(["optax"])
    )
    out.say(" ".join((__doc__ or "").split("\n\n")[-1].split()))
    out.table(table(runs))
    out.picture(picture(runs), "KL against step for ours and optax's losses")
    out.write()


if __name__ == "__main__":
    main()
