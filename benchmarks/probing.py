"""What a probe costs, beside other clients in the same run.

    python benchmarks/probing.py [cpu] [others] [latency] [dead] [memory] [many]     default: all, some ten minutes

cpu      CPU per full TLS probe (connect, banner, EHLO, STARTTLS, handshake, EHLO, QUIT; a quarter on 465, where the
         handshake is first), certificate parsed and row made, against a C client, asyncio streams and aiosmtplib
others   the same against nmap, swaks and smtplib with a context each
latency  probes a second where every reply takes 50 ms, 500 in flight
dead     1,000 targets of which nine in ten never answer: seconds, with 5 s per stage
memory   bytes per connection in flight, plain and with TLS up
many     100,000 targets: peak memory and the size of the frame

Needs Linux, network namespaces, nft and the farm of misbehaving servers in ../shared/probing; besides, for its part:
gcc and libssl-dev, aiosmtplib, nmap, swaks with libnet-ssleay-perl. What is not there is named and left out.
Figures are medians of five rounds, in which the clients take turns, so that drift hits all alike. The farm has one
core, the client another. CPU is user and system time of the client's process: of the work alone for clients in Python
(imports and first use are before it), of all processes for the others. Trust ratios of one run, not single figures.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import shutil
import smtplib
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

FARM = Path(__file__).resolve().parents[1].parent / "shared" / "probing" / "smtp_farm.py"
PORTS = (25, 465, 587, 2525)
ROUNDS = 5
CORES = sorted(os.sched_getaffinity(0))  # the first for the clients, the last for the farm
MIX = [(f"127.1.{i // 250}.{i % 250 + 1}", port) for i in range(500) for port in PORTS]
Target = tuple[str, int]
Line = tuple[str, str, str, bool | None]  # of a table: what, figure, target, whether it is met


def addresses(net: int, hosts: int) -> list[str]:
    """Of the farm: the second octet names the behaviour (1 starttls, 4 silent, 5 drop)."""
    return [f"127.{net}.{i // 250}.{i % 250 + 1}" for i in range(hosts)]


# Clients: each takes targets, has `most` connections open at once, and returns how many probes went through.


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


class Table:
    """The same work for clients that do not do it themselves: certificates read once each, rows, a frame."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.seen: dict[bytes, dict[str, Any]] = {}

    def add(self, target: Target, der: bytes | None, seconds: float) -> None:
        from cryptography import x509

        key = hashlib.sha256(der or b"").digest()
        if key not in self.seen:
            leaf = x509.load_der_x509_certificate(der or b"")
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            self.seen[key] = {
                "cert_subject": leaf.subject.rfc4514_string(),
                "cert_names": " ".join(names.get_values_for_type(x509.DNSName)),
                "cert_not_after": leaf.not_valid_after_utc,
            }
        self.rows.append({"host": target[0], "port": target[1], "total_s": seconds, **self.seen[key]})

    def done(self) -> int:
        import pandas as pd

        return len(pd.DataFrame(self.rows))


def library(targets: list[Target], most: int) -> int:
    import deliverkit as dk

    frame = dk.probe([f"{h}:{p}" for h, p in targets], pace=None, in_flight=most, timeout=30, progress=False)
    return int(frame["verdict"].eq("open").sum())


def streams(targets: list[Target], most: int) -> int:
    """asyncio: one limit for the whole probe, none per stage; replies are read, not understood."""
    tls, table = context(), Table()

    async def probe(target: Target, gate: asyncio.Semaphore) -> None:
        async with gate, asyncio.timeout(30):
            began = time.monotonic()
            reader, writer = await asyncio.open_connection(*target, ssl=tls if target[1] == 465 else None)

            async def reply(command: bytes = b"") -> None:
                if command:
                    writer.write(command)
                while (await reader.readline())[3:4] == b"-":
                    pass

            await reply()
            await reply(b"EHLO probe.example\r\n")
            if target[1] != 465:
                await reply(b"STARTTLS\r\n")
                await writer.start_tls(tls)
                await reply(b"EHLO probe.example\r\n")
            await reply(b"QUIT\r\n")
            table.add(target, writer.get_extra_info("ssl_object").getpeercert(True), time.monotonic() - began)
            writer.close()

    return all_at_once(probe, targets, most) and table.done()


