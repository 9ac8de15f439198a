"""The server's settings: the command line is made from this dataclass."""

from __future__ import annotations

import ipaddress
import math
import os
from dataclasses import dataclass
from pathlib import Path

from chunkcast.server.errors import BadFlag
from chunkcast.server.providers import ProviderChoice

MAX_BATCH = 1024
MAX_DELAY_MS = 1000.0


@dataclass(frozen=True)
class ServeConfig:
    """Serve policy bundles over gRPC, with a Prometheus page; ready after warm-up, drains on SIGTERM."""

    bundle: tuple[Path, ...] = ()
    """Folders of the bundles to serve, made by chunkcast-export. Two of the same policy are two versions, of which the
    last is promoted."""
    store: Path | None = None
    """Folder whose sub-folders are bundles that an operator may load while the server runs (chunkcast-admin). Without
    --bundle, all of them are served from the start."""
    watch: bool = False
    """Load and promote what appears or changes in --store."""
    listen: str = "127.0.0.1:50051"
    """HOST:PORT of gRPC; port 0 takes a free one and says which."""
    metrics_listen: str = "127.0.0.1:9100"
    """HOST:PORT of the Prometheus page (/metrics) and the status page (/); port 0 takes a free one, an empty value has
    neither."""
    admin_listen: str = "127.0.0.1:50052"
    """HOST:PORT of the admin service (chunkcast-admin); port 0 takes a free one, an empty value has none."""
    providers: tuple[ProviderChoice, ...] = ("auto",)
    """ONNX Runtime's execution providers in order, such as tensorrt cuda cpu. auto is CUDA where there is a driver, or
    else the CPU."""
    threads: int = 1
    """ONNX Runtime's threads inside one run. More than one pays for graphs of tens of milliseconds."""
    max_batch: int = 32
    """The most observations, of any number of robots, computed in one run."""
    max_delay_ms: float = 0.0
    """How long an observation may wait for company while the engine is free; 0 starts at once."""
    max_waiting: int = 256
    """Observations that may wait for a policy's engine; one more is answered OVERLOADED at once."""
    health_share: float = 0.05
    """Share of one processor, 0 to 1, that judging each policy's chunks may take beside serving them; 0 does not judge.
    With 1 every chunk is judged, however long that takes; below, those that there is time for."""
    text_encoders: Path | None = None
    """Folder whose sub-folders are text encoders (chunkcast-text-encoder), for policies that take free text; by default
    the folder text-encoders beside each bundle."""
    cpus: tuple[int, ...] = ()
    """Processors that this process keeps to, such as 1 or 2 3; by default any. For a single robot one is best: its
    chunk passes several threads, and handing over within a processor is quicker than waking another."""
    drain_seconds: float = 5.0
    """How long open streams may take to end after SIGTERM."""
    max_streams: int = 256
    """Streams served at the same time; one more is answered RESOURCE_EXHAUSTED at once."""
    stop_with_stdin: bool = False
    """Also drain when standard input ends, for a program that starts a server of its own."""
    insecure: bool = False
    """Listen beyond loopback without encryption or authentication. Only on a network that you trust."""
    log_format: str = "text"
    """text for people, json for machines; on standard error."""

    def __post_init__(self) -> None:
        """Refuse addresses and numbers that cannot be served."""
        if not self.bundle and self.store is None:
            raise BadFlag("nothing to serve: give --bundle DIR, or --store DIR with bundles in it")
        if self.watch and self.store is None:
            raise BadFlag("--watch needs --store DIR, the folder to watch")
        if self.store is not None and not self.store.is_dir():
            raise BadFlag(f"--store {self.store} is no folder; make it, with bundles as its sub-folders")
        if self.text_encoders is not None and not self.text_encoders.is_dir():
            raise BadFlag(f"--text-encoders {self.text_encoders} is no folder; expected one with encoders in it")
        self._check_addresses()
        self._check_numbers()

    def _check_addresses(self) -> None:
        addresses = {
            "--listen": self.listen,
            "--metrics-listen": self.metrics_listen,
            "--admin-listen": self.admin_listen,
        }
        for flag, address in addresses.items():
            if flag != "--listen" and not address:
                continue
            host, separator, port = address.rpartition(":")
            if not separator or not port.isdigit() or int(port) > 65535:
                raise BadFlag(f"{flag} is {address!r}, expected HOST:PORT such as 127.0.0.1:50051")
            if not self.insecure and not _is_loopback(host):
                raise BadFlag(
                    f"{flag} {address} is reachable from other machines and this server has no encryption or "
                    "authentication; listen on 127.0.0.1, or pass --insecure on a network that you trust"
                )

    def _check_numbers(self) -> None:
        if self.threads > (os.cpu_count() or 1):
            raise BadFlag(f"--threads is {self.threads}, expected at most {os.cpu_count()}, this machine's processors")
        for name in ("threads", "max_streams", "max_batch", "max_waiting"):
            if getattr(self, name) < 1:
                raise BadFlag(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.max_batch > MAX_BATCH:
            raise BadFlag(f"--max-batch is {self.max_batch}, expected at most {MAX_BATCH}")
        if not 0.0 <= self.max_delay_ms <= MAX_DELAY_MS:
            raise BadFlag(f"--max-delay-ms is {self.max_delay_ms}, expected 0 to {MAX_DELAY_MS:g}")
        if not 0.0 <= self.health_share <= 1.0:
            raise BadFlag(f"--health-share is {self.health_share}, expected 0 to 1")
        if not self.providers:
            raise BadFlag("--providers is empty, expected some of auto, tensorrt, cuda, cpu")
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
