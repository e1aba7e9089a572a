"""What several tests need: the sample collections beside the repository, and real servers."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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


def pytest_configure(config: pytest.Config) -> None:
    """Outputs of notebooks are compared where they were made: figures differ a little between platforms."""
    if sys.platform != "linux" and config.option.nbval:
        config.option.nbval, config.option.nbval_lax = False, True
