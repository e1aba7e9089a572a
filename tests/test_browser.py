"""What people see, in a real browser: the report on screen, phone and paper, and what notebooks show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import deliverkit as dk

DATA = Path(__file__).resolve().parents[1] / "data"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser(need: Callable[[str, str], str]) -> Iterator[object]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: python -m pip install playwright")
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=need("chromium", "chromium"), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dk.report(dk.sample(), provider="SendGrid").save(tmp_path_factory.mktemp("report") / "report.html")


def visit(browser, path: Path, **options):
    """The page, with everything it asked for and every complaint of the console."""
    page = browser.new_page(**options)
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    return page, asked, said


def test_the_report_asks_for_nothing_and_the_console_stays_quiet(browser, report: Path) -> None:
    page, asked, said = visit(browser, report)
    assert asked == [report.as_uri()] and said == []
    assert page.locator("h2").count() >= 5 and page.locator("svg[role=img] title").count() >= 2
    page.close()


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_report_fits_every_width(browser, report: Path, width: int) -> None:
    page, _, _ = visit(browser, report, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_the_report_can_be_read_in_both_themes(browser, report: Path, scheme: str) -> None:
    page, _, _ = visit(browser, report, color_scheme=scheme)
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ink, paper = (sum(map(int, c.removeprefix("rgb(").removesuffix(")").split(","))) for c in colours)
    assert abs(ink - paper) > 450 and (paper < ink) == (scheme == "dark")
    page.close()


def test_the_report_prints_on_pages(browser, report: Path) -> None:
    page, _, _ = visit(browser, report)
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def test_what_the_widget_and_the_advice_show_is_drawn(browser, tmp_path: Path) -> None:
    probes = dk.read(DATA / "probes.csv")
    box = dk.explore_rates(probes)
    box.grouping.value = "port × vantage"
    shown = box.view.value + dk.choose_port("application", evidence=probes)._repr_html_()
    path = tmp_path / "shown.html"
    path.write_text(f"<meta charset=utf-8><title>shown</title>{shown}", encoding="utf-8")
    page, asked, said = visit(browser, path)
    assert asked == [path.as_uri()] and said == []
    assert page.locator("svg circle").count() == 12 == page.locator("table").first.locator("tbody tr").count()
    assert "Use port" in page.inner_text(".dk-advice") and page.locator(".dk-advice table").is_visible()
    page.close()
