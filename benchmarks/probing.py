"""CPU per probe of dk.probe beside smtplib in threads, asyncio streams and a bare TLS handshake, in one run.

    python benchmarks/probing.py [probes]     default: 800 probes, a quarter of them on 465

The servers are the lab's, in another process; every client does connect, greeting, EHLO, TLS, EHLO, QUIT with one
context for all, and dk.probe judges the certificate and makes the frame besides. Trust the ratios of one run.
"""

from __future__ import annotations

import asyncio
import json
import smtplib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import deliverkit as dk

SERVER = """import json, sys; from deliverkit.lab import Lab
with Lab("open") as lab:
    print(json.dumps([[port, *place] for (_, port), place in lab.connect_to.items()]), flush=True)
    sys.stdin.read()"""
Door = tuple[int, str, int]  # port asked for, address, real port


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


def library(doors: list[Door]) -> int:
    routes = {(f"mx{n}.op{n}.example", port): (address, real) for n, (port, address, real) in enumerate(doors)}
    names = [f"{host}:{port}" for host, port in routes]
    frame = dk.probe(names, connect_to=routes, pace=None, progress=False, in_flight=256)
    return int(frame["verdict"].eq("open").sum())


def threads(doors: list[Door]) -> int:
    tls = context()

    def one(door: Door) -> bool:
        port, address, real = door
        kind = smtplib.SMTP_SSL(address, real, context=tls) if port == 465 else smtplib.SMTP(address, real)
        with kind as client:
            client.ehlo()
            if port != 465:
                client.starttls(context=tls)
                client.ehlo()
        return True

    with ThreadPoolExecutor(64) as pool:
        return sum(pool.map(one, doors))


def streams(doors: list[Door]) -> int:
    tls, gate = context(), asyncio.Semaphore(256)

    async def one(door: Door) -> bool:
        port, address, real = door
        async with gate:
            reader, writer = await asyncio.open_connection(address, real, ssl=tls if port == 465 else None)

            async def reply(command: bytes = b"") -> None:
                writer.write(command)
                while (await reader.readline())[3:4] == b"-":
                    pass

            await reply()
            await reply(b"EHLO x\r\n")
            if port != 465:
                await reply(b"STARTTLS\r\n")
                await writer.start_tls(tls)
                await reply(b"EHLO x\r\n")
            await reply(b"QUIT\r\n")
            writer.close()
        return True

    async def run() -> int:
        return sum(await asyncio.gather(*map(one, doors)))

    return asyncio.run(run())


def handshakes(doors: list[Door]) -> int:
    tls = context()
    for _, address, real in doors:
        tls.wrap_socket(socket.create_connection((address, real))).close()
    return len(doors)


def main() -> None:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 800
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin and server.stdout
        doors = [tuple(door) for door in json.loads(server.stdout.readline())]
        doors = (doors * (wanted // len(doors) + 1))[:wanted]
        clients: list[tuple[str, Callable[[list[Door]], int], list[Door]]] = [
            ("a handshake alone, blocking", handshakes, [door for door in doors if door[0] == 465]),
            ("dk.probe, 256 in flight", library, doors),
            ("asyncio streams, 256 in flight", streams, doors),
            ("smtplib, 64 threads, one context", threads, doors),
        ]
        library(doors[:32])  # imports and the machine's roots, once
        print(f"{'client':34}{'open':>6}{'CPU us per probe':>18}{'probes/s':>10}{'of dk.probe':>13}")
        taken = {}
        for name, client, work in clients:
            wall, cpu = time.perf_counter(), time.process_time()
            done = client(work)
            taken[name] = done, (time.process_time() - cpu) / len(work), len(work) / (time.perf_counter() - wall)
        base = taken["dk.probe, 256 in flight"][1]
        for name, (done, each, rate) in taken.items():
            print(f"{name:34}{done:6}{each * 1e6:18.0f}{rate:10.0f}{each / base:12.2f}x")
        server.stdin.close()


if __name__ == "__main__":
    main()
