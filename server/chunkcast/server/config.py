"""The server's settings: the command line is made from this dataclass."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from chunkcast.server.choices import ProviderChoice
from chunkcast.server.errors import BadFlag

MAX_BATCH = 1024
MAX_DELAY_MS = 1000.0
MAX_LIMIT = 1e6
"""Of requests a second, and of an age in seconds (eleven days): what gRPC counts in milliseconds must fit 31 bits."""
MAX_MESSAGE_MB = 1024
"""Half of what protobuf itself can read."""


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
    max_client_streams: int = 0
    """Of them, one client's: its token's name, or else its certificate's, or else its address. 0 sets no limit."""
    max_client_rate: float = 0.0
    """Requests of one client a second, over all its streams; one more is answered RATE_LIMITED, and its stream is read
    on when it may ask again. 0 sets no limit."""
    max_message_mb: int = 16
    """The largest message that a client may send, in MiB; two raw 2048x1024 RGB cameras fit into 16."""
    max_connection_age: float = 0.0
    """Seconds after which a connection's robots are told to open another, which a load balancer may lead to another
    server; 30 seconds later it is closed. 0 sets no limit."""
    tls_cert: Path | None = None
    """PEM file of this server's certificate; with --tls-key, all ports speak TLS. Read again when it changes."""
    tls_key: Path | None = None
    """PEM file of its key."""
    tls_client_ca: Path | None = None
    """PEM file of the authorities whose certificate a client must have (mutual TLS) on the gRPC ports."""
    token_file: Path | None = None
    """File of NAME TOKEN lines: robots must show one of them as bearer token. Read again when it changes; streams whose
    token is gone end."""
    admin_token_file: Path | None = None
    """The same for operators: of the admin service, the metrics and the status page."""
    stop_with_stdin: bool = False
    """Also drain when standard input ends, for a program that starts a server of its own."""
    insecure: bool = False
    """Listen beyond loopback in clear text, to anyone. Only on a network that you trust."""
    traces: str = ""
    """URL of an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318/v1/traces, which gets a span of
    each stream and chunk. Needs the extra otel."""
    trace_share: float = 1.0
    """Share of the streams that are traced, 0 to 1, where their robot does not say."""
    ray: bool = False
    """Serve as a Ray Serve deployment: replicas behind Ray's proxy, which listens on all interfaces, in clear text and
    to anyone (so it needs --insecure). Needs the extra ray."""
    ray_address: str = ""
    """A Ray cluster that this machine is a node of, to deploy to, such as auto or HOST:6379; by default one is started
    here and ends with this program."""
    ray_http_port: int = 8000
    """Of Ray's HTTP proxy on loopback (/-/healthz, /-/routes), which comes with the gRPC one."""
    replicas: int = 1
    """With --ray: replicas, each with its own engine and its own metrics page, on the first free port from that of
    --metrics-listen on."""
    max_replicas: int = 0
    """With --ray: as many when there are more than --streams-per-replica robots to each; 0 never adds any."""
    streams_per_replica: int = 32
    """With --ray and --max-replicas: robots that a replica is to serve, on average."""
    replica_gpus: float = 0.0
    """With --ray: of a GPU, what each replica takes."""
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
        self._check_ray()
        self._check_addresses()
        self._check_security()
        self._check_numbers()

    def _check_ray(self) -> None:
        if not self.ray:
            if self.replicas != 1 or self.max_replicas or self.ray_address:
                raise BadFlag("--replicas, --max-replicas and --ray-address go with --ray")
            return
        if not self.insecure:
            raise BadFlag(
                "--ray: Ray's proxy listens on all interfaces, in clear text, to anyone; pass --insecure on a network "
                "that you trust"
            )
        if self.ray_address.startswith("ray://"):
            raise BadFlag(
                f"--ray: --ray-address {self.ray_address} is for machines that are no node of the cluster; serve from "
                "one that is, with --ray-address auto"
            )
        if self.cpus or self.stop_with_stdin:
            raise BadFlag("--ray: --cpus and --stop-with-stdin are for a server of its own; leave them out")
        if self.listen.rpartition(":")[0] not in ("0.0.0.0", "[::]"):  # noqa: S104 (it is what Ray does)
            raise BadFlag(f"--ray: --listen is {self.listen}, and Ray's proxy listens on all: say 0.0.0.0:PORT")
        for flag in ("tls_cert", "tls_client_ca", "token_file", "admin_token_file", "store"):
            if getattr(self, flag) is not None:
                raise BadFlag(f"--ray: --{flag.replace('_', '-')} is for this server's own ports; leave it out")
        if self.replicas < 1 or self.max_replicas < 0 or self.streams_per_replica < 1 or self.replica_gpus < 0.0:
            raise BadFlag(
                "--replicas and --streams-per-replica must be at least 1, --max-replicas and --replica-gpus 0 or more"
            )
        if self.listen.endswith(":0"):
            raise BadFlag("--ray: every node's proxy has the same port; name one with --listen 0.0.0.0:PORT")

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
                self._require_secure(flag, address)

    def _require_secure(self, flag: str, address: str) -> None:
        """Refuse to be reached from other machines by anyone who listens or likes to."""
        if self.tls_cert is None:
            raise BadFlag(
                f"{flag} {address} is reachable from other machines and this server has no encryption; give "
                "--tls-cert and --tls-key, listen on 127.0.0.1, or pass --insecure on a network that you trust"
            )
        if flag != "--listen" and self.admin_token_file is None:
            raise BadFlag(
                f"{flag} {address} is reachable from other machines and asks nobody who they are; give "
                "--admin-token-file, listen on 127.0.0.1, or pass --insecure on a network that you trust"
            )

    def _check_security(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise BadFlag("--tls-cert and --tls-key go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise BadFlag("--tls-client-ca needs --tls-cert and --tls-key: only TLS knows clients' certificates")
        if self.traces and not re.fullmatch(r"https?://\S+", self.traces):
            raise BadFlag(f"--traces is {self.traces!r}, expected a URL such as http://127.0.0.1:4318/v1/traces")
        for flag, value in (
            ("--max-client-rate", self.max_client_rate),
            ("--max-connection-age", self.max_connection_age),
        ):
            if not 0.0 <= value <= MAX_LIMIT:
                raise BadFlag(f"{flag} is {value}, expected 0 (no limit) to {MAX_LIMIT:g}")
        if self.max_connection_age and self.max_client_streams == 1:
            raise BadFlag("--max-client-streams is 1; with --max-connection-age a robot has two for a moment")
        if self.max_client_streams < 0:
            raise BadFlag(f"--max-client-streams is {self.max_client_streams}, expected 0 (no limit) or more")
        if not 1 <= self.max_message_mb <= MAX_MESSAGE_MB:
            raise BadFlag(f"--max-message-mb is {self.max_message_mb}, expected 1 to {MAX_MESSAGE_MB}")
        if not 0.0 <= self.trace_share <= 1.0:
            raise BadFlag(f"--trace-share is {self.trace_share}, expected 0 to 1")

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
