"""Generate the typed stubs beside policy.proto: ``python proto/generate.py [OUT]`` (``make proto``)."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SOURCE = "chunkcast/v1/policy.proto"


def generate(out: Path) -> None:
    """Write ``policy_pb2`` and ``policy_pb2_grpc`` with their ``.pyi`` under ``out``.

    Raises:
        RuntimeError: protoc refused the file.
    """
    from grpc_tools import protoc

    outputs = [f"--{name}_out={out}" for name in ("python", "grpc_python", "mypy", "mypy_grpc")]
    # The plugins of this interpreter's environment, which need not be on the PATH.
    scripts = Path(sys.executable).parent
    plugins = [f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    status = protoc.main(["protoc", f"-I{ROOT}", *plugins, *outputs, SOURCE])
    if status:
        raise RuntimeError(f"protoc ended with status {status} for {SOURCE}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
