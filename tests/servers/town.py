"""Postfix, Exim, OpenSMTPD and Dovecot on real ports of loopback addresses, in namespaces of their own."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

UNPACKED = Path(os.environ.get("DELIVERKIT_SERVERS", "/usr/local/lib/deliverkit-servers"))
_CLONE_NEWNET = 0x40000000
_KINDS = ["--net", "--mount", "--pid", "--fork", "--mount-proc"]

# The servers look for users, folders and a resolver in fixed places: here these are the town's own.
_BUILD = """
mount --bind {folder} /mnt
for name in passwd group hosts resolv.conf; do mount --bind /mnt/$name /etc/$name; done
for place in /var/spool /var/lib /run; do mount -t tmpfs none $place; done
mkdir -p /var/spool/smtpd /var/lib/opensmtpd/empty
chmod 711 /var/spool/smtpd
chown 0:0 /var/lib/opensmtpd/empty
ip link set lo up
echo
exec cat
"""
_USERS = "Debian-exim:x:{0}:{0}::/var/spool:/bin/false\nopensmtpd:x:{1}:{1}::/var/lib/opensmtpd/empty:/bin/false\n"
_USERS += "opensmtpq:x:{2}:{2}::/var/spool:/bin/false\n"


def unpacked(need: Callable[[str, str], str], package: str, program: str) -> str:
    """The path of a server that tests/servers/fetch has unpacked."""
    return need(str(UNPACKED / package / program), f"{package} with tests/servers/fetch {package}")


def certificate(names: list[str], issuer: str | None = None) -> str:
    """Key and certificate as PEM: signed by itself, or by an authority of this name that nobody knows."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    signer = ec.generate_private_key(ec.SECP256R1()) if issuer else key
    subject, by = ([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)] for n in (names[0], issuer or names[0]))
    made = x509.CertificateBuilder(x509.Name(by), x509.Name(subject), key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(30))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
    by_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    signed = made.add_extension(by_key, critical=False).sign(signer, hashes.SHA256())
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, form, plain)
    return (pem + signed.public_bytes(serialization.Encoding.PEM)).decode()


def until(true: Callable[[], Any], what: str, seconds: float = 15) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, f"{what} did not come in time"
        time.sleep(0.05)


class Town:
    """Namespaces for network, files and processes, which all end with the tests. Needs root: servers do."""

    def __init__(self, need: Callable[[str, str], str], folder: Path) -> None:
        for program, package in (("unshare", "util-linux"), ("nft", "nftables"), ("ip", "iproute2")):
            need(program, package)
        if os.geteuid() != 0:
            pytest.skip("mail servers start as root only")
        may = subprocess.run(["unshare", *_KINDS, "nft", "list", "ruleset"], capture_output=True, check=False)
        if may.returncode:
            pytest.skip("network namespaces with nftables are not permitted here")
        # The servers' own users get to /mnt, which is this folder in the town, whatever stands above it outside.
        self.folder, self.home = folder, Path("/mnt")
        folder.chmod(0o777)  # Exim makes its log as its own user
        self.write("passwd", Path("/etc/passwd").read_text() + _USERS.format(64101, 64102, 64103))
        groups = "Debian-exim:x:64101:\nopensmtpd:x:64102:\nopensmtpq:x:64103:\n"
        self.write("group", Path("/etc/group").read_text() + groups)
        self.write("resolv.conf", "nameserver 127.0.0.1\n")
        self.write("hosts", "127.0.0.1 localhost\n")

    def __enter__(self) -> Self:
        build = _BUILD.format(folder=self.folder)
        self._held = subprocess.Popen(["unshare", *_KINDS, "sh", "-ec", build], stdin=-1, stdout=-1, stderr=-1)
        self._servers: list[subprocess.Popen[bytes]] = []
        assert self._held.stdout and self._held.stderr
        assert self._held.stdout.readline(), self._held.stderr.read().decode()
        pid = self._held.pid
        [self._init] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._threads = ThreadPoolExecutor(1, initializer=self._move)
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        self._held.communicate()  # closes its input: the first process ends, and with it all others
        for server in self._servers:
            server.wait()

    def _move(self) -> None:
        with Path(f"/proc/{self._init}/ns/net").open() as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def inside(self, function: Callable[..., Any], *args: Any, **how: Any) -> Any:
        """What a function gives that is called within the town's network."""
        return self._threads.submit(function, *args, **how).result()

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """Put a file into the town's folder: its path for the servers."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return self.home / name

    def enter(self, *command: Any) -> list[str]:
        return ["nsenter", f"--target={self._init}", "--net", "--mount", "--pid", *map(str, command)]

    def run(self, *command: Any, given: str = "") -> str:
        done = subprocess.run(
            self.enter(*command), input=given, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return done.stdout

    def begin(self, *command: Any, log: str) -> None:
        """Run a server in the foreground until the town ends."""
        with (self.folder / log).open("ab") as file:
            server = subprocess.Popen(self.enter(*command), stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self._servers.append(server)

    def log(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""

    def listening(self, *places: str) -> None:
        """Wait until somebody listens at each address:port."""
        until(lambda: set(places) <= set(self.run("ss", "-Hltn").split()), f"a listener at {places}")

    def rules(self, *rules: str) -> None:
        """The packet filter at the door of all servers, anew; none: open."""
        chain = ["chain c {", "type filter hook input priority 0", *rules, "}"]
        lines = ["flush ruleset", *(["table inet t {", *chain, "}"] if rules else [])]
        self.run("nft", "-f", "-", given="\n".join([*lines, ""]))


POSTFIX = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/lib
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
myhostname = mx.example
mydestination =
mynetworks = 192.0.2.1
local_recipient_maps =
alias_maps =
inet_protocols = ipv4
message_size_limit = 12345678
smtpd_tls_chain_files = {folder}/postfix.pem
smtpd_tls_auth_only = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = {folder}/auth
smtpd_client_event_limit_exceptions =
postscreen_access_list =
postscreen_greet_wait = 1s
postscreen_greet_banner = please wait
postscreen_greet_action = enforce
listed = check_client_access static:{{554 5.7.1 Client host [127.0.0.1] blocked using dnsbl.example}}
grey = check_client_access static:{{450 4.7.1 Greylisted, come back later}}
"""
_POSTFIX_PARTS = """
smtpd     pass  - - n - - smtpd -o syslog_name=postfix/screened -o smtpd_tls_security_level=may
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
tlsmgr    unix  - - n 1000? 1 tlsmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
proxymap  unix  - - n - - proxymap
error     unix  - - n - - error
retry     unix  - - n - - error
anvil     unix  - - n - 1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""


def postfix(town: Town, need: Callable[[str, str], str], doors: Mapping[str, str]) -> None:
    """Postfix in mail.log: `doors` are "name address:port" -> options of its smtpd; `screen` is postscreen's name."""
    program = need("postfix", "postfix")
    for name in ("queue", "lib"):
        (town.folder / name).mkdir()
    town.write("postfix.pem", certificate(["mx.example", "*.postfix.example"]), 0o600)
    town.run("chown", "postfix", town.home / "lib")
    lines = []
    for door, options in doors.items():
        name, place = door.split()
        says = " ".join(f"-o {option}" for option in [f"syslog_name=postfix/{name}", *options.split()])
        kind = "1 postscreen" if name == "screen" else "- smtpd"
        lines.append(f"{place} inet n - n - {kind} {says}")
    town.write("postfix/main.cf", POSTFIX.format(folder=town.home))
    town.write("postfix/master.cf", "\n".join([*lines, _POSTFIX_PARTS]))
    town.begin(program, "-c", town.home / "postfix", "start-fg", log="postfix.log")


