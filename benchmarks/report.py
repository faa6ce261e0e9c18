"""How a benchmark shows what it found: tables on the terminal and in Markdown, pictures in print.

Colours are from the palette of Okabe and Ito, which readers with any kind of colour vision tell
apart; markers and lines differ as well, for print without colour.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

RESULTS = Path(__file__).with_name("results")
# By library, in the order of the tables: colour and marker.
STYLES = {
    "jaxce": ("#000000", "o"),
    "optax": ("#D55E00", "s"),
    "jax": ("#0072B2", "^"),
    "distrax": ("#009E73", "v"),
    "numpyro": ("#CC79A7", "D"),
    "torch": ("#E69F00", "P"),
    "torchmetrics": ("#56B4E9", "X"),
    "scipy": ("#8C8C8C", "*"),
}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a tiny size, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for table and picture")
    return parser


def environment(packages: Sequence[str] = ()) -> str:
    """Date, versions and machine, in one line; `not installed` where a package is not."""
    versions = []
    for package in ("jaxce", "jax", "jaxlib", *(p for p in packages if p not in ("jaxce", "jax"))):
        try:
            versions.append(f"{package} {_version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    machine = f"{_processor()}, {os.cpu_count()} cores, {platform.system()}"
    device = jax.devices()[0]
    if device.platform != "cpu":
        machine = f"{device.device_kind}; {machine}"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"{today}; {', '.join(versions)}; {machine}, Python {platform.python_version()}"


def _version(package: str) -> str:
    if package == "jaxce":
        import jaxce

        return jaxce.__version__
    return importlib.metadata.version(package)


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next((n for n in names if n and n != "unknown"), platform.machine())


@dataclass
class Table:
    """A table of text; cells in **bold** as in Markdown."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    left: int = 1  # how many columns hold names, and not numbers

    def print(self, console: Console) -> None:
        """Show it on the terminal."""
        shown = RichTable(title=self.title, title_justify="left")
        for i, column in enumerate(self.columns):
            shown.add_column(escape(column), justify="left" if i < self.left else "right")
        for row in self.rows:
            bold = [f"[bold]{escape(c[2:-2])}[/]" if c.startswith("**") else escape(c) for c in row]
            shown.add_row(*bold)
        console.print(shown)

    def markdown(self) -> str:
        """The same, in Markdown."""
        rule = [":---" if i < self.left else "---:" for i in range(len(self.columns))]
        lines = ["| " + " | ".join(row) + " |" for row in (self.columns, rule, *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines, ""])


@dataclass
class Report:
    """What a command leaves: NAME.md and pictures in a folder."""

    name: str
    title: str
    folder: Path
    environment: str
    console: Console = field(default_factory=lambda: Console(width=150))
    parts: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A paragraph."""
        self.console.print(text, markup=False, highlight=False)
        self.parts.append(text + "\n")

    def table(self, table: Table) -> None:
        """A table."""
        table.print(self.console)
        self.parts.append(table.markdown())

    def picture(self, figure: Figure, alt: str, suffix: str = "") -> None:
        """A picture, without the metadata that would differ from run to run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}{suffix}.png"
        figure.savefig(path, dpi=130, metadata={"Software": None})
        self.parts.append(f"![{alt}]({path.name})\n")

    def write(self) -> None:
        """Write the Markdown and tell where."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.md"
        head = [f"# {self.title}\n", self.environment + "\n"]
        path.write_text("\n".join(head + self.parts), encoding="utf-8")
        self.console.print(self.environment, markup=False, highlight=False)
        self.console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)


def library_style(name: str) -> dict[str, str]:
    """Colour and marker of a library."""
    color, marker = STYLES[name]
    return {"color": color, "marker": marker}
