"""Fixtures: real servers on loopback ports, with bundles made by hand or shipped."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

# Some tests start programs by a fork while gRPC's threads run; gRPC's handlers would follow through it, and may crash.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

from chunkcast.client.private_server import PrivateServer, private_server
from tests.handmade_bundle import write_echo_bundle

# No test asserts a time.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# mujoco reads it when it is imported; tests that render skip themselves where the library is missing.
if ctypes.util.find_library("OSMesa"):
    os.environ.setdefault("MUJOCO_GL", "osmesa")

ROOT = Path(__file__).resolve().parent.parent
SHIPPED_BUNDLE = ROOT / "policies" / "metaworld-six"
SHIPPED_MT50 = ROOT / "policies" / "metaworld-mt50"
SHIPPED_RGB = ROOT / "policies" / "metaworld-six-rgb"
SHIPPED_ENCODER = ROOT / "policies" / "text-encoders" / "all-minilm-l6-v2"

ServeBundle = Callable[..., PrivateServer]


@pytest.fixture
def serve_bundle() -> Iterator[ServeBundle]:
    """Start ``chunkcast-serve`` on free ports for a bundle; stopped at the test's end."""
    with ExitStack() as stack:

        def serve(bundle: Path, *arguments: str) -> PrivateServer:
            return stack.enter_context(private_server(bundle, *arguments))

        yield serve


@pytest.fixture(scope="module")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    """A server whose policy returns the observation history that the server put together."""
    with private_server(write_echo_bundle(tmp_path_factory.mktemp("echo") / "echo")) as server:
        yield server


@pytest.fixture(scope="session")
def shipped_server() -> Iterator[PrivateServer]:
    """A server with the shipped six-task policy."""
    with private_server(SHIPPED_BUNDLE) as server:
        yield server


def required_program(name: str, package: str) -> str:
    """The path of a Debian program that CI installs; a test that needs it is skipped elsewhere, never in CI."""
    path = shutil.which(name)
    if path:
        return path
    message = f"{name} is not installed (apt-get install {package})"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def require_gl() -> None:
    """Skip a test that renders where nothing can; never in CI."""
    libraries = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    if "libOSMesa" not in libraries:
        assert not os.environ.get("CI"), "CI installs libosmesa6"
        pytest.skip("no GL library (apt-get install libosmesa6)")
