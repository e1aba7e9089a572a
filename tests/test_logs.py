"""Postfix logs: what a line says, what lines say together, and the truth of two real servers."""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deliverkit.errors import FormatError, SchemaError
from deliverkit.logs import formats, postfix, read_log
from deliverkit.logs.events import Events
from deliverkit.outcomes import outcomes
from deliverkit.schema import ATTEMPTS

CASES = [
    pytest.param(path.stem, case, id=f"{path.stem}: {case['name']}")
    for path in sorted((Path(__file__).parent / "cases").glob("*.toml"))
    if path.stem in formats()
    for case in tomllib.loads(path.read_text(encoding="utf-8"))["case"]
]
NOISE = [
    "Nov 23 21:14:53 mail postfix/smtpd[1232]: connect from localhost[127.0.0.1]",
    "Nov 23 21:14:53 mail dovecot: imap-login: Login: user=<x>",
    "\x00\x01\xff binary \\x80 junk",
    "",
]


def sent(to: str = "b@x.example", stamp: str = "Nov 23 21:14:53", status: str = "sent (250 ok)", pid: int = 9) -> str:
    return (
        f"{stamp} mail postfix/smtp[{pid}]: DD61222EC53: to=<{to}>, relay=mx.x.example[192.0.2.58]:25, "
        f"delay=1, delays=0/0/1/0, dsn={'2.0.0' if status[0] == 's' else '4.0.0'}, status={status}"
    )


def rows(lines: list[str]) -> list[dict[str, Any]]:
    events = Events(postfix)
    events.add("\n".join(lines).encode())
    made = events.rows()
    return [
        events.facts.rows[row["fact"]]
        | {k: v for k, v in row.items() if k != "fact" and (v is not None or k not in ("host", "address"))}
        for row in made.to_pylist()
    ]


def write(path: Path, *text: str) -> Path:
    path.write_text("\n".join(text) + "\n", encoding="utf-8", errors="surrogateescape")
    return path


@pytest.mark.parametrize(("name", "case"), CASES)
def test_line_gives_the_expected_row(tmp_path: Path, name: str, case: dict[str, Any]) -> None:
    made = read_log(write(tmp_path / "log", *case["line"].strip("\n").splitlines()), format=name)
    row = made.to_dict("records")[-1]
    assert {column: row[column] for column in case["expect"]} == case["expect"]
    assert [column for column in case.get("missing", ()) if not pd.isna(row[column])] == []


def test_other_lines_are_skipped_and_line_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    made = read_log(write(tmp_path / "log", *NOISE, sent(), *NOISE, sent(), sent()[:150]))
    assert list(made["line"]) == [5, 10]
    assert set(made["origin"]) == {"log"}
    assert set(made["source"]) == {str(tmp_path / "log")}
    assert made[["vantage", "client", "campaign"]].isna().all(axis=None)


def test_a_try_of_an_earlier_host_is_an_attempt_of_its_own(tmp_path: Path) -> None:
    refused = "Nov 23 21:14:52 mail postfix/smtp[9]: connect to mx1.x.example[192.0.2.57]:25: Connection refused"
    other = refused.replace("[9]", "[8]")
    busy = "Nov 23 21:14:52 mail postfix/smtp[9]: DD61222EC53: host mx3.x[192.0.2.59] refused to talk to me: 421 go"
    made = read_log(write(tmp_path / "log", refused, other, busy, sent(), sent(to="c@x.example")))
    assert made[["host", "port", "recipient", "outcome", "step"]].astype(object).to_numpy().tolist()[:1] == [
        ["mx1.x.example", 25, "b@x.example", "deferred", "connect"]
    ]
    assert list(made["line"]) == [1, 2, 3, 4, 5]
    assert list(made["recipient"].fillna("?")) == ["b@x.example", "?", "b@x.example", "b@x.example", "c@x.example"]
    assert list(made["port"]) == [25] * 5
    assert list(made["queue_id"].fillna("?"))[:3] == ["DD61222EC53", "?", "DD61222EC53"]


