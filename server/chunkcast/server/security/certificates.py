"""The server's certificate, read again when its files change: the next connection is shown the new one."""

from __future__ import annotations

import ssl
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog

from chunkcast.server.errors import BadFlag
from chunkcast.server.security.watched_file import WatchedFile

MAX_FILE_BYTES = 2**20

log = structlog.get_logger()


class ServerCertificate:
    """Certificate, key and, for mutual TLS, the authority of the clients' certificates.

    Args:
        certificate, key: PEM files; the certificate's chain may follow it.
        client_ca: PEM file of the authorities whose clients may connect, or ``None`` to ask for no certificate.

    Attributes:
        expires: when the certificate does, seconds since 1970.

    Raises:
        BadFlag: a file cannot be read, or the key is not the certificate's.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        paths = [certificate, key, *([client_ca] if client_ca else [])]
        self._files = [WatchedFile(path) for path in paths]
        self._client_ca = client_ca
        # Connections are begun on gRPC's threads, pages on others.
        self._lock = threading.Lock()
        self._contexts: list[ssl.SSLContext] = []
        self._complaint = ""
        with suppress(OSError):  # reading says it better
            self._changed()
        self._contents, self.expires = _read(paths)
        self._were_read()
        self._warn_if_expired()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For ``add_secure_port``, of one port: each is told of a change for itself."""
        shown = self._contents

        def changed() -> grpc.ServerCertificateConfiguration | None:
            # gRPC asks at each new connection; what it has stays where this is None.
            nonlocal shown
            self.refresh()
            with self._lock:
                if shown is self._contents:
                    return None
                shown = self._contents
                return self._grpc_configuration()

        return grpc.dynamic_ssl_server_credentials(
            self._grpc_configuration(),
            changed,  # type: ignore[arg-type]  # None is allowed
            require_client_authentication=self.mutual,
        )

    def page_context(self) -> ssl.SSLContext:
        """For an HTTP server, which asks for no client's certificate; follows the files."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._files[0].path, self._files[1].path)
        self._contexts.append(context)
        return context

    @property
    def mutual(self) -> bool:
        """Whether clients need a certificate of their own."""
        return self._client_ca is not None

    def refresh(self) -> None:
        """Read the files again if they have changed. Unusable ones leave what is there."""
        with self._lock:
            try:
                if not self._changed():
                    return
                contents, expires = _read([file.path for file in self._files])
                for context in self._contexts:
                    context.load_cert_chain(self._files[0].path, self._files[1].path)
                self._were_read()
            except (OSError, BadFlag) as error:
                # Certificate and key are replaced one after the other: the next look finds both.
                if str(error) != self._complaint:
                    log.error("certificate could not be read again; the old one stays", reason=str(error))  # noqa: TRY400
                self._complaint = str(error)
                return
            self._complaint = ""
            changed = contents != self._contents
            if changed:
                self._contents, self.expires = contents, expires
        if changed:
            log.info("certificate read again", expires=_date(expires))
            self._warn_if_expired()

    def _changed(self) -> bool:
        # Each is looked at: the answer of one does not spare the others.
        changed = [file.changed() for file in self._files]
        return any(changed)

    def _were_read(self) -> None:
        for file in self._files:
            file.was_read()

    def _grpc_configuration(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, *client_ca = self._contents
        return grpc.ssl_server_certificate_configuration([(key, certificate)], *client_ca)

    def _warn_if_expired(self) -> None:
        if self.expires <= datetime.now(UTC).timestamp():
            log.error("the certificate has expired: no client will connect", expired=_date(self.expires))


def _read(paths: list[Path]) -> tuple[list[bytes], float]:
    from cryptography import x509

    contents = []
    for path in paths:
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise BadFlag(f"{path} has {path.stat().st_size} bytes, expected at most {MAX_FILE_BYTES}")
            contents.append(path.read_bytes())
        except OSError as error:
            raise BadFlag(f"{path} cannot be read ({error.strerror}); expected a PEM file") from None
    certificate, key, *client_ca = paths
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
        expires = min(each.not_valid_after_utc for each in x509.load_pem_x509_certificates(contents[0]))
    except (ssl.SSLError, ValueError) as error:
        raise BadFlag(f"{certificate} and {key} are no PEM certificate with its key ({_reason(error)})") from None
    for path in client_ca:
        try:
            ssl.create_default_context(cafile=str(path))
        except ssl.SSLError as error:
            raise BadFlag(f"{path} holds no PEM certificate of an authority ({_reason(error)})") from None
    return contents, expires.timestamp()


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or str(error).splitlines()[0]).replace("_", " ").lower()


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
