"""A bar of an evaluation, with running values that nobody waits for."""

import contextlib
import math
import operator
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, cast

import jax
from jax import Array

_SECONDS = 0.5  # between two looks at the metrics


@contextlib.contextmanager
def bar(
    batches: Iterable[Any], batch_size: int | None, done: int, wanted: bool
) -> Generator[Callable[[int, Any], None]]:
    """Show a bar on stderr if that is a terminal and rich is there.

    Args:
        batches: What is gone through; of which the number may be known.
        batch_size: The size that they are cut to; None: they are as many as the steps.
        done: Steps that were done before.
        wanted: False for no bar.

    Yields:
        A function that is told of every step: how many are done, and the metrics.
    """
    console = None
    if wanted and jax.process_index() == 0:
        with contextlib.suppress(ModuleNotFoundError):
            from rich.console import Console

            console = Console(stderr=True)
    if console is None or not console.is_terminal:
        yield lambda steps, metrics: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[values]}", markup=False),
    )
    total = operator.length_hint(batches) if batch_size is None else 0
    values = RunningValues()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("compiling", total=total or None, completed=done, values="")

        def show(steps: int, metrics: Any) -> None:
            values.look(metrics)
            progress.update(task, description="evaluating", completed=steps, values=values.text)

        yield show


class RunningValues:
    """The metrics' values of a moment ago: computed like a step, and read when they are there.

    Attributes:
        text: The last ones that came.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.text = ""
        self._asked = time.monotonic()
        self._coming: list[tuple[str, Array]] = []

    def look(self, metrics: Any) -> None:
        """Take the values that have come or, once in a while, ask for new ones."""
        if self._coming and all(cast(Any, value).is_ready() for _, value in self._coming):
            self.text = "  ".join(f"{name} {value.item():.4g}" for name, value in self._coming)
            self._coming = []
        elif time.monotonic() >= self._asked + _SECONDS and hasattr(metrics, "compute"):
            self._asked = time.monotonic()
            # From one device's copy: other processes have no part in it.
            local = jax.tree.map(
                lambda x: x.addressable_data(0) if x.is_fully_replicated else x, metrics
            )
            try:
                values = jax.tree_util.tree_leaves_with_path(_compute(local))
            except Exception:  # a bar never ends an evaluation
                self._asked = math.inf
                return
            self._coming = [
                (jax.tree_util.keystr(path, simple=True, separator="."), value)
                for path, value in values
                if value.ndim == 0
            ]


@jax.jit
def _compute(metrics: Any) -> Any:
    return metrics.compute()