def aiosmtplib(targets: list[Target], most: int) -> int:
    import aiosmtplib

    tls, table = context(), Table()

    async def probe(target: Target, gate: asyncio.Semaphore) -> None:
        async with gate:
            began, implicit = time.monotonic(), target[1] == 465
            settings: dict[str, Any] = {"use_tls": implicit, "start_tls": False, "tls_context": tls, "timeout": 30}
            client = aiosmtplib.SMTP(hostname=target[0], port=target[1], local_hostname="probe.example", **settings)
            await client.connect()
            await client.ehlo()
            if not implicit:
                await client.starttls()
                await client.ehlo()
            der = client.transport.get_extra_info("ssl_object").getpeercert(True)
            await client.quit()
            table.add(target, der, time.monotonic() - began)

    return all_at_once(probe, targets, most) and table.done()


def all_at_once(probe: Callable[[Target, asyncio.Semaphore], Any], targets: list[Target], most: int) -> bool:
    async def run() -> None:
        gate = asyncio.Semaphore(most)
        # start_tls now and then loses bytes that are already read: such a probe fails, and is not counted
        ends = await asyncio.gather(*(probe(target, gate) for target in targets), return_exceptions=True)
        print(*{repr(end) for end in ends if end is not None}, file=sys.stderr)

    asyncio.run(run())
    return True


def smtplib_serial(targets: list[Target], most: int) -> int:
    """One after the other, one context."""
    return with_smtplib(targets, context())


def smtplib_contexts(targets: list[Target], most: int) -> int:
    """As its manual shows it: a default context for each."""
    return with_smtplib(targets, None)


def with_smtplib(targets: list[Target], shared: ssl.SSLContext | None) -> int:
    table = Table()
    for target in targets:
        began, tls = time.monotonic(), shared or ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        kind: Any = smtplib.SMTP_SSL if target[1] == 465 else smtplib.SMTP
        with kind(*target, "probe.example", timeout=30, **({"context": tls} if target[1] == 465 else {})) as client:
            client.ehlo()
            if target[1] != 465:
                client.starttls(context=tls)
                client.ehlo()
            table.add(target, client.sock.getpeercert(True), time.monotonic() - began)
    return table.done()


def now_kb() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def at_work(targets: list[Target], most: int) -> dict[str, Any]:
    """Memory of dk.probe while full probes are under way, at its highest."""
    import deliverkit as dk

    seen = {"bare_kb": now_kb(), "kb": 0}

    def look(done: int, of: int) -> None:
        if done % 50 == 0:
            seen["kb"] = max(seen["kb"], now_kb())

    dk.probe([f"{h}:{p}" for h, p in targets], pace=None, in_flight=most, timeout=60, progress=look)
    return seen


def silent(targets: list[Target], most: int) -> dict[str, Any]:
    """Memory of dk.probe while all targets are silent, read once nothing moves any more."""
    import deliverkit as dk

    def watch() -> None:
        used = -1.0
        while sum(1 for _ in Path("/proc/self/fd").iterdir()) < most or time.process_time() - used > 0.1:
            used = time.process_time()
            time.sleep(0.5)
        seen["kb"] = now_kb()
        stop.set()

    seen, stop = {"bare_kb": now_kb()}, threading.Event()
    threading.Thread(target=watch, daemon=True).start()
    hosts = [f"{host}:{port}" for host, port in targets]
    dk.probe(hosts, pace=None, in_flight=most, timeout=120, progress=False, stop=stop)
    return seen


def refused(targets: list[Target], most: int) -> dict[str, Any]:
    import deliverkit as dk

    bare = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    frame = dk.probe([host for host, _ in targets], targets[0][1], pace=None, in_flight=most, progress=False)
    size = int(frame.memory_usage(deep=True).sum()) // 1024
    return {"done": int(frame["verdict"].eq("closed").sum()), "bare_kb": bare, "frame_kb": size}


def mixed(targets: list[Target], most: int) -> dict[str, Any]:
    import deliverkit as dk

    hosts = [f"{host}:{port}" for host, port in targets]
    began = time.monotonic()
    frame = dk.probe(hosts, pace=None, in_flight=most, timeout=5, progress=False)
    seconds = time.monotonic() - began
    right = {"open": 100, "filtered": 450, "accepts_no_banner": 450}
    return {"done": int(frame["verdict"].value_counts().to_dict() == right) * len(frame), "wall_s": seconds}


CLIENTS: dict[str, Callable[[list[Target], int], Any]] = {
    "dk.probe": library,
    "asyncio streams": streams,
    "aiosmtplib": aiosmtplib,
    "smtplib, one by one": smtplib_serial,
    "smtplib, a context each": smtplib_contexts,
    "at work": at_work,
    "silent": silent,
    "refused": refused,
    "mixed": mixed,
}


