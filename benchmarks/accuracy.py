"""Largest error of every measure and loss, and of every peer's, in ulp over the tests' corpus.

    python -m benchmarks.accuracy            the tables and pictures, into benchmarks/results
    python -m benchmarks.accuracy --smoke    a few measures at a tiny size, to see that it runs

An answer is wrong if it is NaN or infinite where the exact one is not, or more than 16 ulp off and
of the other sign. Errors are of those answers that are not wrong. An ulp is one of float32 (or
float64) at the size that the library promises 16 ulp of: the value itself; a gradient's component
of a cross-entropy, where each nat of its surprisal allows one ulp more; the largest component of
other gradients. Where more than 16 are allowed the error is scaled down, so 16 is the promise
everywhere. Gradients are by all floating arguments, of losses by the predictions. bfloat16 inputs
are judged by the exact function of the rounded inputs, values as float32, gradients as bfloat16.
No digit is right where the error is 2/eps (2e7 in float32); more is not counted.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import ml_dtypes
import numpy as np
from matplotlib.figure import Figure

from benchmarks import peers, questions, report
from benchmarks.questions import HALF, LARGE, LD, MASKED, REGIMES, Question
from tests import oracles
from tests.cases import ULPS

SMOKE = ("entropy_with_logits", "cross_entropy_with_logits[labels]")
# What the README shows: name there, question; and in which regimes.
MAIN = {
    "entropy": "entropy_with_logits",
    "cross-entropy": "cross_entropy_with_logits[labels]",
    "KL divergence": "kl_divergence_with_logits",
}
MAIN_REGIMES = ("ordinary", "confident", "near-equal", "-inf or 0", HALF, LARGE)


@dataclass(frozen=True)
class Answer:
    """How a library did on the rows of one regime."""

    question: str
    library: str
    dtype: str
    regime: str
    value: float  # largest errors, in ulp; NaN if no answer is left to judge
    gradient: float  # NaN also where there is none
    wrong: int  # rows
    rows: int

    @property
    def keeps(self) -> bool:
        """Within the promise: a tie."""
        return not self.wrong and self.value <= ULPS and not self.gradient > ULPS


def ulp(size: np.ndarray, dtype: str) -> np.ndarray:
    """The spacing of dtype's numbers at this size; never below that of the smallest normal."""
    info = ml_dtypes.finfo(dtype)
    smallest = LD(float(info.smallest_normal))
    _, exponent = np.frexp(np.maximum(size, smallest))
    return np.ldexp(LD(1), exponent - 1 - info.nmant)


def judged(
    got: np.ndarray, want: np.ndarray, bound: tuple, dtype: str, terms: int
) -> tuple[np.ndarray, np.ndarray]:
    """Errors in ulp and what is wrong, both by row.

    So many terms may be flushed to zero where they are below the smallest normal number.
    """
    got, want = np.asarray(got).astype(LD), np.asarray(want)
    size, allowed = bound
    tiny = LD(np.finfo("float32" if dtype == "bfloat16" else dtype).smallest_normal)
    with np.errstate(all="ignore"):
        unit = ulp(np.where(np.isfinite(size), size, 0), dtype)
        error = np.where(got == want, 0, np.abs(got - want))
        error = ULPS * error / (allowed * unit + terms * tiny * -np.log(tiny))
        lost = np.isnan(error) | np.isinf(error)
        other_sign = (got * want < 0) & (error > ULPS)
    wrong = np.broadcast_to(lost | other_sign, got.shape).reshape(len(got), -1).any(-1)
    error = np.where(lost, 0, error).reshape(len(got), -1).max(-1)
    error = np.minimum(error, 2 / LD(float(ml_dtypes.finfo(dtype).eps)))
    return np.where(wrong, np.nan, error).astype(float), wrong