def test_a_try_that_the_delivery_line_repeats_counts_once(tmp_path: Path) -> None:
    text = "connect to mx.x.example[192.0.2.58]:25: Connection refused"
    tries = [f"Nov 23 21:14:52 mail postfix/smtp[9]: {text.replace('58', n)}" for n in ("57", "58")]
    made = read_log(write(tmp_path / "log", *tries, sent(status=f"deferred ({text})")))
    assert list(made["line"]) == [1, 3]


def test_expiry_ends_only_who_is_still_deferred(tmp_path: Path) -> None:
    end = "Nov 23 21:19:53 mail postfix/qmgr[2]: DD61222EC53: from=<a@y.example>, status=expired, returned to sender"
    later = [sent(to="a@x.example", status="deferred (x)"), sent(to="b@x.example", status="deferred (x)"), sent()]
    made = read_log(write(tmp_path / "log", *later, end, end))
    assert list(made[made["line"] >= 4]["recipient"]) == ["a@x.example"]
    assert dict(outcomes(made)[["recipient", "final"]].to_numpy()) == {"a@x.example": "expired", "b@x.example": "sent"}


def test_a_log_without_deliveries_is_an_empty_frame(tmp_path: Path) -> None:
    made = read_log(write(tmp_path / "log", *NOISE))
    assert list(made) == ATTEMPTS.names
    assert len(made) == 0
    assert len(outcomes(made)) == 0


def test_columns_leave_only_those(tmp_path: Path) -> None:
    log = write(tmp_path / "log", sent())
    assert list(read_log(log, columns=["port", "blocked"])) == ["port", "blocked"]
    with pytest.raises(SchemaError, match="'colour'"):
        read_log(log, columns=["colour"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\0\1\2\xff" * 5000, "no known log format"),
        (b"x" * 10_000_000, "no known log format"),
        (b"recipient,client\nb@x.example,ACME\n\x1b[2J", "no known log format"),
        (gzip.compress(os.urandom(50_000))[:-2000], "cannot be read"),
    ],
)
def test_what_is_no_log_is_a_format_error_of_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError, match=says) as error:
        read_log(tmp_path / "x")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("many", [1, 3])
