"""Loopback SMTP servers that act out a network: for tests, notebooks, and real mail software."""

from __future__ import annotations

import selectors
import socket
import ssl
import struct
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deliverkit import facts
from deliverkit.errors import TargetError

_LAB = facts.tables("lab")
_HOSTS, _PORTS = tuple(_LAB["hosts"]), tuple(_LAB["ports"])
BEHAVIOURS = frozenset(_LAB["behaviours"])
SCENARIOS: dict[str, dict[Any, str]] = {  # port, or (host or its number, port) -> behaviour; all others are open
    made["name"]: {tuple(door) if door[1:] else door[0]: act for *door, act in made["acts"]}
    for made in _LAB["scenario"]
}
_LAST, _FIXED, _WORDS = (dict[str, str](_LAB[kind]["says"]) for kind in ("greeting", "command", "recipient"))
_SIZE = 10_000_000  # bytes of a message before it is too big


class Lab:
    """Eight hosts of eight operators with ports 25, 465, 587, 2525 on 127.0.0.1, while the `with` block runs.

    `scenario` is a word of `SCENARIOS` or a mapping of that form. `hosts`, `ports` and `connect_to` are for `dk.probe`;
    `certificate` is the servers' own, as PEM. On 25, and after a login with any password inside TLS, they take mail,
    throw it away, and answer RCPT by its first letters: unknown, full, grey (once), block, big, auth; spam is refused
    after DATA. `real=True` gives every host its own address (`addresses`) and the true ports, for which it needs root
    or a network namespace. Silence is a full queue: Windows refuses instead. Raises TargetError for unknown words.
    """

    def __init__(self, scenario: str | Mapping[Any, str] = "open", *, real: bool = False) -> None:
        acts = dict(scenario) if isinstance(scenario, Mapping) else SCENARIOS.get(str(scenario))
        if acts is None or not set(acts.values()) <= BEHAVIOURS:
            known = ", ".join(SCENARIOS if acts is None else sorted(BEHAVIOURS))
            raise TargetError(f"the lab cannot act {scenario!r}; it knows {known}")
        doors = {(host, port): ((host, port), (n, port), port) for n, host in enumerate(_HOSTS) for port in _PORTS}
        self._acts = {door: next((acts[key] for key in keys if key in acts), "open") for door, keys in doors.items()}
        if unknown := set(acts).difference(*doors.values()):
            raise TargetError(f"the lab has no {unknown.pop()!r}; its ports are {_PORTS}, its hosts {_HOSTS}")
        self.scenario, self.hosts, self.ports, self.real = scenario, list(_HOSTS), _PORTS, real
        self.addresses = {h: f"127.0.10.{n}" if real else "127.0.0.1" for n, h in enumerate(_HOSTS, 1)}
        self.connect_to: dict[tuple[str, int], tuple[str, int]] = {}
        self._sockets: set[socket.socket] = set()
        self._threads: list[Thread] = []
        self._greyed: set[str] = set()
        key, self.certificate = _certificate()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:  # OpenSSL takes keys from files only
            (path := Path(folder) / "lab.pem").write_text(key + self.certificate, encoding="ascii")
            self._context.load_cert_chain(path)

    def __enter__(self) -> Self:
        self._open, self._selector = True, selectors.DefaultSelector()
        try:
            for (host, port), act in self._acts.items():
                self._sockets.add(listener := socket.socket())
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((self.addresses[host], port if self.real else 0))
                self.connect_to[host, port] = listener.getsockname()
                if act == "refused":  # bound and not listening: nobody else can take the port
                    continue
                listener.listen(1 if act == "silence" else 128)
                for _ in range(4 if act == "silence" else 0):  # fills the queue: the system drops whoever comes next
                    self._sockets.add(filler := socket.socket())
                    filler.setblocking(False)
                    filler.connect_ex(listener.getsockname())
                if act != "silence":
                    self._selector.register(listener, selectors.EVENT_READ, (host, port, act))
        except OSError as problem:
            self.__exit__()
            raise TargetError(f"the lab cannot listen on {self.addresses[host]}:{port}: {problem}") from None
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        for sock in list(self._sockets):
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # wakes the thread that reads from it
        for thread in self._threads:
            thread.join(5)
        for sock in self._sockets:
            sock.close()
        self._selector.close()
        self._sockets, self._threads, self._greyed, self.connect_to = set(), [], set(), {}

    start, stop = __enter__, __exit__  # for notebooks, where a lab lives on from cell to cell

    def _start(self, job: Any, *args: Any) -> None:
        self._threads = [*filter(Thread.is_alive, self._threads), thread := Thread(target=job, args=args, daemon=True)]
        thread.start()

    def _accept(self) -> None:
        while self._open:
            for key, _ in self._selector.select(0.05):
                with suppress(OSError):
                    self._sockets.add(sock := key.fileobj.accept()[0])  # type: ignore[union-attr]
                    self._start(_Session(self, sock, *key.data).run)


