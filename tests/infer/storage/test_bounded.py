"""A settings file that asks for far more than the file holds is refused before anything is allocated."""

import json
import resource
import time

import pytest
import torch
from stored import trained

from guides import Amortized, MeanField
from zoo import PPCA, VAE, BayesianGMM, load
from zoo.infer.storage.files import SETTINGS, checksum

MANY = 10**5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    vae, ppca, mixture = VAE(4, 2, hidden=(8,)), PPCA(4, 2), BayesianGMM(4, 2)
    pairs = {
        "vae": (vae, Amortized(vae, x, hidden=(8,))),
        "ppca": (ppca, MeanField(ppca, x)),
        "mixture": (mixture, MeanField(mixture, x)),
    }
    root = tmp_path_factory.mktemp("runs")
    for name, (model, guide) in pairs.items():
        trained(model, guide, x).save(root / name)
    return root


@pytest.mark.parametrize(
    ("name", "role", "argument", "value"),
    [
        ("ppca", "model", "data_dim", 10**9),
        ("vae", "model", "latent_dim", 10**9),
        ("vae", "model", "hidden", [8] * MANY),
        ("vae", "guide", "hidden", [8] * MANY),
        ("vae", "guide", "hidden", [10**9]),
        ("ppca", "guide", "x", {"tensor": [10**12, 4]}),
        ("ppca", "guide", "x", {"tensor": [40, 10**12]}),
        ("mixture", "model", "components", 10**8),
        ("mixture", "guide", "x", {"tensor": [10**9, 4]}),
    ],
)
def test_more_than_the_file_holds_is_refused(folders, tmp_path, name, role, argument, value):
    folder = tmp_path / name
    folder.mkdir()
    for file in (folders / name).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / SETTINGS).read_text())
    settings[role]["settings"][argument] = value
    settings["checksum"] = checksum(settings)
    (folder / SETTINGS).write_text(json.dumps(settings))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=r"cannot be built from its settings .*they ask for"):
        load(folder)
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


def test_rows_without_number_need_no_memory(folders, tmp_path):
    """A network that serves any rows is loaded whatever number of them it was trained on."""
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    run = load(folders / "vae")
    settings = json.loads((folders / "vae" / SETTINGS).read_text())
    settings["guide"]["settings"]["x"] = {"tensor": [10**9, 4]}
    settings["checksum"] = checksum(settings)
    folder = tmp_path / "vae"
    folder.mkdir()
    (folder / "parameters.safetensors").write_bytes((folders / "vae" / "parameters.safetensors").read_bytes())
    (folder / SETTINGS).write_text(json.dumps(settings))
    torch.testing.assert_close(load(folder).sample(x, draws=3), run.sample(x, draws=3))
