"""The shell: every command from outside, its forms, its exit codes, one line for an error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from deliverkit.cli import main
from deliverkit.lab import Lab
from deliverkit.samples import opened

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"


def run(*args: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deliverkit", *map(str, args)]
    env = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", env=env, timeout=120)


def test_the_tour_runs_the_main_job_and_ends_in_a_report(tmp_path: Path) -> None:
    done = run("tour", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("port 25: blocked by network", "port 587: open", "Use port 587", "bounced", "report.html"):
        assert words in done.stdout, words
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Use port 587" in page and "office" in page and "guide:choose-" in page


def test_help_names_every_command_and_each_command_has_help() -> None:
    shown = run("--help").stdout
    for verb in ["tour", "probe", "read", "rates", "egress", "choose", "report", "notebooks"]:
        assert verb in shown and run(verb, "--help").returncode == 0


def test_a_probe_of_open_ports_is_good_news_and_of_shut_ones_bad() -> None:
    with Lab("isp-blocks-25") as lab:
        host = lab.hosts[0]
        doors = [f"{host}:{p}:{lab.connect_to[host, p][0]}:{lab.connect_to[host, p][1]}" for p in (25, 587)]
        to = [word for door in doors for word in ("--connect-to", door)]
        common = ["probe", host, "--no-pace", "--timeout", "1", *to]
        good, bad = run(*common, "--ports", "587", "--json"), run(*common, "--ports", "25,587", "--csv")
    assert (good.returncode, bad.returncode) == (0, 1), good.stderr + bad.stderr
    [row] = json.loads(good.stdout)
    assert row["verdict"] == "open" and row["port"] == 587
    assert bad.stdout.splitlines()[0].startswith("time,origin,vantage")


def test_frames_come_as_table_json_csv_and_parquet(tmp_path: Path) -> None:
    table, text = run("read", DATA / "postfix"), run("read", DATA / "postfix", "--csv")
    assert "rows more" in table.stdout and text.stdout.startswith("time,origin")
    assert run("read", DATA / "postfix", "--parquet", tmp_path / "a.parquet").returncode == 0
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert len(frame) == len(json.loads(run("read", DATA / "postfix", "--json").stdout)) > 300
    back = run("rates", tmp_path / "a.parquet", "--by", "port")
    assert back.returncode == 0 and "port 25" in back.stdout and "95" not in back.stderr


def test_egress_says_who_blocks_in_lines() -> None:
    done = run("egress", DATA / "probes.csv")
    assert done.returncode == 1 and "office, port 25: blocked by network (>99 %): 0 of 8 hosts" in done.stdout
    networks, pairs = done.stdout.split("\n\n")
    assert "office, port 587: open" in networks and len(networks.splitlines()) == 12
    assert "home against office, port 25: blocked from office (p = 0.031): of 8 hosts 6 answered home on 25, 0" in pairs
    assert " same" not in pairs


def test_egress_without_files_probes_controls_and_writes_a_file_that_joins_in(tmp_path: Path) -> None:
    hosts = Lab().hosts
    table = "".join(f"{host},{port},op{n}\n" for n, host in enumerate(hosts) for port in (25, 587))
    (tmp_path / "controls.csv").write_text("host,port,operator\n" + table, encoding="utf-8")
    files = []
    for vantage, scenario in (("office", "isp-blocks-25"), ("cloud", "open")):
        files.append(tmp_path / f"{vantage}.jsonl")
        with Lab(scenario) as lab:
            routes = [f"{host}:{port}:{at}:{to}" for (host, port), (at, to) in lab.connect_to.items()]
            how = [word for route in routes for word in ("--connect-to", route)]
            how += ["--controls", tmp_path / "controls.csv", "--vantage", vantage, "--out", files[-1], "--timeout", "2"]
            done = run("egress", *how, "--no-pace", "--network", "Hetzner Cloud")
        shut = vantage == "office"
        said = f"{vantage}, port 25: {'blocked by network' if shut else 'open'}"
        assert done.returncode == int(shut) and said in done.stdout, done.stdout + done.stderr
    done = run("egress", *files)
    assert "cloud against office, port 25: blocked from office (p = 0.0078)" in done.stdout


def test_forecast_says_what_is_published() -> None:
    done = run("forecast", "--network", "Hetzner Cloud", "--provider", "SendGrid")
    assert done.returncode == 0 and "blocked" in done.stdout and "SendGrid listens on 587" in done.stdout


def test_resolve_of_a_name_that_is_none_is_bad_news() -> None:
    done = run("resolve", "a..example")
    assert done.returncode == 2 and "a..example" in done.stderr


def test_reports_are_written_per_client_and_as_what_the_ending_says(tmp_path: Path) -> None:
    sends = ("--sends", DATA / "sends.csv")
    mail = [DATA / name for name in ("postfix", "bounces.mbox", "probes.csv")]
    done = run("report", *mail, *sends, "--per", "client", "--date", "2026-11-25", "-o", tmp_path / "r.pdf")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["r-Alpine-Travel.pdf", "r-Harbour-Books.pdf"], done.stderr
    assert "rows of mail name no client" in done.stderr
    assert re.search(r"^deliverkit: send list: \d+ of \d+ rows joined \(\d+ by message id and", done.stderr, re.M)
    asked = ("--client", "Harbour Books", "-o", tmp_path / "one.html")
    one = run("report", *mail, *sends, *asked)
    page = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert one.returncode == 0 and "Harbour Books" in page and "Alpine Travel" not in page
    assert run("report", *mail, "--sends", DATA / "README.md").returncode == 2
    for wrong, says in (
        (("--before", "2020-01-01"), "no rows before"),
        (("--client", "Nobody"), "there are: Alpine Travel, Harbour Books"),
        (("--client", "Harbour Books", "--per", "client"), "not allowed with"),
    ):
        done = run("report", *mail, *sends, *wrong, "-o", tmp_path / "no.html")
        assert done.returncode == 2 and says in done.stderr and not (tmp_path / "no.html").exists()


def test_the_period_before_gets_its_clients_from_the_send_list_too(tmp_path: Path) -> None:
    asked = ("--sends", DATA / "sends.csv", "--client", "Harbour Books", "-o", tmp_path / "one.html")
    done = run("report", DATA / "postfix", *asked, "--before", DATA / "postfix")
    page = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert done.returncode == 0 and "Before: " in page and "no clear change" in page


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_a_send_list_may_be_separated_as_its_office_does(tmp_path: Path, sign: str) -> None:
    sends = (DATA / "sends.csv").read_text(encoding="utf-8").replace(",", sign)
    (tmp_path / "sends.csv").write_text("\ufeff" + sends, encoding="utf-8")
    assert opened([DATA / "postfix"], str(tmp_path / "sends.csv"))["client"].nunique() == 2


def test_what_serve_needs_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve"]) == 3 and "voila is missing: python -m pip install voila" in capsys.readouterr().err


def test_rates_come_by_any_column() -> None:
    done = run("rates", DATA / "probes.csv", "--by", "vantage,port", "--json")
    rows = json.loads(done.stdout)
    assert {row["vantage"] for row in rows} == {"office", "cloud", "home"} and len(rows) == 12


def test_choose_answers_and_says_when_no_port_is_left() -> None:
    assert json.loads(run("choose", "--provider", "ses", "--json").stdout)["port"] == 587
    done = run("choose", "--sending", "relay", "--network", "Vultr")
    assert done.returncode == 1 and done.stdout.startswith("No port is left")


def test_a_report_is_written_and_named(tmp_path: Path) -> None:
    done = run("report", DATA / "probes.csv", DATA / "bounces.mbox", "-o", tmp_path / "r.html", "--title", "A & B")
    assert done.stdout.strip().endswith("r.html") and "A &amp; B" in (tmp_path / "r.html").read_text(encoding="utf-8")


BAD = [
    (["read", "nowhere.log"], "nowhere.log"),
    (["read", "EMPTY"], "EMPTY"),
    (["read", "JUNK"], "JUNK"),
    (["read", "LONG"], "LONG"),
    (["rates", "SENDS"], "SENDS"),
    (["rates", "PROBES", "--by", "colour"], "colour"),
    (["choose", "--provider", "nobody"], "nobody"),
    (["choose", "--evidence", "nowhere"], "nowhere"),
    (["probe", "mx.example", "--ports", "70000"], "70000"),
    (["probe", "mx.example", "--timeout", "soon"], "soon"),
    (["probe", ""], ""),
    (["report", "PROBES", "-o", "r.docx"], "r.docx"),
    (["read", "PROBES", "--parquet", "nowhere/x.parquet"], "nowhere"),
]


@pytest.mark.parametrize(("args", "word"), BAD, ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_bad_input_is_one_clear_line_and_exit_code_2(args: list[str], word: str, tmp_path: Path) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "JUNK").write_bytes(bytes(range(256)) * 400)
    (tmp_path / "LONG").write_bytes(b"x" * 10_000_000)
    places = {"SENDS": DATA / "sends.csv", "PROBES": DATA / "probes.csv"}
    done = run(*[places.get(arg, arg) for arg in args], cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and word.lower() in done.stderr.lower()
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("deliverkit: ")


def test_words_argparse_does_not_know_end_in_2_as_well() -> None:
    assert run("frobnicate").returncode == 2 and run("probe", "x", "--ports", "smtp").returncode == 2


def test_a_host_that_does_not_resolve_is_a_row_not_an_error() -> None:
    done = run("probe", "does-not-exist.invalid", "--ports", "25", "--timeout", "2", "--json")
    [row] = json.loads(done.stdout)
    assert done.returncode == 1 and row["verdict"] == "dns_fail" and row["reached"] == "dns"


def test_mail_domains_without_servers_are_rows_too() -> None:
    done = run("probe", "does-not-exist.invalid", "--mx", "--ports", "25", "--timeout", "2", "--json")
    assert json.loads(done.stdout)[0]["verdict"] == "dns_fail"


def test_notebooks_without_jupyterlab_name_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import importlib.util

    from deliverkit.cli import main

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["notebooks"]) == 3
    assert "pip install jupyterlab" in capsys.readouterr().err


def test_control_characters_from_outside_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "mail.log"
    evil = "550 \x1b[2J\x1b]0;owned\x07 no"
    path.write_text(
        "Mar  1 10:00:00 mail postfix/smtp[9]: ABCDEF1234: to=<b@y.example>, relay=mx.y.example[192.0.2.1]:25, "
        f"delay=1, delays=0/0/0/1, dsn=5.0.0, status=bounced (host mx.y.example[192.0.2.1] said: {evil})\n"
    )
    done = run("read", path)
    assert done.returncode == 0 and "\x1b" not in done.stdout and "\x07" not in done.stdout


def test_the_command_loads_nothing_heavy_before_it_is_needed() -> None:
    heavy = "('pandas', 'numpy', 'dns', 'ssl', 'matplotlib')"
    code = f"import deliverkit.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_belongs_to_probing_is_refused_beside_files(tmp_path: Path) -> None:
    for option in (("--out", tmp_path / "x"), ("--ports", 25), ("--trace",), ("--controls", "c.csv")):
        done = run("egress", DATA / "probes.csv", *option)
        assert done.returncode == 2 and f"{option[0]} is for probing" in done.stderr
    assert "these are no probes" in run("egress", DATA / "postfix").stderr


def test_a_network_s_policy_is_held_against_that_network_only() -> None:
    done = run("egress", DATA / "probes.csv", "--network", "Hetzner Cloud")
    assert done.returncode == 2 and "choose with --vantage" in done.stderr
    done = run("egress", DATA / "probes.csv", "--network", "Hetzner Cloud", "--vantage", "cloud")
    assert (
        "not as published: Hetzner Cloud on 587" in done.stdout and "; as published: Hetzner Cloud on 25" in done.stdout
    )


def test_files_of_one_network_are_taken_together_and_said_to_be() -> None:
    done = run("egress", DATA / "probes.csv", DATA / "probes.csv")
    assert "96 ports of" in done.stderr and done.stdout == run("egress", DATA / "probes.csv").stdout


def test_a_comparison_is_had_as_data() -> None:
    rows = json.loads(run("compare", DATA / "probes.csv", "--json").stdout)
    assert len(rows) == 12 and {row["verdict"] for row in rows} == {"same", "blocked_here", "blocked_there"}


def test_a_run_that_is_already_in_its_file_says_that_nothing_was_probed(tmp_path: Path) -> None:
    for _ in range(2):
        done = run("probe", "127.0.0.1:1", "--out", tmp_path / "a.jsonl")
    assert "nothing was probed" in done.stderr and "has all 1 ports, since" in done.stderr


def test_what_the_shell_gets_wrong_is_one_line() -> None:
    for wrong in (("probe", "--port", "25", "x"), ("egress", "--ports", "25,x"), ("probe",), ("nonsense",)):
        done = run(*wrong)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("deliverkit: ")
