"""The server's lock files are of the versions that were tested, whole, and name no place to install from."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import release.lock
from release.closure import closure
from release.common import CONSTRAINTS
from release.lock import CPU_LOCK, EXTRA, LOCK, main, pins, problems
from tests.release.conftest import Refused

HASH = "    --hash=sha256:" + "ab" * 32
LOCKED = f"# {EXTRA}\nOne-two==1.0 \\\n{HASH} \\\n{HASH}\nthree==2.0 \\\n{HASH}\n"
TESTED = "# tested\none_two==1.0\nthree==2.0\nfour==3.0\n"
WANTED = {"one-two", "three"}


def test_the_locks_are_in_sync(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--check"])
    count = len(closure(EXTRA))
    assert capsys.readouterr().out.splitlines() == [
        f"lock: requirements-server.txt: {count} packages with hashes, as in constraints.txt",
        f"lock: requirements-server-cpu.txt: {count} packages with hashes, as in constraints.txt",
    ]


def test_what_is_read_is_in_the_files() -> None:
    tested = pins(CONSTRAINTS.read_text())
    locked, without_cuda = (pins(lock.file.read_text()) for lock in (LOCK, CPU_LOCK))
    assert locked.pop("onnxruntime-gpu") == without_cuda.pop("onnxruntime") == tested["onnxruntime-gpu"]
    assert locked == without_cuda
    assert locked.items() < tested.items()
    assert len(locked) > 20


def test_a_lock_that_is_out_of_sync_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    absent = replace(LOCK, file=tmp_path / "absent.txt")
    older = replace(CPU_LOCK, file=tmp_path / "older.txt")
    older.file.write_text(re.sub("(?m)^numpy==.*? ", "numpy==1.0 ", CPU_LOCK.file.read_text()))
    monkeypatch.setattr(release.lock, "LOCK", absent)
    monkeypatch.setattr(release.lock, "CPU_LOCK", older)
    tested = pins(CONSTRAINTS.read_text())["numpy"]
    assert refused(main, "--check", code=1) == [
        "absent.txt is missing",
        f"older.txt: numpy is locked at 1.0, constraints.txt has {tested}",
        "error: run python -m release.lock",
    ]


def test_one_onnx_runtime_stands_in_for_the_other() -> None:
    text = "onnx==1.0\nonnxruntime-gpu==2.0\n"
    assert CPU_LOCK.swapped(text) == "onnx==1.0\nonnxruntime==2.0\n"
    assert LOCK.swapped(CPU_LOCK.swapped(text)) == text
    assert CPU_LOCK.swapped("onnxruntime-gpu") == "onnxruntime"


def test_a_lock_in_sync_has_no_problem() -> None:
    assert not list(problems(LOCKED, TESTED, WANTED))


@pytest.mark.parametrize(
    ("lock", "tested", "wanted", "problem"),
    [
        (LOCKED, TESTED.replace("2.0", "2.0.1"), WANTED, "three is locked at 2.0, constraints.txt has 2.0.1"),
        (
            LOCKED,
            TESTED.replace("three==2.0\n", ""),
            WANTED,
            "three is locked at 2.0, constraints.txt has no pin of it",
        ),
        (LOCKED, TESTED, {*WANTED, "four"}, "four is missing, which chunkcast[server] needs"),
        (LOCKED, TESTED, {"one-two"}, "three is locked, which chunkcast[server] does not need"),
        (LOCKED.replace(f"three==2.0 \\\n{HASH}", "three==2.0"), TESTED, WANTED, "three has no hash"),
        (
            f"--index-url https://example.org/\n{LOCKED}",
            TESTED,
            WANTED,
            "an address is in it; which index to install from is not the lock's matter",
        ),
    ],
)
def test_differences(lock: str, tested: str, wanted: set[str], problem: str) -> None:
    assert list(problems(lock, tested, wanted)) == [problem]
