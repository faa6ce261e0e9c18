"""A strict environment: no silent promotion, and a CPU that pretends to be eight devices."""

import contextlib
import gc
import os
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
EIGHT = "--xla_force_host_platform_device_count=8"
if EIGHT not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT}".strip()

import jax  # noqa: E402 - the flags above are read when jax starts
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from jaxce import _axes  # noqa: E402
from tests import evaluations  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples on every run; compilation makes the first one slow.
settings.register_profile("jaxce", derandomize=True, deadline=None, database=None, max_examples=40)
settings.load_profile("jaxce")


# Where the tests run in the background Ctrl-C is ignored, by this process and all that it starts;
# tests that send it need it as a user at a terminal has it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Compiling is most of the time: what one process has compiled serves all, and the next run."""
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(config.cache.mkdir("jax")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.0,
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": 0,
    }
    for name, value in kept.items():
        jax.config.update(name.lower(), value)
        os.environ[name] = str(value)  # for what is started from here
    # One may read what another has not written to its end.
    os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache entry"


def thorough(cases, daily):
    """Leave the cases for which daily(*case) is False to `pytest -m thorough`.

    For sizes, dtypes and routes that meet no code of their own, where compiling them is slow.
    """
    return [
        pytest.param(*case, marks=() if daily(*case) else pytest.mark.thorough) for case in cases
    ]


def pytest_collection_finish():
    """Traces are millions of small objects, few of them in cycles: they are seldom looked for."""
    gc.freeze()
    gc.set_threshold(100_000)


@contextlib.contextmanager
def option(name, value):
    """A jax option set for the duration, then put back."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


@contextlib.contextmanager
def class_by_class(wanted=True):
    """Take few classes one by one, as of a large batch."""
    if not wanted:
        yield
        return
    jax.clear_caches()
    before, _axes._FEW_EXAMPLES = _axes._FEW_EXAMPLES, 0
    try:
        yield
    finally:
        _axes._FEW_EXAMPLES = before
        jax.clear_caches()


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Both precisions, float64 with x64 switched on for the test."""
    with option("jax_enable_x64", request.param == "float64"):
        yield request.param


@pytest.fixture
def x64():
    with option("jax_enable_x64", True):
        yield


@pytest.fixture
def no_nans():
    """Every operation is run by itself and may not produce a NaN, not even in passing."""
    with option("jax_debug_nans", True), jax.disable_jit():
        yield


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """What a module compiled goes with it: thousands of programs take gigabytes."""
    yield
    jax.clear_caches()


COMPILED = []


def _note(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append("compiled")


jax.monitoring.register_event_duration_secs_listener(_note)


@pytest.fixture
def traces():
    """A list that grows by one with every program that is compiled."""
    COMPILED.clear()
    return COMPILED


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder to be in, with logits and labels."""
    monkeypatch.chdir(tmp_path)
    np.save("logits.npy", evaluations.LOGITS)
    np.save("labels.npy", evaluations.LABELS)
    return tmp_path