class _Session:
    """One connection, from greeting to QUIT."""

    def __init__(self, lab: Lab, sock: socket.socket, host: str, port: int, act: str) -> None:
        self.lab, self.sock, self.host, self.port, self.act = lab, sock, host, port, act
        self.reader, self.tls, self.login = sock.makefile("rb"), False, port == 25
        self.to: list[str] = []

    def run(self) -> None:
        with suppress(OSError, ValueError):  # the client is gone, or the lab ends
            self.talk()
        self.lab._sockets.discard(self.sock)
        self.reader.close()
        self.sock.close()

    def line(self) -> bytes:
        if not (line := self.reader.readline(2000)):
            raise ConnectionError
        return line

    def say(self, *lines: str) -> None:
        sleep(0.2 if self.act == "slow" else 0)
        said = [f"{text[:3]}-{text[4:]}" for text in lines[:-1]]
        self.sock.sendall("".join(f"{text}\r\n" for text in (*said, lines[-1])).encode())

    def encrypt(self) -> None:
        """TLS in place; what a client sent before its hello is dropped (RFC 3207, section 4.2)."""
        if self.act in ("broken_tls", "stalled_tls"):
            self.sock.sendall(b"this is not TLS\r\n" * (self.act == "broken_tls"))
            self.reader.read()  # until the client has had enough
        self.reader.close()
        self.lab._sockets.discard(self.sock)
        self.sock = self.lab._context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        self.lab._sockets.add(self.sock)
        self.sock.do_handshake()
        self.reader, self.tls = self.sock.makefile("rb"), True

    def talk(self) -> None:
        if self.act == "reset":
            return self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self.act == "eof":
            return
        if self.act == "mute":
            self.reader.read()
        if self.port == 465 and self.act not in ("http", "plain"):
            self.encrypt()
        masked = self.act == "stripped" and not self.tls
        self.say(_LAST.get(self.act, "220 " + "*" * 40 if masked else f"220 {self.host} ESMTP lab"))
        verb = "QUIT" if self.act in _LAST else ""
        while verb != "QUIT":
            verb, _, rest = self.line().decode("utf-8", "replace").strip().partition(" ")
            starts = (verb := verb.upper()) == "STARTTLS" and not self.tls and self.act not in ("plain", "stripped")
            if starts and self.act != "refuses_tls":
                self.say("220 2.0.0 Ready to start TLS")
                self.encrypt()
            else:
                self.say(*["454 4.7.0 TLS not available"] if starts else self.answer(verb, rest))

    def answer(self, verb: str, rest: str) -> list[str]:
        """The reply to one command, as lines."""
        if verb == "EHLO":
            offers = [f"SIZE {_SIZE}", "8BITMIME", "PIPELINING", "ENHANCEDSTATUSCODES"]
            if not self.tls and self.act != "plain":
                offers.append("XXXXXXXA" if self.act == "stripped" else "STARTTLS")
            elif self.tls and self.port != 25:
                offers.append("AUTH PLAIN LOGIN")
            return [f"250 {line}" for line in (self.host, *offers)]
        if verb == "AUTH" and self.port != 25:
            if not self.tls:
                return ["538 5.7.11 Encryption required for login"]
            mechanism, _, initial = rest.upper().partition(" ")
            asks = ["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6"] if mechanism == "LOGIN" else ["334 "]
            for ask in asks[1:] if initial else asks:
                self.say(ask)
                self.line()  # any user and password will do, and none is kept
            self.login = True
            return ["235 2.7.0 Authentication successful"]
        if verb in ("MAIL", "RCPT", "DATA") and not self.login:
            return ["530 5.7.0 Authentication required"]
        if verb == "MAIL":
            self.to = []
        if verb == "RCPT":
            address = rest.partition("<")[2].partition(">")[0].lower()
            word = next((w for w in _WORDS if address.startswith(w)), "")
            again = word == "grey" and address in self.lab._greyed
            self.lab._greyed.add(address)
            self.to += [address] * (not word or again)
            return ["250 2.1.5 Ok" if again else _WORDS.get(word, "250 2.1.5 Ok")]
        if verb == "DATA" and self.to:
            self.say("354 End data with <CR><LF>.<CR><LF>")
            big = sum(map(len, iter(self.line, b".\r\n"))) > _SIZE
            spam = any(address.startswith("spam") for address in self.to)
            return [_WORDS["big"] if big else _FIXED["spam"] if spam else _FIXED["queued"]]
        return [_FIXED.get(verb, "502 5.5.2 Command not recognized")]


def _certificate() -> tuple[str, str]:
    """A key and a self-signed certificate for all hosts, as PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name, names = x509.Name.from_rfc4514_string("CN=lab.example"), map(x509.DNSName, _HOSTS)
    begins, ends = now - timedelta(days=1), now + timedelta(days=30)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), begins, ends)
    signed = made.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(key, hashes.SHA256())
    pem, form, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(pem, form, plain).decode(), signed.public_bytes(pem).decode()
