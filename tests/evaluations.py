"""What `jaxce evaluate` is tested on: a small file of logits, and its table in float64."""

import json

import numpy as np
from typer.testing import CliRunner

from jaxce.cli import app

N, V = 301, 11
_RNG = np.random.default_rng(0)
LABELS = _RNG.integers(0, V, N)
LOGITS = _RNG.normal(size=(N, V)).astype(np.float32) * 2
LOGITS[np.arange(N), LABELS] += 2
LOGITS[3, (LABELS[3] + 1) % V] = -np.inf  # a class that cannot be
WHERE = _RNG.random(N) < 0.8
WEIGHTS = _RNG.random(N).astype(np.float32)
BYTES = _RNG.integers(1, 9, N).astype(np.uint8)


def oracle(logits=LOGITS, labels=LABELS, weights=None, size=None):
    """Everything that the table tells, in float64."""
    x = np.asarray(logits, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    x, labels, w = x[w > 0], np.asarray(labels)[w > 0], w[w > 0]
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    surprisal = -np.log(p[np.arange(len(x)), labels])
    rank = (x > x[np.arange(len(x)), labels][:, None]).sum(1)
    confidence, correct = p.max(1), rank == 0
    error = 0
    for b in range(15):
        there = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        error += abs((w * (confidence - correct))[there].sum()) / w.sum()
    entropy = -(p * np.log(np.where(p == 0, 1, p))).sum(1)

    def mean(values):
        return (w * values).sum() / w.sum()

    return {
        "cross_entropy_bits": mean(surprisal) / np.log(2),
        "cross_entropy_nats": mean(surprisal),
        "perplexity": np.exp(mean(surprisal)),
        "bits_per_byte": None
        if size is None
        else mean(surprisal) * w.sum() / np.log(2) / (w * size[: len(w)]).sum(),
        "top1_accuracy": mean(correct),
        "top5_accuracy": mean(rank < 5),
        "brier_score": mean(((p - np.eye(x.shape[1])[labels]) ** 2).sum(1)),
        "calibration_error": error,
        "mean_entropy_bits": mean(entropy) / np.log(2),
        "weight": w.sum(),
    }


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def numbers(report):
    return json.loads((report / "metrics.json").read_text())


def check(report, expected, rtol=2e-6, bad_labels=0):
    found = numbers(report)["metrics"]
    assert found.pop("bad_labels") == bad_labels
    assert set(found) == set(expected)
    for name, value in expected.items():
        if value is None:
            assert found[name] is None
        else:
            np.testing.assert_allclose(found[name], value, rtol=rtol, err_msg=name)


# The same shapes wherever it does not matter: one compilation.
BATCHES = ("--batch-size", "64")
FILES = ("--logits", "logits.npy", "--labels", "labels.npy", *BATCHES)
