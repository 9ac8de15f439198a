"""The scripts of a release are no part of the distribution: they are imported from the checkout."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT))

Refused = Callable[..., list[str]]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel of the checkout's files."""
    from release.build import build

    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a script's main that must end with an exit code; the lines that it wrote to stderr."""

    def run(main: Callable[[list[str]], None], *arguments: str | Path, code: int) -> list[str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert stop.value.code == code
        captured = capsys.readouterr()
        assert not captured.out
        return captured.err.splitlines()

    return run
