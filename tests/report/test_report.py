"""The report: one file that holds all it shows, and what a browser makes of it."""

import re
import shutil

import pytest
import torch

import zoo
from guides import Exact, MeanField
from zoo import PPCA
from zoo.diagnostics import diagnose
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


def test_the_page_holds_all_it_shows(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "<script" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert page.stat().st_size < 3_000_000


def test_the_page_says_what_was_asked(page):
    text = page.read_text(encoding="utf-8")
    assert "This posterior can be trusted" in text
    for word in ("convergence", "gap", "importance weights", "posterior", "calibration", "collapse"):
        assert f"<h3>{word} " in text
    assert "iris, 150 rows x 4 columns" in text
    assert "latent_dim" in text
    assert "--out &#39;runs/&lt;iris&gt;&#39;" in text  # escaped
    pictures = re.findall(r"<img src=\"data:image/png;base64,[^\"]+\" width=\"(\d+)\" alt=\"([^\"]+)\"", text)
    assert len(pictures) >= 5
    assert all(len(words) > 30 for _, words in pictures)


def test_a_bad_run_is_called_so(table, tmp_path):
    model = PPCA(4, 2).double()
    run = zoo.fit(model, MeanField(model, table.x), table.x, progress=False)
    with torch.no_grad():
        run.guide.scale *= 0.3
    found = diagnose(run, table)
    text = report(run, table.x, tmp_path / "bad.html", diagnosis=found).read_text(encoding="utf-8")
    assert "Do not trust this posterior" in text
    assert found.verdict in text
    assert "(against it)" in text


def test_the_model_is_checked_too(good, table, tmp_path):
    check = zoo.predictive_check(good, table, draws=20)
    text = report(
        good, table, tmp_path / "page.html", diagnosis=diagnose(good, table, simulations=20), predictive=check
    ).read_text(encoding="utf-8")
    assert f"Of 20 replicated tables: {check.headline}." in text
    assert "Replicated data" in text


def test_a_page_is_whole_or_not_there(good, table, tmp_path, monkeypatch):
    place = tmp_path / "report.html"
    place.write_text("what was there")

    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(KeyboardInterrupt):
        report(good, table, place, diagnosis=diagnose(good, table, simulations=20))
    assert place.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [place]


def test_what_cannot_be_written_is_refused(good, table, tmp_path):
    with pytest.raises(ValueError, match=r"let it end in \.html"):
        report(good, table, tmp_path / "report.pdf")
    with pytest.raises(ValueError, match="labels has 3 entries, and x 150 rows"):
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
        said, asked = [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        assert not said
        assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
        assert tab.locator(".verdict").is_visible()
        shown = tab.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth])")
        assert len(shown) >= 5
        assert all(complete and natural > 100 and client > 100 for complete, natural, client in shown)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing hangs over
        least = tab.evaluate(
            "Math.min(...[...document.querySelectorAll('p, li, td, dd, figcaption')].filter(e => e.innerText)"
            ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        assert least >= 14
        browser.close()
