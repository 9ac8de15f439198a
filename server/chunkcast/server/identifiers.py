"""Names in the log: those that the server gives, and those that clients say of themselves."""

from __future__ import annotations

import secrets

MAX_IDENTIFIER_LENGTH = 128


def new_id() -> str:
    """A name for a stream or a request that no other has, 16 hexadecimal digits."""
    return secrets.token_hex(8)


def printable(text: str) -> str:
    """``text`` as it may stand in a line of the log: no control characters, which could pretend to be other lines."""
    return "".join(each if each.isprintable() else "?" for each in text[:MAX_IDENTIFIER_LENGTH])
