"""Names of columns and folders reach the terminal as they are: no markup, no emoji, no control character acts."""

import numpy as np
import polars as pl
from typer.testing import CliRunner

from zoo.commands.main import app

NAMES = ["$x^{", "\x1b[31mred\x1b[0m", "[/b] :heart:", "=1+1\u202e"]


def test_strange_names_are_shown_and_change_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 1)) + generator.normal(size=(60, 4))
    pl.DataFrame(x, schema=NAMES).write_csv("table.csv")

    def call(*words: str) -> str:
        result = CliRunner().invoke(app, list(words))
        assert "\x1b[31m" not in result.output
        assert "\u202e" not in result.output
        return f"{result.exit_code} {result.output}"

    fitted = call("fit", "ppca", "table.csv", "-k", "1", "--out", "[/]", "--quiet")
    assert fitted.startswith("0")
    for shown in ("$x^{", r"\x1b[31mred\x1b[0m", "[/b] :heart:", r"=1+1\u202e", "run written to [/]"):
        assert shown in fitted
    refused = call("transform", "[/]", "table.csv", "--out", "[/]/settings.json")
    assert refused.startswith("2")
    missing = call("fit", "ppca", "table.csv", "-k", "1", "--columns", "red")
    assert missing.startswith("2")
    assert r"\x1b[31mred\x1b[0m" in missing
