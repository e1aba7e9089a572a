"""Every notebook in a real browser: in JupyterLab and as a page, each control used; and nbval sees a changed output.

    python -m pytest tests/test_jupyter.py -s

prints the seconds each notebook took.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

import deliverkit as dk

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MARKER = "s3cret-marker-7f"
MIDDLE = f"{dk.sample()['time'].median():%Y-%m-%d %H:%M:%S}"
TEXTS = {
    "dk-password": MARKER,
    "dk-before": MIDDLE,
    "dk-user": "tester",
    "dk-to": "me@example.com",
}  # all other fields: an address of ours
MOST = 80  # operations on one notebook
SETTINGS = {  # of JupyterLab: no news, no dialogs, all cells in the page, widgets saved with the notebook
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True,
    },
    "@jupyterlab/notebook-extension/tracker": {"autoStartDefaultKernel": True, "windowingMode": "none"},
    "@jupyter-widgets/jupyterlab-manager/plugin": {"saveState": True},
}  # fmt: skip


@contextmanager
def running(folder: Path, *words: object, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A server with Jupyter folders of its own, ended by its handle."""
    own = {f"JUPYTER_{n}_DIR": str(folder / n.lower()) for n in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"IPYTHONDIR": str(folder / "ipython"), "PYTHONIOENCODING": "utf-8"}
    with (folder / "server.log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *map(str, words)], cwd=folder, env=os.environ | own | env, text=True,
            stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        try:
            yield server
        finally:
            server.terminate()
            server.wait(60)
            server.stdout.close()


@contextmanager
def jupyterlab(folder: Path) -> Iterator[Callable[[str], str]]:
    """JupyterLab on `folder/notebooks`; gives the address of a notebook by its name."""
    for name, settings in SETTINGS.items():
        path = folder / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    token = secrets.token_hex(16)
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["jupyterlab", folder / "notebooks", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    words += ["--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True"]
    env = {"JUPYTER_TOKEN": token, "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    env["JUPYTERLAB_WORKSPACES_DIR"] = str(folder / "workspaces")
    address = f"http://127.0.0.1:{port}"
    with running(folder, *words, "--LabApp.extension_manager=readonly", **env):
        for _ in range(300):
            try:
                urlopen(f"{address}/api/status?token={token}", timeout=5).close()
                break
            except (URLError, ConnectionError):
                time.sleep(0.2)
        yield lambda name: f"{address}/doc/tree/{name}?token={token}"


@contextmanager
def pages(folder: Path, *words: object) -> Iterator[Callable[[str], str]]:
    """`deliverkit serve`; gives the address of the page of a notebook by its name."""
    with running(folder, "deliverkit", "serve", "--no-browser", *words) as server:
        address = re.search(r"http://\S+/", server.stdout.readline())[0]
        yield lambda name: f"{address}voila/render/{name}"


def emptied(path: Path, folder: Path) -> None:
    """A copy without outputs: saved execution counts would look like cells that ran."""
    book = json.loads(path.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    folder.mkdir(exist_ok=True)
    (folder / path.name).write_text(json.dumps(book), encoding="utf-8")


def open_in_lab(page: Any, url: str) -> None:
    """Open the notebook, wait until a kernel is really connected, run all cells and wait for the last one."""
    page.goto(url)
    page.wait_for_function("window.jupyterapp && window.jupyterapp.shell.currentWidget?.sessionContext", timeout=60_000)
    page.wait_for_function(
        """() => { const session = window.jupyterapp.shell.currentWidget.sessionContext;
        const kernel = session.session?.kernel;
        return session.isReady && kernel?.status === 'idle' && kernel.connectionStatus === 'connected' }""",
        timeout=60_000,
    )
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(e => e.textContent)"
    page.wait_for_function(f"{prompts}.length && {prompts}.every(text => /\\[\\d+\\]/.test(text))", timeout=120_000)


def open_as_page(page: Any, url: str) -> None:
    page.goto(url)
    page.wait_for_selector("#rendered_cells", timeout=60_000)


OPEN = {"lab": open_in_lab, "voila": open_as_page}


class Watch:
    """All that went wrong on a page: console, scripts, requests to elsewhere, errors the kernel sent."""

    def __init__(self, page: Any) -> None:
        self.wrong: list[str] = []
        page.on("console", lambda m: m.type == "error" and self.wrong.append(f"console: {m.text}"))
        page.on("pageerror", lambda error: self.wrong.append(f"script: {error}"))
        page.on("request", lambda request: self._asked(request.url))
        page.on("websocket", self._socket)

    def _asked(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:", "blob:http://127.0.0.1:", "about:")):
            self.wrong.append(f"asked for {url}")

    def _socket(self, socket: Any) -> None:
        self._asked(socket.url.replace("ws://", "http://"))
        socket.on("framereceived", self._frame)

    def _frame(self, frame: str | bytes) -> None:
        text = frame if isinstance(frame, str) else frame.decode(errors="replace")
        if re.search(r'"msg_type": ?"error"|Traceback \(most recent call last\)', text):
            self.wrong.append(f"kernel: {text[-1500:]}")


# every control inside an element of ours, in the order of the page, with what tells it from the others: the box it is
# in, the heading of the box (a wizard shows other controls under another heading), its class and its place
CONTROLS = """() => {
  const ours = element => [...element.classList].filter(name => name.startsWith('dk-')).pop();
  const found = [], seen = {};
  const all = '[class*="dk-"] :is(select, input, textarea, .noUi-handle), button[class*="dk-"], [class*="dk-"] button';
  for (const element of document.querySelectorAll(all)) {
    const near = element.closest('[class*="dk-"]'), gone = element.closest('.dk-view');
    if (!near || gone || element.disabled || !element.checkVisibility() || !element.getClientRects().length) continue;
    const boxes = [];
    for (let e = near; e; e = e.parentElement?.closest('[class*="dk-"]')) boxes.unshift(e);
    const heading = boxes[0].querySelector('.dk-heading')?.textContent ?? '';
    const kind = element.tagName === 'INPUT' ? element.type : element.className.includes('noUi') ? 'slider'
      : element.tagName.toLowerCase();
    const name = [ours(boxes[0]), heading, ours(near), kind].join(' / ');
    seen[name] = (seen[name] ?? -1) + 1;
    element.dataset.dkAt = `${name} / ${seen[name]}`;
    found.push({at: element.dataset.dkAt, kind, name: ours(near)});
  }
  return found;
}"""
STATE = """() => [...document.querySelectorAll('[class*="dk-"]')].map(e => e.innerHTML.length + e.innerText).join('|')
  + [...document.querySelectorAll('[class*="dk-"] :is(input, select)')].map(e => e.value).join('|')"""
BUSY = "() => [...document.querySelectorAll('[role=status]')].some(e => e.innerText.trim().endsWith('…'))"
ALERTS = "() => [...document.querySelectorAll('[role=alert]')].map(e => e.innerText)"
ERRORS = """() => [...document.querySelectorAll('[data-mime-type="application/vnd.jupyter.error"], '
  + '[data-mime-type="application/vnd.jupyter.stderr"]')].map(e => e.innerText)"""


def settle(page: Any, quiet_s: float = 0.4, most_s: float = 20) -> None:
    """Wait until our widgets have not changed for a while."""
    end, since, last = time.monotonic() + most_s, time.monotonic(), page.evaluate(STATE)
    while time.monotonic() < end and time.monotonic() - since < quiet_s:
        time.sleep(0.05)
        if (now := page.evaluate(STATE)) != last or page.evaluate(BUSY):
            since, last = time.monotonic(), now


def operate(page: Any, control: dict[str, str]) -> None:
    """Use one control as a person would."""
    element = page.locator(f"[data-dk-at={json.dumps(control['at'])}]").first
    kind = control["kind"]
    if kind == "select":
        at, many = element.evaluate("e => [e.selectedIndex, e.options.length]")
        element.select_option(index=(at + 1) % many)
    elif kind in ("checkbox", "radio"):
        element.click()
    elif kind == "slider":
        element.focus()
        page.keyboard.press("ArrowRight")
    elif kind == "button":
        element.click()
    elif kind == "number":
        element.press("ArrowUp")
        element.press("Tab")
    else:  # text that is there stays what it is, only typed anew
        old = element.input_value()
        element.fill(TEXTS.get(control["name"], f"{old} " if old else "127.0.0.1"))
        element.press("Tab")


def walk(page: Any) -> list[str]:
    """Use every control that can be reached; gives what was used and fails on a new alert."""
    used: list[str] = []
    alerts = page.evaluate(ALERTS)
    back = page.locator("button.dk-back:enabled")
    while back.count():  # a wizard begins at its first page
        back.first.click()
        settle(page)
    for _ in range(MOST):
        left = [c for c in page.evaluate(CONTROLS) if c["at"] not in used]
        if not left:
            return used
        left.sort(
            key=lambda c: ("dk-next", "dk-back").index(c["name"]) + 1 if c["name"] in ("dk-next", "dk-back") else 0
        )
        operate(page, left[0])
        used.append(left[0]["at"])
        settle(page)
        new = [text for text in page.evaluate(ALERTS) if text not in alerts]
        assert not new, f"after {used[-1]}: {new}"
    raise AssertionError(f"more than {MOST} controls: {used}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Callable[[str], str], Path]]:
    pytest.importorskip("jupyterlab", reason="needs jupyterlab: python -m pip install jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    for path in NOTEBOOKS:
        emptied(path, folder / "notebooks")
    with jupyterlab(folder) as address:
        yield address, folder / "notebooks"


@pytest.fixture(scope="module")
def voila(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Callable[[str], str], Path | None]]:
    pytest.importorskip("voila", reason="needs voila: python -m pip install voila")
    with pages(tmp_path_factory.mktemp("voila")) as address:
        yield address, None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.parametrize("kind", OPEN)
def test_every_control_works_and_nothing_goes_wrong(
    browser: Any, kind: str, path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    address, folder = request.getfixturevalue(kind)
    begin = time.monotonic()
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    watch = Watch(page)
    OPEN[kind](page, address(path.name))
    if "dk.explore_" in path.read_text(encoding="utf-8"):
        page.wait_for_selector(".dk-view svg", timeout=60_000)
    settle(page)
    assert page.evaluate(ERRORS) == []
    used = walk(page)
    assert page.evaluate(ERRORS) == [] and watch.wrong == []
    assert MARKER not in page.inner_text("body")
    if folder:
        saved = save(page, folder / path.name)
        assert MARKER not in saved and ("dk-password" in saved) == any("dk-password" in at for at in used)
    page.close()
    with capsys.disabled():
        print(f"\n{path.stem} in {kind}: {len(used)} controls, {time.monotonic() - begin:.1f} s")


BROKEN = """import ipywidgets as w
from IPython.display import HTML, display
button = w.Button(description="break")
button.add_class("dk-break")
button.on_click(lambda _: 1 / 0)
display(button, HTML("<img src='http://127.0.0.2:9/' alt=''>"))"""


def test_a_failing_callback_and_a_request_to_elsewhere_are_noticed(
    browser: Any, lab: tuple[Callable[[str], str], Path]
) -> None:
    address, folder = lab
    book = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    cell = {
        "cell_type": "code",
        "id": "broken",
        "metadata": {},
        "source": BROKEN,
        "outputs": [],
        "execution_count": None,
    }
    (folder / "broken.ipynb").write_text(json.dumps(book | {"cells": [cell]}), encoding="utf-8")
    page = browser.new_page()
    watch = Watch(page)
    open_in_lab(page, address("broken.ipynb"))
    page.wait_for_selector("button.dk-break")
    assert len(walk(page)) == 1
    assert any("ZeroDivisionError" in wrong for wrong in watch.wrong), watch.wrong
    assert "asked for http://127.0.0.2:9/" in watch.wrong
    page.close()


def save(page: Any, path: Path) -> str:
    """Save from JupyterLab, with the state of all widgets; gives the text of the file."""
    before = path.stat().st_mtime_ns
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    for _ in range(100):
        if path.stat().st_mtime_ns != before:
            break
        time.sleep(0.1)
    text = path.read_text(encoding="utf-8")
    assert "application/vnd.jupyter.widget-state+json" in text or "widget-view" not in text
    return text


def changed_number(book: dict[str, Any]) -> None:
    """One more in the first number of a printed line."""
    for cell in book["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream" and re.search(r"\d", "".join(output["text"])):
                text = "".join(output["text"])
                output["text"] = re.sub(r"\d+", lambda found: str(int(found[0]) + 1), text, count=1)
                return
    raise AssertionError("no number was printed")


def changed_chart(book: dict[str, Any]) -> None:
    """One plotted point a little higher."""
    for cell in book["cells"]:
        for output in cell.get("outputs", []):
            if chart := "".join(output.get("data", {}).get("image/svg+xml", "")):
                found = re.search(r'<use xlink:href="#\w+" x="[\d.]+" y="(\d+)', chart)
                output["data"]["image/svg+xml"] = f"{chart[: found.start(1)]}{int(found[1]) - 1}{chart[found.end(1) :]}"
                return
    raise AssertionError("no chart")


@pytest.mark.parametrize("change", [None, changed_number, changed_chart], ids=["nothing", "number", "chart"])
def test_a_changed_output_fails_under_nbval(change: Callable[[dict[str, Any]], None] | None, tmp_path: Path) -> None:
    pytest.importorskip("nbval", reason="needs nbval: python -m pip install nbval")
    [path] = [path for path in NOTEBOOKS if path.stem == "02_block_rates_per_port"]
    shutil.copytree(ROOT / "data", tmp_path / "data")
    book = json.loads(path.read_text(encoding="utf-8"))
    if change:
        change(book)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / path.name).write_text(json.dumps(book), encoding="utf-8")
    done = subprocess.run([*nbval(), tmp_path / "notebooks"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode == 0) == (change is None), done.stdout
    if change:
        assert re.search(r"\b1 failed", done.stdout), done.stdout


def nbval() -> list[str]:
    """The words of pytest for full nbval, as in pyproject.toml."""
    words = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=60", "-p", "no:cacheprovider", "-q"]
    return [sys.executable, "-m", "pytest", *words, f"--nbval-sanitize-with={ROOT / 'tests' / 'nbval.ini'}"]
