"""From click to new figure in JupyterLab and Voilà, and from address to first widget; or nbval again and again.

    python benchmarks/clicks.py
    python benchmarks/clicks.py --repeats 20

Twenty clicks each on `dk.explore_rates`, on the sample and on a million attempts; wanted: median <= 60 ms, p95 <= 100.
A page of `deliverkit serve` shall show its first widget within 3.5 s. With --repeats nothing but full nbval runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from conftest import FLAGS
from test_jupyter import NOTEBOOKS, jupyterlab, nbval, open_in_lab, pages, running

CLICKS, LOADS = 20, 5
CELL = """import pandas as pd
import deliverkit as dk
data = dk.sample()
if {many}:
    data = pd.concat([data] * ({many} // len(data) + 1), ignore_index=True).head({many})
dk.explore_rates(data)"""
SIZES = {"sample": 0, "million": 1_000_000}
CLICK = """([name, turn]) => new Promise(done => {
  const select = document.querySelector(`.dk-${name} select`), view = document.querySelector('.dk-rates .dk-view');
  const begin = performance.now();
  new MutationObserver((_, watcher) => { watcher.disconnect();
    requestAnimationFrame(() => done(performance.now() - begin)) }).observe(view, {childList: true, subtree: true});
  select.selectedIndex = turn % select.options.length;
  select.dispatchEvent(new Event('change', {bubbles: true}));
})"""


def clicks(page: Any) -> list[float]:
    """Milliseconds of each click; groupings and ports take turns."""
    page.wait_for_selector(".dk-rates .dk-view svg", timeout=240_000)
    time.sleep(2)
    spans = []
    for i in range(CLICKS):
        spans.append(page.evaluate(CLICK, ["port" if i % 2 else "grouping", i // 2 + 1]))
        time.sleep(0.2)
    return spans


@contextmanager
def voila(folder: Path) -> Iterator[Callable[[str], str]]:
    """Voilà as it comes, on notebooks of the benchmark."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["voila", folder / "notebooks", "--no-browser", "--Voila.ip=127.0.0.1", f"--port={port}"]
    with running(folder, *words):
        for _ in range(300):
            try:
                urlopen(f"http://127.0.0.1:{port}/voila/static/voila.js", timeout=5).close()
                break
            except (URLError, ConnectionError):
                time.sleep(0.2)
        yield lambda name: f"http://127.0.0.1:{port}/voila/render/{name}"


def measure() -> None:
    print("| where | data | median ms | p95 ms |\n|---|---|---|---|")
    with sync_playwright() as play, TemporaryDirectory() as name:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        folder = Path(name)
        (folder / "notebooks").mkdir()
        for size, many in SIZES.items():
            cell = nbformat.v4.new_code_cell(CELL.format(many=many))
            kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
            nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), folder / f"notebooks/{size}.ipynb")
        for kind, server in (("JupyterLab", jupyterlab), ("Voilà", voila)):
            with server(folder) as address:
                for size in SIZES:
                    page = browser.new_page(viewport={"width": 1400, "height": 1000})
                    opener = open_in_lab if server is jupyterlab else lambda page, url: page.goto(url, timeout=240_000)
                    opener(page, address(f"{size}.ipynb"))
                    spans = clicks(page)
                    print(f"| {kind} | {size} | {median(spans):.0f} | {quantiles(spans, n=20)[-1]:.0f} |", flush=True)
                    page.close()
        print("\n| page of deliverkit serve | first widget, median s | slowest s |\n|---|---|---|")
        (folder / "served").mkdir()
        with pages(folder / "served") as address:
            time.sleep(20)  # until the pool is filled
            for path in NOTEBOOKS:
                spans = []
                for _ in range(LOADS):
                    page = browser.new_page()
                    begin = time.monotonic()
                    page.goto(address(path.name))
                    page.wait_for_selector(".jupyter-widgets", timeout=60_000)
                    spans.append(time.monotonic() - begin)
                    page.close()
                    time.sleep(6)  # until it is filled again
                print(f"| {path.stem} | {median(spans):.1f} | {max(spans):.1f} |", flush=True)
        browser.close()


def repeat(times: int) -> None:
    """Full nbval on every notebook, and how often it failed."""
    for path in NOTEBOOKS:
        command = [*nbval(), path]
        failed = [i for i in range(times) if subprocess.run(command, capture_output=True, check=False).returncode]
        print(f"{path.stem}: {len(failed)} of {times} runs failed", flush=True)


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--repeats", type=int, default=0, help="only run nbval this often")
    asked = words.parse_args()
    repeat(asked.repeats) if asked.repeats else measure()
