"""The import rule: client, server, training -> proto, client.sim -> client; client.sim, training -> simulation; server,
training -> language; no more."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A module's part is the longest prefix that it has; each part may import itself and those named here.
ALLOWED = {
    "chunkcast.v1": set(),
    "chunkcast.client": {"chunkcast.v1"},
    "chunkcast.simulation": {"chunkcast.v1"},
    "chunkcast.client.sim": {"chunkcast.client", "chunkcast.simulation", "chunkcast.v1"},
    "chunkcast.client.load": {"chunkcast.client", "chunkcast.v1"},
    "chunkcast.language": set(),
    "chunkcast.server": {"chunkcast.v1", "chunkcast.language"},
    "chunkcast.training": {"chunkcast.v1", "chunkcast.language", "chunkcast.simulation"},
}
FORBIDDEN_LIBRARIES = {
    "chunkcast.v1": {"torch", "onnxruntime", "mujoco", "metaworld", "prometheus_client", "diffusers"},
    "chunkcast.client": {"torch", "onnxruntime", "mujoco", "metaworld", "prometheus_client", "diffusers", "rich"},
    "chunkcast.client.sim": {"torch", "onnxruntime", "prometheus_client", "diffusers"},
    "chunkcast.client.load": {"torch", "onnxruntime", "mujoco", "metaworld", "prometheus_client", "diffusers"},
    "chunkcast.simulation": {"torch", "onnxruntime", "prometheus_client", "diffusers", "grpc", "rich"},
    "chunkcast.language": {"torch", "transformers", "mujoco", "metaworld", "prometheus_client", "grpc", "google"},
    "chunkcast.server": {"torch", "mujoco", "metaworld", "diffusers", "safetensors"},
    "chunkcast.training": {"grpc", "prometheus_client"},
}


def part_of(module: str) -> str | None:
    prefixes = [part for part in ALLOWED if module == part or module.startswith(f"{part}.")]
    return max(prefixes, key=len, default=None)


def imports_of(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file} imports relatively"
            found.add(node.module)
            # `from chunkcast.client import sim` imports a module too
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


MODULES = [
    (".".join(file.relative_to(root).with_suffix("").parts), file)
    for root in (ROOT / name for name in ("proto", "language", "simulation", "client", "server", "training"))
    for file in sorted((root / "chunkcast").rglob("*.py"))
]


@pytest.mark.parametrize(("module", "file"), MODULES, ids=[name for name, _ in MODULES])
def test_imports_follow_the_rule(module: str, file: Path) -> None:
    part = part_of(module)
    assert part is not None
    for imported in imports_of(file):
        other = part_of(imported)
        assert other is None or other == part or other in ALLOWED[part], f"{module} imports {imported}"
        assert imported.split(".")[0] not in FORBIDDEN_LIBRARIES[part], f"{module} imports {imported}"


def test_the_namespace_has_no_init() -> None:
    assert len(MODULES) > 30
    assert not list(ROOT.glob("*/chunkcast/__init__.py"))
