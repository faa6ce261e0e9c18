"""What is released: one version, told alike everywhere; and a program of a user."""

import re
from pathlib import Path

import numpy as np
import pytest

import jaxce
from tests import user_program

ROOT = Path(__file__).parent.parent


def test_the_version_is_told_alike():
    version = re.escape(jaxce.__version__)
    assert re.search(rf"^  version = \{{{version}\}},$", (ROOT / "README.md").read_text(), re.M)
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest
    assert newest[1] == jaxce.__version__


def test_user_program():
    told = user_program.main()
    assert told["bits"] == pytest.approx(told["nll"] / np.log(2), rel=1e-5)
    assert told["loss"] == pytest.approx(told["nll"], rel=1e-5)
    assert 0 < told["entropy"] < 1.6
    assert 1 <= told["length"] <= 2
