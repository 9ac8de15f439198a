"""The wheel and the sdist, installed as a user would and used; and what the smoke test itself would notice."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import pytest

from release import smoke
from release.common import CONSTRAINTS, ReleaseError
from release.sbom import check, sbom_of
from release.venvs import Venv, venv
from tests.release.conftest import Refused


def test_the_wheel(built: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    smoke.main([str(built[1])])
    said = capsys.readouterr().out
    assert re.fullmatch(
        r"smoke: .*whl: the client alone is light and imports; the server played \d+ chunks and stopped \(\d+ s\)\n",
        said,
    )


def test_the_sdist_builds_and_installs(built: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    smoke.main([str(built[0]), "--only", "client"])
    assert "tar.gz: the client alone is light and imports (" in capsys.readouterr().out


def altered(wheel: Path, folder: Path, ending: str, old: str, new: str) -> Path:
    """A wheel in which one file, whose name ends so, has another text."""
    file = folder / wheel.name
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(file, "w") as out:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(ending):
                assert old.encode() in content
                content = content.replace(old.encode(), new.encode())
            out.writestr(name, content)
    return file


@pytest.mark.parametrize(
    ("ending", "old", "new", "message"),
    [
        ("/METADATA", "Requires-Dist: grpcio", "Requires-Dist: pillow\nRequires-Dist: grpcio", "brings pillow along"),
        (
            "server/cli.py",
            "import annotations\n",
            "import annotations\nimport structlog\n",
            "without its extra ended with exit code 1: ModuleNotFoundError: No module named 'structlog'",
        ),
    ],
)
def test_a_wheel_that_is_not_fit(
    ending: str, old: str, new: str, message: str, built: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ReleaseError, match=re.escape(message)):
        smoke.client(altered(built[1], tmp_path, ending, old, new))


def test_a_wheel_that_lacks_files_is_not_installed(built: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    wheel = tmp_path / built[1].name
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr("chunkcast/one.py", "")
    (line,) = refused(smoke.main, wheel, code=1)
    assert line.startswith(f"error: {wheel.name}: ")
    assert "is missing" in line


READY = "echo ready grpc=127.0.0.1:1 metrics=127.0.0.1:2 admin=127.0.0.1:3"


def environment_with(server: str, folder: Path) -> Venv:
    """An environment whose chunkcast-serve is a shell script."""
    environment = object.__new__(Venv)
    environment.folder = environment.bin = folder
    environment.environment = dict(os.environ)
    script = folder / "chunkcast-serve"
    script.write_text(f"#!/bin/bash\n{server}\n")
    script.chmod(0o755)
    return environment


def test_a_server_that_stops_as_it_should(tmp_path: Path) -> None:
    script = f"trap 'exit 0' TERM; {READY}; while true; do sleep 0.02; done"
    with smoke.serving(environment_with(script, tmp_path)) as addresses:
        assert addresses == {"grpc": "127.0.0.1:1", "metrics": "127.0.0.1:2", "admin": "127.0.0.1:3"}


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'error: no such bundle' >&2; exit 2", "chunkcast-serve did not start: error: no such bundle"),
        (
            f"trap 'echo broken >&2; exit 3' TERM; {READY}; while true; do sleep 0.02; done",
            "SIGTERM ended chunkcast-serve with exit code 3: broken",
        ),
        (f"{READY}; exec sleep 60", "SIGTERM ended chunkcast-serve with exit code -15: its log is empty"),
        (f"trap '' TERM; {READY}; while true; do sleep 0.02; done", "chunkcast-serve still ran 1 s after SIGTERM"),
    ],
)
def test_a_server_that_does_not(script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "STOP_SECONDS", 1.0)
    with pytest.raises(ReleaseError, match=re.escape(message)), smoke.serving(environment_with(script, tmp_path)):
        pass


def test_the_sbom_names_what_is_installed(built: tuple[Path, Path]) -> None:
    with venv() as environment:
        environment.install("-c", CONSTRAINTS, built[1])
        document = sbom_of(environment)
        assert document["bomFormat"] == "CycloneDX"
        assert document["metadata"]["component"]["name"] == "chunkcast"
        named = {component["name"]: component for component in document["components"]}
        assert named.keys() == {"grpcio", "numpy", "protobuf", "typing_extensions"}
        assert named["numpy"]["purl"].startswith("pkg:pypi/numpy@")
        with pytest.raises(ReleaseError, match=r"^the SBOM and the environment differ in hidden, numpy$"):
            check(document, (environment.installed() | {"hidden"}) - {"numpy"})
