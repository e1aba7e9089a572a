"""The command `deliverkit`: the same functions from a shell.

Exit codes: 0 fine; 1 bad news (`probe`, `egress`: a port is not open; `resolve`: a name leads nowhere; `choose`: no
port is left); 2 the input or the call is wrong; 3 something to install is missing; 130 interrupted. Frames come as a
table, or --json, --csv, --parquet.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from deliverkit import PORTS, __version__
from deliverkit.errors import DeliverkitError, FormatError, TargetError

if TYPE_CHECKING:
    import pandas as pd

_PROBES = ["host", "port", "mode", "reached", "verdict", "failure", "tls_version", "total_s"]  # what fits a terminal
_ATTEMPTS = ["time", "recipient", "host", "port", "outcome", "category", "blocked_by", "status_code", "text"]
_SERVERS = ["domain", "service", "host", "port", "mode", "address", "failure", "tlsa", "mta_sts", "source"]
_ROWS, _WIDTH = 40, 48
_QUESTION: dict[str, dict[str, Any]] = {  # what `choose` and `report` ask of choose_port
    "--sending": {
        "default": "application",
        "help": "application (or a mail server through a provider), website, client, legacy (demands implicit TLS), "
        "relay (a mail server straight to the receivers' servers)",
    },
    "--policy": {"default": "guide", "help": "guide, standards or provider"},
    "--provider": {"help": "name of your mail provider, SendGrid for one"},
}


def _plain(text: object) -> str:
    """Text from outside, made safe for a terminal: control characters are shown, not obeyed."""
    shown = str(text).replace("\N{NO-BREAK SPACE}", " ")
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in shown)


def _read(paths: Sequence[str], sends: str | None = None) -> pd.DataFrame:
    from deliverkit.samples import opened

    return opened(paths, sends)


def _write(frame: pd.DataFrame, args: argparse.Namespace, shown: str = "") -> int:
    """Put out the frame in the form that was asked for."""
    if args.parquet:
        try:
            frame.to_parquet(args.parquet, index=False)
        except OSError as problem:
            raise FormatError(args.parquet, f"cannot be written: {problem.strerror or problem}") from None
        print(f"deliverkit: {len(frame)} rows written to {args.parquet}", file=sys.stderr)
    elif args.json:
        print(frame.to_json(orient="records", date_format="iso", force_ascii=False))
    elif args.csv:
        frame.to_csv(sys.stdout, index=False)
    elif "outcome" in frame:
        brief = frame[_PROBES if "verdict" in frame else _ATTEMPTS].head(_ROWS).copy()
        for name in brief.columns[brief.dtypes == "string"]:
            brief[name] = brief[name].map(lambda s: _plain(s.replace("\n", " "))[:_WIDTH], "ignore").astype("string")
        print(brief.to_string(index=False, na_rep="–"))
        if len(frame) > _ROWS:
            print(f"… {len(frame) - _ROWS} rows more; --csv, --json or --parquet FILE gives all rows and columns")
    else:
        print(_plain(shown or repr(frame)))
    return 0


def _sweep(targets: Any, args: argparse.Namespace, **asked: Any) -> pd.DataFrame:
    from deliverkit.sweep import probe

    same = ("vantage", "connect_to", "timeout", "ehlo_name", "attempts", "trace", "out")
    asked |= {name: getattr(args, name) for name in same} | {"pace": None if args.no_pace else "polite"}
    return probe(
        targets, args.ports or PORTS, family=int(args.family) if args.family in ("4", "6") else args.family, **asked
    )


def _probe(args: argparse.Namespace) -> int:
    from deliverkit.resolve import mx_hosts, resolve

    targets: Any = args.hosts
    if args.discover:
        targets = resolve(args.hosts)
    elif args.mx:
        targets = [host for name in args.hosts for host in mx_hosts(name).found or (name,)]
    frame = _sweep(targets, args, check_auth=args.check_auth)
    if frame.empty:
        raise TargetError("there is nothing to probe")
    _write(frame, args)
    if frame["verdict"].eq("cancelled").any():
        return 130
    return 0 if frame["verdict"].str.startswith("open").all() else 1


def _rates(args: argparse.Namespace) -> int:
    from deliverkit.rates import block_rates

    return _write(block_rates(_read(args.paths), args.by.split(",")), args)


def _egress(args: argparse.Namespace) -> int:
    from deliverkit.egress import compare, controls, egress, show_egress
    from deliverkit.forecast import forecast

    if args.paths:
        probes = _of(_several(args.paths, args), args.vantage)
    else:
        hosts = controls(args.controls)
        if args.ports or not args.controls:
            hosts = hosts[hosts["port"].isin(args.ports or PORTS) | hosts["role"].ne("mail")]
        probes = _sweep(hosts, args)
    expected = forecast(args.provider, args.network) if args.provider or args.network else None
    if args.network and probes["vantage"].nunique() > 1:
        raise TargetError("--network is about one network, these probes come from several: choose with --vantage")
    found = egress(probes, forecast=expected)
    told = [show_egress(found)]
    if probes["vantage"].nunique() > 1:
        pairs = compare(probes)
        told.append(show_egress(pairs[pairs["verdict"].ne("same")]) if pairs["verdict"].ne("same").any() else "")
    _write(found, args, "\n\n".join(filter(None, told)))
    if probes["verdict"].eq("cancelled").any():
        return 130
    return 1 if found["verdict"].isin(["open", "unclear"]).eq(False).any() else 0


def _several(paths: Sequence[str], args: argparse.Namespace) -> pd.DataFrame:
    """Probes of several files; what two of them have of the same network is named, as the later counts."""
    import pandas as pd

    for name in ("out", "controls", "trace", "connect_to", "ports"):
        if getattr(args, name):
            raise TargetError(f"--{name.replace('_', '-')} is for probing, and these are files: leave one of them out")
    frames = [_read([path]) for path in paths]
    keys, seen = ["vantage", "host", "port", "address"], set[Any]()
    for path, frame in zip(paths, frames, strict=True):
        if "verdict" not in frame:
            raise FormatError(path, "these are no probes; deliverkit rates counts what mail itself met")
        here = set(frame[keys].astype(object).where(frame[keys].notna(), None).itertuples(index=False, name=None))
        if twice := here & seen:
            of = next(iter(twice))[0] or "a network without a name (--vantage gives one)"
            warnings.warn(
                f"{path}: {len(twice)} ports of {of} stand in a file before, too: as one network", stacklevel=2
            )
        seen |= here
    return pd.concat(frames, ignore_index=True)


def _of(frame: pd.DataFrame, vantage: str | None) -> pd.DataFrame:
    """What was seen from one network, if one is named."""
    from deliverkit.rules import known_name

    if vantage is None:
        return frame
    there = sorted(map(str, frame["vantage"].dropna().unique()))
    known_name("vantage", vantage, there or ["no network at all"])
    return frame[frame["vantage"].eq(vantage).fillna(False)]


def _compare(args: argparse.Namespace) -> int:
    from deliverkit.egress import compare, show_egress

    found = compare(_read(args.paths))
    return _write(found, args, show_egress(found))


def _resolve(args: argparse.Namespace) -> int:
    from deliverkit.resolve import resolve

    found = resolve(args.domains)
    _write(found, args, found[[name for name in _SERVERS if found[name].notna().any()]].to_string(index=False))
    return 1 if found["host"].isna().any() else 0


def _forecast(args: argparse.Namespace) -> int:
    from deliverkit.forecast import forecast

    found = forecast(args.provider, args.network)
    shown = found[["network", "provider", "port", "expected", "why", "noted", "evidence"]]
    return _write(found, args, shown.dropna(axis=1, how="all").to_string(index=False))


def _choose(args: argparse.Namespace) -> int:
    from deliverkit.rules import choose_port

    asked = {"provider": args.provider, "network": args.network, "security": args.security}
    evidence = _of(_read(args.evidence), args.vantage) if args.evidence else None
    advice = choose_port(args.sending, args.policy, evidence=evidence, **asked)
    print(json.dumps(advice.to_dict(), indent=2) if args.json else _plain(advice))
    return 0 if advice.port else 1


def _report(args: argparse.Namespace) -> int:
    from deliverkit.report import report, reports
    from deliverkit.sends import show_joined

    early = _read([args.before], args.sends) if args.before and Path(args.before).exists() else args.before
    asked = {"sending": args.sending, "policy": args.policy, "provider": args.provider, "date": args.date}
    asked |= {"title": args.title, "before": early, "mask_recipients": not args.show_recipients}
    data, path = _read(args.paths, args.sends), Path(args.output)
    if args.sends:
        print(f"deliverkit: {show_joined(data)}", file=sys.stderr)
    if not args.per:
        print(report(data, client=args.client, **asked).save(path))
        return 0
    made = reports(data, by=args.per, **asked)
    for name, saved in made.save(path).items():
        print(f"{_plain(name)}: {saved}")
    if made.unnamed:
        notices = "notices of the mail system among them"
        print(f"deliverkit: {made.unnamed} rows of mail name no {args.per}, {notices}: in no report", file=sys.stderr)
    return 0


def _needed(name: str) -> None:
    """Say which package is missing by its own name, not by that of one of its parts."""
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise ModuleNotFoundError(name=name)


def _notebooks(args: argparse.Namespace) -> int:
    import shutil
    import subprocess

    from deliverkit.samples import shipped

    _needed("jupyterlab")
    folder = shipped("notebooks")
    if folder.name.startswith("_"):  # an installed wheel: work on a copy, with the data the notebooks open
        for name in ("notebooks", "data"):
            if not (Path(args.folder) / name).exists():
                shutil.copytree(shipped(name), Path(args.folder) / name, ignore=shutil.ignore_patterns("__*"))
        folder = Path(args.folder) / "notebooks"
    command = [sys.executable, "-m", "jupyterlab", str(folder), *args.options]
    if os.name == "posix":  # in our place: who stops this process stops JupyterLab
        os.execv(sys.executable, command)
    return subprocess.run(command, check=False).returncode


def _serve(args: argparse.Namespace) -> int:
    _needed("voila")
    from deliverkit.serve import serve

    asked = {name: getattr(args, name) for name in ("host", "port", "browser", "show_recipients")}
    serve(args.paths, args.sends, **asked)
    return 0


def _tour(args: argparse.Namespace) -> int:
    from deliverkit.tour import tour

    return tour(Path(args.output))


def _ports(word: str) -> list[int]:
    try:
        return [int(port) for port in word.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a list of ports such as 25,465,587") from None


def _timeout(word: str) -> str | float:
    try:
        return float(word)
    except ValueError:
        return word


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"deliverkit: {_plain(message)} ({self.prog} --help says more)\n")


def _parser() -> argparse.ArgumentParser:
    says = "Did our mail leave, did it arrive, and is the port to blame?"
    main = _Parser(prog="deliverkit", description=says, allow_abbrev=False)
    main.add_argument("--version", action="version", version=f"deliverkit {__version__}")
    verbs = main.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    sweep = _Parser(add_help=False)
    add: Any = sweep.add_argument_group("how to probe").add_argument
    add("--ports", type=_ports, help="default: 25,465,587,2525, or those of --controls")
    add("--vantage", help="name of the network you are in")
    add("--timeout", type=_timeout, default="standard", help="seconds, or quick, standard, patient")
    add("--family", choices=["4", "6", "both"], help="IP version; default: 4 where there is one")
    add("--trace", action="store_true", help="walk to ports that died where others of the host did not (Linux)")
    add(
        "--attempts",
        type=int,
        default=1,
        help="how often a port is tried that answers 4xx, 5 minutes apart (1 s with --no-pace)",
    )
    add("--out", metavar="FILE", help="add each row to this file as it comes; the same call goes on where it stopped")
    add("--connect-to", action="append", metavar="HOST:PORT:ADDRESS:PORT", help="as curl has it")
    add("--no-pace", action="store_true", help="no polite pauses, for servers of your own")
    add("--ehlo-name", help="name given in EHLO")

    def verb(name: str, run: Any, says: str, *, paths: bool = False, frame: bool = False) -> Any:
        parents = [sweep] if run in (_probe, _egress) else []
        made = verbs.add_parser(name, help=says, description=says, parents=parents, allow_abbrev=False)
        made.set_defaults(run=run)
        if paths:
            made.add_argument("paths", nargs="+", metavar="PATH", help="logs, bounces, exports, frames")
        if frame:
            forms = made.add_mutually_exclusive_group()
            forms.add_argument("--json", action="store_true", help="print JSON records")
            forms.add_argument("--csv", action="store_true", help="print CSV")
            forms.add_argument("--parquet", metavar="FILE", help="write a Parquet file")
        for flag, options in _QUESTION.items() if run in (_choose, _report) else ():
            made.add_argument(flag, **options)
        if run in (_tour, _report):
            made.add_argument("-o", "--output", default="report.html", metavar="FILE", help=".html, .pdf or .xlsx")
        return made.add_argument

    verb("tour", _tour, "the whole thing on a loopback network and sample data; writes a report")
    add = verb("probe", _probe, "try the SMTP ports of hosts", frame=True)
    add("hosts", nargs="+", help="host names or addresses, host:port for a single port")
    add("--mx", action="store_true", help="these are mail domains: probe their mail servers")
    add("--discover", action="store_true", help="these are mail domains: probe all that they publish, on its own ports")
    add("--check-auth", action="store_true", help="ask MAIL FROM:<> without login, then RSET")
    add = verb("resolve", _resolve, "what mail domains publish: MX, SRV, autoconfig, TLSA, MTA-STS", frame=True)
    add("domains", nargs="+")
    verb("read", lambda a: _write(_read(a.paths), a), "read what is there as a frame", paths=True, frame=True)
    add = verb("rates", _rates, "block rates of what was read", paths=True, frame=True)
    add("--by", default="port", help="columns, comma separated; also hour, day, week, month")
    says = "whether the network lets mail ports out: by these probes, or by probing well known mail servers from here"
    add = verb("egress", _egress, says, frame=True)
    add("paths", nargs="*", metavar="PATH", help="probes of many hosts; of several networks, they are compared, too")
    add("--controls", metavar="FILE", help="CSV of servers to probe instead: host, port, operator, role")
    add("--network", help="compare with what this network publishes, Hetzner Cloud for one")
    add("--provider", help="compare with what this provider publishes")
    verb("compare", _compare, "two networks or more, port by port, on the same hosts", paths=True, frame=True)
    add = verb("forecast", _forecast, "what should be open, by published policies, before probing", frame=True)
    add("--network", help="name of the network you send from, Hetzner Cloud for one")
    add("--provider", help="name of your mail provider, SendGrid for one")
    add = verb("choose", _choose, "the port to use, and why")
    add("--network", help="name of the network you send from, Hetzner Cloud for one")
    add("--security", help="implicit or starttls, if your software can do only that")
    add("--evidence", action="append", metavar="PATH", help="probes or logs to rest on")
    add("--vantage", help="of the evidence, only what was seen from this network")
    add("--json", action="store_true", help="print JSON")
    add = verb("report", _report, "write a report for people who were not there", paths=True)
    add("--title", default="Did our mail leave, and did it arrive?")
    add("--sends", metavar="FILE", help="CSV send list: message_id, recipient, sender, time, port, client, campaign")
    one = verbs.choices["report"].add_mutually_exclusive_group()
    one.add_argument("--client", help="only this client's mail")
    one.add_argument("--per", metavar="COLUMN", help="a report for each client (or campaign): report-NAME.html")
    add("--before", metavar="PATH|DATE", help="compare with the period before: its data, or where it ends in these")
    add("--date", help="day on the report; default: today")
    add("--show-recipients", action="store_true", help="do not mask the recipients")
    add = verb("notebooks", _notebooks, "open the notebooks in JupyterLab")
    add("--folder", default="deliverkit-notebooks", help="where an installed wheel puts its copy")
    add("options", nargs="*", help="for JupyterLab, behind --: deliverkit notebooks -- --no-browser")
    add = verb("serve", _serve, "show the notebooks as pages to people without Jupyter, until Ctrl-C")
    add("paths", nargs="*", metavar="PATH", help="show these logs, bounces, exports, frames, not the sample")
    add("--sends", metavar="FILE", help="CSV send list: message_id, recipient, sender, time, port, client, campaign")
    add("--host", default="127.0.0.1", help="where to listen; there is no login")
    add("--port", type=int, default=0, help="default: one that is free")
    add("--show-recipients", action="store_true", help="do not mask the recipients")
    add("--no-browser", dest="browser", action="store_false", help="do not open a browser")
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors and warnings are one line each on stderr."""
    args = _parser().parse_args(argv)
    warnings.showwarning = lambda message, *_, **__: print(f"deliverkit: {_plain(message)}", file=sys.stderr)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except DeliverkitError as problem:
        print(f"deliverkit: {_plain(problem)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as problem:
        print(f"deliverkit: {problem.name} is missing: python -m pip install {problem.name}", file=sys.stderr)
        return 3
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130
    return code
