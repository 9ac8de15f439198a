"""The server's settings: the command line is made from this dataclass."""

from __future__ import annotations

import ipaddress
import math
import os
from dataclasses import dataclass
from pathlib import Path

from chunkcast.server.errors import BadFlag


@dataclass(frozen=True)
class ServeConfig:
    """Serve a policy bundle over gRPC, with a Prometheus page; ready after warm-up, drains on SIGTERM."""

    bundle: Path
    """Folder of the bundle, made by chunkcast-export."""
    listen: str = "127.0.0.1:50051"
    """HOST:PORT of gRPC; port 0 takes a free one and says which."""
    metrics_listen: str = "127.0.0.1:9100"
    """HOST:PORT of the Prometheus page (/metrics); port 0 takes a free one, an empty value has no page."""
    threads: int = 1
    """ONNX Runtime's threads inside one run. More than one pays for graphs of tens of milliseconds."""
    cpus: tuple[int, ...] = ()
    """Processors that this process keeps to, such as 1 or 2 3; by default any. For a single robot one is best: its
    chunk passes several threads, and handing over within a processor is quicker than waking another."""
    drain_seconds: float = 5.0
    """How long open streams may take to end after SIGTERM."""
    max_streams: int = 256
    """Calls served at the same time; one more is answered RESOURCE_EXHAUSTED at once."""
    stop_with_stdin: bool = False
    """Also drain when standard input ends, for a program that starts a server of its own."""
    insecure: bool = False
    """Listen beyond loopback without encryption or authentication. Only on a network that you trust."""
    log_format: str = "text"
    """text for people, json for machines; on standard error."""

    def __post_init__(self) -> None:
        """Refuse addresses and numbers that cannot be served."""
        for flag, address in (("--listen", self.listen), ("--metrics-listen", self.metrics_listen)):
            if flag == "--metrics-listen" and not address:
                continue
            host, separator, port = address.rpartition(":")
            if not separator or not port.isdigit() or int(port) > 65535:
                raise BadFlag(f"{flag} is {address!r}, expected HOST:PORT such as 127.0.0.1:50051")
            if not self.insecure and not _is_loopback(host):
                raise BadFlag(
                    f"{flag} {address} is reachable from other machines and this server has no encryption or "
                    "authentication; listen on 127.0.0.1, or pass --insecure on a network that you trust"
                )
        if self.threads > (os.cpu_count() or 1):
            raise BadFlag(f"--threads is {self.threads}, expected at most {os.cpu_count()}, this machine's processors")
        if self.threads < 1 or self.max_streams < 1:
            raise BadFlag(f"--threads and --max-streams must be at least 1, got {self.threads} and {self.max_streams}")
        if self.cpus and not set(self.cpus) <= os.sched_getaffinity(0):
            available = sorted(os.sched_getaffinity(0))
            raise BadFlag(f"--cpus is {list(self.cpus)}, expected some of {available}")
        if not 0.0 <= self.drain_seconds < math.inf:
            raise BadFlag(f"--drain-seconds is {self.drain_seconds}, expected 0 or more")
        if self.log_format not in ("text", "json"):
            raise BadFlag(f"--log-format is {self.log_format!r}, expected text or json")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
