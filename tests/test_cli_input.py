"""What the command line takes, and how it refuses: in one line, code 2, no file touched."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from jaxce.cli import _targets, app
from tests.test_cli import jaxce_fit


@pytest.mark.parametrize(
    ("text", "options", "labels", "p"),
    [
        ("1\n3\n", [], ["0", "1"], [0.25, 0.75]),
        ("n\n1\n3\n", [], ["0", "1"], [0.25, 0.75]),
        ("x\ty\n1\t4\n3\t4\n", ["--column", "y"], ["0", "1"], [0.5, 0.5]),
        ("x,y\n1,4\n3,4\n", ["--column", "2"], ["0", "1"], [0.5, 0.5]),
        ('"a, b",1\nc,3e0\n', [], ["a, b", "c"], [0.25, 0.75]),
        ("1e308\n1e308\n", [], ["0", "1"], [0.5, 0.5]),
    ],
)
def test_csv_forms(text, options, labels, p, tmp_path):
    (tmp_path / "in.csv").write_text(text)
    outcomes = _targets.from_csv(tmp_path / "in.csv", options[1] if options else None)
    assert outcomes.labels == labels
    np.testing.assert_allclose(outcomes.p, p)


FILES = {
    "negative.csv": "name,n\na,3\nb,-1\n",
    "nan.csv": "n\n1\nnan\n",
    "zero.csv": "0\n0\n",
    "word.csv": "1\n2\nthree\n",
    "two.csv": "x,y\n1,2\n3,4\n",
    "header.csv": "n\n",
    "empty": "",
}
BAD = [
    ("--target mars", "Invalid value for '--target': 'mars' is not"),
    ("--probs 0.5,-0.1,0.6", "--probs: expected finite numbers from 0, got -0.1 at number 2"),
    ("--probs 0.5,nan", "--probs: expected finite numbers from 0, got nan at number 2"),
    ("--probs 0,0", "--probs: all weights are 0"),
    ("--probs 3,2,1", "--probs: expected probabilities that sum to 1, got a sum of 6"),
    ("--probs 0.5,half", "--probs: expected numbers separated by commas, got 'half'"),
    ("--probs=", "--probs: expected numbers separated by commas, got ''"),
    ("--csv absent.csv", "--csv: cannot read absent.csv: No such file or directory"),
    ("--csv .", "--csv: cannot read .: Is a directory"),
    ("--csv negative.csv", "--csv: negative.csv: expected finite numbers from 0, got -1 at line 3"),
    ("--csv nan.csv", "--csv: nan.csv: expected finite numbers from 0, got nan at line 3"),
    ("--csv zero.csv", "--csv: zero.csv: all weights are 0"),
    ("--csv word.csv", "--csv: word.csv, line 3: expected a number, got 'three'"),
    ("--csv two.csv", "--csv: two.csv has several columns: choose one of x, y by --column"),
    ("--csv two.csv --column z", "--column: expected one of x, y, or a number from 1 to 2"),
    ("--csv two.csv --column 3", "--column: expected one of x, y, or a number from 1 to 2"),
    ("--csv header.csv", "--csv: header.csv has no rows of numbers"),
    ("--csv empty", "--csv: empty has no rows of numbers"),
    ("--csv binary", "--csv: cannot read binary: it is not a text file in UTF-8"),
    ("--column x", "--column: needs --csv"),
    ("--bytes absent", "--bytes: cannot read absent: No such file or directory"),
    ("--bytes empty", "--bytes: empty is empty"),
    ("--probs 1 --csv two.csv", "--target, --probs, --csv and --bytes are four ways"),
    ("--start 0.5,0.5", "--start: expected 8 numbers, one for each outcome of the target, got 2"),
    ("--probs 0.5,0.5 --start 0,1", "--start: expected a probability wherever the target is"),
    ("--probs 0.5,0.5 --start 1,1", "--start: expected probabilities that sum to 1, got a sum of"),
    ("--start uniform --batch 2", "--start, --code-lengths and --batch are three ways"),
    ("--code-lengths 1,2", "--code-lengths: expected 8 numbers"),
    ("--code-lengths 1,1,1,1,1,1,1,1", "--code-lengths: no code has these lengths: their Kraft"),
    ("--probs 1,0 --code-lengths 1,-1", "--code-lengths: expected lengths from 0, got -1 at 2"),
    ("--probs 0.5,0.5 --code-lengths 1,inf", "--code-lengths: expected a finite length wherever"),
    ("--optimizer best", "'best' is not one of 'adabelief', 'adagrad', 'adam'"),
    ("--learning-rate 0", "--learning-rate: expected a number from 0 to 1e30, got 0"),
    ("--learning-rate nan", "--learning-rate: expected a number from 0 to 1e30, got nan"),
    ("--steps 0", "'--steps'"),
    ("--batch 0", "'--batch'"),
    ("--units bytes", "'bytes' is not one of 'bits', 'nats'"),
    ("--json absent/out.json", "--json: cannot write absent/out.json: No such file or directory"),
    ("--json .", "--json: expected a file, got the directory ."),
    ("--plot out.txt", "--plot: expected a name that ends in .avif, .eps"),
    ("--json out.png --plot out.png", "--plot: out.png is used by another option"),
    ("--csv two.csv --column x --json two.csv", "--json: two.csv is used by another option"),
    ("--stepz 3", "--stepz"),
    ("surplus", "unexpected extra argument"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[arguments for arguments, _ in BAD])
def test_bad_input_is_one_line_and_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    Path("binary").write_bytes(b"\xff\xfe\x00")
    before = sorted(os.listdir())
    # Outputs are asked for as well: none of them may appear.
    outputs = [] if "--json" in arguments or "--plot" in arguments else ["--json", "new.json"]
    result = jaxce_fit(*arguments.split(), *outputs)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("jaxce: error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("arguments", [["fits"], ["--fit"]])
def test_bad_commands_are_one_line_too(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert re.fullmatch(r"jaxce: error: No such (command|option).*\n", result.stderr)
