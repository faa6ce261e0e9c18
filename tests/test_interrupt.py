"""A fit that is interrupted: at a safe moment, with everything that was recorded."""

import signal
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from jaxce import _fit_loop
from jaxce.fitting import fit_distribution
from tests.test_fitting import SGD, WEATHER, f32


def test_interruption_keeps_what_was_recorded():
    def interrupt(step, latest):
        if step > 200:
            raise KeyboardInterrupt

    result = fit_distribution(f32(WEATHER), optimizer=SGD, steps=100_000, progress=interrupt)
    assert result.interrupted
    history = result.history
    assert 200 < len(history.step) < 1000
    assert history.step[-1] == len(history.step) - 1
    # The logits are those of the last record.
    np.testing.assert_allclose(
        jaxce.cross_entropy_with_logits(result.target, result.logits),
        history.cross_entropy[-1],
        rtol=1e-6,
    )
    whole = fit_distribution(f32(WEATHER), optimizer=SGD, steps=len(history.step) - 1)
    np.testing.assert_allclose(history.kl_divergence, whole.history.kl_divergence, atol=1e-9)
    assert not whole.interrupted


def test_interruption_between_chunks_keeps_logits_and_records_together(monkeypatch):
    run, calls = _fit_loop.run, []

    def third_time_interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    monkeypatch.setattr(_fit_loop, "run", third_time_interrupted)
    result = fit_distribution(f32(WEATHER), optimizer=SGD, steps=1000)
    assert result.interrupted
    assert result.history.step[-1] == 128
    np.testing.assert_allclose(
        jaxce.kl_divergence_with_logits(jnp.log(result.target), result.logits),
        result.history.kl_divergence[-1],
        rtol=1e-5,
    )


def test_ctrl_c_ends_the_fit_after_the_running_scan(monkeypatch):
    """A real signal in the middle of the third scan, which is finished and kept."""
    run, calls = _fit_loop.run, []

    def interrupted_in_the_third(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return run(*args, **kwargs)

    monkeypatch.setattr(_fit_loop, "run", interrupted_in_the_third)
    result = fit_distribution(f32(WEATHER), optimizer=SGD, steps=1000)
    assert result.interrupted
    assert len(calls) == 3
    assert result.history.step[-1] == 2 * 128
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_ctrl_c_does_not_wait(monkeypatch):
    def interrupted_twice(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one waited")

    monkeypatch.setattr(_fit_loop, "run", interrupted_twice)
    with pytest.raises(KeyboardInterrupt):
        fit_distribution(f32(WEATHER), optimizer=SGD)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_fits_in_other_threads_leave_signals_alone():
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fit_distribution, f32(WEATHER), optimizer=SGD, steps=2)
        assert not future.result().interrupted


def test_interruption_before_the_first_record_is_passed_on(monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(_fit_loop, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_distribution(f32(WEATHER), optimizer=SGD)
