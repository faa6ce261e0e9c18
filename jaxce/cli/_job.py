"""An evaluation of files: what it runs, what it saves, and what it refuses on the way."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxce
from jaxce.cli import _checkpoint
from jaxce.cli._examples import Batches, Examples
from jaxce.cli._files import InputError, OutputError
from jaxce.cli._scoring import Scores, step
from jaxce.evaluation import Evaluation, evaluate

_SECONDS = 2.0  # between two looks at what was reached


@dataclass
class Job:
    """Examples in batches.

    Attributes:
        examples: What is evaluated.
        batch_size: Rows of a batch; None for a number that is quick.
        log_probs: Whether other logits are refused.
        skip_bad_labels: Whether bad labels are left out, not refused.
        size: Rows of a batch, equally many for each device.
    """

    examples: Examples
    batch_size: int | None
    log_probs: bool = field(kw_only=True)
    skip_bad_labels: bool = field(kw_only=True)

    def __post_init__(self) -> None:
        self._devices = len(jax.devices())
        size = self.batch_size or self.examples.default_batch_size(self._devices)
        self.size = -(-size // self._devices) * self._devices

    def _identity(self) -> dict[str, Any]:
        """Return what has to be the same for the numbers to be the same."""
        return {
            "jaxce": jaxce.__version__,
            "devices": self._devices,
            "batch_size": self.size,
            "log_probs": self.log_probs,
            "skip_bad_labels": self.skip_bad_labels,
            **self.examples.identity(),
        }

    def run(self, state: Path | None, *, resume: bool) -> Evaluation[Scores]:
        """Evaluate, looking now and then at what was reached.

        Args:
            state: Where to save it.
            resume: Whether to go on from what was saved there, if anything was.
        """
        identity = self._identity()
        scores = Scores.empty(self.examples.classes, self.examples.with_bytes, self.log_probs)
        if resume and state is not None and state.exists():
            scores = _checkpoint.load(state, scores, identity)
            done, total = int(scores.steps), len(Batches(self.examples, self.size))
            print(f"resumed after {done} of {total} batches", flush=True)
        looked = time.monotonic()

        def look(reached: Evaluation[Scores]) -> None:
            nonlocal looked
            if time.monotonic() >= looked + _SECONDS:
                self._refuse_unsound(reached.metrics)
                if state is not None:
                    _checkpoint.save(state, reached.metrics, identity)
                looked = time.monotonic()

        mesh = None
        if self._devices > 1:
            auto = (jax.sharding.AxisType.Auto,)
            mesh = jax.make_mesh((self._devices,), ("examples",), axis_types=auto)
        left = Batches(self.examples, self.size, int(scores.steps) * self.size)
        try:
            # The last batch has the shape of the others also if it is all that is left.
            size = self.size if self.examples.logits.length > self.size else None
            result = evaluate(step, left, scores, batch_size=size, mesh=mesh, on_step=look)
            self._refuse_unsound(result.metrics)
        except OutputError:
            raise  # a full disk: what was saved before it was full leads on
        except InputError:
            if state is not None:
                state.unlink(missing_ok=True)  # no way leads on from here
            raise
        if state is not None and result.interrupted:
            _checkpoint.save(state, result.metrics, identity)
        return result

    def _refuse_unsound(self, scores: Scores) -> None:
        """Say what is wrong with the first logits that are no distribution, if there are any."""
        batch, row = (int(i) for i in scores.surprisals.unsound)
        if batch < 0:
            return
        logits, row = self.examples.logits, batch * self.size + row
        raise InputError(f"--logits: {logits.place(row)}: {_reason(logits.read(row, row + 1)[0])}")


def _reason(values: np.ndarray) -> str:
    """Say why one example's logits are no distribution."""
    with np.errstate(over="ignore"):
        x = values.astype(np.float32)
    if np.isnan(x).any():
        return f"NaN at class {np.argmax(np.isnan(x))}"
    if (x == np.inf).any():
        return f"{values[np.argmax(x)]} at class {np.argmax(x)}, infinite in float32"
    if (x == -np.inf).all():
        return "-inf for every class"
    total = np.exp(x.astype(np.float64)).sum()
    return f"no log-probabilities: the probabilities sum to {total:.4g}"
