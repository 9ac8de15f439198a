"""The flags of commands that connect to a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chunkcast.client.credentials import Credentials


@dataclass(frozen=True)
class ConnectionFlags:
    """How to connect to a running server that asks for TLS or a token."""

    tls: bool = False
    """Speak TLS, with the authorities that gRPC knows; implied by the next three."""
    tls_ca: Path | None = None
    """PEM file of the authority that signed the server's certificate."""
    tls_cert: Path | None = None
    """PEM file of a certificate of one's own, for a server that asks for one (mutual TLS)."""
    tls_key: Path | None = None
    """PEM file of its key."""
    tls_name: str | None = None
    """The name in the server's certificate, where it is not the host's."""
    token_file: Path | None = None
    """File that holds the bearer token, alone or as NAME TOKEN."""

    def credentials(self) -> Credentials:
        """What the flags say.

        Raises:
            ValueError: certificate and key do not stand together.
        """
        return Credentials(
            tls=self.tls,
            ca=self.tls_ca,
            certificate=self.tls_cert,
            key=self.tls_key,
            server_name=self.tls_name,
            token_file=self.token_file,
        )

    def require_usable(self, target: str | None) -> Credentials:
        """The credentials for ``target``, tried out.

        Args:
            target: HOST:PORT, or ``None`` for a server of one's own, which asks for none.

        Raises:
            ValueError: they cannot be used.
        """
        credentials = self.credentials()
        if target is None:
            if credentials != Credentials():
                raise ValueError("--tls-* and --token-file go with --server; one's own server asks for neither")
        else:
            credentials.check_target(target)
            credentials.channel_credentials()
        return credentials
