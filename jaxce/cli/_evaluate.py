"""`jaxce evaluate`: how good predictions in files are, however large the files."""

import contextlib
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Annotated

import typer

from jaxce.cli import _checkpoint, _examples, _summary
from jaxce.cli._files import InputError, check_outputs
from jaxce.cli._job import Job


def evaluate_files(
    logits: Annotated[
        Path,
        typer.Option(
            help="Logits, [..., classes]: .npy, .npz or .safetensors, or a folder of such shards.",
            metavar="PATH",
            rich_help_panel="Input",
        ),
    ],
    labels: Annotated[
        Path,
        typer.Option(help="Class indices, [...].", metavar="PATH", rich_help_panel="Input"),
    ],
    where: Annotated[
        Path | None,
        typer.Option(
            help="Booleans, [...]: which examples count.", metavar="PATH", rich_help_panel="Input"
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="How much each example counts, [...].", metavar="PATH", rich_help_panel="Input"
        ),
    ] = None,
    bytes_per_token: Annotated[
        str | None,
        typer.Option(
            help="Of the text that a label stands for, [...], or one number for all.",
            metavar="PATH|NUMBER",
            rich_help_panel="Input",
        ),
    ] = None,
    log_probs: Annotated[
        bool,
        typer.Option(
            "--log-probs",
            help="The logits are log-probabilities: refuse others.",
            rich_help_panel="Input",
        ),
    ] = False,
    ignore_index: Annotated[
        int | None,
        typer.Option(
            help="The label of examples that do not count.",
            metavar="LABEL",
            rich_help_panel="Input",
        ),
    ] = None,
    skip_bad_labels: Annotated[
        bool,
        typer.Option(
            "--skip-bad-labels",
            help="Leave out and count labels that are no class.",
            rich_help_panel="Input",
        ),
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Examples at a time.",
            metavar="N",
            min=1,
            max=2**31 - 1,
            show_default="by the number of classes",
            rich_help_panel="Run",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder for metrics.json, reliability.png and surprisal.png.",
            metavar="DIR",
            rich_help_panel="Run",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on where a run with the same --report was ended.",
            rich_help_panel="Run",
        ),
    ] = False,
) -> None:
    """Measure predictions in files: cross-entropy, accuracy, calibration and more, in one pass.

    The files may be larger than memory. Of a file with several arrays, the one called as the option
    is taken: logits, labels, where, weights, bytes_per_token. Logits of float64 are rounded to
    float32, unless JAX_ENABLE_X64=1 is set.

    With --report, what was reached is saved every two seconds: a run that was killed ends with the
    same numbers if it is started again with --resume.

    Exit codes: 0 done; 2 bad input, told in one line; 130 interrupted, with what was reached.
    """
    if resume and report is None:
        raise InputError("--resume: needs the --report of the run that was ended")
    examples = _examples.opened(logits, labels, where, weights, bytes_per_token, ignore_index)
    with contextlib.closing(examples):
        examples.check(skip_bad_labels=skip_bad_labels)
        job = Job(examples, batch_size, log_probs=log_probs, skip_bad_labels=skip_bad_labels)
        inputs = [Path(a) for a in (logits, labels, where, weights, bytes_per_token) if a]
        with _folder(report, inputs, resume=resume) as state:
            result = job.run(state, resume=resume)
            rows = min(int(result.metrics.steps) * job.size, examples.logits.length)
            summary = _summary.summarize(result.metrics, examples, rows)
            try:
                _summary.show(summary)
            finally:  # the report is written also if nobody reads the table to its end
                if report is not None:
                    _summary.write(report, summary)
            if state is not None and not result.interrupted:
                state.unlink(missing_ok=True)
    if result.interrupted:
        all_of_them = examples.logits.length
        hint = "" if report is None else "; the same with --resume reads the rest"
        print(
            f"jaxce: interrupted: {rows} of {all_of_them} examples were read{hint}", file=sys.stderr
        )
        raise typer.Exit(130)


@contextlib.contextmanager
def _folder(report: Path | None, inputs: list[Path], *, resume: bool) -> Generator[Path | None]:
    """Make the folder, and give the file for the state; leave nothing if the input is refused."""
    if report is None:
        yield None
        return
    made = not report.exists()
    state = report / "state.npz"
    try:
        try:
            report.mkdir(exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"--report: cannot make {report}: {reason}") from None
        names = (*_summary.FILES, state.name)
        check_outputs({f"--report {name}": report / name for name in names}, inputs)
        if any(path.is_dir() and path.samefile(report) for path in inputs):
            raise InputError(f"--report: {report} is a folder of shards")
        if state.exists() and not (resume or _checkpoint.is_state(state)):
            raise InputError(f"--report: {state} is not of an evaluation, and would be replaced")
        for draft in report.glob(f".{state.name}.*"):  # of a run that was killed while it saved
            draft.unlink(missing_ok=True)
        yield state
    except InputError:
        if made:
            with contextlib.suppress(OSError):
                report.rmdir()
        raise
