"""Two processes over `jax.distributed` on this machine give the numbers of one."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxce

SECONDS = 120  # after which processes that hang are ended

# Four devices: tokens are spread over one axis of their mesh, the kernel's classes over the other.
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxce import losses

port, process, processes = map(int, sys.argv[1:4])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
assert jax.process_count() == processes and jax.device_count() == 4

TOKENS, FEATURES, CLASSES, PADDED = 12, 5, 37, 40
random = np.random.default_rng(0)
inputs = random.normal(size=(TOKENS, FEATURES)).astype(np.float32)
kernel = random.normal(size=(PADDED, FEATURES)).astype(np.float32)
labels = random.integers(CLASSES, size=TOKENS).astype(np.int32)
labels[[3, 7]] = -100


def total(inputs, kernel, labels):
    return losses.linear_softmax_cross_entropy(
        inputs, kernel, labels, class_axis=0, num_classes=CLASSES, ignore_index=-100,
        label_smoothing=0.1, z_loss=1e-3, soft_cap=5.0, reduction="mean", chunk_size=4,
    )


@jax.jit
def numbers(inputs, kernel, labels):
    value, gradients = jax.value_and_grad(total, (0, 1))(inputs, kernel, labels)
    per_token = losses.linear_softmax_cross_entropy(
        inputs, kernel, labels, class_axis=0, num_classes=CLASSES, ignore_index=-100, chunk_size=4
    )
    return value, *gradients, per_token


found = {}
# What is spread over the axis whose devices are in different processes, and what over the other.
for kind, across, within in (
    (AxisType.Explicit, "data", "class"),
    (AxisType.Explicit, "class", "data"),
    (AxisType.Auto, "class", "data"),
):
    mesh = jax.make_mesh((2, 2), (across, within), axis_types=(kind, kind))
    assert [d.process_index for d in mesh.devices[:, 0]] == [0, processes - 1]
    with jax.set_mesh(mesh):
        arguments = [
            jax.make_array_from_callback(
                a.shape, NamedSharding(mesh, P(axis)), lambda index, a=a: a[index]
            )
            for a, axis in ((inputs, "data"), (kernel, "class"), (labels, "data"))
        ]
        whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))
        found[f"{kind.name}, {across} across processes"] = [
            np.asarray(x.addressable_data(0), np.float64).tolist()
            for x in whole(numbers(*arguments))
        ]
print("found", json.dumps(found), flush=True)
"""

# Each process has rows of its own, not equally many, and gives empty batches when it has no more.
EVALUATION = """
import json, sys
import jax, numpy as np
from jaxce import metrics
from jaxce.evaluation import evaluate

port, process, processes = map(int, sys.argv[1:4])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)

random = np.random.default_rng(0)
logits = random.normal(size=(203, 10)).astype(np.float32)
labels = random.integers(10, size=203)
labels[::50] = 10
first, last = ((0, 130), (130, 203))[process] if processes > 1 else (0, 203)
rows = 32 // processes
batches = [
    (logits[i : min(i + rows, last)], labels[i : min(i + rows, last)])
    for i in (min(first + step * rows, last) for step in range(9))
]
step = jax.jit(lambda state, batch, where: state.update(*batch, where=where))
empty = metrics.Collection.empty(
    ce=metrics.CrossEntropy.empty(), top1=metrics.Accuracy.empty(),
    calibration=metrics.CalibrationError.empty(bins=5),
)
result = evaluate(step, batches, empty, mesh=jax.make_mesh((4,), ("data",)), batch_size=rows)
print("found", json.dumps({k: float(v) for k, v in result.metrics.compute().items()}), flush=True)
"""


def run(processes, folder, program=PROGRAM):
    """What each process found; the first that fails ends them all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(jaxce.__file__).parent.parent),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // processes}",
    }
    outputs = [folder / f"{i} of {processes}" for i in range(processes)]
    children, until = [], time.monotonic() + SECONDS
    try:
        for i, output in enumerate(outputs):
            command = [sys.executable, "-c", program, port, str(i), str(processes)]
            with output.open("w") as file:
                child = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
            children.append(child)
        while (ends := {child.poll() for child in children}) == {None, 0} or ends == {None}:
            if time.monotonic() > until:
                break
            time.sleep(0.05)
    finally:
        for child in children:
            child.kill()
            child.wait()
    texts = [output.read_text() for output in outputs]
    assert [child.returncode for child in children] == [0] * processes, "\n---\n".join(texts)
    lines = [line for text in texts for line in text.splitlines()]
    return [json.loads(line.removeprefix("found ")) for line in lines if line.startswith("found ")]


def test_two_processes_give_the_numbers_of_one(tmp_path):
    (alone,) = run(1, tmp_path)
    together = run(2, tmp_path)
    assert len(together) == 2
    names = ("mean", "over inputs", "over kernel", "per token")
    for found in together:
        assert list(found) == list(alone)
        for case, arrays in found.items():
            for name, got, wanted in zip(names, arrays, alone[case], strict=True):
                wanted = np.array(wanted)
                assert np.any(wanted != 0)
                scale = np.max(np.abs(wanted))
                error = np.max(np.abs(np.array(got) - wanted))
                assert error <= 1e-6 * scale, f"{case}, {name}: {error / scale}"


def test_an_evaluation_by_two_processes_gives_the_numbers_of_one(tmp_path):
    (alone,) = run(1, tmp_path, EVALUATION)
    random = np.random.default_rng(0)
    logits = random.normal(size=(203, 10)).astype(np.float32).astype(float)
    labels = random.integers(10, size=203)
    good = np.arange(203) % 50 != 0
    surprisals = np.log(np.exp(logits).sum(1)) - logits[np.arange(203), labels]
    assert alone["ce"] == pytest.approx(surprisals[good].mean(), rel=1e-6)
    assert alone["top1"] == pytest.approx((logits.argmax(1) == labels)[good].mean(), rel=1e-6)
    assert alone["bad_labels"] == 5
    together = run(2, tmp_path, EVALUATION)
    assert len(together) == 2
    for found in together:
        assert found == pytest.approx(alone, rel=1e-6)


def test_a_process_that_fails_ends_the_other_one(tmp_path):
    program = "import sys; assert sys.argv[2] != '1', 'lost'\n" + PROGRAM
    with pytest.raises(AssertionError, match="lost"):
        run(2, tmp_path, program)
