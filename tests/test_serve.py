"""Pages for people without Jupyter: what they show, whose data, and what a visitor cannot do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("voila", reason="needs voila: python -m pip install voila")
ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
posix = pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C of another process is a matter of POSIX")


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "deliverkit", "serve", "--no-browser", *map(str, words)]


@contextmanager
def served(folder: Path, *words: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a running `deliverkit serve` and its process; it is interrupted at the end."""
    env = os.environ | {"TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8"}
    with (folder / "serve.log").open("w") as log:
        server = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=log, text=True, env=env, cwd=folder)
        try:
            said = server.stdout.readline()
            assert "http" in said, (folder / "serve.log").read_text()
            yield re.search(r"http://\S+/", said)[0], server
        finally:
            server.terminate()
            server.wait(60)
            server.stdout.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The pages on probes and bounces of our own."""
    folder = tmp_path_factory.mktemp("own")
    probes = folder / "own & only.csv"
    probes.write_text((DATA / "probes.csv").read_text(encoding="utf-8").replace("office", "our-own-office"))
    with served(folder, probes, DATA / "postfix", "--sends", DATA / "sends.csv") as (address, _):
        yield address


def status(url: str, **headers: str) -> int:
    try:
        return urlopen(Request(url, headers=headers), timeout=60).status
    except HTTPError as problem:
        return problem.code


def test_the_start_page_names_every_notebook_its_question_and_whose_data(site: str) -> None:
    page = urlopen(site, timeout=60).read().decode()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        assert f"/voila/render/{path.name}" in page
        assert first.splitlines()[0].removeprefix("# ") in page and first.split("**")[1].split("'")[0] in page
    assert "own &amp; only.csv, postfix" in page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_start_page_is_accessible_on_a_phone_and_by_keyboard(browser, site: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = browser.new_page(color_scheme=scheme, viewport={"width": 390, "height": 800})
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(site)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert axe.Axe().run(page).response["violations"] == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.href") == page.locator("nav a").first.evaluate("a => a.href")
    assert [url for url in asked if not url.startswith((site, "data:"))] == [] and said == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_follows_the_colours_of_the_system_and_fits_a_phone(browser, site: str, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": 390, "height": 800})
    page.goto(f"{site}voila/render/{next((ROOT / 'notebooks').glob('*.ipynb')).name}")
    page.wait_for_selector("h1", timeout=60_000)
    text = page.locator("main p").first
    ink = sum(map(int, re.findall(r"\d+", text.evaluate("e => getComputedStyle(e).color"))[:3]))
    paper = sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))
    assert abs(ink - paper) > 450 and (paper < ink) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.title() in page.inner_text("h1")
    page.get_by_role("link", name="All questions").click()
    assert page.url == site
    page.close()


CLOSED = [
    "voila/tree", "voila/files/02_block_rates_per_port.ipynb", "voila/files/a.png", "voila/api/contents", "api/kernels",
    "api/contents", "voila/static/..%2f..%2f..%2fdata.parquet", "data.parquet", "index.html", "static/data.parquet",
    "voila/render/..%2f..%2fdata.parquet", "voila/render/%2fetc%2fpasswd", "voila/query/1-1-1-1-1",
]  # fmt: skip


@pytest.mark.parametrize("path", CLOSED)
def test_there_is_no_door_to_files_lists_and_sources(site: str, path: str) -> None:
    assert status(site + path) in (404, 403, 500)


def test_a_name_that_somebody_else_points_at_loopback_is_turned_away(site: str) -> None:
    name = next((ROOT / "notebooks").glob("*.ipynb")).name
    assert status(f"{site}voila/render/{name}", Host="evil.example") == 403


def test_sources_and_the_names_of_folders_are_not_in_the_page(site: str) -> None:
    page = urlopen(f"{site}voila/render/02_block_rates_per_port.ipynb", timeout=120).read().decode()
    assert "import deliverkit" not in page and str(ROOT) not in page and "Content-Security" not in page
    assert "cdn" not in page.lower()


EXECUTE = """async ([kernel, code]) => {
  const socket = new WebSocket(`ws://${location.host}/api/kernels/${kernel}/channels?session_id=test`);
  await new Promise(open => socket.onopen = open);
  const heard = [];
  socket.onmessage = message => heard.push(JSON.parse(message.data));
  const send = (type, content) => socket.send(JSON.stringify({channel: 'shell', parent_header: {}, metadata: {},
    header: {msg_id: type, msg_type: type, session: 'test', username: '', version: '5.3'}, content}));
  send('execute_request', {code, silent: false, store_history: false, user_expressions: {}, allow_stdin: false});
  send('kernel_info_request', {});
  const answered = () => heard.some(message => message.msg_type === 'kernel_info_reply');
  for (let i = 0; i < 100 && !answered(); i++) await new Promise(later => setTimeout(later, 100));
  await new Promise(later => setTimeout(later, 500));
  return heard.map(message => message.msg_type);
}"""


def test_a_visitor_cannot_execute_code_in_the_kernel(browser, site: str, tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(f"{site}voila/render/02_block_rates_per_port.ipynb")
    page.wait_for_selector("h1", timeout=60_000)
    kernel = json.loads(page.locator("#jupyter-config-data").text_content())["kernelId"]
    heard = page.evaluate(EXECUTE, [kernel, f"open({str(tmp_path / 'written')!r}, 'w')"])
    assert "kernel_info_reply" in heard and "execute_reply" not in heard
    assert not (tmp_path / "written").exists()
    page.close()


def test_pages_show_the_data_they_were_given_and_no_error(browser, site: str) -> None:
    page = browser.new_page()
    page.goto(f"{site}voila/render/02_block_rates_per_port.ipynb")
    page.wait_for_selector(".dk-view svg", timeout=60_000)
    assert "our-own-office" in page.inner_text("main") and "Error" not in page.inner_text("main")
    page.close()


@posix
def test_ctrl_c_ends_server_and_kernels_and_leaves_nothing(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    with served(tmp_path) as (address, server):
        me = psutil.Process(server.pid)
        deadline = time.monotonic() + 60
        while not (kernels := me.children(recursive=True)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert kernels and status(address) == 200
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
        assert psutil.wait_procs(kernels, timeout=20)[1] == []
    assert [path.name for path in tmp_path.iterdir()] == ["serve.log"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nowhere.log"], "nowhere.log"),
        ([DATA / "bounces.mbox", "--sends", "nowhere.csv"], "nowhere.csv"),
        ([DATA / "bounces.mbox", "--sends", DATA / "bounces.mbox"], "send list"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
        (["--port", "70000"], "70000"),
    ],
    ids=["path", "sends", "no-sends", "host", "port"],
)
def test_a_wrong_call_is_one_line_before_anything_starts(words: list[object], named: str, tmp_path: Path) -> None:
    done = subprocess.run(command(*words), capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert named in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_wider_address_comes_with_a_warning_that_there_is_no_login(tmp_path: Path) -> None:
    with served(tmp_path, "--host", "0.0.0.0"):
        assert "no login" in (tmp_path / "serve.log").read_text()


def test_without_voila_it_names_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from deliverkit.cli import main

    monkeypatch.delitem(sys.modules, "deliverkit.serve", raising=False)
    monkeypatch.setitem(sys.modules, "voila.app", None)
    assert main(["serve"]) == 3
    assert "pip install voila" in capsys.readouterr().err
