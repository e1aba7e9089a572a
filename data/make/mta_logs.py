"""Makes `data/exim`, `data/opensmtpd` and `data/sendmail`: logs of three mail servers that sent the same letters.

    sudo python data/make/mta_logs.py [FOLDER]

Runs in a network, mount, host name and process namespace of its own (Linux, root), which nothing leaves. The receivers
are the servers of `deliverkit.Lab` on their true ports; some are closed, silent, hang up, or say no. What the servers
write to syslog is taken from /dev/log of that namespace. Needs Debian's unbound, iproute2, m4 and libsasl2-modules, and
`tests/servers/fetch exim4-daemon-light opensmtpd sendmail-bin sendmail-cf`. Takes less than a minute.
"""

from __future__ import annotations

import os
import re
import shutil
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

import deliverkit as dk

UNPACKED = Path(os.environ.get("DELIVERKIT_SERVERS", "/usr/local/lib/deliverkit-servers"))
HOME, STRANGER, LIFE_S = Path("/mnt"), "192.0.2.9", 32
MTAS = {"exim": "192.0.2.11", "opensmtpd": "192.0.2.12", "sendmail": "192.0.2.13"}
DOORS = {(1, 25): "refused", (2, 25): "silence", (3, 25): "eof", (4, 25): "421", (5, 25): "554", (6, 25): "broken_tls",
         (3, 587): "refused", (6, 2525): "silence"}  # fmt: skip
HOSTS = ["aurora", "basalt", "cedar", "dune", "ember", "fjord", "glacier", "harbour"]
ZONE = {f"{name}.example": [f"10 mx1.{name}.example"] for name in HOSTS} | {
    "two.example": ["10 mx1.basalt.example", "20 mx1.cedar.example", "30 mx1.aurora.example"],
    "none.example": ["10 mx1.basalt.example", "20 mx1.cedar.example"],
    "nomail.example": ["0 ."],
    "letters.example": ["10 mx1.harbour.example"],
}
ROUTES = {"submission.example": ("mx1.aurora.example", 587), "submissions.example": ("mx1.basalt.example", 465),
          "other-port.example": ("mx1.cedar.example", 2525), "shut.example": ("mx1.dune.example", 587),
          "mute.example": ("mx1.glacier.example", 2525)}  # fmt: skip
LETTERS = [
    "anna@aurora.example unknown.ben@aurora.example ines@harbour.example full.carla@harbour.example",
    "grey.david@aurora.example", "spam.elif@aurora.example", "jonas@cedar.example", "kira@dune.example",
    "mara@fjord.example", "nils@glacier.example", "olga@two.example",
    "piet@basalt.example rosa@basalt.example", "tara@nomail.example", "uwe@nowhere.example", "anna@submission.example",
    "ben@submissions.example", "unknown.david@other-port.example", "elif@mute.example", "farid@shut.example",
    '"greta, A."@aurora.example', "o'hara=x@harbour.example",
]  # fmt: skip

