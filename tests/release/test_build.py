"""Wheel and sdist: the same bytes twice, everything that belongs into them, and nothing else."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from release import build
from release.common import ReleaseError, version
from release.contents import main, sources
from release.venvs import venv
from tests.release.conftest import Refused


def test_both_hold_what_they_should(built: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    main([str(file) for file in built])
    assert capsys.readouterr().out.endswith("hold what they should\n")
    # Code and no weights: a policy is many times as large.
    assert all(10_000 < file.stat().st_size < 4_000_000 for file in built)


def test_bytes_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other_day = (0o022, {"SOURCE_DATE_EPOCH": "1000000000"})
    monkeypatch.setattr(build, "BUILDS", (build.BUILDS[0], other_day))
    with pytest.raises(ReleaseError, match=r"chunkcast-.*\.tar\.gz is not reproducible: built twice, its bytes differ"):
        build.build(tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_a_commit_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "git", lambda *_: " M server/one.py\n?? two.py\n")
    with pytest.raises(ReleaseError, match=r"^not as committed: server/one\.py and 1 more; a release is of a commit$"):
        build.refuse_uncommitted()
    monkeypatch.setattr(build, "git", lambda *_: "")
    build.refuse_uncommitted()


def rewritten(wheel: Path, folder: Path, *, without: str = "", more: str = "") -> Path:
    """A wheel that lacks one file, or has one more."""
    file = folder / wheel.name
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(file, "w") as out:
        for name in archive.namelist():
            if name != without:
                out.writestr(name, archive.read(name))
        if more:
            out.writestr(more, "")
    return file


@pytest.mark.parametrize(
    "name",
    [
        "chunkcast/server/py.typed",
        "chunkcast/server/status/static/status.js",
        "chunkcast/v1/policy_pb2.pyi",
        "chunkcast/training/language/metaworld_instructions.toml",
        f"chunkcast-{version()}.dist-info/licenses/LICENSE",
    ],
)
def test_a_file_that_the_wheel_lacks(name: str, built: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    wheel = rewritten(built[1], tmp_path, without=name)
    assert refused(main, wheel, code=1) == [f"{wheel.name}: {name} is missing"]


@pytest.mark.parametrize("name", ["tests/test_layout.py", "chunkcast/server/test_one.py", "chunkcast/__init__.py"])
def test_a_file_too_much_in_the_wheel(name: str, built: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    wheel = rewritten(built[1], tmp_path, more=name)
    assert refused(main, wheel, code=1) == [f"{wheel.name}: {name} should not be in it"]


def test_files_missing_and_too_much_in_the_sdist(built: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    sdist = tmp_path / built[0].name
    folder = f"chunkcast-{version()}"
    with tarfile.open(built[0]) as archive, tarfile.open(sdist, "w:gz") as out:
        for member in archive.getmembers():
            if member.name != f"{folder}/server/chunkcast/server/status/static/index.html":
                out.addfile(member, archive.extractfile(member))
        for name in (f"{folder}/policies/metaworld-six/policy.onnx", f"{folder}/.venv/one.py", "elsewhere.py"):
            out.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert refused(main, sdist, code=1) == [
        f"{sdist.name}: elsewhere.py is not under {folder}/",
        f"{sdist.name}: server/chunkcast/server/status/static/index.html is missing",
        f"{sdist.name}: .venv/one.py should not be in it",
        f"{sdist.name}: policies/metaworld-six/policy.onnx should not be in it",
    ]


def test_what_is_neither_is_one_line(tmp_path: Path, refused: Refused) -> None:
    absent = tmp_path / "absent.whl"
    assert refused(main, absent, code=2) == [f"error: {absent} is missing; python -m release.build makes it"]
    text = Path(shutil.copy(__file__, tmp_path))
    assert refused(main, text, code=2) == ["error: test_build.py is neither a wheel nor an sdist"]


def test_the_sources_are_those_of_all_six_parts() -> None:
    found = sources()
    assert found["chunkcast/v1/policy.proto"] == "proto/chunkcast/v1/policy.proto"
    assert {path.split("/")[0] for path in found.values()} == {
        "proto",
        "language",
        "simulation",
        "client",
        "server",
        "training",
    }


def test_an_empty_environment_sees_nothing_of_this_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "leaked.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with venv() as environment:
        assert environment.installed() == set()
        with pytest.raises(ReleaseError, match="No module named 'leaked'"):
            environment.python("import leaked")
        folder = environment.folder
    assert not folder.exists()
