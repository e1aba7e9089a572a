"""What to type: real programs take the settings, real commands say what the tables promise, the page is true."""

from __future__ import annotations

import os
import re
import select
import shlex
import smtplib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from deliverkit import facts
from deliverkit.errors import FactsError, TargetError
from deliverkit.lab import Lab
from deliverkit.settings import SOFTWARE, by_hand, settings

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/port_blocked.md").read_text(encoding="utf-8")
HAND = facts.tables("hand_tests")
MODES = {"implicit": 465, "starttls": 587}
HOST = "mx1.aurora.example"


def text_for(
    software: str, security: str, port: int | None = None, host: str = HOST, user: str = "me@example.com"
) -> str:
    return settings(software, host=host, port=port or MODES[security], security=security, user=user).text


# What is written


@pytest.mark.parametrize(
    "table", [*SOFTWARE.values(), *facts.tables("software")["mismatch"], *HAND["test"], *HAND["limit"]]
)
def test_nothing_is_said_without_source_date_and_grade(table: dict[str, object]) -> None:
    assert table["source"] and table["noted"] and table["evidence"] in {"read", "secondary", "not_reread"}


@pytest.mark.parametrize("security", MODES)
@pytest.mark.parametrize("software", SOFTWARE)
def test_a_setting_names_host_port_and_user_and_no_password(software: str, security: str) -> None:
    made = settings(software, host="smtp.example.com", port=2525, security=security, user="me@example.com")
    assert all(word in made.text for word in ("smtp.example.com", "2525", "me@example.com"))
    assert made.where and made.traps and "https://" in made.source and not re.search(r"\{(host|port|user)\}", made.text)
    secrets = [line for line in made.text.splitlines() if re.search(r"pass(word)?(eval)?\b", line, re.IGNORECASE)]
    left = r"<your password>|environ\[|process\.env|getenv|\.msmtp-password|sasl_passwd|Normal password|^# /etc"
    assert all(re.search(left, line) for line in secrets) and (secrets or software == "thunderbird")


@pytest.mark.parametrize("software", SOFTWARE)
def test_the_two_kinds_of_encryption_differ(software: str) -> None:
    assert text_for(software, "implicit", 2525) != text_for(software, "starttls", 2525)


@pytest.mark.parametrize(
    "bad",
    ["a\nb", "a b", 'a"b', "a'b", "a;b", "a$b", "a\\b", "a`b", "a#b", "-a", "", "a\x00b", "a\u2028b", "é", "a" * 300],
)
def test_a_host_cannot_break_out_of_its_line(bad: str) -> None:
    with pytest.raises(TargetError, match="is not a host name"):
        text_for("django", "starttls", host=bad)
    with pytest.raises(TargetError, match="is not a host name"):
        by_hand(bad, 25, "starttls")


@pytest.mark.parametrize(
    "bad", ["a\nb", "a b", 'a"b', "a'b", "a;b", "a$b", "a\\b", "a`b", "a#b", "a:b", "", "a\u202eb", "{host}", "a" * 300]
)
def test_a_user_name_cannot_break_out_of_its_line(bad: str) -> None:
    with pytest.raises(TargetError, match="user name"):
        text_for("phpmailer", "starttls", user=bad)


def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(TargetError, match="1 to 65535"):
        by_hand(HOST, 70000, "starttls")


def test_an_unknown_word_is_answered_with_near_ones() -> None:
    with pytest.raises(FactsError, match="there is: django"):
        text_for("djnago", "starttls")
    with pytest.raises(FactsError, match="implicit, starttls"):
        settings("django", host=HOST, port=25, security="none")


def test_a_part_of_a_name_will_do_and_a_region_stays_open() -> None:
    made = settings("phpm", host="email-smtp.{region}.amazonaws.com", port=587, security="starttls")
    assert made.name == "PHPMailer" and "'email-smtp.{region}.amazonaws.com'" in made.text
    assert "<your user name>" in made.text


def test_encryption_that_does_not_fit_the_port_is_the_first_trap() -> None:
    odd = settings("msmtp", host=HOST, port=465, security="starttls").traps[0]
    assert "port 465 speaks TLS from the first byte" in odd
    assert odd not in settings("msmtp", host=HOST, port=465, security="implicit").traps
    assert "25 and 587" in settings("msmtp", host=HOST, port=587, security="implicit").traps[0]


# What real programs make of it


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as running:
        yield running


@pytest.mark.parametrize("security", MODES)
def test_the_lines_for_smtplib_send_mail(
    lab: Lab, security: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dial = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda to, *rest: dial(lab.connect_to[to], *rest))
    monkeypatch.setenv("SMTP_PASSWORD", "any")
    (trusted := tmp_path / "lab.pem").write_text(lab.certificate, encoding="ascii")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    message = EmailMessage()
    message["From"], message["To"] = "me@example.com", "you@example.com"
    lines = text_for("smtplib", security).replace(
        "server.send_message", "server.set_debuglevel(1); server.send_message"
    )
    exec(compile(lines, "smtplib", "exec"), {"message": message})
    assert "queued as LAB" in capsys.readouterr().err
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ssl.SSLCertVerificationError):  # and they do not talk to just anybody
        exec(compile(lines, "smtplib", "exec"), {"message": message})