def run(
    question: Question, library: str, functions: list[Callable], args: list, truth: tuple
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Errors of value and gradient and what is wrong, by row; for each function that can mask."""
    where, cotangent, want, slopes, value_bound, grad_bounds = truth
    dtype = args[-1].dtype.name
    wide = "float32" if dtype == "bfloat16" else dtype
    terms = args[-1].shape[-1] if args[-1].ndim > 1 else 1
    for function in functions:
        keywords = {}
        if where is not None:
            if not {"where", "keywords"} & set(inspect.signature(function).parameters):
                continue
            keywords = {"where": where}
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
                run_function = peers.runner(library)(function, question.wrt)
                value, grads = run_function(args, cotangent, keywords)
        except Exception as error:  # a release of a peer may refuse what another takes
            if library == "jaxce":
                raise
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            print(f"{library}, {question.name}, {dtype}: {reason}", file=sys.stderr)
            continue
        value = np.asarray(value)
        if where is not None and question.weighted:  # what a mask leaves out has no value to judge
            value, want = np.where(where, value, 0), np.where(where, want, 0)
        error, wrong = judged(value, want, value_bound, wide, terms)
        error_of_grad = np.full(len(error), np.nan)
        if grads is not None and (library, question.name) not in peers.NORMALIZED_AGAIN:
            for got, slope, bound in zip(grads, slopes, grad_bounds, strict=True):
                e, w = judged(np.asarray(got), slope, bound, dtype, terms)
                error_of_grad, wrong = np.fmax(error_of_grad, e), wrong | w
        yield error, error_of_grad, wrong


def exact_answers(question: Question, args: list, where: np.ndarray | None) -> tuple:
    """What `run` compares with."""
    meant = args if where is None else questions.sliced(question, args, where)
    meant = [a if a.dtype.kind in "iu" else a.astype(LD) for a in meant]
    want = np.asarray(question.value(*meant))
    cotangent = np.ones(want.shape, np.float32 if args[-1].dtype.itemsize < 8 else np.float64)
    if question.weighted:  # no weight on what is infinite
        cotangent = np.where(np.isfinite(want), cotangent, 0).astype(cotangent.dtype)
    weights = cotangent.astype(LD)
    slopes = question.grads(meant, weights)
    return (
        where,
        cotangent,
        want,
        slopes,
        question.value_bound(meant, want),
        question.grad_bounds(meant, weights, slopes),
    )


def answers(
    question: Question, libraries: dict, dtype: str, classes: int, *, masked: bool = False
) -> Iterator[Answer]:
    """Run every library that has the question on all rows at once; split by regime."""
    names, args = questions.inputs(question, classes, dtype)
    wide = [a if a.dtype.kind in "iu" else a.astype(np.float64) for a in args]
    where_is = [
        questions.regime(question, n, row)
        for n, row in zip(names, zip(*wide, strict=True), strict=True)
    ]
    if masked or classes > 100_000 or dtype == "bfloat16":
        keep = np.array([r != questions.EMPTY for r in where_is])
        args = [a[keep] for a in args]
        name = MASKED if masked else HALF if dtype == "bfloat16" else LARGE
        where_is = [name] * int(keep.sum())
    truth = exact_answers(question, args, questions.mask(question, args) if masked else None)
    for library, functions in libraries.items():
        if dtype == "bfloat16" and library == "scipy":  # which has no such type
            continue
        runs = list(run(question, library, functions, args, truth))
        for regime in dict.fromkeys(where_is):
            chosen = np.array([r == regime for r in where_is])
            judgements = [[part[chosen] for part in parts] for parts in runs]
            if not judgements:
                continue
            values, grads, wrong = min(  # the best function that the peer has
                judgements, key=lambda j: (j[2].sum(), largest(j[0]), largest(j[1]))
            )
            yield Answer(
                question.name,
                library,
                dtype,
                regime,
                largest(values),
                largest(grads),
                int(wrong.sum()),
                len(wrong),
            )


def largest(errors: np.ndarray) -> float:
    """NaN for none."""
    errors = errors[~np.isnan(errors)]
    return float(errors.max()) if errors.size else np.nan


def survey(names: list[str] | None, found: dict, *, smoke: bool) -> list[Answer]:
    """Everything, merged over the numbers of classes."""
    results = []
    for question in questions.QUESTIONS:
        if names and question.name not in names:
            continue
        libraries = {"jaxce": [question.ours]} | {
            library: table[question.name]
            for library, table in found.items()
            if question.name in table
        }
        sizes = [n for n in question.sizes if n <= 10] if smoke else question.sizes
        plan = [("float32", n, False) for n in sizes]
        if question.masks:
            plan.append(("float32", 10, True))
        if not smoke:
            middle = min(1000, question.sizes[-1])
            plan.append(("bfloat16", middle, False))
            if oracles.JUDGES_FLOAT64:
                plan.append(("float64", middle, False))
        for dtype, classes, masked in plan:
            jax.config.update("jax_enable_x64", dtype == "float64")
            results += answers(question, libraries, dtype, classes, masked=masked)
        jax.config.update("jax_enable_x64", False)
        jax.clear_caches()  # the programs of one question are of no use to the next
    return merged(results)


def merged(results: list[Answer]) -> list[Answer]:
    """One answer for each question, library, dtype and regime."""
    groups: dict[tuple, list[Answer]] = {}
    for a in results:
        groups.setdefault((a.question, a.library, a.dtype, a.regime), []).append(a)
    return [
        Answer(
            *key,
            largest(np.array([a.value for a in group])),
            largest(np.array([a.gradient for a in group])),
            sum(a.wrong for a in group),
            sum(a.rows for a in group),
        )
        for key, group in groups.items()
    ]


def number(error: float) -> str:
    """Errors in few characters."""
    if np.isnan(error):
        return "–"
    return f"{error:.1f}" if error < 100 else f"{error:.0e}".replace("e+0", "e").replace("e+", "e")


def cell(answer: Answer | None) -> str:
    """value / gradient, how many are wrong; bold if within the promise."""
    if answer is None:
        return ""
    text = f"{number(answer.value)} / {number(answer.gradient)}"
    if answer.wrong:
        text += f", {answer.wrong} of {answer.rows} wrong"
    return f"**{text}**" if answer.keeps else text


def tables(results: list[Answer], libraries: list[str]) -> Iterator[report.Table]:
    """A table for each dtype and regime."""
    found = {(a.dtype, a.regime, a.question, a.library): a for a in results}
    for dtype in ("float32", "bfloat16", "float64"):
        for regime in REGIMES:
            rows = []
            for question in dict.fromkeys(a.question for a in results):
                cells = [cell(found.get((dtype, regime, question, n))) for n in libraries]
                if any(cells):
                    rows.append([question, *cells])
            if rows:
                name = regime if regime == dtype else f"{dtype}, {regime}"
                yield report.Table(name, ["value / gradient, ulp", *libraries], rows)


def summary(results: list[Answer], libraries: list[str]) -> report.Table:
    """A few questions by regime, as the README shows them."""
    found = {(a.question, a.regime, a.library): a for a in results if a.dtype != "float64"}
    rows = []
    for name, question in MAIN.items():
        for regime in MAIN_REGIMES:
            cells = [cell(found.get((question, regime, library))) for library in libraries]
            if any(cells):
                rows.append([name, regime, *cells])
    columns = ["from logits", "inputs", *libraries]
    return report.Table("Summary: value / gradient, largest error in ulp", columns, rows, left=2)


def ties(results: list[Answer]) -> str:
    """How often a peer keeps the promise too."""
    theirs = [a for a in results if a.library != "jaxce"]
    if not theirs:
        return "No peer is installed."
    keeping = [a for a in theirs if a.keeps]
    ours = [a for a in results if a.library == "jaxce"]
    missed = [f"{a.question} ({a.dtype}, {a.regime})" for a in ours if not a.keeps]
    return (
        f"jaxce: {len(ours) - len(missed)} of {len(ours)} cells within {ULPS} ulp and nothing wrong"
        + (f", not: {'; '.join(missed)}. " if missed else ". ")
        + f"A peer ties, within {ULPS} ulp and nothing wrong, in {len(keeping)} of {len(theirs)} "
        "cells; these are bold, as ours are. Of a peer with several functions for a question the "
        "best counts. An empty cell: the library has no such function, or none that takes a mask."
    )


def picture(results: list[Answer], libraries: list[str]) -> Figure:
    """Error against regime: median over the questions, with the range up to the largest."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for ax, part in zip(panels, ("value", "gradient"), strict=True):
        for i, library in enumerate(libraries):
            style = report.library_style(library)
            for j, regime in enumerate(REGIMES):
                dtype = "bfloat16" if regime == HALF else "float32"
                errors = [
                    getattr(a, part)
                    for a in results
                    if (a.library, a.regime, a.dtype) == (library, regime, dtype)
                ]
                errors = [max(e, 0.5) for e in errors if not np.isnan(e)]
                if errors:
                    x = j + (i - (len(libraries) - 1) / 2) * 0.09
                    ax.plot([x, x], [min(errors), max(errors)], color=style["color"], lw=1.4)
                    ax.plot(x, np.median(errors), ms=5, ls="", **style)
            ax.plot([], [], ms=5, ls="-", label=library, **style)
        ax.axhline(ULPS, color="black", ls="--", lw=1)
        ax.set_yscale("log")
        ax.set_xticks(range(len(REGIMES)), REGIMES, rotation=30, ha="right")
        for edge in np.arange(len(REGIMES) - 1) + 0.5:
            ax.axvline(edge, color="0.85", lw=0.8)
        ax.set_title(f"{part}s")
        ax.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("error [ulp]; dashed: 16")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return figure


def main() -> None:
    """Print and write the tables and the picture."""
    options = report.arguments(__doc__).parse_args()
    found, missing = peers.load()
    libraries = ["jaxce", *found]
    results = survey(list(SMOKE) if options.smoke else None, found, smoke=options.smoke)
    out = report.Report(
        "accuracy", "Accuracy against peers", options.out, report.environment(list(found))
    )
    out.say((__doc__ or "").partition("\n\n    python")[0] + " " + EXPLAINED)
    if missing:
        out.say("Left out, because they cannot be imported here: " + ", ".join(missing) + ".")
    out.say(ties(results))
    with_logits = [n for n in libraries if n not in ("torchmetrics", "scipy")]
    out.table(summary(results, with_logits))
    for table in tables(results, libraries):
        out.table(table)
    alt = "Largest errors in ulp by library and regime, on a logarithmic axis"
    out.picture(picture(results, libraries), alt)
    out.write()


EXPLAINED = " ".join((__doc__ or "").split("\n\n")[-1].split())

if __name__ == "__main__":
    main()
