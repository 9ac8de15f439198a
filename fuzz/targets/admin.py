"""What an operator's program asks of the admin service.

Input: a JSON list of requests, each a list: ``["load", name, promote]``, ``["promote", policy, version]``,
``["roll back", policy]``, ``["unload", policy, version]`` or ``["list"]``.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import grpc

from chunkcast.server.admin_service import AdminService
from chunkcast.server.batcher import BatcherConfig
from chunkcast.server.policies import EngineConfig, Policies
from chunkcast.server.statistics import ServerStatistics
from chunkcast.server.store import Store
from chunkcast.v1 import admin_pb2 as pb
from fuzz.checks import require, require_clear
from fuzz.mutators import as_json
from fuzz.opened import opened_paths
from fuzz.workspace import emptied
from tests.handmade_bundle import echo_spec, write_echo_bundle

MOST_REQUESTS = 6
CODES = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)

mutate = as_json


class Aborted(Exception):
    """The service ended the call, as gRPC's context has it."""


class Context:
    """Of a call: it can be ended with a status, and nothing else is used."""

    async def abort(self, code: grpc.StatusCode, message: str) -> NoReturn:
        """End the call."""
        require(code in CODES, f"an admin call ends with {code}")
        require_clear(message, of_a_client=False)  # an operator's, who may know the folder
        raise Aborted


@cache
def _root() -> Path:
    """``store``, with bundles good and bad, and one that lies beside it and is no business of it."""
    root = emptied("admin")
    write_echo_bundle(root / "outside")
    store = root / "store"
    write_echo_bundle(store / "one")
    write_echo_bundle(store / "two", version="2")
    write_echo_bundle(store / "other", name="other")
    contract = echo_spec(version="3")
    contract.action.control_rate_hz = 7.0
    write_echo_bundle(store / "another-contract", spec=contract)
    write_echo_bundle(store / "damaged", version="4")
    (store / "damaged" / "policy.onnx").write_bytes(b"")
    (store / "no-bundle").mkdir()
    (store / "a-file").write_bytes(b"")
    return root


def run(data: bytes) -> None:
    """Ask a service that serves one version; what it opens lies in its store."""
    try:
        asked = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(asked, list):
        asyncio.run(_ask(asked[:MOST_REQUESTS]))


async def _ask(asked: list[Any]) -> None:
    root, statistics = _root(), ServerStatistics()
    policies = Policies(statistics, EngineConfig(health_share=0.0), BatcherConfig(max_batch=1))
    service: Any = AdminService(policies, Store(root / "store", policies, statistics))
    policies.add(policies.prepare(root / "store" / "one"))
    try:
        with opened_paths(root) as opened:
            for each in asked:
                method, request = _request(each)
                if request is not None:
                    with suppress(Aborted):
                        await getattr(service, method)(request, Context())
                _check(policies)
        strays = [path for path in opened if (root / "store") not in path.parents]
        require(not strays, f"the store opened {strays[:1]}")
    finally:
        policies.close()


def _request(each: Any) -> tuple[str, Any]:
    """A method and its message; no message for what cannot be sent."""
    try:
        match each:
            case ["load", name, promote]:
                return "LoadBundle", pb.LoadBundleRequest(bundle=name, promote=promote)
            case ["promote", policy, version]:
                return "PromoteVersion", pb.PromoteVersionRequest(policy=policy, version=version)
            case ["roll back", policy]:
                return "RollBack", pb.RollBackRequest(policy=policy)
            case ["unload", policy, version]:
                return "UnloadVersion", pb.UnloadVersionRequest(policy=policy, version=version)
            case ["list"]:
                return "ListVersions", pb.ListVersionsRequest()
    except (TypeError, ValueError, OverflowError):
        pass  # half a surrogate pair, or no text or truth value at all
    return "", None


def _check(policies: Policies) -> None:
    """Each policy has one promoted version, and it is among those that are loaded."""
    listed = policies.list()
    promoted = [version.spec.name for version, is_promoted, _ in listed if is_promoted]
    require(sorted(promoted) == sorted({version.spec.name for version, *_ in listed}), f"promoted are {promoted}")
    require("echo" in promoted, "the policy that is served went away")
    for version, *_ in listed:
        require(policies.find(version.spec.name, version.spec.version) is version, "a listed version is not found")


def seeds() -> dict[str, bytes]:
    """Calls in order, and names that are none."""
    made: dict[str, list[list[Any]]] = {
        "in-order": [["load", "two", False], ["promote", "echo", "2"], ["roll back", "echo"], ["unload", "echo", "2"]],
        "promoted-at-once": [["load", "two", True], ["list"], ["roll back", ""], ["unload", "echo", "1"]],
        "two-policies": [["load", "other", True], ["promote", "", "1"], ["roll back", "other"], ["list"]],
        "again": [["load", "one", True], ["load", "one", True]],
        "refused": [["load", "another-contract", True], ["load", "damaged", True], ["load", "no-bundle", False]],
        "no-folder": [["load", "a-file", True], ["load", "missing", True]],
        "unknown": [["promote", "nobody", "1"], ["promote", "echo", "9"], ["unload", "echo", ""], ["roll back", "x"]],
        "lines": [["promote", "a\nb", "\x1b[2J"], ["promote", "echo", "\n" * 300], ["load", "\n\u202e", True]],
        "long": [["load", "x" * 300, True], ["load", "x" * 5000, True], ["promote", "echo", "x" * 3000]],
    }
    outside = ("../outside", "..", ".", "", "/", "one/../../outside", "./one", "one/", "..\\outside", "one\0", "/etc")
    made |= {f"path-{i}": [["load", name, True]] for i, name in enumerate(outside)}
    return {name: json.dumps(calls).encode() for name, calls in made.items()}
