"""The report: a self-contained file, and its rendering in a browser."""

import re
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch

import zoo
from guides import Amortized, Exact, MeanField
from zoo import PPCA
from zoo.base.plates import rows
from zoo.base.random import seeded
from zoo.data.dataset import Dataset
from zoo.diagnostics import diagnose
from zoo.infer.convergence import assess
from zoo.report import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def table():
    return zoo.data.load("iris", dtype=torch.float64)


@pytest.fixture(scope="module")
def good(table):
    model = PPCA(4, 2).double()
    return zoo.fit(model, Exact(model), table.x, progress=False)


@pytest.fixture(scope="module")
def page(good, table, tmp_path_factory):
    again = ["zoo fit PPCA iris --guide Exact -k 2 --out 'runs/<iris>'"]
    return report(good, table, tmp_path_factory.mktemp("report") / "in" / "report.html", rerun=again)


def test_the_page_is_self_contained(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "<script" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert page.stat().st_size < 3_000_000


def test_the_page_shows_checks_and_settings(page):
    text = page.read_text(encoding="utf-8")
    assert "This posterior can be trusted" in text
    for word in ("convergence", "gap", "importance weights", "posterior", "calibration", "collapse"):
        assert f"<h3>{word} " in text
    assert "iris, 150 rows x 4 columns" in text
    assert "latent_dim" in text
    for title in ("Loadings (varimax, standardised)", "Variance that the factors explain", "covariance"):
        assert title in text
    assert "<td>petal length (cm)</td>" in text
    assert "--out &#39;runs/&lt;iris&gt;&#39;" in text  # escaped
    pictures = re.findall(r"<img src=\"data:image/png;base64,[^\"]+\" width=\"(\d+)\" alt=\"([^\"]+)\"", text)
    assert len(pictures) >= 5
    assert all(len(words) > 30 for _, words in pictures)


def test_the_page_says_what_to_cite(page):
    section = page.read_text(encoding="utf-8").split("<h2>Cite</h2>")[1]
    assert "M. E. Tipping and C. M. Bishop (1999)" in section
    assert '<span class="soft">(PPCA)</span>' in section
    for key in ("latentzoo", "bingham2019pyro", "tipping1999probabilistic", "neal1998view", "fisher1936use"):
        assert f"{{{key}," in section


def test_a_bad_run_fails(table, tmp_path):
    model = PPCA(4, 2).double()
    run = zoo.fit(model, MeanField(model, table.x), table.x, progress=False)
    with torch.no_grad():
        run.guide.scale *= 0.3
    found = diagnose(run, table)
    text = report(run, table.x, tmp_path / "bad.html", diagnosis=found).read_text(encoding="utf-8")
    assert "Do not trust this posterior" in text
    assert found.verdict in text
    assert "(failed)" in text


def test_the_predictive_check_is_shown(good, table, tmp_path):
    check = zoo.predictive_check(good, table, draws=20)
    text = report(
        good, table, tmp_path / "page.html", diagnosis=diagnose(good, table, simulations=20), predictive=check
    ).read_text(encoding="utf-8")
    assert f"With 20 replicated data sets, {check.headline}." in text
    assert "Replicated data" in text


def test_an_interrupted_report_leaves_the_old_file(good, table, tmp_path, monkeypatch):
    place = tmp_path / "report.html"
    place.write_text("what was there")

    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(KeyboardInterrupt):
        report(good, table, place, diagnosis=diagnose(good, table, simulations=20))
    assert place.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [place]


def test_refusals(good, table, tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.html"):
        report(good, table, tmp_path / "report.pdf")
    with pytest.raises(ValueError, match="labels has 3 entries, x has 150 rows"):
        report(good, table.x, tmp_path / "report.html", labels=[0, 1, 2])
    with pytest.raises(ValueError, match="columns"):
        report(good, table.x[:, :3], tmp_path / "report.html")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: install Debian's package chromium")
@pytest.mark.parametrize("width", [390, 1200], ids=["phone", "desk"])
def test_a_browser_shows_it(page, width):
    browsers = pytest.importorskip("playwright.sync_api", reason="pip install playwright to look at the page")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with browsers.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        tab = browser.new_page(viewport={"width": width, "height": 844})
        messages, requests = [], []
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())
        assert not messages
        assert [url for url in requests if not url.startswith(("data:", "file:"))] == []
        assert tab.locator(".verdict").is_visible()
        shown = tab.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth])")
        assert len(shown) >= 5
        assert all(complete and natural > 100 and client > 100 for complete, natural, client in shown)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width  # no horizontal overflow
        least = tab.evaluate(
            "Math.min(...[...document.querySelectorAll('p, li, td, dd, figcaption')].filter(e => e.innerText)"
            ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        assert least >= 14
        browser.close()


def test_a_pair_without_a_training_record(table, tmp_path):
    model = PPCA(4, 2).double()
    zoo.em(model, table.x)
    run = zoo.Fit(model, Exact(model))
    text = report(run, table, tmp_path / "page.html", diagnosis=diagnose(run, table, simulations=20)).read_text("utf-8")
    assert "<dt>training</dt><dd>no record</dd>" in text
    assert "This posterior can be trusted" in text
    assert "<h3>Training</h3>" not in text  # no loss curve


def factors(x=None, index=None, size=None):
    """A Bayesian factor model with shared weights, as a function."""
    zero = torch.zeros(2, dtype=torch.float64)
    with pyro.plate("features", 4, dim=-1):
        weight = pyro.sample("weight", dist.Normal(zero, 1.0).to_event(1))
    with rows(x, index, size):
        z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z @ weight.mT, 0.5).to_event(1), obs=x)


def test_a_model_with_shared_sites(table, tmp_path):
    x = table.x[::3] - table.x.mean(0)
    with seeded(0):
        run = zoo.fit(factors, Amortized(factors, x, shared="mean_field", hidden=()), x, steps=500, progress=False)
    found = diagnose(run, x, draws=50)
    text = report(run, x, tmp_path / "page.html", diagnosis=found).read_text(encoding="utf-8")
    assert "factors with Amortized" in text
    assert "<dt>part of shared sites</dt>" in text
    assert "k-hat of weight" in text
    assert "<dd>500 steps, not converged; all 500 steps were taken</dd>" in text
    assert f"<dt>loss curve</dt><dd>{assess(run.training).reason}</dd>" in text
    assert "With 200 replicated data sets" in text
    assert "<td>factors</td>" in text  # the model among the guide's options, without its address


def test_a_model_of_images_shows_them(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    names = tuple(f"pixel_{i}_{j}" for i in range(2) for j in range(3))
    table = Dataset(x, None, (), names, "toy", "simulated", "CC0")
    run = zoo.em(PPCA(6, 2).double(), table)
    found = diagnose(run, x, simulations=20)
    text = report(run, table, tmp_path / "page.html", diagnosis=found).read_text(encoding="utf-8")
    for title in ("Samples", "Reconstructions", "Traversals"):
        assert f"<h3>{title}</h3>" in text
    assert "What ELBO, nats, gap and k-hat mean" in text
