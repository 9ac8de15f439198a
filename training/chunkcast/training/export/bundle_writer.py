"""Writes a bundle: graphs, health reference, and ``policy.json``, a PolicySpec that names every other file's hash."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import json_format

from chunkcast.training.errors import ExportError
from chunkcast.training.files import replace_folder, write_bytes, write_text
from chunkcast.v1 import health_pb2 as pb_health
from chunkcast.v1 import policy_pb2 as pb

GRAPH_NAME = "policy.onnx"
HEALTH_GRAPH_NAME = "health.onnx"
HEALTH_REFERENCE_NAME = "health.binpb"
SPEC_NAME = "policy.json"


def write_bundle(
    folder: Path, graph: bytes, spec: pb.PolicySpec, *, overwrite: bool, health_graph: bytes | None = None
) -> None:
    """Write the bundle aside, then rename it to ``folder``.

    Args:
        folder: must not exist, or be a bundle with ``overwrite``. A README.md in it is kept.
        graph: the serialised ONNX model.
        spec: completed here with ``files`` and, if empty, ``version``.
        health_graph: the serialised second model, if there is one.

    Raises:
        ExportError: the folder exists and may not be replaced.
    """
    if folder.exists():
        if not overwrite:
            raise ExportError(f"{folder} exists; pass --overwrite to replace it, or choose another --out")
        if not (folder / SPEC_NAME).is_file():
            raise ExportError(f"{folder} exists and is not a bundle (no {SPEC_NAME}); choose another --out")
    spec.version = spec.version or hashlib.sha256(graph).hexdigest()[:12]
    files = {GRAPH_NAME: graph} | ({HEALTH_GRAPH_NAME: health_graph} if health_graph else {})
    del spec.files[:]
    for name, content in files.items():
        spec.files.add(path=name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        aside.chmod(0o755)
        for name, content in files.items():
            (aside / name).write_bytes(content)
        (aside / SPEC_NAME).write_text(spec_json(spec), encoding="utf-8")
        if (folder / "README.md").is_file():
            shutil.copy2(folder / "README.md", aside / "README.md")
        replace_folder(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_serving_health(bundle: Path, reference: pb_health.HealthReference, health: pb.ServingHealth) -> None:
    """Put what health signals are measured against into a bundle, in place of what is there.

    The graph, and with it the policy's version, stay as they are.

    Args:
        reference: of every instruction.
        health: the thresholds; none while they are not known yet.

    Raises:
        ExportError: the folder is no bundle.
    """
    spec = read_spec(bundle)
    spec.serving_health.CopyFrom(health)
    content = reference.SerializeToString(deterministic=True)
    kept = [file for file in spec.files if file.path != HEALTH_REFERENCE_NAME]
    del spec.files[:]
    spec.files.extend(kept)
    spec.files.add(path=HEALTH_REFERENCE_NAME, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    # Between the two renames a server that reads the bundle finds that they do not belong together, and refuses it.
    write_bytes(bundle / HEALTH_REFERENCE_NAME, content)
    write_text(bundle / SPEC_NAME, spec_json(spec))


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


def text_of_task(spec: pb.PolicySpec) -> dict[str, str]:
    """Each task's plain name, as simulations and demonstrations have it, to the text that stands for it in a bundle."""
    return {instruction.task or instruction.text: instruction.text for instruction in spec.instructions}


def write_expectations(bundle: Path, expectations: Sequence[pb.ExpectedSuccess]) -> None:
    """Put ``expectations``, whose tasks may be plain names, into a bundle's specification, in place of those from the
    same sources.

    The graph, and with it the policy's version, stay as they are. Written aside, then renamed.
    """
    spec, texts = read_spec(bundle), text_of_task(read_spec(bundle))
    for expectation in expectations:
        expectation.task = texts.get(expectation.task, expectation.task)
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