def test_a_damaged_log_is_read_up_to_where_it_is_damaged(tmp_path: Path, many: int) -> None:
    text = "".join(sent(to=f"{i}@{os.urandom(9).hex()}.example") + "\n" for i in range(2000))
    packed = gzip.compress(text.encode())
    (tmp_path / "mail.log.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.warns(UserWarning, match=r"mail\.log\.gz.* whole lines before this are good"):
        made = read_log(tmp_path / "mail.log.gz", workers=many)
    [said] = made.attrs["damaged"]
    good = int(re.search(r"([\d,]+) whole lines", said)[1].replace(",", ""))
    assert 500 < good == len(made) < 1500
    assert text.startswith("\n".join(sent(to=to) for to in made["recipient"]) + "\n")


def test_lines_cut_in_half_and_lines_of_others_cost_only_themselves(tmp_path: Path) -> None:
    whole = [sent(to=f"{i}@x.example") for i in range(9)]
    log = write(tmp_path / "log", whole[0], whole[1][:70], NOISE[2], *whole[2:8], whole[8][:90])
    assert list(read_log(log)["recipient"]) == [f"{i}@x.example" for i in (0, *range(2, 8))]
    assert list(read_log(log)["line"]) == [1, *range(4, 10)]


def test_a_log_that_grows_while_it_is_read_is_read_to_some_line_of_it(tmp_path: Path) -> None:
    log, done = tmp_path / "mail.log", threading.Event()
    log.write_text("".join(sent(to=f"{i}@x.example") + "\n" for i in range(3000)))

    def grow() -> None:
        with log.open("a", buffering=1) as file:
            for i in range(3000, 200_000):
                file.write(sent(to=f"{i}@x.example") + "\n")
                if done.is_set():
                    return

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        for _ in range(5):
            read = read_log(log)["recipient"]
            assert len(read) >= 3000
            assert list(read) == [f"{i}@x.example" for i in range(len(read))]
    finally:
        done.set()
        thread.join()


def test_a_clock_that_jumps_back_moves_no_line_to_another_year(tmp_path: Path) -> None:
    stamps = [
        "Nov 23 21:00:00",
        "Nov 23 21:05:00",
        "Nov 22 20:00:00",
        "Nov 23 21:06:00",
        "Mar 27 01:59:59",
        "Mar 27 01:00:01",
    ]
    made = read_log(write(tmp_path / "log", *(sent(stamp=stamp) for stamp in stamps)), year=2026)
    assert [str(time)[:10] for time in made["time"]] == [
        "2026-11-23", "2026-11-23", "2026-11-22", "2026-11-23", "2026-03-27", "2026-03-27",
    ]  # fmt: skip


def test_lines_of_several_servers_in_one_log_are_all_read(tmp_path: Path) -> None:
    exim = 'Nov 23 21:26:32 out exim[7]: 1xVbYV-00003u-39 => b@y.example R=dns T=smtp H=mx [192.0.2.1]:587 C="250 ok"'
    log = write(tmp_path / "log", *[sent()] * 300, exim, *[sent()] * 300)
    made = read_log(log, year=2026)
    assert made["recipient"].value_counts().to_dict() == {"b@x.example": 600, "b@y.example": 1}
    assert made.loc[made["recipient"] == "b@y.example", ["port", "line"]].to_numpy().tolist() == [[587, 301]]
    assert len(read_log(log, format="postfix")) == 600


def test_logs_of_several_formats_in_a_folder_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "a.log", sent())
    write(
        tmp_path / "b.log",
        "2026-11-23 21:26:32 1xVbYV-00003u-39 => b@y.example R=dns T=remote_smtp H=mx [192.0.2.1]:587",
    )
    made = read_log(tmp_path)
    assert sorted(zip(made["recipient"], made["port"], strict=True)) == [("b@x.example", 25), ("b@y.example", 587)]


def test_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"'qmail'; known: .*postfix"):
        read_log(write(tmp_path / "log", sent()), format="qmail")


@pytest.mark.parametrize(
    ("stamps", "changed", "expect"),
    [
        (["Nov 23 21:14:53"], "2026-11-24", ["2026-11-23"]),
        (["Nov 23 21:14:53"], "2026-11-22T23:00", ["2026-11-23"]),  # another time zone
        (["Dec 31 23:59:59"], "2026-01-01", ["2025-12-31"]),
        (["Dec 31 23:59:58", "Jan  1 00:00:01"], "2026-01-01", ["2025-12-31", "2026-01-01"]),
        (["Dec 30 00:00:00", "Jan  2 00:00:00", "Dec 20 00:00:00", "Jan  1 00:00:00"], "2026-02-01",
         ["2024-12-30", "2025-01-02", "2025-12-20", "2026-01-01"]),
        (["Jan  1 00:00:01", "Dec 31 23:59:59", "Jan  1 00:00:02"], "2026-01-01",
         ["2026-01-01", "2025-12-31", "2026-01-01"]),  # a late line of the old year
        (["Jan  5 00:00:00", "Dec 20 00:00:00"], "2026-12-21", ["2026-01-05", "2026-12-20"]),
        (["Feb 29 12:00:00"], "2024-03-01", ["2024-02-29"]),
        (["2025-12-31T23:30:00-02:00"], "2030-01-01", ["2026-01-01"]),
    ],
)  # fmt: skip
def test_years_count_back_from_the_last_change(
    tmp_path: Path, stamps: list[str], changed: str, expect: list[str]
) -> None:
    log = write(tmp_path / "log", *(sent(stamp=stamp) for stamp in stamps))
    os.utime(log, (pd.Timestamp(changed, tz="UTC").timestamp(),) * 2)
    assert list(read_log(log)["time"].dt.strftime("%Y-%m-%d")) == expect