UNBOUND = """server:
interface: 127.0.0.1
do-daemonize: no
username: ""
chroot: ""
pidfile: ""
use-syslog: no
local-zone: "." static
"""
EXIM = """
primary_hostname = mail.letters.example
spool_directory = {folder}/spool
log_file_path = {folder}/%slog
log_selector = +outgoing_port
exim_path = {program}
local_interfaces = {address}
keep_environment =
acl_smtp_rcpt = rcpt
acl_smtp_data = data
deliver_drop_privilege = true
tls_advertise_hosts =
dsn_advertise_hosts = *
smtp_accept_queue_per_connection = 0
begin acl
rcpt:
  accept hosts = 127.0.0.1
  deny message = relay not permitted
data:
  deny condition = ${{if def:h_X-Refuse:}}
       message = not wanted here
  accept
begin routers
manual:
  driver = manualroute
  domains = {domains}
  transport = ${{if match{{$domain}}{{submissions}}{{smtps}}{{smtp}}}}
  route_list = {routes}
far:
  driver = dnslookup
  transport = smtp
  no_more
begin transports
smtp:
  driver = smtp
  connect_timeout = 2s
  command_timeout = 4s
  hosts_try_auth = *
  hosts_require_tls = mx1.glacier.example
  hosts_avoid_tls = ${{if eq{{$domain}}{{submission.example}}{{}}{{mx1.aurora.example : mx1.harbour.example}}}}
smtps:
  driver = smtp
  protocol = smtps
  hosts_try_auth = *
begin retry
* * F,20s,9s
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  client_send = ^letter^made-up
"""
OPENSMTPD = """
queue ttl 12s
bounce warn-interval 3d
table logins {{ lab = "letter:made-up" }}
listen on {address} port 25 hostname mail.letters.example
{actions}
action far relay helo mail.letters.example
{matches}
match from src 127.0.0.1 for any action far
match from local for any action far
"""
SENDMAIL = """divert(0)
OSTYPE(`linux')
define(`confDOMAIN_NAME', `mail.letters.example')
define(`QUEUE_DIR', `{folder}/queue')
define(`STATUS_FILE', `{folder}/status')
define(`HELP_FILE', `{folder}/help')
define(`ALIAS_FILE', `text:{folder}/aliases')
define(`confPID_FILE', `{folder}/pid')
define(`confTO_ICONNECT', `2s')
define(`confTO_CONNECT', `2s')
define(`confTO_INITIAL', `4s')
define(`confTO_QUEUERETURN', `20s')
define(`confTO_HOSTSTATUS', `1s')
define(`confDONT_PROBE_INTERFACES', `True')
define(`confREFUSE_LA', `999')
define(`confQUEUE_LA', `999')
FEATURE(`no_default_msa')
FEATURE(`mailertable', `text -k0 -v1 {folder}/routes')
FEATURE(`accept_unresolvable_domains')
FEATURE(`authinfo', `text -k0 -v1 {folder}/logins')
RELAY_DOMAIN(`127.0.0.1')
DAEMON_OPTIONS(`Family=inet, Name=MTA, Port=25, Addr={address}')
MAILER(`local')
MAILER(`smtp')
MAILER_DEFINITIONS
{mailers}"""
BUILD = """
mount --bind {scratch} /mnt
for name in passwd group hosts resolv.conf mailname; do [ ! -e /etc/$name ] || mount --bind /mnt/$name /etc/$name; done
for place in /var/spool /var/lib /run; do mount -t tmpfs none $place; done
mkdir /run/dev
for name in null zero random urandom; do touch /run/dev/$name; mount --bind /dev/$name /run/dev/$name; done
mount --rbind /run/dev /dev
mkdir -p /var/spool/smtpd /var/lib/opensmtpd/empty
chmod 711 /var/spool/smtpd
chown 0:0 /var/lib/opensmtpd/empty
hostname mail
echo 1 > /proc/sys/net/ipv4/tcp_syn_retries
ip link set lo up
for address in {own}; do ip address add $address/32 dev lo; done
"""
USERS = "Debian-exim:x:64101:64101::/:/bin/false\nopensmtpd:x:64102:64102::/var/lib/opensmtpd/empty:/bin/false\n"
USERS += "opensmtpq:x:64103:64103::/:/bin/false\nsmmsp:x:64104:64104::/:/bin/false\n"
GROUPS = "Debian-exim:x:64101:\nopensmtpd:x:64102:\nopensmtpq:x:64103:\nsmmsp:x:64104:\n"


def write(name: str, text: str) -> Path:
    path = HOME / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)
    return path


