"""What several tests need: the sample collections beside the repository, and real servers."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The larger labelled collections, which are not part of the repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the labelled collections are not beside this checkout (../shared)")
    return folder


@pytest.fixture(scope="session")
def need() -> Callable[[str, str], str]:
    """`need(program, package)`: its path, or a skip that names the package; where CI=true, a failure."""

    def find(program: str, package: str) -> str:
        found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if found is None:
            say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            say(f"needs {program}: install the package {package}")
        return str(found)

    return find


@pytest.fixture(scope="module")
def browser(need: Callable[[str, str], str]) -> Iterator[Any]:
    """Debian's chromium, driven by playwright; it asks nobody for anything by itself."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: python -m pip install playwright")
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=need("chromium", "chromium"), args=FLAGS)
        yield chromium
        chromium.close()


def pytest_configure(config: pytest.Config) -> None:
    """Outputs of notebooks are compared where they were made: figures differ a little between platforms."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # begun in the background: the tests of Ctrl-C need it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform != "linux" and config.option.nbval:
        config.option.nbval, config.option.nbval_lax = False, True
