"""Mutations that know an input's format, so that most of what they make passes the parser and reaches our checks."""

from __future__ import annotations

import json
import random
import zlib
from typing import Any

from fuzz.registry import Mutate, Mutator

BLIND = 0.2
"""Share of inputs that are mutated as plain bytes, whatever their format."""

NUMBERS = (0, 1, -1, 2, 64, 65, 128, 255, 2**16, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
JSON_VALUES: tuple[Any, ...] = (
    *NUMBERS, None, True, False, "", " ", "a", "\n", "\ud800", "\0", "..", "../x", "/etc/passwd", "x" * 300, "1", "NaN",
    "Infinity", "-1", 0.5, 1e30, 1e31, 1e39, 1e308, float("nan"), float("inf"), -0.0, [], {}, [[]], 10**400,
)  # fmt: skip


def _chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 (no secret)


def prefixed(mutator: Mutator, length: int = 1) -> Mutator:
    """``mutator`` behind bytes that choose what is read; they change seldom."""

    def mutate(data: bytes, most: int, seed: int, plain: Mutate) -> bytes:
        head, rest = data[:length].ljust(length, b"\0"), data[length:]
        chance = _chance(seed)
        if chance.random() < 0.05:
            head = bytes(chance.randrange(256) for _ in head)
        return head + mutator(rest, max(most - length, 1), seed, plain)

    return mutate


def as_bytes(data: bytes, most: int, seed: int, plain: Mutate) -> bytes:
    """As libFuzzer mutates any bytes."""
    return plain(data, most)


def as_json(data: bytes, most: int, seed: int, plain: Mutate) -> bytes:
    """A few values of a JSON document are replaced, copied, moved or removed."""
    chance = _chance(seed)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict | list) or chance.random() < BLIND:
        return plain(data, most)
    for _ in range(chance.randint(1, 3)):
        _change(document, chance, plain)
    text = json.dumps(document).encode()
    return text if len(text) <= most else plain(data, most)


def _change(document: Any, chance: random.Random, plain: Mutate) -> None:
    found = places(document)
    if not found:
        return
    holder, key = chance.choice(found)
    value = holder[key]
    kind = chance.randrange(7)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        other, place = chance.choice(found)
        holder[key] = json.loads(json.dumps(other[place]))  # a copy: a document has no cycles
    elif kind == 2 and isinstance(holder, list):
        holder.extend([value] * chance.choice((1, 2, 20)))
    elif kind == 3:
        holder[key] = [value] if chance.random() < 0.5 else {"a": value}
    elif kind == 4 and isinstance(value, str):
        holder[key] = plain(value.encode(errors="replace") or b"a", 64).decode(errors="replace")
    elif kind == 5 and isinstance(holder, dict):
        holder[chance.choice(("", "a", "name", "format_version", key + "x"))] = value
    else:
        holder[key] = chance.choice(JSON_VALUES)


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every value's holder, and its key or index there."""
    found: list[tuple[Any, Any]] = []
    left = [document]
    while left:
        holder = left.pop()
        items = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
        for key, value in items:
            found.append((holder, key))
            if isinstance(value, dict | list):
                left.append(value)
    return found


def as_protobuf(data: bytes, most: int, seed: int, plain: Mutate) -> bytes:
    """Fields of a protobuf message are changed; lengths stay true. No schema: whatever parses as a message is one."""
    chance = _chance(seed)
    fields = _fields(data)
    if not fields or chance.random() < BLIND:
        return plain(data, most)
    made = _message(_changed(fields, chance, plain))
    return made if len(made) <= most else plain(data, most)


Field = tuple[int, int, int | bytes]
"""Number, wire type, and a varint or the bytes."""


def _changed(fields: list[Field], chance: random.Random, plain: Mutate) -> list[Field]:
    fields = list(fields)
    at = chance.randrange(len(fields))
    number, kind, value = fields[at]
    choice = chance.randrange(12)
    if choice == 0:
        del fields[at]
    elif choice == 1:
        fields.insert(chance.randrange(len(fields) + 1), fields[at])
    elif choice == 2:
        fields[at] = (chance.randint(1, 17), kind, value)
    elif isinstance(value, int):
        fields[at] = (number, kind, chance.choice((*NUMBERS, value + 1, value - 1)) % 2**64)
    else:
        nested = _fields(value)
        if nested and chance.random() < 0.8:
            value = _message(_changed(nested, chance, plain))
        elif chance.random() < 0.2 and kind == 2:
            value = b"".join(_varint(chance.choice(NUMBERS) % 2**64) for _ in range(chance.choice((1, 3, 65))))
        else:
            made = plain(value or b"\0", max(len(value), 64))
            value = made if kind == 2 else made.ljust(len(value), b"\0")[: len(value)]
        fields[at] = (number, kind, value)
    return fields


def _fields(data: bytes) -> list[Field]:
    """The fields of a message, or none if ``data`` are not one."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if at < 0 or number == 0 or kind not in (0, 1, 2, 5):
            return []
        if kind == 0:
            value, at = _read_varint(data, at)
            if at < 0:
                return []
            fields.append((number, kind, value))
            continue
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            size, at = _read_varint(data, at)
        if at < 0 or at + size > len(data):
            return []
        fields.append((number, kind, data[at : at + size]))
        at += size
    return fields


def _message(fields: list[Field]) -> bytes:
    parts = []
    for number, kind, value in fields:
        parts.append(_varint(number << 3 | kind))
        if isinstance(value, int):
            parts.append(_varint(value))
        else:
            parts.append((_varint(len(value)) if kind == 2 else b"") + value)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes((*made, value))


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at ``at`` and what comes after it, -1 if there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            return 0, -1
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value % 2**64, at
    return 0, -1


def as_png(data: bytes, most: int, seed: int, plain: Mutate) -> bytes:
    """As bytes; then every chunk's checksum is made right, mostly."""
    made = plain(data, most)
    return made if _chance(seed).random() < BLIND else with_checksums(made)


def with_checksums(png: bytes) -> bytes:
    """``png`` with the checksum that each of its chunks should have."""
    made, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        body = png[at + 4 : at + 8 + size]
        if len(body) < 4 + size or at + 12 + size > len(png):
            break
        made += png[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + size
    return bytes(made) + png[at:]
