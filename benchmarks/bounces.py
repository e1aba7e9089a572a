"""read_bounces against the standard library's parse alone, on one large message, and on a million in bounded memory.

    python benchmarks/bounces.py FOLDER [ROUNDS]     messages per CPU second; FOLDER holds one message a file
    python benchmarks/bounces.py --large             a message of 15 MB with attachments, seconds of CPU
    python benchmarks/bounces.py --many [COUNT]      an mbox of COUNT messages of 5 kB, made while it is read

The tools take turns within each round; medians are printed. "first time" has met none of the texts before, "again" all
of them: of the texts of a real mailbox most are repeated.
"""

from __future__ import annotations

import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from statistics import median

import deliverkit as dk
from deliverkit import classify
from deliverkit.files import Part

REPORT = """From: MAILER-DAEMON@mx{n}.example (Mail Delivery System)
To: bounce+{n}@sender.example
Subject: Undelivered Mail Returned to Sender
Date: Wed, 25 Nov 2026 10:00:00 +0000
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b{n}"

--b{n}
Content-Type: text/plain

<user{n}@y.example>: host mx.y.example[192.0.2.1] said: 550 5.1.1 <user{n}@y.example>: user unknown ({n})

--b{n}
Content-Type: message/delivery-status

Reporting-MTA: dns; mx{n}.example
X-Postfix-Queue-ID: 4X{n}

Final-Recipient: rfc822; user{n}@y.example
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.y.example
Diagnostic-Code: smtp; 550 5.1.1 <user{n}@y.example>: user unknown ({n})

--b{n}
Content-Type: message/rfc822

Message-ID: <{n}@sender.example>
To: user{n}@y.example
Subject: offer

{body}
--b{n}--
"""


class Made(io.RawIOBase):
    """An mbox that is written while it is read."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.seek(0)

    def seek(self, place: int, whence: int = 0) -> int:
        """To the beginning, from wherever it is."""
        body = "Words of the message that came back. " * 106
        self._texts, self._held = (self._message(n, body) for n in range(self._count)), b""
        return 0

    def _message(self, n: int, body: str) -> bytes:
        return b"From MAILER-DAEMON Wed Nov 25 10:00:00 2026\n" + REPORT.format(n=n, body=body).encode() + b"\n"

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while len(self._held) < len(buffer) and (more := next(self._texts, b"")):
            self._held += more
        given, self._held = self._held[: len(buffer)], self._held[len(buffer) :]
        buffer[: len(given)] = given
        return len(given)


def many(count: int) -> None:
    dk.read_bounces([Part("warm.mbox", 0, 1 << 60, (lambda: Made(100),))])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.process_time()
    frame = dk.read_bounces([Part("made.mbox", 0, 1 << 60, (lambda: Made(count),))])
    used = time.process_time() - begin
    peak, held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, frame.memory_usage(deep=True).sum() / 2**20
    assert len(frame) == frame["recipient"].nunique() == count
    print(f"{count:,} messages of 5 kB: {used / count * 1e6:.0f} us of CPU each")
    print(f"memory: frame {held:.0f} MB; peak {peak:.0f} MB, {peak - before - held:.0f} MB above imports and frame")


def large() -> None:
    part = b"\n--b\nContent-Type: image/jpeg\nContent-Transfer-Encoding: base64\n\n"
    photo = part + (b"QUJD" * 19 + b"\n") * (3 * 2**20 // 77)
    report = REPORT.format(n=1, body="").encode()
    plain = b"From: MAILER-DAEMON@mx.example\nSubject: failure notice\n"
    plain += b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\n<a@y.example>: 550 5.1.1 user unknown\n"
    for name, data in {"in the returned message": report.replace(b"\n--b1--", photo * 5 + b"\n--b1--"),
                       "beside words": plain + photo * 5 + b"\n--b--\n"}.items():  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            (file := Path(folder) / "m.eml").write_bytes(data)
            spent = [seconds(lambda path=file: dk.read_bounces(path)) for _ in range(5)]
            rows = dk.read_bounces(file)["category"].tolist()
        print(f"{len(data) / 2**20:.1f} MB, attachments {name}: {median(spent):.3f} s of CPU, {rows}")


def parse(folder: Path) -> None:
    """Parse each file with email's compat32 policy and nothing else."""
    for file in sorted(folder.iterdir()):
        message_from_bytes(file.read_bytes())


def seconds(job: Callable[[], object]) -> float:
    begin = time.process_time()
    job()
    return time.process_time() - begin


def compare(folder: Path, rounds: int) -> None:
    count, spent = len(list(folder.iterdir())), []
    parse(folder)  # imports and tables are loaded
    dk.read_bounces(folder)
    for _ in range(rounds):
        bare = seconds(lambda: parse(folder))
        classify._known.clear()
        spent.append((bare, *(seconds(lambda: dk.read_bounces(folder)) for _ in range(2))))
    for name, column in zip(("email.message_from_bytes", "first time", "again"), zip(*spent, strict=True), strict=True):
        ratio = median(one[0] / value for one, value in zip(spent, column, strict=True))
        print(f"{name}: {count / median(column):,.0f} messages per CPU second, {ratio:.2f} of the bare parse")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--large"]:
        large()
    elif sys.argv[1:2] == ["--many"]:
        many(int((sys.argv[2:] or ["1000000"])[0]))
    elif len(sys.argv) > 1:
        compare(Path(sys.argv[1]), int((sys.argv[2:] or ["5"])[0]))
    else:
        sys.exit(__doc__)
