"""A bundle's folder: its files are not what its specification says.

Input: JSON. ``spec`` is written as policy.json; ``disk`` is a list of what else lies in the folder: ``name`` (a plain
one), ``kind`` (file, folder, link or pipe), ``content`` (of a file, or a link's target), ``times`` (the content is
repeated) and ``told`` (the specification is made to name this file, with its true size and hash).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from chunkcast.server.bundle import GRAPH_NAME, HEALTH_REFERENCE_NAME, SPEC_NAME, read_bundle
from chunkcast.server.errors import BundleError
from chunkcast.server.health.reference import read_references
from fuzz.checks import require, require_clear
from fuzz.mutators import as_json
from fuzz.opened import opened_paths
from fuzz.policies import plain_policy
from fuzz.targets.health_reference import reference
from fuzz.workspace import emptied

MOST_CONTENT = 2**16
SECRET = b"secret"
"""Of a file beside the folder."""

TEXT = "latin-1"
"""Files' contents are bytes, each a character."""

mutate = as_json


def run(data: bytes) -> None:
    """Lay out a folder and read it."""
    try:
        recipe = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(recipe, dict):
        return
    root = emptied("bundle")
    folder, outside = root / "inside", root / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "other").write_bytes(SECRET)
    spec = recipe.get("spec")
    try:
        for each in recipe["disk"][:8]:
            _lay(folder, each, spec)
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        return  # a recipe that cannot be followed
    if not os.path.lexists(folder / SPEC_NAME):
        (folder / SPEC_NAME).write_text(json.dumps(spec), encoding="utf-8")
    with opened_paths(root) as opened:
        try:
            bundle = read_bundle(folder)
        except BundleError as refused:
            require_clear(refused, of_a_client=False)
            require(SECRET.decode() not in str(refused), "a message has what lies outside")
            bundle = None
    strays = [path for path in opened if path.parent != folder]
    require(not strays, f"a bundle's reading opened {strays[:1]}")
    if bundle is None:
        return
    named = {file.path: file for file in bundle.spec.files}
    require(bundle.files.keys() == named.keys(), "other files than the specification names")
    for name, content in bundle.files.items():
        require(len(content) == named[name].size_bytes, f"{name} is not of the size that was told")
        require(hashlib.sha256(content).hexdigest() == named[name].sha256, f"{name} is not of the hash that was told")
    if HEALTH_REFERENCE_NAME in bundle.files:
        try:
            read_references(bundle.spec, bundle.files[HEALTH_REFERENCE_NAME])
        except BundleError as refused:
            require_clear(refused, of_a_client=False)


def _lay(folder: Path, each: dict[str, Any], spec: Any) -> None:
    name, kind = each["name"], each["kind"]
    if name in ("", ".", "..") or Path(name).name != name:
        return  # the target writes nowhere but here
    path, content = folder / name, each.get("content", "")
    if os.path.lexists(path):
        return  # it may be a link, and what it leads to is not ours to write to
    if kind == "link":
        path.symlink_to(content)
        return
    if kind == "folder":
        path.mkdir()
        return
    if kind == "pipe":
        os.mkfifo(path)
        return
    whole = (content.encode(TEXT) * min(int(each.get("times", 1)), MOST_CONTENT))[:MOST_CONTENT]
    path.write_bytes(whole)
    if each.get("told"):
        digest = hashlib.sha256(whole).hexdigest()
        spec["files"].append({"path": name, "sha256": digest, "size_bytes": len(whole)})


def seeds() -> dict[str, bytes]:
    """A whole folder, and folders with one fault."""
    policy = plain_policy()
    for field in ("training", "expected_success", "sampler"):
        policy.ClearField(field)
    spec = json_format.MessageToDict(policy, preserving_proto_field_name=True) | {"files": []}
    graph = {"name": GRAPH_NAME, "kind": "file", "content": "graph", "told": True}

    def folder(*disk: dict[str, Any], files: tuple[dict[str, Any], ...] = (), **more: Any) -> bytes:
        recipe = {"spec": {**spec, "files": list(files), **more}, "disk": list(disk)}
        return json.dumps(recipe, separators=(",", ":")).encode()

    def told(name: str, size: Any = 6, sha256: str = hashlib.sha256(SECRET).hexdigest()) -> dict[str, Any]:
        return {"path": name, "sha256": sha256, "size_bytes": size}

    health = {
        "name": HEALTH_REFERENCE_NAME,
        "kind": "file",
        "content": reference().SerializeToString(deterministic=True).decode(TEXT),
        "told": True,
    }
    link = {"name": "x", "kind": "link"}
    return {
        "whole": folder(graph),
        "with-health": folder(graph, health),
        "with-bad-health": folder(graph, {**health, "content": "\n"}),
        "graph-untold": folder({**graph, "told": False}),
        "missing": folder(files=(told(GRAPH_NAME),)),
        "longer": folder({**graph, "told": False, "times": 2}, files=(told(GRAPH_NAME, 5),)),
        "other-hash": folder({**graph, "told": False}, files=(told(GRAPH_NAME, 5),)),
        "other-hash-of-lines": folder({**graph, "told": False}, files=(told(GRAPH_NAME, 5, "a\nb\x1b"),)),
        "named-twice": folder(graph, files=(told(GRAPH_NAME, 5),)),
        "path-out": folder(graph, files=(told("../outside/other"),)),
        "path-from-the-root": folder(graph, files=(told("/etc/hostname"),)),
        "path-with-dot": folder(graph, files=(told("./policy.onnx"),)),
        "path-empty": folder(graph, files=(told(""),)),
        "path-long": folder(graph, files=(told("x" * 300),)),
        "path-of-lines": folder(graph, files=(told("a\nb"),)),
        "path-zero-byte": folder(graph, files=(told("a\0b"),)),
        "path-itself": folder(graph, files=(told(SPEC_NAME),)),
        "size-negative": folder(graph, files=(told("x", -1),)),
        "size-huge": folder(graph, files=(told("x", str(2**64 - 1)),)),
        "a-folder": folder(graph, {"name": "x", "kind": "folder"}, files=(told("x"),)),
        "a-pipe": folder(graph, {"name": "x", "kind": "pipe"}, files=(told("x"),)),
        "a-link-out": folder(graph, {**link, "content": "../outside/other"}, files=(told("x"),)),
        "a-link-out-other-hash": folder(
            graph, {**link, "content": "../outside/other"}, files=(told("x", 6, "0" * 64),)
        ),
        "a-link-to-itself": folder(graph, {**link, "content": "x"}, files=(told("x"),)),
        "a-link-without-end": folder(graph, {**link, "content": "/dev/zero"}, files=(told("x", 0),)),
        "spec-is-a-folder": folder(graph, {"name": SPEC_NAME, "kind": "folder"}),
        "spec-is-a-link": folder(graph, {"name": SPEC_NAME, "kind": "link", "content": "../outside/other"}),
        "spec-is-a-pipe": folder(graph, {"name": SPEC_NAME, "kind": "pipe"}),
    }
