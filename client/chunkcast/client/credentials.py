"""How a robot knows its server and is known by it: TLS, certificates, a bearer token."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chunkcast.client.errors import NotAllowed

if TYPE_CHECKING:
    import grpc

MAX_FILE_BYTES = 2**20


@dataclass(frozen=True)
class Credentials:
    """What ``PolicyClient(credentials=...)`` shows and asks for. Files are read when they are needed, the token at each
    call: one that is replaced is shown from then on.

    Attributes:
        tls: encrypt, and accept only a server whose certificate is good; implied by any of the next three.
        ca: PEM file of the authority that signed the server's certificate; by default those that gRPC comes with.
        certificate, key: PEM files of this robot's own, for a server that asks for one (mutual TLS).
        server_name: the name in the server's certificate, where it is not the host in the target.
        token_file: file that holds the bearer token, alone or as the last word of a NAME TOKEN line.

    Raises:
        ValueError: certificate and key do not stand together.
    """

    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    token_file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse half of a pair."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("give certificate and key together: one is of no use without the other")

    @property
    def encrypted(self) -> bool:
        """Whether TLS is spoken."""
        return self.tls or self.ca is not None or self.certificate is not None

    def check_target(self, target: str) -> None:
        """Refuse to show a token where others may listen.

        Raises:
            ValueError: the target is another machine, there is a token, and no TLS.
        """
        if self.token_file is not None and not self.encrypted and not _is_local(target):
            raise ValueError(
                f"a token would go to {target} in clear text; give ca (or tls=True), or leave the token out"
            )

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """For a secure channel, or ``None`` for a plain one.

        Raises:
            ValueError: a file cannot be read.
        """
        if not self.encrypted:
            return None
        import grpc

        roots, key, certificate = (_read_pem(path) for path in (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(roots, key, certificate)

    def options(self) -> tuple[tuple[str, str], ...]:
        """Further channel arguments."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries.

        Raises:
            NotAllowed: there is no token in the file.
        """
        if self.token_file is None:
            return ()
        try:
            words = (_read(self.token_file) or b"").decode("utf-8").split()
        except ValueError as error:
            raise NotAllowed(str(error)) from None
        if len(words) > 2:
            raise NotAllowed(f"{self.token_file} has {len(words)} words; expected one TOKEN, or one NAME TOKEN")
        if not words or not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", words[-1]):
            raise NotAllowed(f"{self.token_file} holds no token; expected TOKEN, or NAME TOKEN, on one line")
        return (("authorization", f"Bearer {words[-1]}"),)


def _read(path: Path | None) -> bytes | None:
    """A small file's content.

    Raises:
        ValueError: it cannot be read.
    """
    if path is None:
        return None
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, expected at most {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None


def _read_pem(path: Path | None) -> bytes | None:
    """A file of certificates or a key.

    Raises:
        ValueError: it cannot be read, or is none.
    """
    content = _read(path)
    if content is not None and b"-----BEGIN" not in content:
        raise ValueError(f"{path} is no PEM file; expected -----BEGIN CERTIFICATE----- or a key")
    return content


def _is_local(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]")
    if target.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
