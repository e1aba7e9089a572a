"""What notebooks show, in a real browser."""

from __future__ import annotations

from pathlib import Path

import deliverkit as dk

DATA = Path(__file__).resolve().parents[1] / "data"


def visit(browser, path: Path, **options):
    """The page, with everything it asked for and every complaint of the console."""
    page = browser.new_page(**options)
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    return page, asked, said


def test_what_the_widget_and_the_advice_show_is_drawn(browser, tmp_path: Path) -> None:
    probes = dk.read(DATA / "probes.csv")
    box = dk.explore_rates(probes)
    box.grouping.value = "vantage"
    shown = box.view.value + dk.choose_port("application", evidence=probes)._repr_html_()
    path = tmp_path / "shown.html"
    path.write_text(f"<meta charset=utf-8><title>shown</title>{shown}", encoding="utf-8")
    page, asked, said = visit(browser, path)
    assert asked == [path.as_uri()] and said == []
    assert page.locator("svg circle").count() == 12 == page.locator("table").first.locator("tbody tr").count()
    assert "Use port" in page.inner_text(".dk-advice") and page.locator(".dk-advice table").is_visible()
    page.close()
