"""The command line: `jaxce`, or `python -m jaxce`.

Each sub-command is a module of its own, registered here. What they share is here too: bad input is
one line on stderr and exit code 2, and Ctrl-C is exit code 130.
"""

import contextlib
import io
import sys
from collections.abc import Generator
from typing import Annotated, Any

try:
    import typer
    from typer.core import TyperGroup

    from jaxce.cli._evaluate import evaluate_files
    from jaxce.cli._files import InputError
    from jaxce.cli._fit import fit
except ModuleNotFoundError as _missing:
    raise SystemExit(
        f"jaxce: error: the command line needs {_missing.name}: pip install 'jaxce[cli]'"
    ) from None

import jaxce

# Typer does not export its usage error; that of a bad parameter is one.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


@contextlib.contextmanager
def _one_line_errors() -> Generator[None]:
    try:
        yield
    except (_UsageError, InputError) as error:
        # A usage error's own message names the parameter.
        message = getattr(error, "format_message", error.__str__)().replace("Value error, ", "")
        print("jaxce: error: " + " ".join(message.split()), file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("jaxce: interrupted", file=sys.stderr)
        raise typer.Exit(130) from None


class _Commands(TyperGroup):
    """The group of sub-commands, with one-line errors instead of a usage screen."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _one_line_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _one_line_errors():
            return super().invoke(ctx)


app: typer.Typer = typer.Typer(
    cls=_Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fit")(fit)
app.command("evaluate")(evaluate_files)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"jaxce {jaxce.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _jaxce(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Measure how far a predicted probability distribution is from a true one."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main() -> None:
    """Run the command line; never returns."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names from files may not fit the terminal
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="jaxce")
