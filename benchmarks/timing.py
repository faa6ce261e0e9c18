"""Interleaved timing: what is compared runs in turn, so that a noisy machine is noisy for all."""

import importlib.metadata
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import jax


def interleaved(
    runs: Mapping[str, Callable[[], object]], seconds: float = 2.0, least: int = 9
) -> dict[str, list[float]]:
    """Time each run in turn, round after round, for about `seconds` in all; results in seconds.

    The order changes from round to round: torch's threads still spin when the next run begins.
    """
    for run in runs.values():
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffle = list(runs.items()), random.Random(0).shuffle
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        shuffle(order)
        for name, run in order:
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return times


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios round by round: what drifts between rounds cancels."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def environment(*packages: str) -> str:
    """Versions and machine, in one line."""
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", *packages))
    device = jax.devices()[0].device_kind
    return f"{versions}; {device}, {os.cpu_count()} cores, Python {platform.python_version()}"
