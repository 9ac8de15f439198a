"""What shows who is who, read from files that may change while the server runs."""

from __future__ import annotations

from chunkcast.server.config import ServeConfig
from chunkcast.server.security.authentication import Authentication
from chunkcast.server.security.certificates import ServerCertificate
from chunkcast.server.security.tokens import TokenFile
from chunkcast.server.statistics import ServerStatistics


class SecretFiles:
    """Certificate and tokens of a server.

    Args:
        config: names the files.

    Attributes:
        certificate: the server's, or ``None`` without TLS.
        tokens: of robots, or ``None`` where none are asked for.
        admin_tokens: of operators.

    Raises:
        BadFlag: one of them cannot be used.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.certificate = (
            ServerCertificate(config.tls_cert, config.tls_key, config.tls_client_ca)
            if config.tls_cert and config.tls_key
            else None
        )
        self.tokens = TokenFile(config.token_file) if config.token_file else None
        self.admin_tokens = TokenFile(config.admin_token_file) if config.admin_token_file else None

    @staticmethod
    def access(tokens: TokenFile | None, statistics: ServerStatistics) -> Authentication | None:
        """Lets in who shows one of ``tokens``."""

        def refused() -> None:
            statistics.refused_clients["token"] += 1

        return Authentication(tokens, refused) if tokens else None

    def refresh(self) -> None:
        """Read again what has changed."""
        for each in (self.certificate, self.tokens, self.admin_tokens):
            if each is not None:
                each.refresh()
