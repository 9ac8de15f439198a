"""Writes a bundle: ``policy.onnx`` and ``policy.json``, a PolicySpec that names the hash of every other file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import json_format

from chunkcast.training.errors import ExportError
from chunkcast.training.files import write_text
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
        (aside / SPEC_NAME).write_text(spec_json(spec), encoding="utf-8")
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


def read_spec(bundle: Path) -> pb.PolicySpec:
    """The specification of a bundle.

    Raises:
        ExportError: there is none, or it is not one.
    """
    file = bundle / SPEC_NAME
    try:
        return json_format.Parse(file.read_text(encoding="utf-8"), pb.PolicySpec())
    except FileNotFoundError:
        raise ExportError(f"{file} is missing; expected a bundle folder made by chunkcast-export") from None
    except (json_format.ParseError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(f"{file} is not a policy specification ({reason}); export the policy again") from None


def write_expectations(bundle: Path, expectations: Sequence[pb.ExpectedSuccess]) -> None:
    """Put ``expectations`` into a bundle's specification, in place of those from the same sources.

    The graph, and with it the policy's version, stay as they are. Written aside, then renamed.
    """
    spec = read_spec(bundle)
    sources = {expectation.source for expectation in expectations}
    kept = [expectation for expectation in spec.expected_success if expectation.source not in sources]
    del spec.expected_success[:]
    # Measured before calibrated before the seed's table, as the enumeration has them.
    spec.expected_success.extend(sorted([*kept, *expectations], key=lambda each: each.source))
    write_text(bundle / SPEC_NAME, spec_json(spec))


def spec_json(spec: pb.PolicySpec) -> str:
    """A specification as it stands in a bundle; the same specification gives the same text."""
    fields = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    # Maps come in no particular order.
    for part in (fields.get("training", {}), fields.get("provenance", {})):
        part.update({name: dict(sorted(value.items())) for name, value in part.items() if isinstance(value, dict)})
    return json.dumps(fields, indent=2) + "\n"
