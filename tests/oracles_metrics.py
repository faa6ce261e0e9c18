"""Pooled metrics in extended precision, from the definitions: one list of examples at once."""

import numpy as np

WIDE = np.longdouble


def probabilities(x):
    x = np.asarray(x, WIDE)
    z = np.exp(x - x.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def targets(labels, classes):
    labels = np.asarray(labels)
    return np.eye(classes, dtype=WIDE)[labels] if labels.dtype.kind == "i" else labels.astype(WIDE)


def xlogy(p, q):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p == 0, 0, p * np.log(q))


def first_k(x, k):
    """The k largest entries, of equal ones the first."""
    return np.argsort(-np.asarray(x, WIDE), -1, kind="stable")[..., :k]


def hits(x, labels, k):
    index = labels if np.asarray(labels).dtype.kind == "i" else np.argmax(labels, -1)
    return (first_k(x, k) == np.asarray(index)[..., None]).any(-1)


def calibration(x, labels, weights, edges):
    """Bins (edges[b], edges[b + 1]] of confidence: table and error."""
    confidence = probabilities(x).max(-1)
    right = hits(x, labels, 1).astype(WIDE)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)
    table, error = [], WIDE(0)
    for b in range(len(edges) - 1):
        w = weights * (bins == b)
        error += abs((w * (confidence - right)).sum()) / weights.sum()
        with np.errstate(invalid="ignore"):
            table.append(((w * confidence).sum() / w.sum(), (w * right).sum() / w.sum(), w.sum()))
    return np.array(table).T, error


def pooled(x, labels, weights=None, size=None, bins=15):
    """Every metric of examples that all count: x [n, classes], labels, weights and bytes [n]."""
    x = np.asarray(x)
    w = np.ones(len(x), WIDE) if weights is None else np.asarray(weights, WIDE)
    q, p = probabilities(x), targets(labels, x.shape[-1])

    def mean(values):
        return (w * values).sum() / w.sum()

    nats, own = -xlogy(p, q).sum(-1), -xlogy(q, q).sum(-1)
    result = {
        "ce": mean(nats),
        "bits": mean(nats) / np.log(WIDE(2)),
        "perplexity": np.exp(mean(nats)),
        "entropy": mean(own),
        "kl": mean(nats + xlogy(p, p).sum(-1)),
        "top1": mean(hits(x, labels, 1)),
        "top5": mean(hits(x, labels, 5)),
        "brier": mean(np.square(q - p).sum(-1)),
        "ece": calibration(x, labels, w, np.linspace(0, 1, bins + 1))[1],
    }
    if size is not None:
        result["bpb"] = (w * nats).sum() / np.log(WIDE(2)) / (w * np.asarray(size, WIDE)).sum()
    return result
