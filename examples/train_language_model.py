"""Train a small language model on the source text of Python's standard library.

The vocabulary is the words of that text, tens of thousands, so nearly all the work is in the last
layer. Its logits never exist: `losses.linear_softmax_cross_entropy` takes the table of words as it
is, spread over the devices of a mesh or not.

    python examples/train_language_model.py --help
"""

import re
import signal
import sysconfig
import threading
from collections import Counter
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import typer
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxce import losses

STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
LENGTH = 64  # words that the model sees at a time
HEAD = 32  # features of an attention head
ROUND = 64  # the table of words has a multiple of so many rows
WORD = re.compile(rb" ?\w+|\s+| ?[^\s\w]+")  # every byte is in exactly one
PADDING = -1


class Text(NamedTuple):
    """Streams of word numbers; the first of a stream is only what comes before."""

    vocabulary: list[bytes]
    train: np.ndarray
    held_out: np.ndarray


def read(source: Path) -> Text:
    """Read all Python files but tests; every 50th is held out.

    The vocabulary is the 256 bytes and the words that the training files have three times. All
    others are spelt byte by byte, so bits per byte is the length of a real code for any text.
    """
    left_out = {"test", "tests", "site-packages"}
    paths = sorted(source.rglob("*.py"))
    paths = [path for path in paths if left_out.isdisjoint(path.relative_to(source).parts)]
    split = [WORD.findall(path.read_bytes()) for path in paths]
    train = [word for i, words in enumerate(split) if i % 50 != 49 for word in words]
    held_out = [word for words in split[49::50] for word in words]
    if not held_out:
        raise typer.BadParameter(f"expected 50 Python files or more in {source}, got {len(split)}")

    common = (word for word, n in Counter(train).most_common() if n > 2 and len(word) > 1)
    vocabulary = [bytes([i]) for i in range(256)] + list(common)
    number = {word: i for i, word in enumerate(vocabulary)}

    def encode(words: list[bytes]) -> np.ndarray:
        stream = [number[b"\n"]]
        for word in words:
            stream.extend([number[word]] if word in number else word)
        return np.array(stream, np.int32)

    return Text(vocabulary, encode(train), encode(held_out))


class Block(nnx.Module):
    """Causal self-attention and a small network, each added to what comes in."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.RMSNorm(width, rngs=rngs) for _ in range(2)])
        self.attend = nnx.Linear(width, 3 * width, rngs=rngs)
        self.mix = nnx.Linear(width, width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        heads = self.attend(self.norms[0](x)).reshape(*x.shape[:2], -1, HEAD)
        query, key, value = jnp.split(heads, 3, axis=2)
        seen = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(seen.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class LanguageModel(nnx.Module):
    """A transformer whose table of words is both its first and its last layer."""

    def __init__(self, words: int, width: int, rngs: nnx.Rngs):
        self.words = words
        # Rounded up whatever the mesh, so that a checkpoint made on one goes on on another.
        shape = (-(-words // ROUND) * ROUND, width)
        table = jax.random.normal(rngs.params(), shape, out_sharding=P("class", None))
        self.table = nnx.Param(0.02 * table)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (LENGTH, width)))
        self.blocks = nnx.List([Block(width, rngs) for _ in range(2)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(self, words: jax.Array) -> jax.Array:
        """Return what the model makes of the words so far, [batch, LENGTH, width]."""
        x = self.table.at[words].get(out_sharding=P("data", None, None))
        x = x + self.positions[None]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def loss(self, words: jax.Array, reduction: str | None = None) -> jax.Array:
        """Return the nats of every word after the first of each row, or their mean."""
        return losses.linear_softmax_cross_entropy(
            self(words[:, :-1]),
            self.table[...],
            words[:, 1:],
            class_axis=0,
            num_classes=self.words,
            ignore_index=PADDING,
            reduction=reduction,
        )


@nnx.jit(static_argnums=(0, 1))
def create(words: int, width: int) -> tuple[LanguageModel, nnx.Optimizer]:
    model = LanguageModel(words, width, nnx.Rngs(0))
    rate = optax.warmup_constant_schedule(0.0, 3e-3, 20)
    return model, nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)


@nnx.jit
def train_step(model: LanguageModel, optimizer: nnx.Optimizer, words: jax.Array) -> jax.Array:
    loss, gradient = nnx.value_and_grad(lambda model: model.loss(words, "mean"))(model)
    optimizer.update(model, gradient)
    return loss


@nnx.jit
def eval_step(model: LanguageModel, words: jax.Array) -> tuple[jax.Array, jax.Array]:
    return losses.sum_and_count(model.loss(words), words[:, 1:] != PADDING)


def on_devices(words: np.ndarray) -> jax.Array:
    """Spread rows over the data axis; every process has them all and hands over its own."""
    sharding = NamedSharding(jax.sharding.get_mesh(), P("data", None))
    return jax.make_array_from_callback(words.shape, sharding, lambda index: words[index])


def training_rows(text: Text, batch: int, step: int) -> np.ndarray:
    """Return the rows of a step. They hang on nothing else, so a resumed run sees the same."""
    starts = np.random.default_rng(step).integers(len(text.train) - LENGTH, size=(batch, 1))
    return text.train[starts + np.arange(LENGTH + 1)]


def evaluate(model: LanguageModel, text: Text, batch: int) -> tuple[float, int]:
    """Return the nats of the held-out words and how many there are: each is predicted once."""
    stream, size = text.held_out, batch * LENGTH
    stream = np.pad(stream, (0, -(len(stream) - 1) % size), constant_values=PADDING)
    nats, count = 0.0, 0
    for start in range(0, len(stream) - 1, size):
        rows = np.arange(start, start + size, LENGTH)[:, None] + np.arange(LENGTH + 1)
        batch_nats, batch_count = eval_step(model, on_devices(stream[rows]))
        nats, count = nats + float(batch_nats), count + int(batch_count)
    return nats, count


def restore(manager: ocp.CheckpointManager, model: LanguageModel, optimizer: nnx.Optimizer) -> int:
    """Set model and optimizer to the last checkpoint, if there is one, and return its step."""
    step = manager.latest_step()
    if step is not None:
        wanted = ocp.args.StandardRestore(nnx.state((model, optimizer)))
        nnx.update((model, optimizer), manager.restore(step, args=wanted))
    return step or 0


def mesh_shape(mesh: str) -> tuple[int, int]:
    """Read DATAxCLASS and see that there are devices, and rows of the table, for it."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", mesh):
        raise typer.BadParameter(f"--mesh: expected DATAxCLASS such as 2x4, got {mesh!r}")
    data, classes = map(int, mesh.split("x"))
    if data * classes > jax.device_count():
        raise typer.BadParameter(f"--mesh: {mesh} is more than the {jax.device_count()} devices")
    if ROUND % classes:
        raise typer.BadParameter(f"--mesh: expected CLASS to divide {ROUND}, got {classes}")
    return data, classes


