"""The state of an unfinished job: saved whole or not at all, and loaded for the same job only."""

import json
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from jaxce.cli._files import InputError, replacing

T = TypeVar("T")

# A plain array has no `files`, and an empty file no magic string.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    zipfile.BadZipFile,
)


def save(path: Path, state: Any, job: dict[str, Any]) -> None:
    """Write a tree of arrays and what job it belongs to.

    Args:
        path: The file, which is replaced at the end.
        state: The arrays, which are waited for.
        job: What has to be the same when it goes on; for JSON.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(state))]
    with replacing("--report", path) as draft, draft.open("wb") as file:
        np.savez(file, *leaves, job=json.dumps(job))


def is_state(path: Path) -> bool:
    """Whether a file is what `save` writes."""
    try:
        with np.load(path) as file:
            return "job" in file.files
    except _UNREADABLE:
        return False


def load(path: Path, like: T, job: dict[str, Any]) -> T:
    """Return the arrays of `path`, in the tree of `like`.

    Raises:
        InputError: If the file is of another job, or cannot be read.
    """
    try:
        with np.load(path) as file:
            saved: dict[str, Any] = json.loads(str(file["job"]))
            leaves = [file[name] for name in file.files if name != "job"]
    except _UNREADABLE as error:
        raise InputError(f"--resume: cannot read {path}: {error}") from None
    ours: dict[str, Any] = json.loads(json.dumps(job))
    for name in {**saved, **ours}:
        if saved.get(name) != ours.get(name):
            raise InputError(
                f"--resume: {path} was saved with other {name.replace('_', ' ')}: "
                "give the same input and options again, or leave out --resume"
            )
    structure = jax.tree.structure(like)
    return jax.tree.unflatten(structure, [jax.numpy.asarray(leaf) for leaf in leaves])
