"""``chunkcast-admin``: load, promote, roll back and unload the policies of a running server."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from chunkcast.client.connection_flags import ConnectionFlags
from chunkcast.client.credentials import Credentials
from chunkcast.client.errors import NotAllowed
from chunkcast.client.policy_client import open_channel

DEFAULT_SERVER = "127.0.0.1:50052"

TIMEOUT_SECONDS = 120.0
"""Loading a large bundle takes its time: it is hashed, and every batch size is warmed."""


@dataclass(frozen=True)
class List:
    """Every version that is loaded."""


@dataclass(frozen=True)
class Load:
    """Load and warm a bundle of the server's store, aside."""

    bundle: str
    """Name of the bundle's folder in the store."""
    promote: bool = False
    """Also let it answer, if it can be loaded."""


@dataclass(frozen=True)
class Promote:
    """Let a loaded version answer."""

    policy: str
    """Name."""
    version: str
    """As chunkcast-admin list shows it."""


@dataclass(frozen=True)
class Rollback:
    """Let the version answer that did before."""

    policy: str
    """Name."""


@dataclass(frozen=True)
class Unload:
    """Forget a version that is not promoted."""

    policy: str
    """Name."""
    version: str
    """As chunkcast-admin list shows it."""


@dataclass(frozen=True)
class AdminConfig(ConnectionFlags):
    """Where the server is, and how its answer is shown."""

    server: str = DEFAULT_SERVER
    """HOST:PORT of its admin service."""
    json: bool = False
    """Print JSON instead of a table."""


Command = List | Load | Promote | Rollback | Unload


def main() -> None:
    """Console script: exit code 0 when it was done, 1 if the server refused or did not answer, 2 on bad input."""
    # What gRPC says of a server that is not there would stand beside the one line that says it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import tyro
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; run pip install 'chunkcast[server]'", file=sys.stderr)
        raise SystemExit(2) from None

    def admin(command: Command, config: AdminConfig) -> None:
        """Load, promote, roll back and unload the policies of a running server.

        Args:
            command: what to do.
            config: where and how.
        """
        _run(command, config)

    tyro.cli(
        admin, config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs)
    )


def _run(command: Command, config: AdminConfig) -> None:
    import grpc

    try:
        credentials = config.require_usable(config.server)
        with open_channel(config.server, credentials, options=(("grpc.enable_http_proxy", 0),)) as channel:
            versions = _call(command, channel, credentials)
    except (ValueError, NotAllowed) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except grpc.RpcError as error:
        reason = str(error)
        if isinstance(error, grpc.Call):
            absent = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED)
            details = str(error.details())
            reason = f"no admin service at {config.server} ({details})" if absent else details
        print(f"error: {reason}", file=sys.stderr)
        raise SystemExit(1) from None
    if config.json:
        print(json.dumps(versions, indent=2))
        return
    if not versions:
        print("done")
        return
    widths = {key: max(len(key), *(len(str(version[key])) for version in versions)) for key in versions[0]}
    for row in ({key: key.replace("_", " ") for key in widths}, *versions):
        print("  ".join(f"{row[key]!s:{width}}" for key, width in widths.items()).rstrip())


def _call(command: Command, channel: Any, credentials: Credentials) -> list[dict[str, Any]]:
    """Make the call; returns the versions that it tells of."""
    from chunkcast.v1 import admin_pb2 as pb
    from chunkcast.v1 import admin_pb2_grpc as pb_grpc

    stub = pb_grpc.AdminServiceStub(channel)
    options: dict[str, Any] = {"timeout": TIMEOUT_SECONDS, "metadata": credentials.metadata()}
    if isinstance(command, List):
        versions = list(stub.ListVersions(pb.ListVersionsRequest(), **options).versions)
    elif isinstance(command, Load):
        load = pb.LoadBundleRequest(bundle=command.bundle, promote=command.promote)
        versions = [stub.LoadBundle(load, **options).version]
    elif isinstance(command, Promote):
        promote = pb.PromoteVersionRequest(policy=command.policy, version=command.version)
        versions = [stub.PromoteVersion(promote, **options).version]
    elif isinstance(command, Rollback):
        versions = [stub.RollBack(pb.RollBackRequest(policy=command.policy), **options).version]
    else:
        unload = pb.UnloadVersionRequest(policy=command.policy, version=command.version)
        stub.UnloadVersion(unload, **options)
        versions = []
    return [
        {
            "policy": version.policy,
            "version": version.version,
            "state": pb.VersionState.Name(version.state).removeprefix("VERSION_STATE_").lower(),
            "pinned_streams": version.pinned_streams,
            "chunks": version.chunks,
        }
        for version in versions
    ]


if __name__ == "__main__":
    main()
