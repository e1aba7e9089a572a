"""Servers that mean harm, live and as bytes: they can neither hang, swell nor break a sweep."""

from __future__ import annotations

import importlib.util
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

import deliverkit as dk
from deliverkit import cli
from deliverkit.probe import Dialogue

FUZZ_FILE = Path(__file__).with_name("fuzz_probe.py")
_spec = importlib.util.spec_from_file_location("fuzz_probe", FUZZ_FILE)
assert _spec and _spec.loader
fuzz = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz)


# As bytes: the short run of tests/fuzz_probe.py

PIECES = [
    *(part for script in fuzz.SCRIPTS for part in script),
    *(bytes([kind]) for kind in range(8)),
    *(b"\x08" + unit for unit in (b"220-x\r\n", b"250-STARTTLS x\r\n", b"x" * 60, b"250-AUTH A B\r\n", b"\r\n", b"4")),
    b"500 no\r\n", b"421 4.3.2 bye\r\n", b"250-AUTH\r\n250 \r\n", b"220\r\n", b"\x1b[2J\r\n", b"220 ****\r\n", b"\n",
]  # fmt: skip


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(st.binary(min_size=2, max_size=2), st.lists(st.sampled_from(PIECES) | st.binary(max_size=40), max_size=9))
def test_no_server_breaks_what_the_dialogue_promises(how: bytes, parts: list[bytes]) -> None:
    fuzz.dialogue(how + b"\xff\xff".join(parts))


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(fuzz.ODD)), st.integers(0), st.binary(max_size=4), st.integers(0, 4))
def test_no_certificate_breaks_its_judge(name: str, place: int, new: bytes, gone: int) -> None:
    der = fuzz.ODD[name]
    place %= len(der)
    fuzz.certificates(der[:place] + new + der[place + gone :])


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_no_first_flight_and_no_icmp_message_breaks_its_reader(data: bytes) -> None:
    fuzz.flight(data)
    fuzz.flight(b"\x16\x03\x03\x00" + bytes([len(data)]) + data)


