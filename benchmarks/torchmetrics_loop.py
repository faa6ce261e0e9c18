"""A loop over the same file with torchmetrics: run by `benchmarks.evaluation`, in another Python.

    python benchmarks/torchmetrics_loop.py LOGITS LABELS BATCH_SIZE

Prints the seconds of each round as JSON. What torchmetrics lacks (the mean of cross-entropies,
Brier scores and entropies) is the obvious torch expression and a `MeanMetric`.
"""

import json
import sys
import time

import numpy as np
import torch
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

ROUNDS = 3


def evaluate(logits, labels, size):
    """Go through the file once and compute everything."""
    classes = logits.shape[1]
    options = {"num_classes": classes, "validate_args": False}
    metrics = [
        MulticlassAccuracy(average="micro", **options),
        MulticlassAccuracy(average="micro", top_k=5, **options),
        MulticlassCalibrationError(n_bins=15, **options),
    ]
    cross_entropy, brier, entropy = MeanMetric(), MeanMetric(), MeanMetric()
    for first in range(0, len(logits), size):
        # Copied: torch has no tensors that must not be written to.
        x = torch.from_numpy(np.array(logits[first : first + size]))
        y = torch.from_numpy(labels[first : first + size])
        for metric in metrics:
            metric.update(x, y)
        log_p = functional.log_softmax(x, -1)
        p = log_p.exp()
        of_label = p.gather(1, y[:, None]).squeeze(1)
        cross_entropy.update(functional.nll_loss(log_p, y, reduction="none"))
        brier.update((p * p).sum(-1) - 2 * of_label + 1)
        entropy.update(-(p * log_p).sum(-1))
    mean = cross_entropy.compute()
    return [metric.compute() for metric in (*metrics, brier, entropy)] + [mean, mean.exp()]


def main():
    """Print the times."""
    logits = np.load(sys.argv[1], mmap_mode="r")
    labels = np.load(sys.argv[2])
    seconds = []
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            evaluate(logits, labels, int(sys.argv[3]))
            seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds[1:]))


if __name__ == "__main__":
    main()
