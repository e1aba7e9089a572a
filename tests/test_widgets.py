"""What the widgets show and do, without a browser: their state is text that a test can read."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import ipywidgets as w
import pandas as pd
import pytest

import deliverkit as dk
from deliverkit.errors import SchemaError
from deliverkit.schema import ATTEMPTS, PROBES

PACKAGE = Path(dk.__file__).parent
HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</svg><svg onload=alert(1)>", "a&b;<b>"]


@pytest.fixture(autouse=True)
def close() -> Iterator[None]:
    yield
    w.Widget.close_all()


def rows(html: str) -> list[list[str]]:
    """The cells of the last table."""
    body = html.rpartition("<tbody>")[2]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]


def controls(box: w.Widget) -> Iterator[w.Widget]:
    for child in box.children:
        yield from controls(child) if hasattr(child, "children") else [child]


def test_no_output_widget_anywhere() -> None:
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("notebooks/*.py")]:
        assert not re.search(r"\bOutput\(|interact\(", path.read_text(encoding="utf-8")), path


EXPLORERS = [dk.explore_rates, dk.explore_probes, dk.explore_bounces, dk.port_wizard]


@pytest.mark.parametrize("make", [*EXPLORERS, dk.report_builder])
def test_every_widget_starts_with_the_sample_and_labels_its_controls(make) -> None:
    box = make()
    kinds = [child for child in controls(box) if not isinstance(child, w.HTML)]
    assert kinds and all(child.description for child in kinds)
    assert not [child for child in kinds if isinstance(child, w.IntSlider | w.FloatSlider)]


def test_rates_are_those_of_block_rates() -> None:
    probes = dk.sample("probes")
    box = dk.explore_rates(probes)
    box.grouping.value = "vantage"
    want = dk.block_rates(probes, ["port", "vantage"])
    assert [row[:4] for row in rows(box.view.value)] == [
        [str(r.port), r.vantage, str(r.attempts), str(r.blocked)] for r in want.itertuples()
    ]
    box.port.value = 587
    box.vantage.value = "cloud"
    assert [row[:4] for row in rows(box.view.value)] == [["587", "cloud", "8", "8"]]
    box.grouping.value = ""
    assert "guide: low; measured: higher" in box.view.value and box.view.value.count("<circle") == 1


def test_time_is_split_by_day_week_and_month() -> None:
    times = pd.to_datetime(["2026-01-30 23:00", "2026-01-31 12:00", "2026-02-01 12:00"], utc=True)
    frame = ATTEMPTS.build(pd.DataFrame({"time": times, "port": 25, "blocked": [True, False, True]}))
    box = dk.explore_rates(frame)
    shown = {}
    for period in ("day", "week", "month"):
        box.split.value = period
        shown[period] = [row[1:4] for row in rows(box.view.value)]
    assert shown["day"] == [["2026-01-30", "1", "1"], ["2026-01-31", "1", "0"], ["2026-02-01", "1", "1"]]
    assert shown["week"] == [["2026-01-26", "3", "2"]]
    assert shown["month"] == [["2026-01-01", "2", "1"], ["2026-02-01", "1", "1"]]


def test_too_few_attempts_are_said_and_drawn_hollow() -> None:
    box = dk.explore_rates(ATTEMPTS.build(pd.DataFrame({"port": [587], "blocked": [True]})))
    assert "too few or too close to say" in box.view.value and 'fill="none" stroke="#009E73"' in box.view.value


def test_a_frame_without_its_columns_is_refused_in_words() -> None:
    with pytest.raises(SchemaError, match="column 'blocked' is missing"):
        dk.explore_rates(pd.DataFrame({"port": [25]}))


def test_an_empty_frame_shows_that_there_is_nothing() -> None:
    assert "no attempts" in dk.explore_rates(ATTEMPTS.empty()).view.value
    assert "No probes" in dk.explore_probes(PROBES.empty()).view.value
    assert "No message failed" in dk.explore_bounces(ATTEMPTS.empty()).view.value


def test_a_sweep_starts_stops_resumes_and_shows_its_way() -> None:
    with dk.Lab("isp-blocks-25") as lab:
        box = dk.explore_probes(hosts=lab.hosts, connect_to=lab.connect_to, timeout=3, pace=None, vantage="lab")
        assert "No port was tried yet" in box.view.value and box.resume.disabled
        box.start.click()
        assert box.start.disabled and not box.cancel.disabled
        time.sleep(1)
        box.cancel.click()
        box.thread.join()
        assert "8 ports are left" in box.note.value and not box.resume.disabled
        first = box.probes
        box.resume.click()
        box.thread.join()
    assert "Done" in box.note.value and box.resume.disabled and not box.start.disabled
    assert box.probes["verdict"].value_counts().to_dict() == {"open": 24, "filtered": 8}
    assert box.probes["time"].isin(first["time"]).sum() == 24
    assert "0 of 8" in box.view.value and "blocked by network" in box.view.value
    box.port.value = "25"
    assert "8 of 8" not in box.view.value.partition("</svg>")[0] and "tcp_timeout" in box.view.value


def test_what_cannot_be_probed_is_a_sentence_in_the_widget() -> None:
    box = dk.explore_probes(hosts=[])
    for typed, words in (("", "at least one host"), ("a:b", "a port is a number"), ("<b>", "is not a host name")):
        box.hosts.value = typed
        box.start.click()
        box.thread.join()
        assert words in box.note.value and "<b>" not in box.note.value and not box.start.disabled


def test_bounces_count_each_message_once_and_add_up() -> None:
    mail = dk.sample("mail")
    box = dk.explore_bounces(mail)
    failed = len(dk.outcomes(mail).query("final in ('bounced', 'expired')"))
    for key in [value for _, value in box.grouping.options]:
        box.grouping.value = key
        assert sum(int(row[1]) for row in rows(box.view.value)) == failed
    box.grouping.value = "category"
    box.fault.value = "list"
    assert {row[2] for row in rows(box.view.value)} == {"the list: addresses that do not exist or are full"}


def test_the_evidence_of_a_message_names_source_rule_and_words() -> None:
    box = dk.explore_bounces(dk.sample("mail"))
    box.fault.value = "list"
    assert box.evidence.value == "" or "<table>" not in box.evidence.value
    box.row.value = next(value for label, value in box.row.options if "User unknown" in label)
    assert "<mark>User unknown</mark>" in box.evidence.value and "Diagnostic-Code" in box.evidence.value
    for words in ("text:", "5.1.1", "bounces.mbox", "Whose fault: the list"):
        assert words in box.evidence.value


def hostile(n: int = 6) -> pd.DataFrame:
    said = (HOSTILE * n)[:n]
    frame = {"port": 25, "blocked": True, "blocked_by": "policy", "outcome": "failed", "category": "content_spam"}
    names = ("text", "host", "vantage", "client", "campaign", "operator", "recipient", "source", "message_id")
    frame |= dict.fromkeys(names, said) | {"origin": "log", "rule": "text:spam-3", "step": "inbox", "kind": "block"}
    return PROBES.build(pd.DataFrame(frame | {"time": pd.Timestamp("2026-01-01", tz="UTC"), "verdict": "rejected"}))


@pytest.mark.parametrize("make", EXPLORERS)
def test_text_from_outside_is_never_markup(make) -> None:
    box = make(hostile())
    shown = []
    for child in list(controls(box)):
        for _, value in child.options if isinstance(child, w.Dropdown) else ():
            child.value = value
            shown += [other.value for other in controls(box) if isinstance(other, w.HTML)]
    text = "".join(shown)
    assert "&lt;script" in text or make is dk.port_wizard
    assert not re.search(r"<script|<img|onload=|<svg onload|<b>", re.sub(r"&lt;.*?&gt;", "", text))


def test_the_report_builder_makes_what_was_asked() -> None:
    box = dk.report_builder(provider="SendGrid")
    client = box.client.options[1][1]
    box.client.value = client
    for form in ("html", "pdf", "xlsx"):
        box.form.value = form
        box.make.click()
        assert f".{form}</a>" in box.view.value and "base64," in box.view.value, box.view.value[-300:]
    other = box.client.options[2][1]
    assert client in box.report.html and other not in box.report.html
    assert 'sandbox=""' in box.view.value
    box.before.value = "last month"
    box.make.click()
    assert "is no date; 2026-11-25 would be one" in box.view.value and 'role="alert"' in box.view.value
    with pytest.raises(TypeError, match="does not know 'foo'"):
        dk.report_builder(foo=1)
