"""`jaxce fit`: fit a predicted distribution to a target, and show how."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import optax
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jaxce.cli import _report, _starts, _targets
from jaxce.cli._files import InputError, check_outputs
from jaxce.cli._targets import EXAMPLES, Outcomes
from jaxce.fitting import (
    FitHistory,
    FitResult,
    decaying,
    default_optimizer,
    fit_distribution,
)

_RECORDS = 1000  # as many as a picture can show

# Those of optax that need nothing but a learning rate, and take one that falls.
Optimizer = Literal[
    "adabelief", "adagrad", "adam", "adamax", "adamw", "adan", "amsgrad", "lamb", "lbfgs", "lion",
    "nadam", "nadamw", "novograd", "radam", "rmsprop", "sgd", "sign_sgd", "signum", "yogi",
]  # fmt: skip


def fit(
    target: Annotated[
        Literal["weather"] | None,
        typer.Option(help="An example.", show_default="weather", rich_help_panel="Target"),
    ] = None,
    probs: Annotated[
        str | None,
        typer.Option(help="Probabilities: 0.7,0.2,0.1", metavar="LIST", rich_help_panel="Target"),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            help="A column of weights or counts.", metavar="FILE", rich_help_panel="Target"
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            help="The column of --csv: a name, or a number from 1.",
            metavar="COLUMN",
            rich_help_panel="Target",
        ),
    ] = None,
    bytes_: Annotated[
        Path | None,
        typer.Option(
            "--bytes", help="The bytes of any file.", metavar="FILE", rich_help_panel="Target"
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Probabilities, or the word uniform.",
            metavar="LIST",
            show_default="uniform; for weather, a code's",
            rich_help_panel="Start",
        ),
    ] = None,
    code_lengths: Annotated[
        str | None,
        typer.Option(
            help="What a code with words of these lengths, in bits, is made for: 1,2,2",
            metavar="LIST",
            rich_help_panel="Start",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="N random ones at once.", metavar="N", min=1, rich_help_panel="Start"),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="For --batch.", metavar="N", rich_help_panel="Start")
    ] = 0,
    optimizer: Annotated[
        Optimizer | None,
        typer.Option(
            help="From optax: adam, sgd, lbfgs, ...",
            metavar="NAME",
            show_default="adam with a short memory",
            rich_help_panel="Fit",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="The first one; it falls to 0 over the steps.",
            metavar="RATE",
            show_default="0.2; 0.1 with a named optimizer",
            rich_help_panel="Fit",
        ),
    ] = None,
    loss: Annotated[
        Literal["cross_entropy", "kl"],
        typer.Option(help="lbfgs gets furthest on kl.", rich_help_panel="Fit"),
    ] = "cross_entropy",
    steps: Annotated[
        int, typer.Option(help="Updates.", metavar="N", min=1, max=2**31 - 1, rich_help_panel="Fit")
    ] = 2000,
    units: Annotated[
        Literal["bits", "nats"], typer.Option(help="Of all measures.", rich_help_panel="Output")
    ] = "bits",
    json: Annotated[
        Path | None,
        typer.Option(help="Result and history.", metavar="FILE", rich_help_panel="Output"),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Distributions, cross-entropy and gap, as .png, .pdf, .svg, ...",
            metavar="FILE",
            rich_help_panel="Output",
        ),
    ] = None,
) -> None:
    """Fit a predicted distribution to a target, and watch cross-entropy fall onto the entropy.

    The default target is the weather of a sunny place, and the start is the code of a place where
    everything is the other way round: 4.58 bits per outcome, where 2.23 would do.

    Ctrl-C ends the fit and keeps what was recorded so far. Exit codes: 0 done; 1 the gap has grown;
    2 bad input, told in one line; 130 interrupted.
    """
    outcomes, lengths = _target(target, probs, csv, column, bytes_)
    if code_lengths is not None:
        lengths = _targets.numbers("--code-lengths", code_lengths)
    elif start is not None or batch is not None:
        lengths = None
    if sum(option is not None for option in (start, code_lengths, batch)) > 1:
        raise InputError("--start, --code-lengths and --batch are three ways to start: give one")
    logits, begin = _starts.logits(outcomes, start, lengths, batch, seed)
    tuned = _optimizer(optimizer, learning_rate, steps)
    if plot is not None:
        _report.check_picture("--plot", plot)
    check_outputs({"--json": json, "--plot": plot}, inputs=[csv, bytes_])

    print(f"target  {outcomes}")
    print(f"start   {begin}", flush=True)
    job = functools.partial(
        fit_distribution,
        jnp.asarray(outcomes.p, logits.dtype)[(None,) * (logits.ndim - 1)],
        init_logits=logits,
        optimizer=tuned,
        steps=steps,
        loss=loss,
        base=2 if units == "bits" else None,
        record_every=-(-steps // _RECORDS),
    )
    result = _watched(job, steps, units)
    _report.show(outcomes, result)
    if result.interrupted:
        last = int(result.history.step[-1])
        print(f"jaxce: interrupted: {last} of {steps} steps were done", file=sys.stderr)
    if json is not None:
        told = {"steps": steps, "loss": loss, "optimizer": optimizer, "seed": seed}
        _report.write_json("--json", json, outcomes, result, told)
    if plot is not None:
        _report.write_picture("--plot", plot, outcomes, result)
    if result.interrupted:
        raise typer.Exit(130)
    gap = np.asarray(result.history.kl_divergence)
    if not (gap[-1] <= gap[0] + 1e-6).all():  # NaN too
        print("jaxce: error: the gap has grown: try a smaller --learning-rate", file=sys.stderr)
        raise typer.Exit(1)


def _target(
    name: str | None, probs: str | None, csv: Path | None, column: str | None, bytes_: Path | None
) -> tuple[Outcomes, np.ndarray | None]:
    """Return the target and, for an example, the code lengths that its fit starts from."""
    if sum(option is not None for option in (name, probs, csv, bytes_)) > 1:
        raise InputError("--target, --probs, --csv and --bytes are four ways to a target: give one")
    if column is not None and csv is None:
        raise InputError("--column: needs --csv")
    if probs is not None:
        return _targets.from_probs(probs), None
    if csv is not None:
        return _targets.from_csv(csv, column), None
    if bytes_ is not None:
        return _targets.from_bytes(bytes_), None
    return EXAMPLES["weather" if name is None else name]


def _optimizer(
    name: Optimizer | None, learning_rate: float | None, steps: int
) -> optax.GradientTransformation:
    if learning_rate is not None and not 0 < learning_rate <= 1e30:
        raise InputError(
            f"--learning-rate: expected a number from 0 to 1e30, got {learning_rate:g}"
        )
    if name is None:
        return default_optimizer(steps, 0.2 if learning_rate is None else learning_rate)
    if name == "lbfgs" and learning_rate is None:
        return optax.lbfgs()  # its line search finds the rate
    return getattr(optax, name)(decaying(0.1 if learning_rate is None else learning_rate, steps))


def _watched(fit: Callable[..., FitResult], steps: int, unit: str) -> FitResult:
    """Run a fit under a progress bar with the gap of the worst start; no bar without a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return fit()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("KL {task.fields[kl]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("compiling", total=steps, kl="...")

        def progress(done: int, latest: FitHistory) -> None:
            kl = f"{np.max(latest.kl_divergence):.2e} {unit}"
            bar.update(task, description="fitting", completed=done, kl=kl)

        return fit(progress=progress)