EXIM = """
primary_hostname = exim.example
spool_directory = {folder}/exim
log_file_path = {folder}/exim_%slog
log_selector = +all
local_interfaces = <; {places}
tls_on_connect_ports = 465
tls_advertise_hosts = *
tls_certificate = {folder}/exim.pem
message_size_limit = 7654321
helo_verify_hosts = ${{if eq{{$received_ip_address}}{{{verifies}}}{{*}}{{}}}}
acl_smtp_helo = helo
begin acl
helo:
  deny condition = ${{if eq{{$received_ip_address}}{{{refuses}}}}}
       message = We do not like the name $sender_helo_name
  accept
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_condition = no
  server_advertise_condition = ${{if and{{{{!eq{{$tls_in_cipher}}{{}}}}{{!eq{{$received_port}}{{25}}}}}}}}
"""


def exim(town: Town, need: Callable[[str, str], str], places: list[str], verifies: str, refuses: str) -> None:
    """Exim in exim_mainlog: `verifies` and `refuses` are addresses that care for the name in EHLO."""
    program = unpacked(need, "exim4-daemon-light", "usr/sbin/exim4")
    (town.folder / "exim").mkdir()
    town.write("exim.pem", certificate(["exim.example"], "Nobody's CA"), 0o640)
    town.run("chgrp", "Debian-exim", town.home / "exim.pem")
    listeners = " ; ".join(re.sub("(.*):", r"[\1]:", place) for place in places)
    text = EXIM.format(folder=town.home, places=listeners, verifies=verifies, refuses=refuses)
    config = town.write("exim.conf", text)
    town.run("chown", "Debian-exim", town.home / "exim")
    town.begin(program, "-C", config, "-bdf", log="exim.log")


def opensmtpd(town: Town, need: Callable[[str, str], str], lines: str) -> None:
    """OpenSMTPD in opensmtpd.log: `lines` are its listeners and their filters."""
    program = unpacked(need, "opensmtpd", "usr/sbin/smtpd")
    pem = town.write("opensmtpd.pem", certificate(["mx.opensmtpd.example"]), 0o600)
    text = f'pki mx.example cert "{pem}"\npki mx.example key "{pem}"\n{lines}\nmatch from any for any reject\n'
    config = town.write("opensmtpd.conf", text)
    town.begin(program, "-d", "-v", "-T", "smtp", "-f", config, log="opensmtpd.log")


DOVECOT = """
base_dir = {folder}/dovecot
state_dir = {folder}/dovecot
log_path = {folder}/dovecot.log
protocols = submission
hostname = dovecot.example
ssl = required
ssl_cert = <{folder}/dovecot.pem
ssl_key = <{folder}/dovecot.pem
auth_mechanisms = plain login
auth_failure_delay = 0
verbose_ssl = no
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
service auth {{
  unix_listener {folder}/auth {{
    mode = 0666
  }}
}}
service submission-login {{
  inet_listener submission {{
    address = {address}
    port = 587
  }}
  inet_listener submissions {{
    address = {address}
    port = 465
    ssl = yes
  }}
}}
"""


def dovecot(town: Town, need: Callable[[str, str], str], address: str) -> None:
    """Dovecot's submission server in dovecot.log; it is also where Postfix asks for logins."""
    program = need("dovecot", "dovecot-core")
    need("/usr/lib/dovecot/submission-login", "dovecot-submissiond")
    (town.folder / "dovecot").mkdir()
    town.write("users", "me:{PLAIN}secret\n")
    town.write("dovecot.pem", certificate(["dovecot.example"]), 0o600)
    config = town.write("dovecot.conf", DOVECOT.format(folder=town.home, address=address))
    town.begin(program, "-F", "-c", config, log="dovecot.out")
