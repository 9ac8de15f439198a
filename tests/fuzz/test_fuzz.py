"""What others send, through every fuzz target: the corpus, messages with structure and a fault, and a short search."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chunkcast.v1 import policy_pb2 as pb
from fuzz.__main__ import failure, main
from fuzz.checks import Finding, require_clear
from fuzz.memory import watched
from fuzz.mutators import as_json, as_protobuf, with_checksums
from fuzz.registry import TARGETS, corpus_files
from fuzz.seeds import SEED
from fuzz.targets import (
    image,
)
from tests.conftest import ROOT
from tests.fuzz.messages import SEEDS, STRUCTURED

SEARCH_SECONDS = 3

FILES = [(name, file) for name in TARGETS for file in corpus_files(name)]


@pytest.mark.parametrize(("name", "file"), FILES, ids=[f"{name}/{file.name}" for name, file in FILES])
def test_nothing_is_found_in_the_corpus(name: str, file: Path) -> None:
    with warnings.catch_warnings():
        # Pillow warns of odd pictures, which pytest would turn into refusals; numpy's warnings are findings.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", RuntimeWarning)
        TARGETS[name].load().run(file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_has_every_seed_and_is_small(name: str) -> None:
    seeds = {f"{SEED}{label}" for label in SEEDS[name]}
    files = corpus_files(name)
    assert {file.name for file in files if file.name.startswith(SEED)} == seeds, "run python -m fuzz.seeds"
    assert max(file.stat().st_size for file in files) < 20_000
    assert sum(file.stat().st_size for _, file in FILES) < 300_000


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nothing_is_found_in_messages_with_a_fault(name: str, data: st.DataObject) -> None:
    TARGETS[name].load().run(data.draw(STRUCTURED[name]))


# --- the search


def require_atheris() -> None:
    """Skip a test that searches where atheris is not installed; never in CI."""
    if importlib.util.find_spec("atheris") is None:
        assert not os.environ.get("CI"), "CI installs atheris"
        pytest.skip("atheris is not installed (pip install -e '.[dev]')")


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_search_finds_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    require_atheris()
    # The same search each time, as far as the machine comes: what fails is what was changed. make fuzz looks further.
    code = main([name, "--seconds", str(SEARCH_SECONDS), "--seed", "1"])
    line = capsys.readouterr().out.strip()
    assert code == 0, line
    account = re.fullmatch(rf"{name}: ([\d,]+) inputs, .*branches \d+ -> (\d+), .*; nothing found", line)
    assert account, line
    assert int(account[1].replace(",", "")) > len(corpus_files(name)), "no more than the corpus was read"
    assert int(account[2]) > 10, "what is read is not instrumented"


BROKEN = """
import sys, types
from pathlib import Path
from fuzz.registry import Target
from fuzz.worker import fuzz

def run(data):
    {fault}

def mutate(data, most, seed, plain):
    return plain(data, most)

sys.modules["broken"] = types.SimpleNamespace(run=run, seeds=dict, mutate=mutate)
fuzz("broken", Target("broken", ("broken",)), ["-max_total_time=60", "corpus"], Path("crashes"))
"""


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("data.startswith(b'b') and int('x')", r"ValueError: invalid literal for int\(\) .*"),
        ("bytearray(b'1') * 400 * 2**20", r"Finding: \d+ bytes took 4\d\d MiB of memory"),
        ("bytearray(16 * 2**30)", "MemoryError: "),
    ],
)
def test_a_finding_is_one_line_and_a_file(tmp_path: Path, fault: str, words: str) -> None:
    require_atheris()
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "one").write_bytes(b"bug")
    run = subprocess.run(
        [sys.executable, "-c", BROKEN.format(fault=fault)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    line = failure("broken", run.stdout + run.stderr, run.returncode)
    (file,) = (tmp_path / "crashes").iterdir()
    assert run.returncode == 1
    assert re.fullmatch(rf"broken: crashes/{file.name}: {words}", line), line


def test_what_libfuzzer_itself_finds_is_one_line_too() -> None:
    log = "==7== ERROR: libFuzzer: timeout after 31 seconds\nTest unit written to /a/image-timeout-1\n"
    assert failure("image", log, 70) == ("image: /a/image-timeout-1: exit code 70: libFuzzer: timeout after 31 seconds")


@pytest.mark.parametrize(
    "message",
    ["", "a\nb", "a\x1b[2J", "x" * 2001, f"{ROOT}/x is missing", "<_io.BytesIO object at 0x7f>", f"{sys.prefix}/lib"],
)
def test_a_message_that_is_not_clear_is_a_finding(message: str) -> None:
    require_clear("step 3 is not above 5; send steps in order")
    with pytest.raises(Finding):
        require_clear(message)


def test_a_small_input_may_take_some_memory() -> None:
    watched(lambda _: bytearray(2**20).clear(), b"small")


@pytest.mark.parametrize(
    ("mutator", "whole", "parse"),
    [
        (as_json, SEEDS["spec"]["plain"], json.loads),
        (as_protobuf, SEEDS["observation"]["plain"][1:], pb.StreamActionsRequest.FromString),
    ],
    ids=["json", "protobuf"],
)
def test_most_of_what_is_mutated_still_parses_and_is_another(mutator: Any, whole: bytes, parse: Any) -> None:
    made = [mutator(whole, 2**16, seed, lambda data, most: data[: most - 1] + b"a") for seed in range(200)]
    assert len(set(made)) > 50
    assert sum(_parses(parse, each) for each in made) > 100


def test_a_mutated_png_has_right_checksums() -> None:
    png = image.encoded("PNG")
    at = png.index(b"IEND") + 4
    damaged = png[:at] + bytes(4)
    assert damaged != png
    assert with_checksums(damaged) == png


def _parses(parse: Any, data: bytes) -> bool:
    try:
        parse(data)
    except Exception:
        return False
    return True
