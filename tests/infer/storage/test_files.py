"""A run's folder and its two files: new, taken, damaged, altered."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyro
import pytest
import torch
from stored import edit, sign

from guides import Amortized
from zoo import VAE, fit
from zoo.base.atomic import new_folder
from zoo.base.random import seeded
from zoo.infer.loading import load
from zoo.infer.storage.checkpoint import save, write
from zoo.infer.storage.files import FORMAT, PARAMETERS, SETTINGS


def test_a_taken_folder_is_refused(run, saved, tmp_path):
    before = (saved / SETTINGS).read_bytes()
    with pytest.raises(FileExistsError, match=r"run already contains a run: choose another folder, or remove this one"):
        save(run, saved)
    with pytest.raises(FileExistsError, match="already contains a run"):
        write(run, saved)
    assert (saved / SETTINGS).read_bytes() == before
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match=r"contains other files \(mine\.txt\): choose a folder that is new"):
        save(run, notes)
    assert [p.name for p in notes.iterdir()] == ["mine.txt"]
    with pytest.raises(FileExistsError, match=r"mine\.txt is a file"):
        save(run, notes / "mine.txt")
    with pytest.raises(NotADirectoryError, match="one of its parent folders is a file"):
        save(run, notes / "mine.txt" / "deep" / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "run"]


def test_an_empty_folder_and_missing_parents_are_fine(run, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    save(run, tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    assert save(run, "deep/down/run") == Path("deep/down/run")
    for folder in (tmp_path / "empty", tmp_path / "deep" / "down" / "run"):
        assert sorted(p.name for p in folder.iterdir()) == [PARAMETERS, SETTINGS]
        load(folder)
    umask = os.umask(0)
    os.umask(umask)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "empty").iterdir()} == {0o666 & ~umask}
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o777 & ~umask


def test_new_folder_is_all_or_nothing(run, tmp_path):
    out = tmp_path / "deep" / "run"
    with pytest.raises(KeyboardInterrupt), new_folder(out) as folder:  # noqa: PT012
        write(run, folder)
        assert not out.exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with new_folder(out) as folder:
        write(run, folder)
        (folder / "picture.png").write_bytes(b"png")
    assert sorted(p.name for p in out.iterdir()) == [PARAMETERS, "picture.png", SETTINGS]
    assert [p.name for p in out.parent.iterdir()] == ["run"]
    load(out)


def test_somebody_else_was_faster(run, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(FileExistsError, match="contains other files"), new_folder(out) as folder:  # noqa: PT012
        write(run, folder)
        save(run, out)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    load(out)


def test_write_needs_its_folder(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*: create it first, or use"):
        write(run, tmp_path / "none")


def test_missing_files(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none: give the folder that a run was saved to"):
        load(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match=r"settings\.json is a file: give the folder"):
        load(saved / SETTINGS)
    for name in (PARAMETERS, SETTINGS):
        partial = tmp_path / f"without {name}"
        shutil.copytree(saved, partial)
        (partial / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"{name} is missing: .* does not contain a complete run"):
            load(partial)


@pytest.mark.parametrize("content", [b"", b'{"format": 1, ', b"\xff\xfe\x00"])
def test_settings_that_are_no_json(content, saved):
    (saved / SETTINGS).write_bytes(content)
    with pytest.raises(ValueError, match=r"settings\.json is not valid JSON .*: restore it, or save the run again"):
        load(saved)


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"format": "1"}', '{"format": true}'])
def test_settings_of_something_else(content, saved):
    (saved / SETTINGS).write_text(content)
    with pytest.raises(ValueError, match=r"settings\.json has no format number"):
        load(saved)


@pytest.mark.parametrize("key", ["model", "guide", "training", "store", "bytes", "sha256"])
def test_settings_without_a_section(key, saved):
    edit(saved, lambda s: s.pop(key) and None)
    with pytest.raises(ValueError, match=rf"settings\.json lacks {key}, or has it damaged"):
        load(saved)
    for damaged in [3.5] if key == "training" else [3.5, None]:  # a pair may have no record of its training
        edit(saved, lambda s, damaged=damaged: s.update({key: damaged}))
        with pytest.raises(ValueError, match=rf"settings\.json lacks {key}, or has it damaged"):
            load(saved)


def test_curves_of_no_training(saved):
    edit(saved, lambda s: s.update(training=None))
    with pytest.raises(ValueError, match="do not belong together"):
        load(saved)


def test_settings_with_damaged_records(saved):
    edit(saved, lambda s: s["model"].update({"class": 3}))
    with pytest.raises(ValueError, match=r"lacks model\.class"):
        load(saved)
    edit(saved, lambda s: s["model"].update({"class": "zoo.models.ppca:PPCA", "settings": None}))
    with pytest.raises(ValueError, match=r"settings\.json lacks the arguments of the model zoo\.models\.ppca:PPCA"):
        load(saved)
    edit(saved, lambda s: s["model"].update({"settings": {"data_dim": 4, "latent": 2}}))
    with pytest.raises(ValueError, match=r"cannot be built from its settings \(TypeError: .*: restore the file"):
        load(saved)


def test_a_newer_format(saved):
    edit(saved, lambda s: {"format": FORMAT + 1})
    with pytest.raises(ValueError, match=rf"settings\.json has format {FORMAT + 1}, .* up to format {FORMAT}: update"):
        load(saved)


def test_altered_and_truncated_parameters(saved):
    content = (saved / PARAMETERS).read_bytes()
    (saved / PARAMETERS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"parameters\.safetensors was altered"):
        load(saved)
    (saved / PARAMETERS).write_bytes(content + b" ")
    with pytest.raises(ValueError, match=r"parameters\.safetensors was altered"):
        load(saved)
    (saved / PARAMETERS).write_bytes(content[:100])
    with pytest.raises(ValueError, match=rf"parameters\.safetensors is truncated, 100 of {len(content)} bytes"):
        load(saved)
    sign(saved)
    with pytest.raises(ValueError, match=r"parameters\.safetensors is not a safetensors file"):
        load(saved)


@pytest.mark.parametrize("record", [["what"], "real", ["greater_than"], [], None])
def test_an_unknown_constraint(record, run, tmp_path):
    with pyro.get_param_store().scope() as store:
        pyro.param("p", torch.ones(2))
    folder = save(replace(run, store=store), tmp_path / "run")
    edit(folder, lambda s: s["store"].update({"p": record}))
    with pytest.raises(ValueError, match=r"settings\.json: parameter 'p' has the unknown constraint"):
        load(folder)


def test_altered_settings(tmp_path):
    with seeded(0):
        model, x = VAE(4, 2), torch.randn(20, 4)
        guide = Amortized(model, x)
    save(fit(model, guide, x, steps=2, progress=False), tmp_path / "run")
    file = tmp_path / "run" / SETTINGS
    text = file.read_text()
    assert '"floor": 0.001' in text
    file.write_text(text.replace('"floor": 0.001', '"floor": 0.5'))
    with pytest.raises(ValueError, match="was altered"):
        load(tmp_path / "run")
