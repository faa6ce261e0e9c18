"""The pages of the site: their Python runs as it stands, and gives the numbers in its comments."""

import re
import sys
from pathlib import Path

import jax
import pytest

from tests.test_readme import run

PAGES = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_python_blocks(page, capsys):
    namespace = {}
    # As a reader's JAX is set.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        compared = [run(block, namespace) for block in BLOCK.findall(page.read_text())]
    assert sum(compared) or "\nassert " in page.read_text()


def test_every_page_can_be_reached():
    index = (PAGES[0].parent / "index.md").read_text()
    listed = set(re.findall(r"^([\w/]+)$", index, flags=re.MULTILINE))
    root = PAGES[0].parent
    pages = {str(p.relative_to(root).with_suffix("")) for p in root.glob("[a-z]*.md")}
    pages |= {f"api/{p.stem}" for p in (root / "api").glob("*.md")}
    pages |= {f"notebooks/{p.stem}" for p in (root.parent / "notebooks").glob("*.ipynb")}
    assert pages - {"index"} == listed


def test_every_public_name_is_in_the_reference():
    import jaxce
    from jaxce import checks, coding, evaluation, fitting, losses, metrics, plots

    text = "\n".join(p.read_text() for p in (PAGES[0].parent / "api").glob("*.md"))
    documented = set(re.findall(r"^\.\. auto(?:function|class):: (\S+)$", text, re.MULTILINE))
    for module in (jaxce, checks, coding, evaluation, fitting, losses, metrics, plots):
        for name in module.__all__:
            if not isinstance(getattr(module, name), type(sys)):
                assert f"{module.__name__}.{name}" in documented
