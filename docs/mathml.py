"""Formulas as MathML, which browsers set by themselves: no script, no fonts from elsewhere."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

_SPACE = '<mspace width="0.167em"/>'


def mathml(formula: str, display: str = "inline") -> str:
    """Return MathML; names of functions are upright, a thin space away from what they stand by."""
    text = re.sub(r"\\operatorname\{(\w+)\}", r"\\text{@\1}", formula)
    text = re.sub(r"\\(log|exp)(?![a-z_])", r"\\text{@\1}", text)
    text = re.sub(r"\\log_(\d)", r"\\log_\1\\,", text)
    text = convert(text, display=display)
    text = re.sub(r"(</m(?:i|n|sub|sup|frac)>)<mtext>@", rf"\1{_SPACE}<mtext>@", text)
    text = re.sub(r"<mtext>@(\w+)</mtext>(?!<mo|</)", rf"<mi>\1</mi>{_SPACE}", text)
    return re.sub(r"<mtext>@(\w+)</mtext>", r"<mi>\1</mi>", text)


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Make it the renderer of HTML pages."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("config-inited", lambda _, config: setattr(config, "html_math_renderer", "mathml"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
