"""Notebooks as pages for people without Jupyter: Voilà with a start page of our own, and most of its doors shut.

A visitor can look and use the controls, nothing else: kernels take the messages of widgets and refuse requests to
execute code; there is no file list, no download, no source; browsers are told to ask nobody else for anything. The
kernels work in a temporary copy of the notebooks, and own data reach them as one Parquet file there, never as the
files they were read from. What this cannot change: kernels run as the user who started them, the controls that probe
or rehearse do so from this machine, and there is no login.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.web import HTTPError, StaticFileHandler
from voila.app import Voila  # type: ignore[import-untyped]

from deliverkit.errors import TargetError
from deliverkit.report.masking import pseudonymous
from deliverkit.report.pages import page_of
from deliverkit.samples import DATA, opened, shipped
from deliverkit.schema import PROBES
from deliverkit.sends import show_joined

_OURS = Path(__file__).parent / "templates" / "voila"  # templates, and in voila.json the settings that never change
_DOORS = ("api/kernels", "voila/templates", "voila/static", "voila/labextensions", "api/shutdown", "voila/render")


class _Pages(Voila):  # type: ignore[misc]
    """Voilà with only the doors that a page needs, listening on `sockets` that are bound already."""

    def init_handlers(self) -> list[object]:
        start = {"path": str(Path(self.root_dir).parent), "default_filename": "index.html"}
        kept = [route for route in super().init_handlers() if any(door in route[0] for door in _DOORS)]
        return [(r"/()", StaticFileHandler, start), *kept]

    def listen(self) -> None:
        self.ioloop = IOLoop.current()
        HTTPServer(self.app).add_sockets(self.sockets)
        address = f"http://{f'[{self.ip}]' if ':' in self.ip else self.ip}:{self.port}/"
        print(f"The pages are at {address} until you press Ctrl-C", flush=True)
        if self.open_browser:
            self.ioloop.run_in_executor(None, webbrowser.open, address)
        try:
            self.ioloop.start()
        finally:
            with suppress(HTTPError):  # of a kernel that was just starting; it ends by itself when we are gone
                self.stop()


def serve(paths: Sequence[str] = (), sends: str | None = None, *, host: str = "127.0.0.1", port: int = 0,
          browser: bool = True, show_recipients: bool = False) -> None:  # fmt: skip
    """Serve the notebooks as pages until interrupted, on what `paths` hold or on the sample campaign.

    `sends` is a CSV for `attach_sends`; port 0 takes a free one; recipients are masked unless told otherwise.
    Raises FormatError or SchemaError if the data cannot be read, TargetError if nothing can listen at host and port,
    each before a kernel is started. A page and its kernel take about 200 MB.
    """
    if not 0 <= port < 65536:  # bind_sockets would take another one
        raise TargetError(f"a port is a number up to 65535, not {port}")
    try:
        sockets = bind_sockets(port, host)
    except OSError as problem:
        raise TargetError(f"{host}, port {port}: cannot listen there: {problem}") from None
    if foreign := not all(ip_address(each.getsockname()[0]).is_loopback for each in sockets):
        warnings.warn(f"{host}: no login: whoever comes here sees the data and can probe from here", stacklevel=2)
    with TemporaryDirectory(prefix="deliverkit-", ignore_cleanup_errors=True) as name:
        folder, shown = Path(name), "the sample campaign"
        if paths:
            data = PROBES.build(opened(paths, sends))
            if sends:
                print(f"deliverkit: {show_joined(data)}", file=sys.stderr)
            data = data if show_recipients else pseudonymous(data)
            data.to_parquet(folder / "data.parquet", index=False)
            os.environ[DATA] = str(folder / "data.parquet")
            shown = ", ".join(Path(path).resolve().name for path in paths)[:200]
        shutil.copytree(_OURS / "ipython", folder / "ipython")
        os.environ["IPYTHONDIR"] = str(folder / "ipython")  # not the user's own start-up code and history
        shutil.copytree(shipped("notebooks"), folder / "notebooks", ignore=shutil.ignore_patterns(".*", "*.py", "__*"))
        pages = [_titled(path) for path in sorted((folder / "notebooks").glob("*.ipynb"))]
        (folder / "index.html").write_text(page_of("voila/start.html", pages=pages, shown=shown), encoding="utf-8")
        app = _Pages(root_dir=str(folder / "notebooks"), ip=host, port=sockets[0].getsockname()[1])
        app.sockets, app.open_browser, app.config_file_paths = sockets, browser, [str(_OURS)]
        app.config.VoilaConfiguration.resources = {"shown": shown}
        app.connection_dir_root = str(folder)
        app.initialize([])
        app.template_paths.insert(0, str(_OURS))
        # on loopback a site that points its own name here (DNS rebinding) is turned away by its Host header
        app.tornado_settings |= {"allow_remote_access": foreign, "static_path": str(_OURS)}
        app.start()


def _titled(path: Path) -> dict[str, str]:
    """Give the page of a notebook its title; what the start page says of it: file, title, question."""
    book = json.loads(path.read_text(encoding="utf-8"))
    first = "".join(book["cells"][0]["source"])
    book["metadata"]["title"] = first.removeprefix("# ").partition("\n")[0]
    path.write_text(json.dumps(book), encoding="utf-8")
    return {"name": path.name, "title": book["metadata"]["title"], "question": first.split("**")[1]}
