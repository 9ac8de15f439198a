"""Writes a bundle: ``policy.onnx`` and ``policy.json``, a PolicySpec that names the hash of every other file."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from google.protobuf import json_format

from chunkcast.training.errors import ExportError
from chunkcast.v1 import policy_pb2 as pb

GRAPH_NAME = "policy.onnx"
SPEC_NAME = "policy.json"


def write_bundle(folder: Path, graph: bytes, spec: pb.PolicySpec, *, overwrite: bool) -> None:
    """Write the bundle aside, then rename it to ``folder``.

    Args:
        folder: must not exist, or be a bundle with ``overwrite``. A README.md in it is kept.
        graph: the serialised ONNX model.
        spec: completed here with ``files`` and, if empty, ``version``.

    Raises:
        ExportError: the folder exists and may not be replaced.
    """
    if folder.exists():
        if not overwrite:
            raise ExportError(f"{folder} exists; pass --overwrite to replace it, or choose another --out")
        if not (folder / SPEC_NAME).is_file():
            raise ExportError(f"{folder} exists and is not a bundle (no {SPEC_NAME}); choose another --out")
    sha256 = hashlib.sha256(graph).hexdigest()
    spec.version = spec.version or sha256[:12]
    del spec.files[:]
    spec.files.add(path=GRAPH_NAME, sha256=sha256, size_bytes=len(graph))
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        aside.chmod(0o755)
        (aside / GRAPH_NAME).write_bytes(graph)
        text = json_format.MessageToJson(spec, preserving_proto_field_name=True, indent=2)
        (aside / SPEC_NAME).write_text(text + "\n")
        if folder.exists():
            if (folder / "README.md").is_file():
                shutil.copy2(folder / "README.md", aside / "README.md")
            # A folder cannot be replaced in one rename; the old one steps aside first and is whole until then.
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            os.rename(folder, old / folder.name)
            os.rename(aside, folder)
            shutil.rmtree(old)
        else:
            os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