@pytest.mark.parametrize("target", ["dialogue", "judge", "flight"])
def test_inputs_guided_by_coverage_find_nothing(target: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("needs atheris (Linux): python -m pip install atheris")
    command = [sys.executable, str(FUZZ_FILE), target, "-runs=4000", "-max_len=1024", "-seed=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0 and "Done 4000" in done.stderr, done.stderr[-3000:]


def test_ten_thousand_mechanisms_do_not_swell_the_row() -> None:
    lines = b"".join(b"250-AUTH " + b" ".join(b"%dX%d" % (n, m) for m in range(50)) + b"\r\n" for n in range(200))
    script = [b"220 mx\r\n", b"250-mx\r\n" + lines + b"250 SIZE\r\n"]
    fuzz.check_row(fuzz.converse(script, implicit=0, check_auth=0, cut=16384, lost=0)[0])


def test_a_long_line_instead_of_tls_is_counted_the_same_however_it_is_cut() -> None:
    fuzz.dialogue(b"\x80\x00" + b"\xff\xff".join([*fuzz.SAYS, b"no tls " * 900 + b"\r\n"]))


STAGES = {"banner": [], "ehlo": [b"220 mx\r\n"], "starttls": [b"220 mx\r\n", b"250 STARTTLS\r\n"]}
ENDLESS = [b"2", b"220-\r\n", b"220-x\n", b"250-STARTTLS\r\n", b"250-AUTH " + b"A" * 4000 + b"\r\n", b"\0", b"\xff\n"]


@pytest.mark.parametrize("unit", ENDLESS, ids=lambda unit: repr(unit[:8]))
@pytest.mark.parametrize("stage", STAGES)
def test_a_reply_without_end_is_left_after_2_mb(stage: str, unit: bytes) -> None:
    run = Dialogue(implicit=False, ehlo_name="me.example", now=0.0).run()
    script, taken, most = list(STAGES[stage]), 0, 0
    chunk = (unit * 16384)[:16384]
    with suppress(StopIteration):
        ask = next(run)
        while True:
            event = None if ask.what == "send" else script.pop(0) if script else chunk
            taken += len(event or b"")
            most = max(most, taken)
            ask = run.send((0.0, event))
    assert most <= fuzz.REPLY


# Live

Act = Callable[[socket.socket], object]


def flood(unit: bytes, *said: bytes) -> Act:
    """A server that says each part and listens, and then says the unit for ever."""

    def act(sock: socket.socket) -> None:
        for part in said:
            sock.sendall(part)
            sock.recv(4096)
        while True:
            sock.sendall(unit * (65536 // len(unit) + 1))

    return act


def drip(text: bytes, *said: bytes) -> Act:
    """The same, and then a byte every fifth of a second."""

    def act(sock: socket.socket) -> None:
        for part in said:
            sock.sendall(part)
            sock.recv(4096)
        for byte in text:
            sock.sendall(bytes([byte]))
            time.sleep(0.2)

    return act


def says(*parts: bytes) -> Act:
    """A server that says each part and listens, and goes when the client goes."""

    def act(sock: socket.socket) -> None:
        for part in parts:
            sock.sendall(part)
            sock.recv(4096)
        while sock.recv(4096):
            pass

    return act


def resets(sock: socket.socket) -> None:
    sock.sendall(b"220 mx\r\n")
    sock.recv(4096)
    sock.sendall(b"250-mx\r\n")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def context(tmp: Path, *chain: bytes, tickets: int = 1) -> ssl.SSLContext:
    """A server's, with any certificates, of which the first is for the key of the fuzzer."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.set_ciphers("DEFAULT:@SECLEVEL=0")
    made.num_tickets = tickets
    (tmp / "pem").write_text(key_pem() + "".join(map(ssl.DER_cert_to_PEM_cert, chain)), encoding="ascii")
    made.load_cert_chain(tmp / "pem")
    return made


def key_pem() -> str:
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return str(fuzz.KEY.private_bytes(serialization.Encoding.PEM, form, plain).decode())


def inside(made: ssl.SSLContext, act: Act) -> Act:
    """The server within TLS from the first byte."""

    def wrapped(sock: socket.socket) -> None:
        with made.wrap_socket(sock, server_side=True) as secure:
            act(secure)

    return wrapped


def garbage_in_records(made: ssl.SSLContext) -> Act:
    def act(sock: socket.socket) -> None:
        wire = sock.dup()
        with made.wrap_socket(sock, server_side=True) as secure:
            secure.sendall(b"220 mx\r\n")
            secure.recv(4096)
            wire.sendall(b"\x17\x03\x03\x00\x40" + b"\xa5" * 64)
            while wire.recv(4096):
                pass

    return act


def closes_tls(sock: Any) -> None:
    sock.sendall(b"220 mx\r\n")
    sock.recv(4096)
    sock.unwrap()


SESSION = (b"220 mx\r\n", b"250-mx\r\n250 SIZE\r\n", b"500 what\r\n")
SHORT = (*SESSION[:2], b"221 bye\r\n")  # within TLS
HTML = fuzz.CLEAR.encode()
STARTTLS = (b"220 mx\r\n", b"250-mx\r\n250 STARTTLS\r\n", b"220 go\r\n")
SERVER_HELLO = b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb\x03\x03" + bytes(200)


def hostile(tmp: Path) -> dict[str, tuple[int, Act, tuple[str, str | None]]]:
    """Name -> the port it plays, what it does, and what the sweep should say."""
    plain, big = fuzz.ODD["plain"], fuzz.ODD["name of 30 kB"]
    made, many = context(tmp, plain), context(tmp, plain, *[fuzz.ODD["by another"]] * 49)
    large, larger = context(tmp, plain, big), context(tmp, plain, big, big)
    endless = ("not_smtp", "line_too_long")
    broken: tuple[str, str] = ("open_tls_broken", "tls_protocol")
    return {
        "a greeting without line end": (25, flood(b"220 mx "), endless),
        "a greeting without last line": (25, flood(b"220-mx\r\n"), endless),
        "empty lines": (25, flood(b"\r\n"), ("not_smtp", "not_smtp")),
        "lines that are no reply": (25, flood(b"hello\r\n"), ("not_smtp", "not_smtp")),
        "a line of 10 MB": (25, says(b"220 " + b"x" * 10_000_000 + b"\r\n"), endless),
        "EHLO lines without end": (25, flood(b"250-X\r\n", b"220 mx\r\n"), endless),
        "an EHLO line without end": (25, flood(b"250-X", b"220 mx\r\n"), endless),
        "421 without end": (25, flood(b"421 4.3.2 closing\r\n"), ("deferred", "smtp_4xx")),
        "every reply at once": (25, says(b"220 mx\r\n250 mx\r\n500 what\r\n221 bye\r\n"), ("open_no_tls", None)),
        "a greeting a byte at a time": (25, drip(b"220 " + b"x" * 99), ("accepts_no_banner", "banner_slow")),
        "EHLO a byte at a time": (25, drip(b"250-mx" + b"x" * 99, b"220 mx\r\n"), ("deferred", "total_timeout")),
        "a reset in EHLO": (25, resets, ("closed_after_accept", "reset")),
        "data behind QUIT": (25, flood(b"x", *SESSION), ("open_no_tls", None)),
        "escapes": (25, says(b"220 " + HTML + b"\r\n", b"250-" + HTML + b"\r\n250-AUTH " + HTML + b"\r\n250 " + HTML
                             + b"\r\n", b"500 " + HTML + b"\r\n"), ("open_no_tls", None)),
        "no TLS behind STARTTLS": (25, flood(b"\x16\x03\x03\x00\x04\xff\xff\xff\xff", *STARTTLS), broken),
        "a handshake a byte at a time": (25, drip(SERVER_HELLO, *STARTTLS), ("open_tls_broken", "tls_timeout")),
        "TLS a byte at a time": (465, drip(SERVER_HELLO), ("accepts_no_banner", "tls_timeout")),
        "a greeting without end in TLS": (465, inside(made, flood(b"220-mx\r\n")), endless),
        "EHLO without end in TLS": (465, inside(made, flood(b"250-X\r\n", b"220 mx\r\n")), endless),
        "records of garbage": (465, garbage_in_records(made), broken),
        "a chain of 50": (465, inside(many, says(*SHORT)), ("open", None)),
        "a chain of 60 kB": (465, inside(large, says(*SHORT)), ("open", None)),
        "a chain of 120 kB": (465, inside(larger, says(*SHORT)), broken),
    }  # fmt: skip


@contextmanager
def serve(act: Act) -> Iterator[int]:
    """A loopback server with a thread for each connection; its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)

    def one(sock: socket.socket) -> None:
        with sock, suppress(OSError):
            act(sock)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def sweep(acts: dict[str, tuple[int, Act]], **how: Any) -> pd.DataFrame:
    """One sweep of these servers and of the lab's eight hosts: its rows by host; for servers `name.test`."""
    with ExitStack() as stack:
        lab = stack.enter_context(dk.Lab("open"))
        doors = {(f"h{n}.test", port): ("127.0.0.1", stack.enter_context(serve(act)))
                 for n, (port, act) in enumerate(acts.values())}  # fmt: skip
        table = pd.DataFrame([*doors, *((host, 25) for host in lab.hosts)], columns=["host", "port"])
        how = {"timeout": 1.5, "pace": None, "progress": False} | how
        frame = dk.probe(table, connect_to=doors | lab.connect_to, **how)
    return frame.assign(name=[*acts, *["lab"] * len(lab.hosts)])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """All of them in one sweep, with what it should say beside what it says."""
    acts = hostile(tmp_path_factory.mktemp("hostile"))
    begun = time.monotonic()
    frame = sweep({name: (port, act) for name, (port, act, _) in acts.items()})
    expected = {name: words for name, (_, _, words) in acts.items()} | {"lab": ("open", None)}
    return frame.assign(expected=frame["name"].map(expected), took_s=time.monotonic() - begun)


def test_each_hostile_server_gets_its_words(found: pd.DataFrame) -> None:
    failures = found["failure"].astype(object).where(found["failure"].notna(), None)
    said = dict(zip(found["name"], zip(found["verdict"], failures, strict=True), strict=True))
    assert said == dict(zip(found["name"], found["expected"], strict=True))


def test_the_lab_in_the_same_sweep_is_unharmed(found: pd.DataFrame) -> None:
    assert found.loc[found["name"] == "lab", "verdict"].tolist() == ["open"] * 8


DEADLINE_S = 1.5 * 5 + 2  # connect, greeting, three more, and two seconds: what `probe` says of its timeout


def test_every_probe_ends_by_its_deadline(found: pd.DataFrame) -> None:
    assert found["total_s"].max() < DEADLINE_S + 2 and found["took_s"].max() < DEADLINE_S + 10


def unsafe(frame: pd.DataFrame) -> list[str]:
    texts = [text for text in frame.to_numpy().ravel() if isinstance(text, str)]
    return [text for text in texts if fuzz.CONTROL.search(text) or len(text) > 2000]


def test_no_control_character_reaches_the_frame(found: pd.DataFrame) -> None:
    row = found[found["name"] == "escapes"].iloc[0]
    assert unsafe(found) == [] and row["banner"].startswith(r"220 \x1b]0;gone\x07\x1b[2J<script>")


def test_markup_of_a_server_is_text_in_html(found: pd.DataFrame) -> None:
    frame = found[found["name"] == "escapes"]
    box = dk.explore_probes(frame.drop(columns=["name", "expected", "took_s"]))
    for page in (frame.to_html(), frame._repr_html_(), box.view.value):
        assert "&lt;script&gt;alert" in page and "<script>alert" not in page
    assert "<script>alert" not in dk.report(frame.iloc[:, :-3]).html


def test_the_shell_prints_no_control_character(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    act = hostile(tmp_path)["escapes"][1]
    with serve(act) as port:
        cli.main(["probe", f"127.0.0.1:{port}", "--no-pace", "--timeout", "2"])
    shown = capsys.readouterr()
    assert "127.0.0.1" in shown.out and not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown.out + shown.err)


ODD = [name for name in fuzz.ODD if name != "name of 100 kB"]


@pytest.mark.parametrize("name", ODD)
def test_a_certificate_with_absurd_fields_is_a_row(name: str, tmp_path: Path) -> None:
    try:
        made = context(tmp_path, fuzz.ODD[name])
    except ssl.SSLError:
        pytest.skip("this OpenSSL does not let a server show it")
    frame = sweep({name: (465, inside(made, says(*SHORT)))})
    row, lab = frame.iloc[0], frame.iloc[1:]
    assert row["verdict"] == "open" or (row["verdict"], row["failure"]) == ("open_tls_broken", "tls_protocol")
    assert lab["verdict"].eq("open").all() and unsafe(frame) == []


def test_tls_that_is_closed_in_the_middle_is_an_end(tmp_path: Path) -> None:
    made = context(tmp_path, fuzz.ODD["plain"])
    frame = sweep({"closes": (465, inside(made, closes_tls))})
    assert (frame.loc[0, "verdict"], frame.loc[0, "failure"]) == ("closed_after_accept", "eof")
    assert frame["verdict"].tolist()[1:] == ["open"] * 8


HELLOS = b"\x16\x03\x03\x40\x00" + bytes(16384)  # 4096 times HelloRequest, which a client passes over in silence


def test_a_handshake_that_never_waits_does_not_hold_up_the_sweep() -> None:
    until = time.monotonic() + 6  # a sweep that waits for the end of it ends, too

    def act(sock: socket.socket) -> None:
        sock.recv(4096)
        while time.monotonic() < until:
            sock.sendall(HELLOS * 8)

    frame = sweep({"hellos": (465, act)}, timeout=1)
    assert frame["verdict"].tolist() == ["accepts_no_banner"] + ["open"] * 8
    assert frame.loc[0, "failure"] == "tls_timeout" and frame["total_s"].max() < 5


def test_tickets_without_end_are_left_at_the_deadline(tmp_path: Path) -> None:
    made = context(tmp_path, fuzz.ODD["plain"], tickets=3_000_000)
    frame = sweep({"tickets": (465, inside(made, says(*SHORT)))}, timeout=1)
    assert frame["verdict"].tolist()[1:] == ["open"] * 8 and frame["total_s"].max() < 9


def test_handshakes_that_the_server_begins_anew_do_no_harm(need: Callable[[str, str], str], tmp_path: Path) -> None:
    context(tmp_path, fuzz.ODD["plain"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [need("openssl", "openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(tmp_path / "pem")]
    command += ["-tls1_2", "-naccept", "1", "-crlf", "-cipher", "DEFAULT:@SECLEVEL=0"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert server.stdin and server.stdout

    seen: list[bytes] = []

    def play() -> None:
        for line in server.stdout or ():
            seen.append(line)
            reply = {b"ACCEPT": b"", b"CIPHER": b"220 mx\n", b"EHLO [": b"r\n250 mx\n", b"QUIT\r\n": b"r\n221 bye\n"}
            for part in reply.get(line[:6], b"").splitlines(keepends=True):
                server.stdin.write(part)
                server.stdin.flush()
                time.sleep(0.3)  # s_server takes one command from what one read gives

    try:
        player = threading.Thread(target=play, daemon=True)
        player.start()
        time.sleep(0.5)
        how: dict[str, Any] = {"timeout": 3, "pace": None, "progress": False}
        [row] = dk.probe("mx.a.example", 465, connect_to=f"::127.0.0.1:{port}", **how).to_dict("records")
        assert (row["tls_version"], row["verdict"]) == ("TLSv1.2", "open")
        assert any(line.startswith(b"SSL_do_handshake -> 1") for line in seen)
    finally:
        server.kill()
        server.wait()


def test_many_floods_leave_no_memory_behind() -> None:
    floods = (b"220 mx ", b"220-mx\r\n", b"220-" + b"x" * 4000 + b"\r\n")
    with ExitStack() as stack:
        ports = [stack.enter_context(serve(flood(unit * (65536 // len(unit))))) for unit in floods]
        doors = {(f"mx{n}.example", 25): ("127.0.0.1", port) for n in range(60) for port in [ports[n % 3]]}
        targets = [f"{host}:25" for host, _ in doors]
        tracemalloc.start()
        frame = dk.probe(targets, connect_to=doors, timeout=3, pace=None, progress=False, in_flight=20)
        left, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert set(frame["failure"]) == {"line_too_long"}
    assert peak < 20 * 2 * fuzz.REPLY and left < 20_000_000