def as_client(name: str, most: int, warm: list[Target], targets: list[Target]) -> dict[str, Any]:
    """In a process of its own: what the work took, without imports and first use."""
    client = CLIENTS[name]
    if name in ("at work", "silent", "refused", "mixed"):
        library(warm, most)
    elif warm:
        client(warm, most)
    wall, cpu = time.monotonic(), time.process_time()
    said = client(targets, most)
    spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.monotonic() - wall}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return spent | (said if isinstance(said, dict) else {"done": said}) | {"peak_kb": peak}


# The run: a namespace, the farm, the clients in turn.


def pinned(core: int) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, {core})


def run(name: str, targets: list[Target], most: int = 256, warm: int = 8) -> dict[str, Any]:
    """A client of CLIENTS in its own process on the clients' core."""
    given = json.dumps([name, most, [(host, 25) for host in addresses(1, warm)], targets])
    done = subprocess.run(
        [sys.executable, __file__, "client"],
        input=given,
        capture_output=True,
        text=True,
        preexec_fn=pinned(CORES[0]),
        timeout=300,
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    if done.stderr.strip():
        print(f"{name}: {done.stderr.strip()[-200:]}", file=sys.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def command(lines: list[list[str]], stdin: str = "") -> dict[str, Any]:
    """Programs one after the other: what all of them took, start and end included."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    said = ""
    for line in lines:
        said += subprocess.run(
            line,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=pinned(CORES[0]),
            timeout=300,
        ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_s": cpu, "wall_s": time.monotonic() - wall, "said": said}


def c_client(program: str, targets: list[Target], most: int) -> dict[str, Any]:
    took = command([[program, str(most)]], "".join(f"{host} {port}\n" for host, port in targets))
    said = json.loads(took["said"])
    return took | {"done": said["done"], "kb": said["peak_kb"]}


def nmap(hosts: list[str]) -> dict[str, Any]:
    """Groups of ten, as with more these scripts together can spin for ever; not on 2525, where they do not run."""
    scripts = ["--script", "smtp-commands,ssl-cert,smtp-ntlm-info", "--max-hostgroup", "10", "-n", "-Pn", "-sT"]
    took = command([["nmap", *scripts, "-p", "25,465,587", *hosts]])
    return took | {"done": took["said"].count(" open ")}


def swaks(targets: list[Target]) -> dict[str, Any]:
    """One process per probe; it ends after the handshake, without EHLO inside TLS, certificate or row."""
    ways = {True: ["--tls-on-connect", "--quit-after", "TLS"], False: ["--tls", "--quit-after", "TLS"]}
    basis = ["swaks", "--to", "nobody@example.com", "--helo", "probe.example"]
    took = command([[*basis, *ways[port == 465], "--server", host, "--port", str(port)] for host, port in targets])
    return took | {"done": took["said"].count("=== TLS started")}


@contextmanager
def farm(delay_ms: int = 0, mute: bool = False) -> Iterator[None]:
    """The farm on its core. `mute`: every handshake is done, no banner is ever sent."""
    program = [str(FARM)]
    if mute:
        hush = "import sys; sys.path.insert(0, sys.argv.pop(1)); import smtp_farm"
        program = ["-c", f"{hush}\nsmtp_farm.Smtp.greet = lambda self: None\nsmtp_farm.main()", str(FARM.parent)]
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder, "ready")
        options = ["serve", "--delay-ms", str(delay_ms), "--ready", str(ready), "--certs", folder]
        tables = [] if delay_ms or mute else ["--tables"]
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        with subprocess.Popen(
            [sys.executable, "-B", *program, *options, *tables], stderr=subprocess.DEVNULL, preexec_fn=pinned(CORES[-1])
        ) as server:
            try:
                while not ready.exists():
                    if server.poll() is not None:
                        sys.exit("the farm did not start")
                    time.sleep(0.05)
                yield
            finally:
                server.terminate()


def rounds(clients: dict[str, Callable[[], dict[str, Any]]], probes: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Five rounds, the clients in turn. A client that fails more than one probe in a hundred is no measure."""
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in clients}
    for number in range(ROUNDS):
        for name, client in clients.items():
            if sys.stderr.isatty():
                print(f"\r{f'round {number + 1} of {ROUNDS}: {name}':60}\r", end="", file=sys.stderr, flush=True)
            took = client()
            if took["done"] < 0.99 * probes[name]:
                print(f"{name}: {took['done']} of {probes[name]} probes went through", file=sys.stderr)
            taken[name].append(took)
    return taken


def show(title: str, lines: list[Line]) -> None:
    print(f"\n{title}\n{'':44}{'figure':>14}{'target':>12}")
    for what, figure, target, met in lines:
        print(f"{what:44}{figure:>14}{target:>12}{'' if met is None else '   yes' if met else '   NO'}", flush=True)


def figure(what: str, value: float) -> Line:
    return what, f"{value:,.0f}" if value >= 100 else f"{value:.3g}", "", None


def ratio(what: str, value: float, target: float, at_least: bool = False) -> Line:
    sign, met = (">=", value >= target) if at_least else ("<=", value <= target)
    return what, f"{value:.3g}", f"{sign} {target:.3g}", met


def here(*programs: str) -> bool:
    missing = [name for name in programs if not shutil.which(name)]
    if missing:
        print(f"left out, not installed: {', '.join(missing)}")
    return not missing


@contextmanager
def compiled() -> Iterator[str | None]:
    """The C client; None where there is no compiler."""
    with tempfile.TemporaryDirectory() as folder:
        if not here("gcc"):
            yield None
            return
        source, program = Path(__file__).with_name("probing_client.c"), str(Path(folder, "client"))
        subprocess.run(["gcc", "-O2", source, "-o", program, "-lssl", "-lcrypto"], check=True)
        yield program


def cpu() -> None:
    clients: dict[str, Callable[[], dict[str, Any]]] = {
        "dk.probe": lambda: run("dk.probe", MIX),
        "asyncio streams": lambda: run("asyncio streams", MIX),
    }
    try:
        import aiosmtplib  # noqa: F401
    except ImportError:
        print("left out, not installed: aiosmtplib")
    else:
        clients["aiosmtplib"] = lambda: run("aiosmtplib", MIX)
    with compiled() as program, farm():
        if program:
            clients = {"C, epoll and OpenSSL": lambda: c_client(program, MIX, 256)} | clients
        taken = rounds(clients, dict.fromkeys(clients, len(MIX)))
    bounds = {"C, epoll and OpenSSL": 1.45, "asyncio streams": 0.8, "aiosmtplib": 0.7}
    lines = [figure(f"{n}, us", median(t["cpu_s"] for t in took) / len(MIX) * 1e6) for n, took in taken.items()]
    # of each round, as drift moves all clients of one round alike
    for name, bound in bounds.items():
        if name in taken:
            pairs = zip(taken["dk.probe"], taken[name], strict=True)
            lines.append(ratio(f"dk.probe / {name}", median(a["cpu_s"] / b["cpu_s"] for a, b in pairs), bound))
    show(f"cpu: CPU per TLS probe, {len(MIX)} probes, 256 in flight", lines)


def others() -> None:
    few = [(host, port) for host in addresses(1, 25) for port in PORTS]
    clients: dict[str, Callable[[], dict[str, Any]]] = {"dk.probe": lambda: run("dk.probe", MIX)}
    clients["smtplib, a context each"] = lambda: run("smtplib, a context each", few)
    bounds: dict[str, float] = {"smtplib, a context each": 20}
    probes = {"dk.probe": len(MIX), "smtplib, a context each": len(few)}
    if here("nmap"):
        clients["nmap"], bounds["nmap"], probes["nmap"] = lambda: nmap(addresses(1, 100)), 3.5, 300
    if here("swaks"):
        clients["swaks"], bounds["swaks"], probes["swaks"] = lambda: swaks(few[:20]), 80, 20
    with farm():
        taken = rounds(clients, probes)
    each = {name: [t["cpu_s"] / probes[name] * 1e6 for t in took] for name, took in taken.items()}
    lines = [figure(f"{name}, us", median(us)) for name, us in each.items()]
    for name, bound in bounds.items():
        pairs = zip(each[name], each["dk.probe"], strict=True)
        lines.append(ratio(f"{name} / dk.probe", median(a / b for a, b in pairs), bound, at_least=True))
    show("others: CPU per probe", lines)


def latency() -> None:
    many, few = [(h, p) for h in addresses(1, 1000) for p in PORTS], [(h, p) for h in addresses(1, 6) for p in PORTS]
    clients: dict[str, Callable[[], dict[str, Any]]] = {"dk.probe": lambda: run("dk.probe", many, 500)}
    clients["smtplib, one by one"] = lambda: run("smtplib, one by one", few, warm=1)
    bounds, probes = {"smtplib, one by one": 100}, {"dk.probe": len(many), "smtplib, one by one": len(few)}
    if here("nmap"):
        clients["nmap"], bounds["nmap"], probes["nmap"] = lambda: nmap(addresses(1, 30)), 40, 90
    with farm(delay_ms=50):
        taken = rounds(clients, probes)
    rates = {name: [probes[name] / t["wall_s"] for t in took] for name, took in taken.items()}
    lines = [figure(f"{name}, probes/s", median(rate)) for name, rate in rates.items()]
    for name, bound in bounds.items():
        pairs = zip(rates["dk.probe"], rates[name], strict=True)
        lines.append(ratio(f"dk.probe / {name}", median(a / b for a, b in pairs), bound, at_least=True))
    show("latency: 50 ms before each reply, 500 in flight", lines)


def dead() -> None:
    hosts = addresses(1, 100) + addresses(5, 450) + addresses(4, 450)
    targets = [(host, 25) for host in hosts]
    with farm():
        taken = rounds({"mixed": lambda: run("mixed", targets, 1000)}, {"mixed": len(targets)})
    seconds = median(t["wall_s"] for t in taken["mixed"])
    show("dead: 1,000 targets, 100 answer, 450 dropped, 450 silent", [ratio("seconds", seconds, 5.5)])


def memory() -> None:
    """Silent ports 25; full probes; and those that fall silent when TLS is up, all of which shake hands at once."""

    def sizes(client: Callable[[int], dict[str, Any]], small: int, large: int) -> tuple[float, dict[str, Any]]:
        """kB per connection from the slope between two sizes, and what one run of the larger one said."""
        took = {size: [client(size) for _ in range(3)] for size in (small, large)}
        kb = {size: median(t["kb"] for t in took[size]) for size in took}
        return (kb[large] - kb[small]) / (large - small), took[large][0]

    def hushed(port: int) -> Callable[[int], dict[str, Any]]:
        return lambda size: run("silent", [(host, port) for host in addresses(1, size)], size, warm=0)

    with farm(mute=True):
        plain, took = sizes(hushed(25), 2000, 8000)
        stalled, _ = sizes(hushed(465), 500, 2000)
    with compiled() as program, farm():
        full, _ = sizes(lambda size: run("at work", MIX, size), 500, 2000)
        limit = sizes(lambda size: c_client(program, MIX, size), 500, 2000)[0] if program else float("nan")
    lines = [
        ratio("plain: kB per silent connection", plain, 15),
        ratio("8,000 silent in flight: MB in all", took["kb"] / 1024, 130),
        figure("of which bare imports, MB", took["bare_kb"] / 1024),
        ratio("TLS: kB per full probe in flight", full, 35),
        figure("the same, C client", limit),
        figure("TLS: kB each, handshakes all at once", stalled),
    ]
    show("memory: slopes between two sizes", lines)


def many() -> None:
    lines: list[Line] = []
    for size in (25_000, 100_000):
        hosts = [f"127.{100 + i // 62500}.{i // 250 % 250}.{i % 250 + 1}" for i in range(size)]
        took = run("refused", [(host, 26) for host in hosts], 500, warm=0)
        if took["done"] != size:
            print(f"{took['done']} of {size} were found closed")
        lines.append(figure(f"{size:,} targets: peak above imports, MB", (took["peak_kb"] - took["bare_kb"]) / 1024))
        lines.append(figure(f"{size:,} targets: the frame, MB", took["frame_kb"] / 1024))
        lines.append(figure(f"{size:,} targets: seconds", took["wall_s"]))
        lines.append(figure(f"{size:,} targets: CPU per target, us", took["cpu_s"] / size * 1e6))
    show("many: targets that refuse, unpaced, 500 in flight", lines)


PARTS = {"cpu": cpu, "others": others, "latency": latency, "dead": dead, "memory": memory, "many": many}


def main() -> None:
    asked = sys.argv[1:]
    if asked == ["client"]:
        print(json.dumps(as_client(*json.load(sys.stdin))))
        return
    if unknown := [name for name in asked if name not in PARTS]:
        sys.exit(f"no part {unknown[0]}; there are {', '.join(PARTS)}")
    if not FARM.exists():
        sys.exit(f"{FARM} is not here: the servers that are probed are not part of this repository")
    if not here("unshare", "ip", "nft"):
        sys.exit(1)
    network = str(Path("/proc/self/ns/net").readlink())
    if os.environ.get("PROBING_FROM", network) == network:  # packet filters are changed in a namespace of our own only
        again = ["unshare", "-n" if os.geteuid() == 0 else "-rn", sys.executable, __file__, *asked]
        os.execvpe("unshare", again, os.environ | {"PROBING_FROM": network})
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("10240 65000")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in asked or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