def train(
    steps: Annotated[int, typer.Option(min=0, help="Steps in all, those resumed from too.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help=f"Rows of {LENGTH} words in a step.")] = 32,
    width: Annotated[int, typer.Option(min=HEAD, help=f"Features, a multiple of {HEAD}.")] = 64,
    mesh: Annotated[str, typer.Option(help="DATAxCLASS; all devices over data if empty.")] = "",
    checkpoint: Annotated[Path | None, typer.Option(help="Where to save and to resume.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Steps between reports and checkpoints.")] = 20,
    source: Annotated[Path, typer.Option(help="Folder of Python files.")] = STANDARD_LIBRARY,
    coordinator: Annotated[str, typer.Option(help="HOST:PORT of process 0.")] = "",
    processes: Annotated[int, typer.Option(help="How many processes there are.")] = 1,
    process: Annotated[int, typer.Option(help="Which of them this is.")] = 0,
) -> None:
    """Train a language model on source text and evaluate it on files that it has not seen."""
    if coordinator:
        jax.distributed.initialize(coordinator, processes, process)
    mesh = mesh or f"{jax.device_count()}x1"
    shape = mesh_shape(mesh)
    if batch % shape[0]:
        raise typer.BadParameter(f"--batch: expected a multiple of {shape[0]} for the mesh {mesh}")
    if width % HEAD:
        raise typer.BadParameter(f"--width: expected a multiple of {HEAD}, got {width}")
    jax.set_mesh(jax.make_mesh(shape, ("data", "class"), (AxisType.Explicit, AxisType.Explicit)))

    text = read(source)
    byte_count = np.array([len(word) for word in text.vocabulary])
    model, optimizer = create(len(text.vocabulary), width)
    manager, step = None, 0
    if checkpoint is not None:
        two = ocp.CheckpointManagerOptions(max_to_keep=2)
        manager = ocp.CheckpointManager(checkpoint.absolute(), options=two)
        step = restore(manager, model, optimizer)

    def save(step: int) -> None:
        if manager is not None and step != manager.latest_step():
            manager.save(step, args=ocp.args.StandardSave(nnx.state((model, optimizer))))

    interrupted, ctrl_c = False, threading.Event()  # which waits for the end of a step
    default = signal.signal(signal.SIGINT, lambda *_: ctrl_c.set())
    console = Console(quiet=jax.process_index() != 0, highlight=False, soft_wrap=True)
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}")
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        console.print(f"{len(text.train):,} words, {len(text.vocabulary):,} different; mesh {mesh}")
        task = progress.add_task("", total=steps, completed=step, now="")
        while step < steps and not interrupted:
            step += 1
            rows = training_rows(text, batch, step)
            loss = float(train_step(model, optimizer, on_devices(rows)))
            bits = loss / np.log(2) / byte_count[rows[:, 1:]].mean()
            now = f"loss {loss:.6f}, {bits:.3f} bits per byte"
            progress.update(task, completed=step, now=now)
            if step % every == 0:
                console.print(f"step {step}: {now}")
                save(step)
            # All processes stop at the same step, whichever was interrupted.
            interrupted = bool(multihost_utils.process_allgather(np.array(ctrl_c.is_set())).any())
        signal.signal(signal.SIGINT, default)
        save(step)
        if manager is not None:
            manager.close()  # once everything is written
        if interrupted:
            goes_on = "nothing saved" if manager is None else "the same command goes on from here"
            console.print(f"interrupted after step {step}: {goes_on}")
            raise typer.Exit(130)

        nats, count = evaluate(model, text, batch)
        size = byte_count[text.held_out[1:]].sum()
        console.print(
            f"held out: {nats / np.log(2) / size:.6f} bits per byte, "
            f"perplexity {np.exp(nats / count):.4f} over {count:,} words, {size:,} bytes"
        )


if __name__ == "__main__":
    typer.run(train)
