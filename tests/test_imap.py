"""An IMAP mailbox gives its messages, as a real Dovecot and a hostile server tell them; nothing in it changes."""

from __future__ import annotations

import errno
import imaplib
import itertools
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pytest

import deliverkit as dk
from deliverkit.bounces import imap
from deliverkit.bounces.imap import messages_of
from deliverkit.errors import FormatError
from tests.servers.authority import Pair, certificate

NOBODY = 65534
USER, PASSWORD = "me@shop.example", 'geh"eim\\ würd'
DOVECOT = """
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/dovecot.log
protocols = imap
ssl = required
ssl_cert = <{folder}/server.pem
ssl_key = <{folder}/server.pem
auth_mechanisms = plain
auth_failure_delay = 0
mail_location = maildir:{folder}/mail
default_login_user = dovenull
default_internal_user = dovecot
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
userdb {{
  driver = static
  args = uid=65534 gid=65534 home={folder}/mail
}}
namespace {{
  inbox = yes
  separator = /
}}
service auth {{
  user = root
}}
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    address = 127.0.0.1
    port = {starttls}
  }}
  inet_listener imaps {{
    address = 127.0.0.1
    port = {implicit}
    ssl = yes
  }}
}}
"""


def bounce(number: int, ends: str = "\n") -> bytes:
    """A delivery report for one recipient."""
    lines = [
        "Return-Path: <>",
        "From: MAILER-DAEMON@mx.example",
        "To: me@shop.example",
        f"Subject: Undelivered Mail {number}",
        'Content-Type: multipart/report; report-type=delivery-status; boundary="b"',
        "",
        "--b",
        "Content-Type: message/delivery-status",
        "",
        "Reporting-MTA: dns; mx.example",
        "",
        f"Final-Recipient: rfc822; x{number}@there.example",
        "Action: failed",
        "Status: 5.1.1",
        "Diagnostic-Code: smtp; 550 5.1.1 User unknown",
        "",
        "--b--",
        "",
    ]
    return ends.join(lines).encode()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Dovecot:
    """A real Dovecot on loopback, with its mailboxes in a folder."""

    def __init__(self, program: str, folder: Path, authority: Pair) -> None:
        self.folder, self.implicit, self.starttls = folder, free_port(), free_port()
        (folder / "server.pem").write_text(certificate("dovecot", "localhost", by=authority).pem)
        (folder / "ca.pem").write_text(authority.public)
        (folder / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
        text = DOVECOT.format(folder=folder, implicit=self.implicit, starttls=self.starttls)
        (folder / "dovecot.conf").write_text(text)
        command = [program, "-F", "-c", str(folder / "dovecot.conf")]
        with (folder / "out").open("ab") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        ends = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.implicit), 1).close()
                break
            except OSError:
                said = (folder / "out").read_text()
                assert time.monotonic() < ends and self.process.poll() is None, said
                time.sleep(0.05)

    def close(self) -> None:
        """End it in the middle of whatever it does, so that nobody listens any more."""
        pid = self.process.pid
        self.process.send_signal(signal.SIGSTOP)  # it would start others in place of its children
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self.process.kill()
        self.process.wait(20)
        until = time.monotonic() + 20
        while time.monotonic() < until:  # a child that dies holds its door a little longer
            with socket.socket() as door:
                if door.connect_ex(("127.0.0.1", self.implicit)) == errno.ECONNREFUSED:
                    return
            time.sleep(0.01)

    def url(self, mailbox: str, scheme: str = "imaps") -> str:
        port = self.implicit if scheme == "imaps" else self.starttls
        return f"{scheme}://{quote(USER, safe='')}@localhost:{port}/{quote(mailbox)}"

    def connect(self) -> imaplib.IMAP4_SSL:
        box = imaplib.IMAP4_SSL(
            "localhost", self.implicit, ssl_context=ssl.create_default_context(cafile=self.folder / "ca.pem")
        )
        box.authenticate("PLAIN", lambda _: f"\0{USER}\0{PASSWORD}".encode())
        return box

    def fill(self, mailbox: str, messages: list[bytes]) -> None:
        """Put messages where Dovecot looks for new ones."""
        folder = self.folder / "mail" / ("" if mailbox == "INBOX" else f".{mailbox}")
        for name in ("cur", "new", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for number, message in enumerate(messages):
            (folder / "new" / f"{1_700_000_000 + number}.M{number}.here").write_bytes(message)
        for path in [self.folder / "mail", folder, *folder.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)


@pytest.fixture(scope="module")
def dovecot(need: Callable[[str, str], str]) -> Iterator[Dovecot]:
    program = need("dovecot", "dovecot-core")
    need("/usr/lib/dovecot/imap", "dovecot-imapd")
    if os.geteuid() != 0:
        pytest.skip("Dovecot starts as root only")
    with tempfile.TemporaryDirectory(prefix="imap") as name:  # pytest's own folders are root's, the mail is not
        Path(name).chmod(0o755)
        server = Dovecot(program, Path(name), certificate("CA", ca=True))
        yield server
        server.close()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """No password and no authority of the person who runs the tests; Dovecot's are trusted."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DELIVERKIT_IMAP_PASSWORD", raising=False)
    if "dovecot" in request.fixturenames:
        ca = request.getfixturevalue("dovecot").folder / "ca.pem"
        monkeypatch.setenv("DELIVERKIT_IMAP_CA", str(ca))


def unix(message: bytes) -> bytes:
    return message.replace(b"\r\n", b"\n")


@pytest.mark.parametrize("scheme", ["imaps", "imap"])
def test_a_mailbox_gives_its_messages_in_the_order_of_their_uids(dovecot: Dovecot, scheme: str) -> None:
    sent = [bounce(n) for n in range(5)]
    dovecot.fill(f"{scheme}5", sent)
    found = list(messages_of(dovecot.url(f"{scheme}5", scheme), PASSWORD))
    assert [unix(message) for _, message in found] == sent
    names = [re.sub(r"UIDVALIDITY=\d+", "UIDVALIDITY=1", name) for name, _ in found]
    assert names == [f"{dovecot.url(f'{scheme}5', scheme)};UIDVALIDITY=1/;UID={n}" for n in range(1, 6)]


def save(messages: Iterator[tuple[str, bytes]], folder: Path) -> Path:
    folder.mkdir()
    for number, (_, message) in enumerate(messages):
        (folder / f"{number:04}.eml").write_bytes(message)
    return folder


def rows(folder: Path) -> pd.DataFrame:
    return dk.read_bounces(folder).drop(columns="source")


@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_the_rows_are_those_of_the_same_messages_as_files(dovecot: Dovecot, ends: str, tmp_path: Path) -> None:
    sent = [bounce(n, ends) for n in range(20)]
    mailbox = f"files{len(ends)}"
    dovecot.fill(mailbox, sent)
    found = save(messages_of(dovecot.url(mailbox), PASSWORD), tmp_path / "found")
    frame = rows(found)
    assert frame.equals(rows(save(iter([("", message) for message in sent]), tmp_path / "sent")))
    assert frame["recipient"].tolist() == [f"x{n}@there.example" for n in range(20)]


def test_the_labelled_bounces_come_out_as_they_went_in(dovecot: Dovecot, shared: Path, tmp_path: Path) -> None:
    files = [path for path in sorted((shared / "bounces/eml").iterdir()) if not path.name.startswith("mac--")]
    sent = [path.read_bytes() for path in files]  # a message of bare carriage returns is none that IMAP can carry
    dovecot.fill("labelled", sent)
    found = save(messages_of(dovecot.url("labelled"), PASSWORD), tmp_path / "found")
    assert rows(found).equals(rows(save(iter([("", message) for message in sent]), tmp_path / "sent")))


def flags(dovecot: Dovecot, mailbox: str) -> tuple[object, object]:
    """What another connection sees that changes nothing either."""
    box = dovecot.connect()
    box.select(mailbox, readonly=True)
    seen = box.uid("FETCH", "1:*", "(FLAGS)"), box.response("RECENT")
    box.logout()
    return seen


def test_reading_changes_no_flag(dovecot: Dovecot) -> None:
    dovecot.fill("flags", [bounce(n) for n in range(5)])
    before = flags(dovecot, "flags")
    assert str(before).count(r"\\Recent") == 5
    assert len(list(messages_of(dovecot.url("flags"), PASSWORD))) == 5
    assert flags(dovecot, "flags") == before


def test_a_password_comes_from_where_it_is_kept(
    dovecot: Dovecot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dovecot.fill("kept", [bounce(0)])
    url = dovecot.url("kept")
    (tmp_path / ".netrc").write_text("machine localhost login other@shop.example password none\n")
    (tmp_path / ".netrc").chmod(0o600)
    with pytest.raises(FormatError, match=r"needs a password: .*DELIVERKIT_IMAP_PASSWORD.*netrc"):
        list(messages_of(url))
    monkeypatch.setenv("DELIVERKIT_IMAP_PASSWORD", PASSWORD)
    assert len(list(messages_of(url))) == 1
    monkeypatch.delenv("DELIVERKIT_IMAP_PASSWORD")
    secret = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
    (tmp_path / ".netrc").write_text(f'machine localhost login {USER} password "{secret}"\n')
    [(name, _)] = messages_of(url)
    assert [name for name, _ in messages_of(url.replace(f"{quote(USER, safe='')}@", ""))] == [name]
    (tmp_path / ".netrc").write_text("machine localhost login a passwd secret1 secret2\n")
    with pytest.raises(FormatError, match=r"netrc: cannot be read") as error:
        list(messages_of(url))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("user", [USER, "nobody@shop.example"])
def test_a_wrong_password_is_an_error_in_one_line_without_it(dovecot: Dovecot, user: str) -> None:
    url, wrong = dovecot.url("INBOX").replace(quote(USER, safe=""), quote(user, safe="")), "hunter2"
    with pytest.raises(FormatError, match=r"/INBOX: refuses the login: .*AUTHENTICATIONFAILED") as error:
        list(messages_of(url, wrong))
    assert wrong not in "".join(traceback.format_exception(error.value)).replace('"hunter2"', "")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mailbox", ["None", "Bögen/2026", 'a"b\\c', "a&b"])
def test_an_unknown_mailbox_is_an_error_that_names_it(dovecot: Dovecot, mailbox: str) -> None:
    with pytest.raises(FormatError, match=re.escape(f"/{quote(mailbox)}: cannot be opened: ") + ".*doesn't exist"):
        list(messages_of(dovecot.url(mailbox), PASSWORD))


NAMES = {
    "Rückläufer": "R&APw-ckl&AOQ-ufer",
    "台北/日本語": "&U,BTFw-/&ZeVnLIqe-",  # RFC 3501, section 5.1.3
    "R&D": "R&-D",
    "a b": "a b",
    "😀": "&2D3eAA-",
}


@pytest.mark.parametrize(("mailbox", "name"), NAMES.items(), ids=NAMES.values())
def test_a_mailbox_may_have_any_name(dovecot: Dovecot, mailbox: str, name: str) -> None:
    box = dovecot.connect()
    assert box.create(f'"{name}"')[0] == "OK"
    assert box.append(f'"{name}"', "", "", bounce(0, "\r\n"))[0] == "OK"
    box.logout()
    [(source, message)] = messages_of(dovecot.url(mailbox), PASSWORD)
    assert unix(message) == bounce(0)
    assert f"/{quote(mailbox)};UIDVALIDITY=" in source


def test_an_empty_mailbox_is_an_error_as_an_empty_folder_is(dovecot: Dovecot) -> None:
    dovecot.fill("nothing", [])
    with pytest.raises(FormatError, match="there is no message in it"):
        list(messages_of(dovecot.url("nothing"), PASSWORD))


def test_a_source_leads_back_to_its_message(dovecot: Dovecot) -> None:
    dovecot.fill("back", [bounce(n) for n in range(3)])
    found = list(messages_of(dovecot.url("back"), PASSWORD))
    assert list(messages_of(found[1][0], PASSWORD)) == [found[1]]
    whole = found[1][0].partition("/;UID")[0]
    assert list(messages_of(whole, PASSWORD)) == found
    with pytest.raises(FormatError, match="UIDVALIDITY is"):
        list(messages_of(re.sub(r"UIDVALIDITY=\d+", "UIDVALIDITY=1", whole), PASSWORD))


@pytest.mark.parametrize("scheme", ["imaps", "imap"])
def test_a_certificate_that_nobody_vouches_for_is_refused(
    dovecot: Dovecot, scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for authority in (None, certificate("Another CA", ca=True)):
        monkeypatch.delenv("DELIVERKIT_IMAP_CA", raising=False)
        if authority:
            (tmp_path / "ca.pem").write_text(authority.public)
            monkeypatch.setenv("DELIVERKIT_IMAP_CA", str(tmp_path / "ca.pem"))
        with pytest.raises(FormatError, match=r"cannot be reached: .*CERTIFICATE_VERIFY_FAILED"):
            list(messages_of(dovecot.url("INBOX", scheme), PASSWORD))
    monkeypatch.setenv("DELIVERKIT_IMAP_CA", str(tmp_path / "none.pem"))
    with pytest.raises(FormatError, match="cannot be reached: No such file"):
        list(messages_of(dovecot.url("INBOX", scheme), PASSWORD))


def test_a_certificate_of_another_name_is_refused(dovecot: Dovecot) -> None:
    with pytest.raises(FormatError, match=r"cannot be reached: .*CERTIFICATE_VERIFY_FAILED"):
        list(messages_of(dovecot.url("INBOX").replace("localhost", "127.0.0.1"), PASSWORD))


def test_a_large_mailbox_is_read_whole_and_in_order(dovecot: Dovecot) -> None:
    dovecot.fill("large", [bounce(n) for n in range(2000)])
    found = [message for _, message in messages_of(dovecot.url("large"), PASSWORD)]
    assert [re.findall(rb"Mail (\d+)", message)[0] for message in found] == [b"%d" % n for n in range(2000)]


def test_batches_of_any_size_give_the_same_messages(dovecot: Dovecot, monkeypatch: pytest.MonkeyPatch) -> None:
    dovecot.fill("batches", [bounce(n) + b"x" * (n * 977 % 5000) + b"\n" for n in range(30)])
    whole = list(messages_of(dovecot.url("batches"), PASSWORD))
    for count, size in ((1, 1 << 23), (7, 1 << 23), (100, 1), (100, 3000), (4, 10_000)):
        monkeypatch.setattr(imap, "_COUNT", count)
        monkeypatch.setattr(imap, "_BATCH", size)
        assert list(messages_of(dovecot.url("batches"), PASSWORD)) == whole


def test_of_a_message_that_is_too_large_comes_the_beginning(dovecot: Dovecot, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [bounce(0), bounce(1) + b"x" * 5000 + b"\n", bounce(2)]
    dovecot.fill("big", sent)
    monkeypatch.setattr(imap, "_LARGEST", 1000)
    found = [message for _, message in messages_of(dovecot.url("big"), PASSWORD)]
    assert found == [message.replace(b"\n", b"\r\n")[:1000] for message in sent]


def test_a_server_that_dies_leaves_what_was_read_and_says_how_much(
    need: Callable[[str, str], str], dovecot: Dovecot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imap, "_COUNT", 2)
    with tempfile.TemporaryDirectory(prefix="imap") as name:
        Path(name).chmod(0o755)
        other = Dovecot(need("dovecot", "dovecot-core"), Path(name), certificate("CA", ca=True))
        monkeypatch.setenv("DELIVERKIT_IMAP_CA", f"{name}/ca.pem")
        other.fill("dies", [bounce(n) for n in range(10)])
        found = []
        with pytest.raises(FormatError, match=r"breaks off: .*\(4 of 10 messages were read\)"):
            for source, _ in messages_of(other.url("dies"), PASSWORD):
                found.append(source)
                if len(found) == 4:
                    other.close()
        assert len(found) == 4
        with pytest.raises(FormatError, match="cannot be reached: Connection refused"):
            list(messages_of(other.url("dies"), PASSWORD))


URLS = [
    "imaps://me:secret@mail.example/INBOX",
    "imap://me:secret@mail.example/INBOX",
    "imaps://me:secret/INBOX",
    "imaps://me:sec@ret@mail.example/INBOX",
    "imaps://me:@mail.example/INBOX",
    "imaps://me@mail.example",
    "imaps://me@mail.example/",
    "imaps://me@/INBOX",
    "imaps:///INBOX",
    "imaps://me@mail.example/INBOX?SUBJECT%20secret",
    "imaps://me@mail.example/INBOX#secret",
    "imaps://me@mail.example/IN%0D%0ABOX",
    "imaps://m%00e@mail.example/INBOX",
    "imaps://me@mail.example/IN%FFBOX",
    "imaps://me@mail.example:99999/INBOX",
    "imaps://me@[::1/INBOX",
    "imaps://me@mail.example/INBOX;UIDVALIDITY=x",
    "imaps://me@mail.example/INBOX/;UID=1/;SECTION=2",
    "pop3://me@mail.example/INBOX",
]


@pytest.mark.parametrize("url", URLS)
def test_what_is_no_url_of_a_mailbox_is_an_error_without_its_secret(url: str) -> None:
    with pytest.raises(FormatError, match=r"a password in a URL|is no URL of the form") as error:
        list(messages_of(url, PASSWORD))
    assert "sec" not in str(error.value).replace("is no URL", "") and "\n" not in str(error.value)


class Scripted:
    """A server that speaks IMAP as it is told, for what Dovecot cannot be made to say."""

    def __init__(self, folder: Path, says: dict[str, bytes | Iterable[bytes]], implicit: bool = True) -> None:
        self.says, self.heard, self.implicit = says, list[str](), implicit
        authority = certificate("CA", ca=True)
        (folder / "scripted.pem").write_text(certificate("scripted", "localhost", by=authority).pem)
        (folder / "scripted-ca.pem").write_text(authority.public)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(folder / "scripted.pem")
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"imap{'s' * implicit}://me@localhost:{self._door.getsockname()[1]}/INBOX"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError), self._door.accept()[0] as plain:
            plain.settimeout(10)
            end = self._context.wrap_socket(plain, server_side=True) if self.implicit else plain
            end.sendall(self.says.get("greeting", b"* OK hello\r\n"))  # type: ignore[arg-type]
            lines = end.makefile("rb")
            while line := lines.readline():
                self.heard.append(line.decode("latin-1").rstrip())
                tag, _, command = self.heard[-1].partition(" ")
                for said in self._answer(command):
                    end.sendall(said.replace(b"TAG", tag.encode()))
                if command.startswith("AUTHENTICATE"):
                    self.heard.append(lines.readline().decode().rstrip())
                    end.sendall(b"%s OK in\r\n" % tag.encode())
                elif command == "STARTTLS" and end is plain:
                    end = self._context.wrap_socket(plain, server_side=True)
                    lines = end.makefile("rb")

    def _answer(self, command: str) -> Iterable[bytes]:
        found = next((said for key, said in self.says.items() if key in command), None)
        found = found if found is not None else next(said for key, said in PROPER.items() if key in command)
        return [found] if isinstance(found, bytes) else found

    def close(self) -> None:
        self._door.close()
        self._thread.join(20)
        assert not self._thread.is_alive()


ONE = b"Subject: one\r\n\r\nx\r\n"
PROPER = {
    "CAPABILITY": b"* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nTAG OK done\r\n",
    "AUTHENTICATE": b"+ \r\n",
    "LOGIN": b"TAG OK done\r\n",
    "EXAMINE": b"* 2 EXISTS\r\n* OK [UIDVALIDITY 7] fine\r\nTAG OK [READ-ONLY] done\r\n",
    "SEARCH": b"* SEARCH 3 5\r\nTAG OK done\r\n",
    "SIZE": b"* 1 FETCH (UID 3 RFC822.SIZE 20)\r\n* 2 FETCH (UID 5 RFC822.SIZE 20)\r\nTAG OK done\r\n",
    "BODY": b"* 1 FETCH (UID 3 BODY[] {19}\r\n"
    + ONE
    + b")\r\n* 2 FETCH (BODY[] {19}\r\n"
    + ONE
    + b" UID 5)\r\nTAG OK done\r\n",
    "LOGOUT": b"* BYE\r\nTAG OK done\r\n",
    "": b"TAG BAD what?\r\n",
}


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Scripted]]:
    servers = []

    def begin(says: dict[str, bytes | Iterable[bytes]], implicit: bool = True) -> Scripted:
        servers.append(Scripted(tmp_path, says, implicit))
        monkeypatch.setenv("DELIVERKIT_IMAP_CA", str(tmp_path / "scripted-ca.pem"))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


def read(server: Scripted) -> tuple[list[str], str]:
    """UIDs of the messages that came, and what went wrong."""
    found = []
    try:
        for source, message in messages_of(server.url, "s3cret"):
            assert message == ONE
            found.append(source.partition("UID=")[2])
    except FormatError as error:
        assert "\n" not in str(error) and "s3cret" not in str(error) and len(str(error)) < 500
        return found, str(error).partition("INBOX: ")[2]
    return found, ""


def test_a_uid_may_stand_before_or_after_its_message(scripted: Callable[..., Scripted]) -> None:
    server = scripted({})
    assert read(server) == (["3", "5"], "")
    assert [line for line in server.heard if "BODY" in line] == [
        line for line in server.heard if "UID FETCH 3,5 (BODY.PEEK[])" in line
    ]
    assert [line.partition(" ")[2].partition(" ")[0] for line in server.heard if " " in line] == [
        "CAPABILITY", "AUTHENTICATE", "EXAMINE", "UID", "UID", "UID", "LOGOUT"
    ]  # fmt: skip


def test_a_server_without_plain_gets_a_login(scripted: Callable[..., Scripted]) -> None:
    server = scripted({"CAPABILITY": b"* CAPABILITY IMAP4rev1\r\nTAG OK done\r\n"})
    assert read(server) == (["3", "5"], "")
    assert [line.partition(" ")[2] for line in server.heard if "LOGIN" in line] == ['LOGIN "me" "s3cret"']


def test_what_others_do_in_the_mailbox_disturbs_nothing(scripted: Callable[..., Scripted]) -> None:
    noise = b"* 3 EXISTS\r\n* 1 FETCH (FLAGS (\\Seen))\r\n* 9 FETCH (UID 99 FLAGS ())\r\n* 2 EXPUNGE\r\n"
    server = scripted({"SIZE": noise + PROPER["SIZE"], "BODY": noise + PROPER["BODY"]})
    assert read(server) == (["3", "5"], "")


@pytest.mark.parametrize("size", [b"NIL", b"{0}\r\n"])
def test_a_message_that_is_gone_is_counted(size: bytes, scripted: Callable[..., Scripted]) -> None:
    gone = b"* 1 FETCH (UID 3 BODY[] {19}\r\n" + ONE + b")\r\n* 2 FETCH (UID 5 BODY[] NIL)\r\nTAG OK done\r\n"
    assert read(scripted({"BODY": gone})) == (["3"], "some were gone, or withheld (1 of 2 messages were read)")


ENDLESS = itertools.repeat(b"x" * 65536)
FLOOD = itertools.repeat(b"* 1 FETCH (FLAGS (\\Seen))\r\n" * 1000)
HOSTILE: dict[str, tuple[dict[str, bytes | Iterable[bytes]], str]] = {
    "an endless greeting": ({"greeting": b"* OK " + b"x" * 9_000_000}, "cannot be reached: .*more than"),
    "no greeting that is known": ({"greeting": b"220 smtp.example ESMTP\r\n"}, "cannot be reached: "),
    "BYE": ({"greeting": b"* BYE too many of you\r\n"}, "cannot be reached: "),
    "no IMAP4": ({"CAPABILITY": b"* CAPABILITY POP3\r\nTAG OK done\r\n"}, "cannot be reached: "),
    "bytes that are no ASCII": ({"CAPABILITY": b"* CAPABILITY \xff\xfe\r\nTAG OK done\r\n"}, "cannot be reached: "),
    "the password": ({"AUTHENTICATE": b"TAG NO s3cret is wrong\r\n"}, "refuses the login: … is wrong"),
    "escapes": ({"EXAMINE": b"TAG NO \x1b[31m\xe2\x80\xae red\r\n"}, r"cannot be opened: \[31m red"),
    "no words": ({"EXAMINE": b"TAG NO \r\n"}, "cannot be opened:"),
    "an endless line": ({"SEARCH": ENDLESS}, "cannot be listed: .*more than"),
    "a flood of lines": ({"SEARCH": FLOOD}, "cannot be listed: .*more than"),
    "a flood of small literals": ({"SEARCH": itertools.repeat(b"* 1 FETCH (X {0}\r\n)\r\n" * 999)}, "cannot be listed"),
    "a huge literal": ({"BODY": b"* 1 FETCH (UID 3 BODY[] {99999999999}\r\nx"}, "breaks off: .*more than"),
    "an endless literal": (
        {"BODY": itertools.chain([b"* 1 FETCH (UID 3 BODY[] {99999999}\r\n"], ENDLESS)},
        "breaks off",
    ),
    "a number without end": ({"BODY": b"* 1 FETCH (UID 3 BODY[] {" + b"9" * 9999 + b"}\r\n"}, "breaks off: "),
    "a literal for nothing": (
        {"SEARCH": b"* SEARCH {3}\r\nabc\r\nTAG OK done\r\n"},
        "cannot be listed|there is no message",
    ),
    "a literal as UIDVALIDITY": ({"EXAMINE": b"* UIDVALIDITY {0}\r\n x\r\nTAG OK done\r\n"}, ""),
    "lines without CR": ({"SEARCH": b"* SEARCH 3 5\nTAG OK\n"}, "cannot be listed: "),
    "another tag": ({"SEARCH": b"A999 OK\r\n* SEARCH 3\r\n"}, "cannot be listed: "),
    "a size without end": ({"SIZE": b"* 1 FETCH (UID 3 RFC822.SIZE " + b"9" * 9999 + b")\r\nTAG OK done\r\n"}, ""),
    "other UIDs": ({"SIZE": b"* 1 FETCH (UID 4 RFC822.SIZE 9)\r\nTAG OK done\r\n"}, ""),
    "an end in the middle": ({"BODY": [PROPER["BODY"][:60], b"* BYE\r\n" * 9]}, "breaks off: "),
    "bare noise": ({"BODY": bytes(range(256)) * 99 + b"\r\n"}, "breaks off: "),
}


@pytest.mark.parametrize(("says", "error"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_words_end_in_one_line_and_in_bounded_memory(
    says: dict[str, bytes | Iterable[bytes]],
    error: str,
    scripted: Callable[..., Scripted],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(imap, "_WORDS", 1 << 16)
    tracemalloc.start()
    try:
        found, problem = read(scripted(says))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert re.match(error or "$", problem), problem
    assert peak < 200 << 20
    assert bool(problem) or found == ["3", "5"]


@pytest.mark.parametrize("where", ["greeting", "CAPABILITY", "AUTHENTICATE", "EXAMINE", "SEARCH", "SIZE", "BODY"])
@pytest.mark.parametrize("kind", ["silence", "a byte at a time"])
def test_waiting_has_an_end(
    where: str, kind: str, scripted: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imap, "_COMMAND_S", 0.5)
    monkeypatch.setattr(imap, "_SLOWEST", 1 << 60)

    def slowly() -> Iterator[bytes]:
        while True:
            time.sleep(0.05)
            yield b"x"

    server = scripted({where: b"" if kind == "silence" or where == "greeting" else slowly()})
    found, problem = read(server)
    assert "timed out" in problem
    assert found == []


def test_no_password_leaves_without_tls(scripted: Callable[..., Scripted]) -> None:
    stripped: dict[str, dict[str, bytes | Iterable[bytes]]] = {
        "not offered": {},
        "refused": {
            "CAPABILITY": b"* CAPABILITY IMAP4rev1 STARTTLS\r\nTAG OK done\r\n",
            "STARTTLS": b"TAG NO later\r\n",
        },
        "no TLS follows": {
            "CAPABILITY": b"* CAPABILITY IMAP4rev1 STARTTLS\r\nTAG OK done\r\n",
            "STARTTLS": b"TAG OK done\r\nhi\r\n",
        },
        "words before TLS for after it": {
            "CAPABILITY": b"* CAPABILITY IMAP4rev1 STARTTLS\r\nTAG OK done\r\n",
            "STARTTLS": b"TAG OK done\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n",
        },
        "logged in already": {"greeting": b"* PREAUTH welcome\r\n"},
    }
    for says in stripped.values():
        server = scripted(says, implicit=False)
        found, problem = read(server)
        assert found == [] and problem.startswith("cannot be reached: ")
        assert not [line for line in server.heard if "LOGIN" in line or "AUTHENTICATE" in line or "EXAMINE" in line]
