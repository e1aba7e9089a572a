"""The report: figures that are right, words for marketers, one client apart from the other, three formats."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import deliverkit as dk
from deliverkit.classify import classify
from deliverkit.errors import DeliverkitError, FormatError, SchemaError
from deliverkit.report import mask, report, reports, sheets
from deliverkit.report.content import compared
from deliverkit.report.masking import pseudonymous
from deliverkit.schema import ATTEMPTS, PROBES
from deliverkit.sends import attach_sends

EVIL = "<script>alert(1)</script>"
DAY = "2026-11-25"
openpyxl = pytest.importorskip("openpyxl")


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


def both(probes: pd.DataFrame, mail: pd.DataFrame) -> pd.DataFrame:
    return PROBES.build(pd.concat([probes, mail]))


def plain(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).replace("\N{NO-BREAK SPACE}", " ").split())


def cells(made: bytes) -> dict[str, list[tuple[object, ...]]]:
    book = openpyxl.load_workbook(BytesIO(made))
    return {sheet.title: [tuple(cell.value for cell in row) for row in sheet.iter_rows()] for sheet in book}


@pytest.fixture
def paper(need: Callable[[str, str], str], tmp_path: Path) -> Callable[[bytes], str]:
    program = need("pdftotext", "poppler-utils")

    def words(made: bytes) -> str:
        (tmp_path / "r.pdf").write_bytes(made)
        done = subprocess.run(
            [program, "-layout", tmp_path / "r.pdf", "-"], capture_output=True, check=True, timeout=60
        )
        return done.stdout.decode()

    return words


def test_recipients_are_masked_in_all_formats_unless_asked(mail: pd.DataFrame, paper: Callable[[bytes], str]) -> None:
    named = mail.copy()
    named.loc[1, "text"] = "550 5.1.1 user bert unknown, <bert@a.example> BERT@a.example, cc=ANNA.smith@a.example"
    made = report(named)
    for shown in (made.html, paper(made.pdf()), repr(cells(made.xlsx()))):
        assert "b***@a.example" in shown
        for address in ("bert", "BERT", "anna.smith", "ANNA", "carla@"):
            assert address not in shown, address
    open_ = report(named, mask_recipients=False)
    for shown in (open_.html, paper(open_.pdf()), repr(cells(open_.xlsx()))):
        assert "bert@a.example" in shown


def test_never_left_and_bounced_stand_side_by_side_with_their_own_denominators(mail: pd.DataFrame) -> None:
    more = pd.concat([mail.assign(message_id=mail["message_id"] + str(i)) for i in range(5)])
    shown = plain(report(more).html)
    assert "5 of 10 answered messages bounced" in shown and "5 of 15 messages were never taken" in shown
    assert "Take 5 recipients off your lists" in shown
    assert "Wait for 5 messages" in shown and "Send 5 messages" not in shown  # they are in the queue: doubles
    ends = [{"outcome": "failed", "category": "expired", "step": None, "text": "expired", "port": pd.NA}]
    lost = pd.concat([more, *(more[more["outcome"] == "deferred"].assign(**end) for end in ends)])
    shown = plain(report(PROBES.build(lost)).html)
    assert "Send 5 messages that never left" in shown and "Wait for" not in shown
    [_, row] = cells(report(more).xlsx())["per client"]
    assert row[1:9] == (15, 5, 5, 0, 5, 5, 15, 10), row


def test_it_shows_ports_verdicts_advice_rules_and_sample_sizes(probes: pd.DataFrame) -> None:
    shown = plain(report(probes, sending="relay").html)
    for words in ("blocked by network", "8 of 8 (68 % to 100 %)", "No port is left", "Use port 25", "as expected",
                  "guide:choose-environment", "32 from probes", "0 of 8 hosts of 8 operators answered on 25",
                  "Your email engineer", "RFC 8314"):  # fmt: skip
        assert words in shown, words


def test_networks_with_the_same_answer_share_one_action(probes: pd.DataFrame) -> None:
    assert report(probes, sending="relay").html.count("Use port 25") == 1
    assert report(probes).html.count("Use port 587") == 1
    assert "office, home" in report(probes).html or "home, office" in report(probes).html


def test_causes_are_told_by_whose_fault_they_are(mail: pd.DataFrame) -> None:
    shown = plain(report(mail).html)
    assert "the recipient list invalid recipient 1 no" in shown and "hardly 0 and certainly not 1" in shown
    assert "b***@a.example – invalid_recipient take off the list".replace("_", " ") in shown
    assert "A better port does not improve placement in the inbox" in shown


def test_few_messages_are_too_few_to_say(mail: pd.DataFrame) -> None:
    shown = plain(report(mail).html)
    assert "Messages refused 1 of 2 1 of 2 answered messages bounced: too few to say" in shown


def test_it_is_saved_in_the_form_of_its_ending(mail: pd.DataFrame, tmp_path: Path) -> None:
    made = report(mail)
    for name, start in (("r.html", b"<!doctype html>"), ("r.pdf", b"%PDF-"), ("r.xlsx", b"PK")):
        assert made.save(tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["report.docx", "report", "nowhere/report.html", "nowhere/report.pdf"])
def test_a_path_that_cannot_be_written_is_named(mail: pd.DataFrame, tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match=re.escape(name.split("/")[-1])):
        report(mail).save(tmp_path / name)


@pytest.mark.parametrize(("package", "form"), [("typst", "pdf"), ("xlsxwriter", "xlsx")])
def test_a_package_that_is_missing_is_named(
    mail: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, package: str, form: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    made = report(mail)
    with pytest.raises(DeliverkitError, match=package):
        getattr(made, form)()


def test_a_page_needs_neither_typst_nor_xlsxwriter() -> None:
    code = "import sys, deliverkit as dk; dk.report(dk.sample()); print({'typst', 'xlsxwriter'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "set()"


def test_nothing_to_report_is_said(mail: pd.DataFrame) -> None:
    for frame, options in ((ATTEMPTS.empty(), {}), (mail, {"before": "2030-01-01"}), (mail, {"before": "2020-01-01"})):
        with pytest.raises(SchemaError, match="nothing to"):
            report(frame, **options)
    with pytest.raises(SchemaError, match="no row names the client 'nobody'; there are: Books"):
        report(mail, client="nobody")
    with pytest.raises(SchemaError, match="no row names a client"):
        reports(mail.assign(client=pd.NA))
    twice = pd.concat([mail.assign(client=name, campaign="news") for name in ("Acme", "Globex")])
    with pytest.raises(SchemaError, match="the campaign 'news' belongs to several clients"):
        reports(twice, by="campaign")
    with pytest.raises(SchemaError, match="blocked"):
        report(mail.drop(columns="blocked"))
    for options in ({"date": "soon"}, {"date": "1.11.2026"}, {"before": "soon"}, {"before": mail.drop(columns="port")}):
        with pytest.raises(SchemaError):
            report(mail, **options)


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
    shown = plain(report(mail[mail["outcome"] == "failed"].assign(origin="dsn")).html)
    assert "Attempts turned away" in shown and "Messages refused" not in shown.split("What to do")[0]


def odd(name: str, probes: pd.DataFrame, mail: pd.DataFrame) -> pd.DataFrame:
    keep = ["port", "blocked", "origin", "outcome"]
    frames = {
        "probes": probes, "mail": mail,
        "bounces": mail[mail["outcome"] == "failed"].assign(origin="dsn"), "one": mail[:1],
        "bare": mail[keep], "bare probes": probes[keep], "no verdict": both(probes, mail).drop(columns="verdict"),
        "no time": mail.assign(time=pd.NaT), "no port": mail.assign(port=pd.NA), "unknown": mail.assign(category="odd"),
        "complaints": mail.assign(origin="arf", attempted=False), "index": mail.set_axis([7] * len(mail)),
    }  # fmt: skip
    empty = mail.copy()
    for column in empty.columns.difference(["origin"]):
        empty[column] = pd.Series(pd.NA, empty.index, dtype=empty[column].dtype)
    return {**frames, "missing": empty}[name]


NAMES = ["probes", "mail", "bounces", "one", "bare", "bare probes", "no verdict", "no time", "no port", "unknown",
         "complaints", "index", "missing"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_thin_data_give_a_report_in_every_form(name: str, probes: pd.DataFrame, mail: pd.DataFrame) -> None:
    frame = odd(name, probes, mail)
    for before in (None, frame, frame[:0]):
        made = report(frame, before=before, date=DAY)
        assert made.html.endswith("</html>") and made.pdf() and made.xlsx()
    assert "no rows of the period before" in made.html


@pytest.mark.parametrize(
    ("now", "before", "word"),
    [
        ((56, 70), (48, 80), "higher"),  # Newcombe's own example (a): 0.0524 to 0.3339
        ((9, 10), (3, 10), "higher"),  # (b): 0.1705 to 0.8090
        ((3, 10), (9, 10), "lower"),
        ((6, 7), (2, 7), "higher"),  # (c): 0.0582 to 0.8062
        ((5, 56), (0, 29), "no clear change"),  # (d): -0.0381 to 0.1926
        ((0, 10), (0, 20), "no clear change"),
        ((0, 0), (3, 10), "too few to say"),
    ],
)
def test_change_is_told_by_newcombes_interval(now: tuple[int, int], before: tuple[int, int], word: str) -> None:
    assert compared(now, before) == word


def test_a_date_splits_the_frame_into_now_and_before(mail: pd.DataFrame) -> None:
    many = pd.concat([mail.assign(message_id=mail["message_id"] + str(i)) for i in range(30)])
    early = many.assign(
        time=many["time"] - pd.Timedelta(days=7), outcome="passed", blocked=False, category=None, step="inbox"
    )
    split = report(pd.concat([early, many]), before="2026-02-27", date=DAY)
    assert split.html == report(many, before=early, date=DAY).html
    assert "Messages refused 30 of 60: 50 % (38 % to 62 %) 0 of 90: 0 % (0 % to 4 %) higher" in plain(split.html)
    assert "Before: 0 of 90: 0 % (0 % to 4 %): higher" in plain(split.html) and "2026-02-22" in plain(split.html)


def test_equal_data_give_equal_bytes(probes: pd.DataFrame, mail: pd.DataFrame) -> None:
    data = both(probes, mail)
    one, two = report(data, date=DAY), report(data.copy(), date=DAY)
    assert (one.html, one.pdf(), one.xlsx()) == (two.html, two.pdf(), two.xlsx())
    assert one.pdf() != report(data, date="2026-11-26").pdf()


def test_the_pdf_is_tagged_and_says_title_and_language(probes: pd.DataFrame, mail: pd.DataFrame) -> None:
    made = report(both(probes, mail), title="Spring (mail)").pdf()
    for mark in (b"/MarkInfo", b"/Lang", b"/Title", b"/StructTreeRoot", b"pdfuaid"):
        assert mark in made, mark


def test_the_workbook_holds_numbers_dates_and_a_chart_with_words(probes: pd.DataFrame, mail: pd.DataFrame) -> None:
    book = openpyxl.load_workbook(BytesIO(report(both(probes, mail)).xlsx()))
    assert book.sheetnames[0] == "what to do" and book["what to do"]["B2"].value.startswith("Use port")
    wanted = {"summary", "block rates", "egress", "per client", "reasons", "outcomes", "to do", "method"}
    assert wanted <= set(book.sheetnames)
    rates = book["block rates"]
    heads = [cell.value for cell in rates[1]]
    share = rates.cell(2, heads.index("share") + 1)
    assert isinstance(share.value, float | int) and share.number_format == "0.0%" and rates.freeze_panes == "A2"
    [chart] = rates._charts
    assert chart.series[0].errBars is not None
    times = book["outcomes"][2][[c.value for c in book["outcomes"][1]].index("first time")]
    assert times.is_date and str(times.value) == "2026-03-01 10:00:00"


def test_a_sheet_that_is_full_says_what_it_left_out(mail: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "_ROWS", 2)
    made = cells(report(mail).xlsx())
    assert len(made["outcomes"]) == 3 and ("outcomes", "1 of 3 rows did not fit into the sheet") in made["method"]


names = st.sampled_from(["QqAlphaqQ", "QqBetaqQ", None])
events = st.lists(
    st.tuples(names, st.sampled_from(["passed", "failed", "deferred"]), st.sampled_from([25, 587, None]),
              st.sampled_from(["log", "probe", "dsn"]), st.booleans()), min_size=1, max_size=25)  # fmt: skip


@settings(max_examples=15, deadline=None, phases=[Phase.generate])
@given(events)
def test_nothing_of_one_client_is_in_the_report_of_another(
    rows: list[tuple[str | None, str, int | None, str, bool]],
) -> None:
    mark = {"QqAlphaqQ": "Kalpha", "QqBetaqQ": "Kbeta", None: "Knobody"}
    data = classify(
        [{"client": who, "outcome": outcome, "port": port, "origin": origin, "step": "relay" if late else "connect",
          "time": f"2026-03-0{1 + late}T10:00:00Z", "recipient": f"{mark[who]}{i % 3}@{mark[who]}.example",
          "message_id": f"<{i % 4}@{mark[who]}.example>", "campaign": f"{mark[who]}-spring",
          "host": f"mx.{mark[who]}.example",
          "text": f"550 5.1.1 {mark[who]} unknown", "vantage": f"{mark[who]}-net"}
         for i, (who, outcome, port, origin, late) in enumerate(rows)], PROBES)  # fmt: skip
    for before in (None, "2026-03-02"):
        now = data if before is None else data[data["time"] >= before]
        if now["client"].isna().all() or (before and len(now) in (0, len(data))):
            continue
        made = reports(data, before=before, date=DAY, mask_recipients=False)
        assert set(made) == set(now["client"].dropna())
        assert made.unnamed == int((now["client"].isna() & now["origin"].ne("probe")).sum())
        for name, one in made.items():
            [other] = {"QqAlphaqQ", "QqBetaqQ"} - {name}
            shown = one.html + repr(cells(one.xlsx()))
            assert other not in shown and mark[other] not in shown
            alone = data[data["client"].eq(name).fillna(False) | (data["client"].isna() & data["origin"].eq("probe"))]
            early = None if before is None else alone[alone["time"] < before]
            alone = alone if before is None else alone[alone["time"] >= before]
            again = report(alone, client=name, before=early, date=DAY, mask_recipients=False)
            assert again.html == one.html


def test_a_report_of_one_client_says_how_many_rows_are_nobodys(mail: pd.DataFrame) -> None:
    data = pd.concat([mail.assign(client="Acme"), mail.assign(client=pd.NA)])
    assert "3 rows of mail name no client" in report(data, client="Acme").html


def test_a_report_says_how_much_of_the_mail_the_send_list_knows(mail: pd.DataFrame) -> None:
    sends = mail[["message_id", "recipient"]].dropna().head(1).assign(port=587)
    page = plain(report(attach_sends(mail, sends)).html)
    assert re.search(r"Send list: \d+ of \d+ rows joined \(.*\), 0 contradict, \d+ unknown\.", page)
    assert "Send list" not in plain(report(mail).html)


def test_the_sample_gives_a_small_page_per_client() -> None:
    made = dk.reports(dk.sample(), provider="SendGrid")
    assert set(made) == {"Alpine Travel", "Harbour Books"}
    assert all(len(one.html.encode()) <= 60_000 for one in made.values())
    assert "Harbour" not in made["Alpine Travel"].html and "Alpine" not in made["Harbour Books"].html


def test_a_recipient_without_a_domain_is_masked_too(mail: pd.DataFrame) -> None:
    local = mail.assign(recipient=["postmaster", "root", "carla@b.example"])
    shown = repr(cells(report(local).xlsx()))
    assert "'p***'" in shown and "postmaster" not in shown and "'r***'" in shown
    served = pseudonymous(PROBES.build(local))["recipient"].tolist()
    assert served == ["p***1", "r***2", "c***3@b.example"]
    known = local.assign(sender="bounce+carla=b.example@x.example", original_recipient="carla@b.example")
    assert pseudonymous(PROBES.build(known))[["sender", "original_recipient"]].isna().all(axis=None)


def test_a_period_before_without_the_client_is_refused_in_words(mail: pd.DataFrame) -> None:
    with pytest.raises(SchemaError, match="column 'client' is missing"):
        reports(mail, before=mail.drop(columns="client"))