def begin(name: str, *command: object) -> None:
    with (HOME / f"{name}.out").open("wb") as log:
        subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def syslog() -> None:
    """What arrives at /dev/log, in a file per program, as syslog daemons write it: without priority, with the host."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind("/dev/log")
    Path("/dev/log").chmod(0o666)

    def receive() -> None:
        while data := listener.recv(9000).rstrip(b"\n\0"):
            stamp, rest = re.sub(rb"^<\d+>", b"", data)[:15], data.partition(b">")[2][16:]
            name = re.match(rb"[\w-]*", rest)[0].decode()  # type: ignore[index]
            with (HOME / f"syslog.{name}").open("ab") as file:
                file.write(stamp + b" mail " + rest + b"\n")

    threading.Thread(target=receive, daemon=True).start()


def names() -> None:
    lines = [UNBOUND, f'directory: "{HOME}"']
    lines += [f"local-data: '{domain} MX {mx}'" for domain, some in ZONE.items() for mx in some]
    lines += [f"local-data: 'mx1.{name}.example A 127.0.10.{n}'" for n, name in enumerate(HOSTS, 1)]
    begin("unbound", "/usr/sbin/unbound", "-c", write("unbound.conf", "\n".join(lines) + "\n"))


def exim(address: str) -> None:
    folder = HOME / "exim"
    (folder / "spool").mkdir(parents=True)
    for place in (folder, folder / "spool"):
        shutil.chown(place, "Debian-exim", "Debian-exim")
    program = UNPACKED / "exim4-daemon-light/usr/sbin/exim4"
    routes = " ; ".join(f"{domain} {host}::{port}" for domain, (host, port) in ROUTES.items())
    domains = " : ".join(ROUTES)
    text = EXIM.format(folder=folder, address=address, program=program, domains=domains, routes=routes)
    begin("exim", program, "-C", write("exim/conf", text), "-bdf", "-q11s")


def opensmtpd(address: str) -> None:
    actions, matches = [], []
    for domain, (host, port) in ROUTES.items():
        name = f"to_{domain.partition('.')[0].replace('-', '_')}"
        url = f"smtps://lab@{host}:465" if port == 465 else f"smtp+tls://lab@{host}:{port}"
        actions.append(f'action {name} relay host "{url}" tls no-verify auth <logins>')
        matches.append(f'match from src 127.0.0.1 for domain "{domain}" action {name}')
    text = OPENSMTPD.format(address=address, actions="\n".join(actions), matches="\n".join(matches))
    begin("opensmtpd", UNPACKED / "opensmtpd/usr/sbin/smtpd", "-f", write("opensmtpd.conf", text))


def sendmail(address: str) -> None:
    folder = HOME / "sendmail"
    (folder / "queue").mkdir(parents=True, mode=0o700)
    write("sendmail/aliases", "postmaster root\n")
    write("sendmail/logins", 'AuthInfo: "U:letter" "P:made-up" "M:PLAIN"\n')
    ways = {domain: f"way{port}" for domain, (_, port) in ROUTES.items()}
    write("sendmail/routes", "".join(f"{d} {way}:[{ROUTES[d][0]}]\n" for d, way in ways.items()))
    like = "P=[IPC], F=mDFMuXa, S=EnvFromSMTP/HdrFromSMTP, R=EnvToSMTP, E=\\r\\n, L=990, T=DNS/RFC822/SMTP"
    mailers = "".join(f"M{way}, {like}, A=TCP $h {way[3:]}\n" for way in sorted(set(ways.values())))
    macros = UNPACKED / "sendmail-cf/usr/share/sendmail/cf"
    mc = write("sendmail/mc", SENDMAIL.format(folder=folder, address=address, mailers=mailers))
    command = ["m4", f"-D_CF_DIR_={macros}/", macros / "m4/cf.m4", mc]
    made = subprocess.run(command, check=True, capture_output=True, text=True, cwd=macros)
    cf = write("sendmail/cf", made.stdout)
    begin("sendmail", UNPACKED / "sendmail-bin/usr/libexec/sendmail/sendmail", "-C", cf, "-bD", "-q11s")


def connected(address: str, own: str) -> smtplib.SMTP:
    for _ in range(100):  # until the server is up
        try:
            session = smtplib.SMTP(address, 25, "us.letters.example", 20, (own, 0))
        except (ConnectionError, smtplib.SMTPServerDisconnected):
            time.sleep(0.1)
        else:
            session.ehlo()
            return session
    raise SystemExit(f"nobody answers at {address}")


def send(address: str) -> None:
    """Hand over the letters, and be a stranger who wants to relay."""
    with connected(address, "127.0.0.1") as session:
        for number, to in enumerate(LETTERS):
            message = EmailMessage(policy=SMTP)
            message["From"], message["Message-ID"] = "letter@letters.example", f"<{number}.4711@letters.example>"
            message["Subject"] = "Autumn letter"
            message.set_content("Dear reader,\n\nthis is the autumn letter.\n")
            try:
                people = re.findall(r"(?:[^\s\"]|\"[^\"]*\")+", to)
                # no bounces but of the first letter; Sendmail says that it
                # gives up only where it may say so to the sender
                quiet = ["NOTIFY=NEVER"] if number and address != MTAS["sendmail"] else []
                session.sendmail("letter@letters.example", people, message.as_bytes(), (), quiet)
            except smtplib.SMTPRecipientsRefused as problem:  # OpenSMTPD takes no quoted recipient
                print(address, problem, flush=True)
    with connected(address, STRANGER) as session:
        session.mail("offer@stranger.example")
        session.rcpt("somebody@elsewhere.example")
        session.rset()
        session.docmd("MAIL FROM:offer@stranger example")


def make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="deliverkit-") as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        (scratch / "passwd").write_text(Path("/etc/passwd").read_text() + USERS)
        (scratch / "group").write_text(Path("/etc/group").read_text() + GROUPS)
        (scratch / "hosts").write_text("127.0.0.1 localhost\n")
        (scratch / "mailname").write_text("mail.letters.example\n")
        (scratch / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:2 attempts:1\n")
        subprocess.run(
            ["sh", "-ec", BUILD.format(scratch=scratch, own=" ".join([STRANGER, *MTAS.values()]))], check=True
        )
        syslog()
        names()
        with dk.Lab(DOORS, real=True):
            exim(MTAS["exim"])
            opensmtpd(MTAS["opensmtpd"])
            sendmail(MTAS["sendmail"])
            for address in MTAS.values():
                send(address)
            time.sleep(LIFE_S)
        keep(folder)


def keep(folder: Path) -> None:
    for name, path in (("exim/mainlog", "exim/mainlog"), ("exim/rejectlog", "exim/rejectlog"),
                       ("opensmtpd/maillog", "syslog.smtpd"), ("sendmail/maillog", "syslog.sendmail")):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((HOME / path).read_bytes().replace(b"/mnt/sendmail/queue", b"/var/spool/mqueue"))


if __name__ == "__main__":
    if os.environ.get("DELIVERKIT_NAMESPACE") != "1":
        os.environ["DELIVERKIT_NAMESPACE"] = "1"
        flags = ["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        os.execvp("unshare", ["unshare", *flags, sys.executable, *sys.argv])
    make(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).resolve().parents[1])
