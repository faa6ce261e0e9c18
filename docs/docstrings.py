r"""Formulas in docstrings: `$$ .. $$` and `\( .. \)`, as Markdown writes them, become Sphinx's."""

import re
import textwrap
from typing import Any

from sphinx.application import Sphinx


def _displayed(match: re.Match[str]) -> str:
    indent, formula = match.groups()
    lines = textwrap.dedent(f"{indent}{formula}").strip().splitlines()
    body = "\n".join(f"{indent}   {line.strip()}" for line in lines)
    return f"{indent}.. math::\n\n{body}\n"


def convert(text: str) -> str:
    """Return reStructuredText."""
    # What is returned is told in words, not by a type before the first colon.
    text = re.sub(r"^( *)Returns:\n", r"\1:returns:\n", text, flags=re.MULTILINE)
    text = re.sub(r"(?<![\\|])\|(\w[^|\n]*\w)\|", r"\\|\1\\|", text)  # a magnitude, no substitution
    text = re.sub(r"^( *)\$\$(.+?)\$\$", _displayed, text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\\\((.+?)\\\)", r":math:`\1`", text, flags=re.DOTALL)


def _process(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    lines[:] = convert("\n".join(lines)).split("\n")


def setup(app: Sphinx) -> dict[str, Any]:
    """Convert before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True}
