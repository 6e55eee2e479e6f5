"""``zoo diagnose`` and ``zoo report``, on runs that ``zoo fit`` has written and on others."""

import json

import pytest
import torch
from typer.testing import CliRunner

import zoo
from guides import Exact
from zoo.commands.main import app

runner = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "iris"
    words = ["fit", "PPCA", "iris", "-k", "2", "--guide", "Exact", "--quiet", "--out", str(place)]
    assert runner.invoke(app, words).exit_code == 0
    return place


def test_a_run_is_judged_on_its_own_rows(folder):
    answer = runner.invoke(app, ["diagnose", str(folder)])
    assert answer.exit_code == 0, answer.output
    assert "This posterior can be trusted" in answer.output
    for check in ("convergence", "gap", "importance weights", "posterior", "calibration", "collapse"):
        assert check in answer.output


def test_findings_as_json(folder):
    answer = runner.invoke(app, ["diagnose", str(folder), "--json"])
    found = json.loads(answer.stdout)
    assert found["trusted"] is True
    assert found["findings"][0] == {
        "check": "convergence",
        "level": "good",
        "value": pytest.approx(0.0, abs=1e-9),
        "threshold": 0.01,
        "reason": "EM, continued for 100 steps from the fitted model, gains nothing",
        "advice": "",
        "below": False,
    }


def test_strict_ends_with_a_status(folder, tmp_path):
    x = zoo.data.load("iris", dtype=torch.float64).x
    model = zoo.PPCA(4, 2).double()
    zoo.fit(model, Exact(model), x, steps=3, start="random", progress=False).save(tmp_path / "short")
    words = ["diagnose", str(tmp_path / "short"), "iris"]
    assert runner.invoke(app, words).exit_code == 0
    answer = runner.invoke(app, [*words, "--strict"])
    assert answer.exit_code == 1
    assert "it failed the check of convergence" in answer.output
    assert runner.invoke(app, ["diagnose", str(folder), "--strict"]).exit_code == 0


def test_rows_that_have_changed_since_the_fit_are_noticed(tmp_path):
    file, place = tmp_path / "rows.csv", tmp_path / "run"
    file.write_text("a,b\n1,2\n3,5\n4,4\n2,2\n")
    words = ["fit", "PPCA", str(file), "-k", "1", "--quiet", "--arviz", "none", "--out", str(place)]
    assert runner.invoke(app, words).exit_code == 0
    changed = "rows.csv has changed: it no longer holds the rows of the fit"
    assert changed not in runner.invoke(app, ["diagnose", str(place)]).output
    file.write_text("a,b\n1,2\n3,5\n4,4\n2,3\n")
    assert changed in runner.invoke(app, ["diagnose", str(place)]).output
    assert changed not in runner.invoke(app, ["diagnose", str(place), str(file)]).output


def test_a_run_without_recorded_rows(tmp_path):
    x = zoo.data.load("iris", dtype=torch.float64).x
    model = zoo.PPCA(4, 1).double()
    zoo.fit(model, Exact(model), x, steps=3, progress=False).save(tmp_path / "bare")
    answer = runner.invoke(app, ["diagnose", str(tmp_path / "bare")])
    assert answer.exit_code == 2
    assert "does not record its rows" in " ".join(answer.stderr.split())
    answer = runner.invoke(app, ["diagnose", str(tmp_path / "bare"), "wine"])
    assert answer.exit_code == 2
    assert "13 columns" in " ".join(answer.stderr.split())


def test_a_folder_of_another_version_is_named(folder, tmp_path):
    place = tmp_path / "old"
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    settings = json.loads((place / "settings.json").read_text())
    settings["format"] = 99
    (place / "settings.json").write_text(json.dumps(settings))
    answer = runner.invoke(app, ["report", str(place)])
    assert answer.exit_code == 2
    assert "99" in answer.stderr
    assert not (place / "report.html").exists()


def test_a_report_is_written_into_the_folder(folder):
    answer = runner.invoke(app, ["report", str(folder)])
    assert answer.exit_code == 0, answer.output
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "This posterior can be trusted" in page
    assert f"zoo diagnose {folder}" in page
    assert page.count("data:image/png;base64,") >= 5
