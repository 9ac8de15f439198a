"""Exit code 0 if the server in this container is ready: Docker's HEALTHCHECK. The kubelet asks for /ready by itself.

::

    healthcheck.py [HOST:PORT of --metrics-listen]
"""

from __future__ import annotations

import http.client
import ssl
import sys

TIMEOUT_SECONDS = 2.0


def is_ready(address: str) -> bool:
    """Whether ``/ready`` says so, over HTTPS or, where the server has no certificate, over HTTP."""
    # Not verified, as by the kubelet: the server is asked on loopback, a name that its certificate need not have.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        return _ask(http.client.HTTPSConnection(address, timeout=TIMEOUT_SECONDS, context=context))
    except ssl.SSLError:
        return _ask(http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS))


def _ask(connection: http.client.HTTPConnection) -> bool:
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.client.OK
    finally:
        connection.close()


def main() -> None:
    """Exit code 1 with the reason if it is not ready."""
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9100"
    try:
        ready = is_ready(address)
    except (OSError, http.client.HTTPException) as error:
        raise SystemExit(f"{address} does not answer ({error})") from None
    if not ready:
        raise SystemExit(f"{address} is not ready")


if __name__ == "__main__":
    main()