def test_rotated_files_are_read_in_time_order_as_one_log(tmp_path: Path) -> None:
    head = "Nov 20 10:00:00 mail postfix/cleanup[1]: DD61222EC53: message-id=<m@x.example>"
    old = [head, sent(stamp="Nov 20 10:00:00", status="deferred (x)")]
    (tmp_path / "mail.log.1.gz").write_bytes(gzip.compress("\n".join(old).encode()))
    write(tmp_path / "mail.log", sent(stamp="Nov 21 10:00:00"))
    (tmp_path / "mail.err").touch()
    made = read_log(tmp_path, year=2026)
    assert list(made["time"].dt.day) == [20, 21]
    assert list(made["message_id"]) == ["<m@x.example>"] * 2
    assert [(Path(s).name, n) for s, n in zip(made["source"], made["line"], strict=True)] == [
        ("mail.log.1.gz", 2),
        ("mail.log", 1),
    ]
    with tarfile.open(tmp_path.parent / f"{tmp_path.name}.tar.xz", "w:xz") as archive:
        archive.add(tmp_path, "logs")
    packed = read_log(tmp_path.parent / f"{tmp_path.name}.tar.xz", year=2026)
    pd.testing.assert_frame_equal(packed.drop(columns="source"), made.drop(columns="source"))


@settings(deadline=None, max_examples=200)
@given(st.text('a<>", =:()[]sto1.@\\ç\n', max_size=60), st.text('a<>", =:()[]status1.\n', max_size=60))
def test_no_text_of_a_stranger_makes_a_second_row(to: str, said: str) -> None:
    quoted = '"' + to.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "?") + '"@x.example'
    line = sent(to=quoted, status=f"bounced (host mx[192.0.2.1] said: 550 {said.replace(chr(10), ' ')})")
    [row] = rows([line])
    assert (row["recipient"], row["port"], row["outcome"]) == (quoted, 25, "failed")


