"""The report: whole, self-contained, escaped, masked."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from deliverkit.classify import classify
from deliverkit.errors import FormatError, SchemaError
from deliverkit.report import mask, report
from deliverkit.schema import ATTEMPTS, PROBES

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def mail() -> pd.DataFrame:
    base = {"origin": "log", "time": "2026-03-01T10:00:00Z", "client": f"Books & {EVIL}"}
    rows = [
        {"recipient": "anna.smith@a.example", "outcome": "passed", "port": 587, "host": "mx.a.example"},
        {"recipient": "bert@a.example", "outcome": "failed", "port": 587, "status_code": "5.1.1", "reply_code": 550,
         "text": f"550 5.1.1 <bert@a.example>: User unknown {EVIL}", "step": "relay"},
        {"recipient": "carla@b.example", "outcome": "deferred", "port": 25, "status_code": "4.4.1", "step": "connect",
         "text": "connect to mx.b.example[192.0.2.1]:25: Connection timed out"},
    ]  # fmt: skip
    return classify([{**base, **row, "message_id": f"<{i}@x.example>"} for i, row in enumerate(rows)])


@pytest.fixture
def probes() -> pd.DataFrame:
    rows = [
        {"origin": "probe", "vantage": network, "host": f"mx{i}.op{i}.example", "port": port, "outcome": "failed",
         "verdict": "filtered" if port == 25 and network == "office" else "open", "step": "connect",
         "failure": "tcp_timeout" if port == 25 and network == "office" else None, "banner": f"220 mx{i} {EVIL}",
         "time": "2026-03-01T09:00:00Z"}
        for network in ("office", "home") for port in (25, 587) for i in range(8)
    ]  # fmt: skip
    return classify(rows, PROBES)


class Page(HTMLParser):
    """Collects what a page asks for and whether its tags close."""

    VOID = frozenset(["meta", "br", "link", "img", "circle", "rect", "path"])

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asks: list[str] = []
        self.scripts = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.asks += [str(v) for name, v in attrs if name in ("src", "data", "srcset") or (tag == "link")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_asks_for_nothing_and_runs_nothing(mail: pd.DataFrame, probes: pd.DataFrame) -> None:
    page = Page(report(PROBES.build(pd.concat([probes, mail]))).html)
    assert (page.open, page.asks, page.scripts) == ([], [], 0)


def test_every_foreign_text_is_escaped(mail: pd.DataFrame) -> None:
    html = report(mail, title=EVIL).html
    assert EVIL not in html and "&lt;script&gt;" in html


def test_recipients_are_masked_in_cells_and_in_replies_unless_asked(mail: pd.DataFrame) -> None:
    assert "bert@a.example" not in report(mail).html and "b***@a.example" in report(mail).html
    assert "bert@a.example" in report(mail, mask_recipients=False).html


def test_never_left_and_bounced_are_told_apart(mail: pd.DataFrame) -> None:
    html = " ".join(report(mail).html.split())
    assert "1 of 2 answered messages bounced" in html
    assert "1 never left" in html


def test_it_shows_ports_verdicts_advice_rules_and_sample_sizes(probes: pd.DataFrame) -> None:
    html = report(probes, sending="relay").html
    nbsp = "\N{NO-BREAK SPACE}"
    wanted = ["blocked by network", f"8 of 8 (68{nbsp}% to 100{nbsp}%)", "office: No port is left", "home: Use port 25"]
    wanted += ["guide:choose-environment", "32 from probes", "0 of 8 hosts of 8 operators answered on 25"]
    for words in wanted:
        assert words in html, words


def test_each_network_gets_its_own_advice(probes: pd.DataFrame) -> None:
    assert report(probes).html.count('class="do"') == 2


def test_it_is_saved_where_it_was_asked_to_be(mail: pd.DataFrame, tmp_path: Path) -> None:
    path = report(mail).save(tmp_path / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("name", ["report.docx", "nowhere/report.html"])
def test_a_path_that_cannot_be_written_is_named(mail: pd.DataFrame, tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match=re.escape(name.split("/")[-1])):
        report(mail).save(tmp_path / name)


def test_nothing_to_report_is_said(mail: pd.DataFrame) -> None:
    with pytest.raises(SchemaError, match="nothing to report"):
        report(ATTEMPTS.empty())
    with pytest.raises(SchemaError, match="blocked"):
        report(mail.drop(columns="blocked"))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("anna@x.example", "a***@x.example"),
        ("to=<b.c+d@x.example>, no", "to=<b***@x.example>, no"),
        ("no address", "no address"),
        ('for "odd, name"@x.example', "for ***@x.example"),
        ("o'hara!x@x.example's", "o***@x.example's"),
    ],
)
def test_an_address_keeps_its_first_letter_and_domain(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_bounces_alone_give_no_rate(mail: pd.DataFrame) -> None:
    html = report(mail[mail["outcome"] == "failed"].assign(origin="dsn")).html
    assert "only bounces in these data" in html and "100" not in html.split("Messages refused")[1].split("</div>")[0]


def test_mail_beside_probes_is_shown_apart(mail: pd.DataFrame, probes: pd.DataFrame) -> None:
    html = " ".join(report(PROBES.build(pd.concat([probes, mail]))).html.split())
    assert "8 of 32 attempts of probes were blocked" in html and "The ports that mail went by" in html
