"""Generate the typed stubs beside the .proto files: ``python proto/generate.py [OUT]`` (``make proto``)."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SOURCES = ("chunkcast/v1/policy.proto", "chunkcast/v1/admin.proto", "chunkcast/v1/health.proto")


def generate(out: Path) -> None:
    """Write ``*_pb2`` and ``*_pb2_grpc`` with their ``.pyi`` under ``out``.

    Raises:
        RuntimeError: protoc refused a file.
    """
    from grpc_tools import protoc

    outputs = [f"--{name}_out={out}" for name in ("python", "grpc_python", "mypy", "mypy_grpc")]
    # The plugins of this interpreter's environment, which need not be on the PATH.
    scripts = Path(sys.executable).parent
    plugins = [f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    status = protoc.main(["protoc", f"-I{ROOT}", *plugins, *outputs, *SOURCES])
    if status:
        raise RuntimeError(f"protoc ended with status {status} for {', '.join(SOURCES)}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