@pytest.mark.parametrize("piece", ["a", ">, relay=x", ">, ", '"', "\\", "[", "(", ", status=", " while ", "x/", "1"])
@pytest.mark.parametrize("place", ["to=<{}", "to=<b@x>, relay={}", "{}", "host {}", "connect to {}"])
def test_reading_takes_linear_time(piece: str, place: str) -> None:
    head = "Nov 23 21:14:53 mail postfix/smtp[9]: DD61222EC53: "

    def seconds(size: int) -> float:
        line = (head if place != "{}" else "Nov 23 21:14:53 mail ") + place.format(piece * (size // len(piece)))
        began = time.process_time()  # whatever else the machine does
        list(rows([line, line + sent()[52:], sent(to="b@x", status="deferred (" + line[52:])]))
        return time.process_time() - began

    assert seconds(1_000_000) < 1.0


def truth(shared: Path, name: str) -> pd.DataFrame:
    table = pd.read_csv(shared / f"logs/postfix/{name}.csv.gz", dtype="string")
    return table.assign(port=table["port"].astype("Int64"))


LOGS = {"a": "maillog_syslog", "b": "maillog_iso"}


@pytest.mark.parametrize("instance", LOGS)
def test_every_recipient_ends_as_the_server_reported(shared: Path, instance: str) -> None:
    ends = outcomes(read_log(shared / f"logs/postfix/{LOGS[instance]}.log.gz", year=2026))
    table = truth(shared, "truth")
    both = table[table["instance"] == instance].merge(ends, on="recipient", how="left", suffixes=("_true", ""))
    assert len(both) == (table["instance"] == instance).sum()
    # the six mails that loop in instance b were tried on port 25, as each of their lines says; the truth table,
    # made from the configuration, gives them no port
    looped = both["kind"].eq("mx-loop") & both["port"].eq(25)
    both["port_true"] = both["port_true"].mask(looped & both["final"].eq("expired"), 25)
    for wanted, column in (("final_true", "final"), ("dsn", "status_code"), ("port_true", "port")):
        wrong = both[both[wanted].ne(both[column]).fillna(both[wanted].isna() ^ both[column].isna())]
        assert wrong[["recipient", "kind", wanted, column]].to_numpy().tolist() == []


def test_every_attempt_that_reached_the_sink_is_found_once_with_its_port(shared: Path) -> None:
    made = pd.concat(
        [read_log(shared / f"logs/postfix/{name}.log.gz", year=2026) for name in LOGS.values()], ignore_index=True
    )
    made = made[made["attempted"] | made["outcome"].isna()]  # real attempts, and address probes
    made["at"] = (made["time"] - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    sink = truth(shared, "attempts").assign(at=lambda t: t["time"].astype(float)).sort_values("at")
    left = {key: list(zip(some["at"], some["attempted"], strict=True)) for key, some in made.sort_values("at").groupby(
        ["recipient", made["host"].where(made["port"].notna(), "-"), made["port"].fillna(0)])}  # fmt: skip
    lost, probes = [], set()
    for recipient, host, port, at in zip(
        sink["recipient"], sink["host"].fillna("-"), sink["port"].fillna(0), sink["at"], strict=True
    ):
        near = [i for i, (t, _) in enumerate(left.get((recipient, host, port), [])) if -2 < t - at < 320]
        if near:  # the log line comes when the attempt ends: up to the time limit of 300 s later
            _, attempted = left[recipient, host, port].pop(near[0])
            probes |= set() if attempted else {recipient.partition("@")[0].rstrip("0123456789")}
        else:
            lost.append((recipient, host, port, at))
    assert lost == []
    assert probes == {"probe"}


def test_no_suspended_line_is_counted(shared: Path) -> None:
    made = pd.concat([read_log(shared / f"logs/postfix/{name}.log.gz") for name in LOGS.values()])
    held = made["text"].str.startswith("delivery temporarily suspended")
    assert held.sum() > 700
    assert not made[held]["attempted"].any()


def test_samples_of_other_projects_are_read(shared: Path) -> None:
    for path in sorted((shared / "logs/samples/lightmeter").glob("*.log")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = sum("status=" in line and ": to=<" in line for line in lines)
        assert read_log(path)["recipient"].notna().sum() >= wanted, path.name


def test_notifications_that_end_in_a_mailbox_here_are_no_mail_of_ours():
    log = """2026-01-01T10:00:00Z m postfix/cleanup[1]: AAAAAAAAAA: message-id=<n@m.example>
2026-01-01T10:00:00Z m postfix/qmgr[1]: AAAAAAAAAA: from=<>, size=2639, nrcpt=1 (queue active)
2026-01-01T10:00:01Z m postfix/virtual[1]: AAAAAAAAAA: to=<l@c.example>, relay=virtual, delay=0, status=sent (ok)
2026-01-01T10:00:02Z m postfix/qmgr[1]: AAAAAAAAAA: removed
2026-01-01T10:00:03Z m postfix/cleanup[1]: AAAAAAAAAA: message-id=<o@m.example>
2026-01-01T10:00:04Z m postfix/virtual[1]: AAAAAAAAAA: to=<l@c.example>, relay=virtual, delay=0, status=sent (ok)"""
    made = rows(log.split("\n"))
    assert [(row["attempted"], row["outcome"]) for row in made] == [(False, None), (True, "passed")]


def test_strangers_are_rows_of_their_own_and_their_number_costs_nothing() -> None:
    lines = [
        f"Nov 23 21:14:53 mail postfix/smtpd[9]: NOQUEUE: reject: RCPT from h{i}.example[192.0.2.{i % 250}]: 554 5.7.1 "
        f"Service unavailable; Client host [192.0.2.{i % 250}] blocked using bl.example; from=<s{i}@x.example> "
        f"to=<b@y.example> proto=ESMTP helo=<h{i}>"
        for i in range(500)
    ]
    events = Events(postfix)
    events.add("\n".join(lines).encode())
    made = events.rows()
    assert made["host"].to_pylist() == [f"h{i}.example" for i in range(500)]
    assert made["sender"].to_pylist()[7] == "s7@x.example" and made["address"].to_pylist()[7] == "192.0.2.7"
    assert len(events.facts.rows) < 10
