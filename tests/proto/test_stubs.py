"""The checked-in stubs are those of the checked-in contract, and the contract is clean."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROTO = Path(__file__).resolve().parents[2] / "proto"
GENERATED = [
    f"{proto}_{kind}" for proto in ("policy", "admin") for kind in ("pb2.py", "pb2.pyi", "pb2_grpc.py", "pb2_grpc.pyi")
]


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stubs")
    subprocess.run([sys.executable, PROTO / "generate.py", out], check=True, capture_output=True)
    return out / "chunkcast" / "v1"


@pytest.mark.parametrize("name", GENERATED)
def test_stubs_are_not_stale(regenerated: Path, name: str) -> None:
    checked_in = (PROTO / "chunkcast" / "v1" / name).read_text()
    assert checked_in == (regenerated / name).read_text(), "run `make proto`"


def test_contract_passes_buf_lint() -> None:
    buf = Path(sys.executable).with_name("buf")
    result = subprocess.run([buf, "lint"], cwd=PROTO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_generator_is_not_installed_with_the_package() -> None:
    assert importlib.util.find_spec("chunkcast.v1.policy_pb2") is not None
    assert importlib.util.find_spec("chunkcast.v1.generate") is None