def test_the_wrong_mode_of_smtplib_fails_as_its_traps_say(lab: Lab) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)wrong.version.number|record.layer.failure"):
        smtplib.SMTP_SSL(*lab.connect_to[HOST, 587], timeout=3)
    with pytest.raises(smtplib.SMTPServerDisconnected, match="timed out"):
        smtplib.SMTP(*lab.connect_to[HOST, 465], timeout=1)


@pytest.mark.parametrize("security", MODES)
def test_the_lines_for_django_are_its_settings(security: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_HOST_PASSWORD", "any")
    made: dict[str, Any] = {"os": os}
    exec(text_for("django", security), made)
    assert (made["EMAIL_HOST"], made["EMAIL_PORT"]) == (HOST, MODES[security])
    assert (made["EMAIL_USE_SSL"], made["EMAIL_USE_TLS"]) == (security == "implicit", security == "starttls")
    exec(text_for("django-mailers", security), made)
    options = made["MAILERS"]["default"]["OPTIONS"]
    assert (options["host"], options["port"]) == (HOST, MODES[security])
    assert {"use_ssl", "use_tls"} & set(options) == {"use_ssl" if security == "implicit" else "use_tls"}


@pytest.mark.parametrize("security", MODES)
def test_msmtp_sends_with_its_lines(need: Callable[[str, str], str], lab: Lab, security: str, tmp_path: Path) -> None:
    address, port = lab.connect_to[HOST, MODES[security]]
    (trusted := tmp_path / "lab.pem").write_text(lab.certificate, encoding="ascii")
    (secret := tmp_path / "password").write_text("any\n", encoding="ascii")
    lines = text_for("msmtp", security, port, host=address).replace("~/.msmtp-password", str(secret))
    (config := tmp_path / "msmtprc").write_text(
        f"{lines}\ntls_trust_file {trusted}\ntls_host_override {HOST}\n", encoding="ascii"
    )
    config.chmod(0o600)
    command = [need("msmtp", "msmtp"), "-C", str(config), "--timeout=10", "-d", "you@example.com"]
    done = subprocess.run(command, input="Subject: x\n\nx\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "queued as LAB" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("security", MODES)
def test_postfix_reads_its_lines_without_complaint(
    need: Callable[[str, str], str], security: str, tmp_path: Path
) -> None:
    (tmp_path / "main.cf").write_text(f"compatibility_level = 3.6\n{text_for('postfix', security)}\n", encoding="ascii")
    (tmp_path / "master.cf").write_text("", encoding="ascii")
    done = subprocess.run(
        [need("postconf", "postfix"), "-c", str(tmp_path), "-n"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert f"relayhost = [{HOST}]:{MODES[security]}" in done.stdout
    assert f"smtp_tls_wrappermode = {'yes' if security == 'implicit' else 'no'}" in done.stdout


# What the commands show


def shown(command: list[str], seconds: float = 4) -> str:
    """What a person sees on the terminal until the program ends or patience does."""
    above, below = os.openpty()
    process = subprocess.Popen(command, stdin=below, stdout=below, stderr=below, start_new_session=True)
    os.close(below)
    said, end = b"", time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            if select.select([above], [], [], 0.1)[0]:
                said += os.read(above, 65536)
    except OSError:  # the program closed the terminal
        pass
    finally:
        process.kill()
        process.wait()
        os.close(above)
    return said.decode(errors="replace")


@pytest.fixture(scope="module")
def acts() -> Iterator[dict[tuple[str, int], tuple[str, int]]]:
    """(behaviour, port) -> where a door acts like that; two labs, for eight hosts are not enough."""
    words = sorted({word.split("@")[0] for test in HAND["test"] for out in test["output"] for word in out["lab"]})
    parts = [words[:8], words[8:]]
    labs = [Lab({(n, p): word for n, word in enumerate(part) for p in MODES.values()}) for part in parts]
    with labs[0], labs[1]:
        yield {
            (word, port): running.connect_to[running.hosts[n], port]
            for running, part in zip(labs, parts, strict=True)
            for n, word in enumerate(part)
            for port in MODES.values()
        }


PAIRS = [(test, how) for test in HAND["test"] for how in test["security"] if test["name"] != "Test-NetConnection"]


@pytest.mark.skipif(
    sys.platform != "linux", reason="the words are those of the programs that Linux distributions build"
)
@pytest.mark.parametrize(("test", "security"), PAIRS, ids=[f"{test['id']} {how}" for test, how in PAIRS])
def test_a_command_shows_what_the_table_says(
    test: dict[str, Any], security: str, need: Callable[[str, str], str], acts: dict[tuple[str, int], tuple[str, int]]
) -> None:
    name = test["name"]
    program = need(name, {"nc": "netcat-openbsd"}.get(name, name))
    if name == "nc" and "OpenBSD" not in shown([program, "-h"]):
        pytest.skip("another netcat: the table's words are those of netcat-openbsd")
    runs = []
    for output in test["output"]:
        for word, _, only in (each.partition("@") for each in output["lab"]):
            if only in ("", str(MODES[security])):
                [ours] = [t for t in by_hand(*acts[word, MODES[security]], security) if t.name == name]
                quick = ours.command.replace(" 10 ", " 2 ").replace(" 30 ", " 2 ")
                runs.append((word, output["seen"], [program, *shlex.split(quick)[1:]]))
    with ThreadPoolExecutor(16) as pool:
        screens = pool.map(lambda run: shown(run[2]), runs)
    wrong = [
        f"{word}: {seen!r} not in {screen!r}"
        for (word, seen, _), screen in zip(runs, screens, strict=True)
        if (seen not in screen if seen else screen.strip())
    ]
    assert runs
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("security", MODES)
def test_curl_gets_through_where_the_certificate_is_trusted(
    need: Callable[[str, str], str], lab: Lab, security: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trusted := tmp_path / "lab.pem").write_text(lab.certificate, encoding="ascii")
    monkeypatch.setenv("CURL_CA_BUNDLE", str(trusted))
    port = MODES[security]
    address, real = lab.connect_to[HOST, port]
    [command] = [t.command for t in by_hand(HOST, port, security) if t.name == "curl"]
    done = subprocess.run(
        [need("curl", "curl"), *shlex.split(command)[1:], "--connect-to", f"{HOST}:{port}:{address}:{real}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "> NOOP" in done.stderr, done.stderr


def test_every_command_carries_the_limits_of_all() -> None:
    for test in by_hand(HOST, 465, "implicit"):
        assert {limit["says"] for limit in HAND["limit"]} < set(test.limits) and HOST in test.command
    assert {t.command for t in by_hand(HOST, 465, "implicit") if t.name == "openssl"} == {
        f"openssl s_client -connect {HOST}:465 -verify_hostname {HOST} -brief"
    }


# The page


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def test_every_deliverkit_line_of_the_page_is_a_command() -> None:
    from deliverkit.cli import _parser

    lines = [line for block in blocks("sh") for line in block.splitlines() if "deliverkit " in line]
    assert len(lines) >= 3
    for line in lines:
        _parser().parse_args(shlex.split(line.split("deliverkit ", 1)[1]))


def test_every_command_by_hand_of_the_page_is_in_the_table() -> None:
    known = {
        t.command
        for port, how in ((25, "starttls"), *((p, s) for s, p in MODES.items()))
        for t in by_hand("smtp.example.com", port, how)
    }
    typed = [
        line
        for block in blocks("sh")
        for line in block.splitlines()
        if "smtp.example.com" in line and "deliverkit" not in line
    ]
    assert typed and set(typed) <= known


def test_the_python_of_the_page_prints_what_stands_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert pairs and len(pairs) == len(blocks("python"))
    for code, said in pairs:
        exec(compile(code, "port_blocked.md", "exec"), {})
        assert capsys.readouterr().out.split() == said.split()


def test_the_runs_on_the_page_come_out_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deliverkit.cli import main

    kept = tmp_path / "probes.parquet"
    with Lab("cloud-blocks-submission") as cloud:
        doors = [
            f"--connect-to={HOST}:{p}:{cloud.connect_to[HOST, p][0]}:{cloud.connect_to[HOST, p][1]}"
            for p in cloud.ports
        ]
        told = ["probe", HOST, "--vantage", "my-server", "--timeout", "2", "--no-pace", *doors]
        assert main(told) == 1 and main([*told, "--parquet", str(kept)]) == 1
    probed = capsys.readouterr().out
    assert main(["choose", "--sending", "application", "--evidence", str(kept)]) == 0
    chosen = capsys.readouterr().out
    [table] = [block for block in blocks("text") if "total_s" in block]
    assert [row.split()[:-1] for row in probed.splitlines()] == [row.split()[:-1] for row in table.splitlines()]
    [advice] = [block for block in blocks("text") if block.startswith("Use port")]
    assert set(advice.splitlines()) - {"…"} <= set(chosen.splitlines())


def test_the_verdicts_of_the_page_are_verdicts() -> None:
    [rows] = re.findall(r"\| verdict \|.*\n\|---\|---\|\n((?:\|.*\n)+)", PAGE)
    words = {word for row in rows.splitlines() for word in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert len(words) > 10 and words <= set(facts.table("probe_failures")["verdict"])


def test_the_policies_of_the_page_are_those_of_the_facts() -> None:
    table = facts.table("network_policies").query("direction == 'outbound'").groupby("operator")
    [text] = re.findall(r"\| network \|.*\n(?:\|---)+\|\n((?:\|.*\n)+)", PAGE)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines()]
    assert len(rows) >= 10
    for operator, shut, opened, _, source in rows:
        known = table.get_group(operator)
        for ports, good in ((shut, True), (opened, False)):
            listed = set(known.loc[known["policy"].ne("allowed") == good, "port"])
            assert {int(port) for port in re.findall(r"\d+", ports)} == listed, operator
        assert source.split("](")[1].removesuffix(")") in set(known["source_url"]), operator


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", PAGE))))
def test_every_link_of_the_page_leads_somewhere(target: str) -> None:
    assert (ROOT / "docs" / target).exists()
