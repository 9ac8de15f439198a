"""Which execution provider runs a graph: what was asked for by name, or one clear line that it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chunkcast.client import PolicyClient
from chunkcast.server.bundle import read_bundle
from chunkcast.server.choices import ProviderChoice
from chunkcast.server.engine import Engine
from chunkcast.server.errors import ProviderMissing
from chunkcast.server.providers import has_cuda_driver
from tests.conftest import ServeBundle
from tests.handmade_bundle import HISTORY, STATE_KEY, STATE_SIZE, write_echo_bundle

without_driver = pytest.mark.skipif(has_cuda_driver(), reason="this machine has an NVIDIA driver")

ADVICE = {
    "cuda": (
        "error: CUDAExecutionProvider was asked for (--providers cuda) and cannot be used here; install an NVIDIA "
        "driver, CUDA 13 with cuDNN 9 and onnxruntime-gpu, or pass --providers cpu\n"
    ),
    "tensorrt": (
        "error: TensorrtExecutionProvider was asked for (--providers tensorrt) and cannot be used here; install "
        "TensorRT's libraries and onnxruntime-gpu, or leave tensorrt out of --providers\n"
    ),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_echo_bundle(tmp_path_factory.mktemp("providers") / "echo")


def run_serve(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected not to start."""
    command = [sys.executable, "-m", "chunkcast.server.cli", "--bundle", str(bundle), "--listen", "127.0.0.1:0"]
    command += ["--metrics-listen", "", "--admin-listen", "", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@without_driver
@pytest.mark.parametrize(
    ("providers", "missing"),
    [
        (("cuda",), "cuda"),
        (("tensorrt",), "tensorrt"),
        # Asked for by name, and not quietly replaced by the next.
        (("cuda", "cpu"), "cuda"),
        (("tensorrt", "cuda", "cpu"), "tensorrt"),
    ],
)
def test_a_provider_that_is_not_there_is_one_line_and_exit_code_2(
    bundle: Path, providers: tuple[ProviderChoice, ...], missing: str
) -> None:
    result = run_serve(bundle, "--providers", *providers)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == ADVICE[missing]


@without_driver
def test_the_engine_refuses_it_too(bundle: Path) -> None:
    with pytest.raises(ProviderMissing, match="CUDAExecutionProvider was asked for"):
        Engine(read_bundle(bundle), providers=("cuda",))


def test_an_unknown_provider_is_exit_code_2(bundle: Path) -> None:
    result = run_serve(bundle, "--providers", "abacus")
    assert (result.returncode, result.stdout) == (2, "")
    assert "abacus" in result.stderr


@pytest.mark.parametrize("providers", [(), ("--providers", "auto"), ("--providers", "cpu")])
def test_auto_and_cpu_serve(serve_bundle: ServeBundle, bundle: Path, providers: tuple[str, ...]) -> None:
    server = serve_bundle(bundle, *providers)
    with PolicyClient(server.address) as client, client.stream() as stream:
        observation = {STATE_KEY: np.full(STATE_SIZE, 5, np.float32)}
        chunk = stream.request(observation, episode_id="e", step=0, instruction="left")
    np.testing.assert_array_equal(chunk.actions, np.full((HISTORY, STATE_SIZE), 5, np.float32))


@pytest.mark.parametrize("providers", [("cpu",), pytest.param(("auto",), marks=without_driver)])
def test_the_engine_says_who_runs_it(bundle: Path, providers: tuple[ProviderChoice, ...]) -> None:
    engine = Engine(read_bundle(bundle), providers=providers)
    assert engine.provider == "CPUExecutionProvider"
