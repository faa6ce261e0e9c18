"""The site: Sphinx with furo. It is built without a network, and read without one.

    python -m sphinx -W -b html docs docs/_build

What has a home elsewhere is taken from there: the notebooks (as they are stored, tests run them),
sections of the README, the changelog, the docstrings. Figures are computed here.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import figures

import jaxce

project = "jaxce"
author = "The jaxce authors"
project_copyright = author
release = version = jaxce.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "myst_nb",
    "docstrings",
    "mathml",
]
exclude_patterns = ["_build", "_generated", "jupyter_execute"]
templates_path: list[str] = []

html_theme = "furo"
html_title = f"jaxce {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 3
nb_execution_mode = "off"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# A name in backticks is a link where it names something documented, and code elsewhere.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the text says what an argument may be, in words and with shapes
napoleon_attr_annotations = False
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"  # what makes a metric is its empty(), not its fields
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"


def write(path: Path, content: bytes) -> None:
    """Write what is new: a file that stays as it was is not read again by the next build."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)


def section(title: str) -> bytes:
    """Return the text under a heading of the README, with pictures found and links taken off."""
    text = (ROOT / "README.md").read_text()
    (body,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    body = re.sub(r"(?<!!)\[([^]]+)\]\((?!http)[^)]+\)", r"\1", body)
    return re.sub(r"!\[([^]]*)\]\((?!http)([^)]+)\)", r"![\1](../\2)", body).encode()


for name in ("Conventions", "Edges", "Accuracy"):
    write(HERE / "_generated" / f"{name.lower()}.md", section(name))
for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
    write(HERE / "notebooks" / notebook.name, notebook.read_bytes())
figures.draw(HERE / "_generated")
