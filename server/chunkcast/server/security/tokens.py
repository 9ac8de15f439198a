"""Bearer tokens: who a client is, from a file that may change while the server runs.

::

    # NAME TOKEN, one a line. A name may stand twice while its token is being replaced.
    arm-1  q3YcVJ0mC1y0ZrT8fQ2kWw
    arm-2  7pXh2u5oEwq9Gd1sKb4nLA
"""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path
from typing import NamedTuple

import structlog

from chunkcast.server.errors import BadFlag
from chunkcast.server.security.watched_file import WatchedFile

MIN_TOKEN_LENGTH = 16
MAX_TOKEN_LENGTH = 512
"""A longer one is not even hashed."""

MAX_FILE_BYTES = 2**20
MAX_TOKENS = 4096
"""Each call compares with all of them."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
"""What RFC 6750 lets a bearer token consist of."""

log = structlog.get_logger()


class Bearer(NamedTuple):
    """Who a token belongs to, and which token it was.

    Attributes:
        name: of the client.
        digest: of the token, SHA-256.
    """

    name: str
    digest: bytes


class TokenFile:
    """The tokens that are good now. Only their digests are kept.

    Args:
        path: the file.

    Raises:
        BadFlag: it cannot be read, or is no list of tokens.
    """

    def __init__(self, path: Path) -> None:
        self._file = WatchedFile(path)
        self._bearers: tuple[Bearer, ...] = ()
        self._complaint, self._empty = "", False
        try:
            self._file.changed()
            self._bearers = _read(path)
            if not self._bearers:
                raise BadFlag(f"{path} has no token, expected 1 to {MAX_TOKENS}: nobody could call")
        except OSError as error:
            raise BadFlag(f"{path} cannot be read ({error.strerror}); expected a file of NAME TOKEN lines") from None
        self._file.was_read()

    def bearer(self, token: str) -> Bearer | None:
        """Whose ``token`` it is. Takes as long for a wrong one as for a right one, whichever it is."""
        if len(token) > MAX_TOKEN_LENGTH:
            return None
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for bearer in self._bearers:
            if hmac.compare_digest(bearer.digest, digest):
                found = bearer
        return found

    def holds(self, bearer: Bearer) -> bool:
        """Whether its token is still good."""
        return bearer in self._bearers

    def refresh(self) -> None:
        """Read the file again if it has changed. If it cannot be read, the tokens stay; if it is empty, and still is at
        the next look, none is good any more.
        """
        try:
            if not self._file.changed():
                return
            bearers = _read(self._file.path)
        except (OSError, BadFlag) as error:
            if str(error) != self._complaint:
                log.error("tokens could not be read again; the old ones stay", reason=str(error))  # noqa: TRY400
            self._complaint = str(error)
            return
        if not bearers and self._bearers and not self._empty:
            # Perhaps it is just being written; the next look decides whether its last line was taken away.
            self._empty = True
            return
        self._file.was_read()
        self._complaint, self._bearers, self._empty = "", bearers, False
        log.info("tokens read again", clients=sorted({bearer.name for bearer in bearers}))


def _read(path: Path) -> tuple[Bearer, ...]:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadFlag(f"{path} has {path.stat().st_size} bytes, expected at most {MAX_FILE_BYTES}")
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise BadFlag(f"{path} is not text; expected NAME TOKEN lines") from None
    bearers = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        # What stands there is a secret: it is not repeated.
        if len(words) != 2 or not NAME.fullmatch(words[0]) or not TOKEN.fullmatch(words[1]):
            raise BadFlag(f"{path} line {number} is not NAME TOKEN, such as: arm-1 DZ4mEqkVnT3yXw0B-example")
        if not MIN_TOKEN_LENGTH <= len(words[1]) <= MAX_TOKEN_LENGTH:
            raise BadFlag(
                f"{path} line {number}: the token of {words[0]} has {len(words[1])} characters, expected "
                f"{MIN_TOKEN_LENGTH} to {MAX_TOKEN_LENGTH}; one is made by python3 -c 'import secrets; "
                "print(secrets.token_urlsafe())'"
            )
        bearers.append(Bearer(words[0], hashlib.sha256(words[1].encode()).digest()))
    if len(bearers) > MAX_TOKENS:
        raise BadFlag(f"{path} has {len(bearers)} tokens, expected at most {MAX_TOKENS}")
    owners: dict[bytes, str] = {}
    for bearer in bearers:
        if owners.setdefault(bearer.digest, bearer.name) != bearer.name:
            raise BadFlag(f"{path}: {owners[bearer.digest]} and {bearer.name} have the same token; give each its own")
    return tuple(bearers)
