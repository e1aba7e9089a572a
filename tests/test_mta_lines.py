"""Exim, OpenSMTPD and Sendmail logs: the truth of real servers, two readings of one definition, and hostile lines."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deliverkit.files import parts
from deliverkit.logs import formats, known_format, read_log
from deliverkit.logs.events import Events
from deliverkit.outcomes import outcomes

FORMATS = ("exim", "opensmtpd", "sendmail")
LOGS = {"exim": "exim/mainlog", "opensmtpd": "opensmtpd/maillog", "sendmail": "sendmail/maillog"}
BIG = {"exim": "logs/exim/mainlog.gz", "opensmtpd": "logs/opensmtpd/maillog.gz"}
SAID = (
    '250 550-=<>,:;()[]"\'\\ \tCRHTXabzé=> ** == stat=Sent (ok), dsn=2.0.0 H=x [192.0.2.9]:587: SMTP error result="Ok"'
)


def line_of(name: str, said: str, to: str = "b@y.example") -> list[str]:
    """A refused delivery with the words of the far end, and what must stand before it."""
    stamp = "Nov 25 14:36:16 mail"
    if name == "exim":
        head = f"2026-11-25 14:36:16 1xWEaB-000013-0b ** {to} R=far T=smtp H=mx1.y.example [192.0.2.11]:25: "
        return [f"{head}SMTP error from remote mail server after end of data: {said}"]
    if name == "sendmail":
        about = "delay=00:00:00, xdelay=00:00:00, mailer=esmtp, pri=1, relay=mx1.y.example. [192.0.2.11], dsn=5.1.1"
        return [f"{stamp} sendmail[2]: 6APEaInQ000227: to=<{to}>, {about}, reply={said}, stat=User unknown"]
    session = f"{stamp} smtpd[4]: 5ec81778ffc82705 mta"
    about = 'rcpt=<-> source="192.0.2.1" relay="192.0.2.11 (mx1.y.example)" delay=0s result="PermFail"'
    return [
        f"{session} connecting address=smtp://192.0.2.11:25 host=mx1.y.example",
        f'{session} delivery evpid=811a9a5a440d5241 from=<a@x.example> to=<{to}> {about} stat="{said}"',
    ]


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(root: Path) -> dict[str, bytes]:
    """The samples that come with the package."""
    return {name: (root / "data" / path).read_bytes() for name, path in LOGS.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_of_a_log_is_found(root: Path, name: str) -> None:
    assert [known_format(part) for part in parts(root / "data" / LOGS[name])] == [name]


def truth(shared: Path, name: str, table: str) -> pd.DataFrame:
    made = pd.read_csv(shared / f"logs/{name}/{table}.csv.gz", dtype="string")
    return made.assign(port=made["port"].astype("Int64"), whose=made["recipient"].str.lower())


# In the OpenSMTPD log, mail for these was tried on port 25 of a host that refused it, until the log ends: the truth
# table, made from the configuration of another server, says that it was thrown away, bounced or handed over locally.
TRIED_INSTEAD = ("discard", "error", "lmtp", "mx-loop")


@pytest.mark.parametrize("name", BIG)
def test_every_recipient_ends_as_the_server_reported(shared: Path, name: str) -> None:
    ends = outcomes(read_log(shared / BIG[name], year=2026))
    told = truth(shared, name, "truth")
    both = told.merge(ends.assign(whose=ends["recipient"].str.lower()), on="whose", how="left", suffixes=("_true", ""))
    assert len(both) == len(told)
    if name == "opensmtpd":
        both = both[~both["kind"].isin(TRIED_INSTEAD) & both["final"].notna()]  # seven stand in no line but of arrival
        assert len(told) - len(both) == 28
    for wanted, column in (("final_true", "final"), ("dsn", "status_code")):
        known = both[both[wanted].notna()]
        wrong = known[known[wanted].ne(known[column]).fillna(True)]
        assert wrong[["recipient_true", "kind", wanted, column]].to_numpy().tolist() == []
    unsure = both["final_true"].isna() & both["port"].isna()  # of these the truth is the configuration
    wrong = both[both["port_true"].ne(both["port"]).fillna(both["port_true"].isna() ^ both["port"].isna()) & ~unsure]
    assert wrong[["recipient_true", "kind", "port_true", "port"]].to_numpy().tolist() == []


@pytest.mark.parametrize("name", BIG)
def test_every_attempt_that_reached_the_sink_is_found_once_with_its_port(shared: Path, name: str) -> None:
    made = read_log(shared / BIG[name], year=2026)
    made = made[made["attempted"] & made["direction"].eq("out")].sort_values("time")
    made = made.assign(at=(made["time"] - pd.Timestamp(0, tz="UTC")).dt.total_seconds())
    groups = made.groupby([made["recipient"].str.lower(), "address", "port"])
    left = {key: some["at"].tolist() for key, some in groups}
    sink, lost = truth(shared, name, "attempts").assign(at=lambda t: t["time"].astype(float)), []
    for key in sink.sort_values("at")[["whose", "ip", "port", "at"]].itertuples(index=False):
        near = [i for i, at in enumerate(left.get(key[:3], [])) if -2 < at - key.at < 320]
        if near:  # the line comes when the attempt ends: up to the time limit of 300 s later
            left[key[:3]].pop(near[0])
        else:
            lost.append(key)
    assert lost == []


def test_no_line_that_waits_is_counted(shared: Path) -> None:
    made = read_log(shared / BIG["exim"])
    waits = made["text"].str.contains("retry time not reached", regex=False)
    assert waits.sum() > 2000
    assert not made[waits]["attempted"].any()
    assert made[waits & made["text"].str.contains("any host")]["port"].notna().mean() > 0.95
    held = read_log(shared / BIG["opensmtpd"])
    held = held[held["text"].eq("Network error on destination MXs")]
    assert len(held) > 150
    assert not held["attempted"].any()


ENDS = {
    "anna@aurora.example": "sent", "ines@harbour.example": "sent", "olga@two.example": "sent",
    "o'hara=x@harbour.example": "sent", "unknown.ben@aurora.example": "bounced", "spam.elif@aurora.example": "bounced",
    "uwe@nowhere.example": "bounced", "full.carla@harbour.example": "expired", "jonas@cedar.example": "expired",
    "kira@dune.example": "expired", "piet@basalt.example": "expired", "rosa@basalt.example": "expired",
    "elif@mute.example": "expired", "farid@shut.example": "expired",
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_the_sample_ends_as_its_script_made_it(root: Path, name: str) -> None:
    ends = outcomes(read_log(root / "data" / LOGS[name], year=2026)).drop_duplicates("recipient").set_index("recipient")
    assert ends["final"].reindex(ENDS).to_dict() == ENDS
    ports = {"anna@aurora.example": 25, "kira@dune.example": 25, "piet@basalt.example": 25, "elif@mute.example": 2525,
             "anna@submission.example": 587, "ben@submissions.example": 465, "farid@shut.example": 587}  # fmt: skip
    told = ends["port"].reindex(ports)
    assert told.isna().all() if name == "sendmail" else told.to_dict() == ports


def test_a_host_tried_before_another_is_an_attempt_of_its_own(root: Path) -> None:
    made = read_log(root / "data" / LOGS["exim"])
    tried = made[made["recipient"].eq("olga@two.example")].sort_values("line")
    assert list(tried["host"]) == ["mx1.basalt.example", "mx1.cedar.example", "mx1.aurora.example"]
    assert list(tried["outcome"]) == ["deferred", "deferred", "passed"]
    assert tried["port"].eq(25).all() and tried["attempted"].all()


def test_whose_a_try_was_is_missing_where_a_message_has_several_domains(tmp_path: Path) -> None:
    head = "2026-11-25 14:36:16 1xWEaB-000013-0b"
    lines = [f"{head} H=mx1.y.example [192.0.2.11]:25 Connection refused"]
    lines += [f'{head} => {to} R=far T=smtp H=mx2 [192.0.2.12]:25 C="250 ok"' for to in ("a@y.example", "b@z.example")]
    made = read_log(written(tmp_path / "log", lines))
    assert list(made["recipient"].fillna("?")) == ["?", "a@y.example", "b@z.example"]
    assert made["attempted"].all() and list(made["port"]) == [25, 25, 25]


def test_a_log_through_syslog_says_the_same(whole: dict[str, bytes], tmp_path: Path) -> None:
    lines = whole["exim"].decode().splitlines()
    plain = read_log(written(tmp_path / "mainlog", lines))
    for head in ("Nov 25 14:36:16 mail exim[7]: ", "<22>2026-11-25T14:36:16+01:00 mail exim[7]: "):
        syslog = read_log(written(tmp_path / "syslog", [head + line for line in lines]), format="exim", year=2026)
        pd.testing.assert_frame_equal(syslog.drop(columns="source"), plain.drop(columns="source"))


def test_samples_of_other_projects_are_read(shared: Path) -> None:
    for name, file, sign in (
        ("exim", "exim", r" rejected RCPT "),
        ("sendmail", "sendmail-reject", r"ruleset=check_rcpt"),
    ):
        path = shared / f"logs/samples/fail2ban/{file}.log"
        wanted = len(re.findall(f"(?m)^[^#].*{sign}", path.read_text(encoding="utf-8")))
        made = read_log(path, format=name)
        refused = made[made["direction"].eq("in") & made["recipient"].notna()]
        assert len(refused) == wanted > 3
        assert not made["attempted"].any()
        assert refused["address"].notna().all()
        assert made["port"].isna().all()


def rows_of(events: Events) -> list[Any]:
    table = events.rows()
    facts = [events.facts.rows[number] for number in table["fact"].to_pylist()]
    rows = table.drop_columns("fact").to_pylist()
    return sorted(zip(rows, facts, strict=True), key=lambda one: (one[0]["line"], str(one[0]["recipient"])))


def read_in_parts(name: str, raw: bytes, cuts: list[int]) -> list[Any]:
    """The rows of each part, which knows of the others what their digests say."""
    module, ends = formats()[name], [*(raw.find(b"\n", cut) + 1 for cut in cuts), len(raw)]
    pieces = [raw[a:b] for a, b in zip([0, *ends], ends, strict=False) if b > a]
    digests = []
    for piece in pieces:
        events = Events(module)
        events.add(piece)
        digests.append(events.digest())
    starts, made = np.cumsum([0, *(digest.lines for digest in digests)]).tolist(), []
    for i, piece in enumerate(pieces):
        events = Events(module)
        events.add(piece)
        for j, digest in enumerate(digests):
            if i != j:
                events.around(digest, starts[j] - starts[i])
        made += [({**row, "line": row["line"] + starts[i]}, fact) for row, fact in rows_of(events)]
    return made


@pytest.mark.parametrize("size", [150, 900, 4000])
@pytest.mark.parametrize("name", FORMATS)
def test_a_log_in_parts_gives_the_rows_of_the_whole(whole: dict[str, bytes], name: str, size: int) -> None:
    events = Events(formats()[name])
    events.add(whole[name])
    assert read_in_parts(name, whole[name], [*range(size, len(whole[name]) - 1, size)]) == rows_of(events)


@pytest.mark.parametrize("name", BIG)
def test_a_large_log_in_parts_gives_the_rows_of_the_whole(shared: Path, name: str) -> None:
    raw = gzip.decompress((shared / BIG[name]).read_bytes())
    events = Events(formats()[name])
    events.add(raw)
    assert read_in_parts(name, raw, [*range(100_000, len(raw) - 1, 100_000)]) == rows_of(events)


def assert_both_readings_agree(name: str, raw: bytes) -> None:
    kinds, lines = formats()[name].KINDS, raw.split(b"\n")
    if not lines[-1]:
        lines.pop()
    slow, (fast, count) = kinds.read(lines), kinds.scan(raw)
    assert count == len(lines)
    assert {kind: table.to_pylist() for kind, table in slow.items()} == {k: t.to_pylist() for k, t in fast.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_both_readings_give_the_same_of_the_samples(whole: dict[str, bytes], name: str) -> None:
    raw = whole[name]
    assert_both_readings_agree(name, raw)
    for cut in range(0, len(raw), 97):
        assert_both_readings_agree(name, raw[cut : cut + 3000])


@pytest.mark.parametrize("name", BIG)
def test_both_readings_give_the_same_of_large_logs(shared: Path, name: str) -> None:
    assert_both_readings_agree(name, gzip.decompress((shared / BIG[name]).read_bytes()))


@settings(deadline=None, max_examples=300)
@given(data=st.data(), said=st.text(SAID + "\r\0", max_size=40))
@pytest.mark.parametrize("name", FORMATS)
def test_both_readings_give_the_same_of_broken_lines(whole: dict[str, bytes], name: str, data: Any, said: str) -> None:
    lines = whole[name].split(b"\n")
    made = []
    for _ in range(3):
        line = data.draw(st.sampled_from(lines))
        cut, to = data.draw(st.integers(0, len(line))), data.draw(st.integers(0, 30))
        made.append(line[:cut] + said.encode() + line[cut + to :])
    assert_both_readings_agree(name, b"\n".join(made))
    events = Events(formats()[name])
    events.add(b"\n".join(made))
    assert events.rows()["line"].to_pylist() == sorted(events.rows()["line"].to_pylist())
    assert events.digest().lines == events.lines


@settings(deadline=None, max_examples=80)
@given(said=st.text(SAID, max_size=60))
@example(said="x, dsn=2.0.0, stat=Sent (ok)")
@example(said='250 ok" result="Ok')
@example(said='=> c@z.example R=x T=y H=evil [192.0.2.66]:587 C="250 ok" QT=5s')
@pytest.mark.parametrize("name", FORMATS)
def test_no_text_of_a_stranger_makes_a_second_row_or_moves_a_field(tmp_path_factory: Any, name: str, said: str) -> None:
    path = written(tmp_path_factory.mktemp("log") / "log", line_of(name, f"550 5.1.1 {said}"))
    [row] = read_log(path, format=name).to_dict("records")
    assert (row["recipient"], row["host"], row["outcome"]) == ("b@y.example", "mx1.y.example", "failed")
    assert (row["address"], row["reply_code"], row["status_code"]) == ("192.0.2.11", 550, "5.1.1")
    assert name == "sendmail" or row["port"] == 25
    assert row["text"].replace(" ", "").find(said.strip('\\n \t"').replace(" ", "")[:20]) >= 0


@settings(deadline=None, max_examples=80)
@given(said=st.text('250 ok=>=<:,()[]"\\ HTXQabz', max_size=40))
@pytest.mark.parametrize("flag", ["=>", "->"])
def test_the_reply_of_a_delivery_stays_between_its_quotes(tmp_path_factory: Any, flag: str, said: str) -> None:
    quoted = f"250 {said}".replace("\\", "\\\\").replace('"', '\\"')
    head = "2026-11-25 14:36:16 1xWEaB-000013-0b"
    line = f'{head} {flag} b@y.example R=far T=smtp H=mx1.y.example [192.0.2.11]:465 C="{quoted}" QT=7s DT=1s'
    path = written(tmp_path_factory.mktemp("log") / "log", [line])
    [row] = read_log(path).to_dict("records")
    assert (row["recipient"], row["port"], row["outcome"], row["delay_s"]) == ("b@y.example", 465, "passed", 7.0)
    assert row["text"] == f"250 {said}"


@pytest.mark.parametrize(
    "piece", ["a", '"', "<", ">", ">,<", "\\", '\\"', " R=", ": ", ", stat=", " H=x [1]", "=", "@"]
)
@pytest.mark.parametrize("name", FORMATS)
def test_overlong_pieces_are_read_to_their_end(tmp_path: Path, name: str, piece: str) -> None:
    long = piece * (200_000 // len(piece))
    lines = [*line_of(name, f"550 5.1.1 {long}"), *line_of(name, "550 5.1.1 no", to=long)]
    lines += [
        f"Nov 25 14:36:16 mail exim[7]: {long}",
        f"2026-11-25 14:36:16 1xWEaB-000013-0b {long}",
        *line_of(name, "550 5.1.1 no"),
    ]
    made = read_log(written(tmp_path / "log", lines), format=name)
    assert made["recipient"].iloc[0] == made["recipient"].iloc[-1] == "b@y.example"


def test_tries_at_the_same_time_end_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    head, refused = "2026-11-25 14:36:16 1xWEaB-000013-0b", "Connection refused"
    tries = [f"{head} H=mx1.y.example [192.0.2.1]:25 {refused}", f"{head} H=mx1.z.example [192.0.2.2]:587 {refused}"]
    ends = [
        f"{head} == {to} R=far T=smtp defer (111): {refused}" for to in ("a@y.example", "b@y.example", "a@z.example")
    ]
    for lines in ([*tries, *ends], [tries[0], *ends[:2], tries[1], ends[2]]):
        made = read_log(written(tmp_path / "log", lines))
        assert list(made["recipient"]) == ["a@y.example", "b@y.example", "a@z.example"]
        assert list(made["host"]) == ["mx1.y.example", "mx1.y.example", "mx1.z.example"]
        assert list(made["port"]) == [25, 25, 587]


def test_of_more_tries_than_domains_only_what_they_agree_on_is_said(tmp_path: Path) -> None:
    head, refused = "2026-11-25 14:36:16 1xWEaB-000013-0b", "Connection refused"
    ends = [f"{head} == {to} R=far T=smtp defer (111): {refused}" for to in ("a@y.example", "a@z.example")]
    for ports, known in (((25, 25, 25), [25, 25]), ((25, 587, 25), [0, 0])):
        tries = [f"{head} H=mx{n}.example [192.0.2.{n}]:{port} {refused}" for n, port in enumerate(ports)]
        made = read_log(written(tmp_path / "log", [*tries, *ends]))
        assert list(made["recipient"].fillna("?")) == ["?", "a@y.example", "a@z.example"]
        assert list(made["port"].fillna(0))[1:] == known
        assert list(made["host"].fillna("?")) == ["mx0.example", "?", "?"]
