"""What must hold whatever is read: the findings of the fuzz targets."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent

MAX_MESSAGE = 2000
"""Characters of an error's message: what was quoted in it was cut."""

SIGNS_OF_THE_INSIDE = ("Traceback (most recent call last)", " object at 0x", 'File "/')
"""What tells of the program and not of the input."""


class Finding(AssertionError):
    """Something that must hold does not."""


def require(holds: bool, what: str) -> None:
    """Note a finding unless ``holds``.

    Raises:
        Finding: it does not hold.
    """
    if not holds:
        raise Finding(what)


def require_clear(error: object, *, of_a_client: bool = True) -> None:
    """An error's message is one printable line, and bounded.

    Args:
        error: what was raised, or its message.
        of_a_client: a client is told it, who has no business with this machine's folders.

    Raises:
        Finding: it is not.
    """
    message = str(error)
    shown = repr(message[:300])
    require(0 < len(message) <= MAX_MESSAGE, f"a message has {len(message)} characters: {shown}")
    require(message.isprintable(), f"a message is not one printable line: {shown}")
    require(not any(sign in message for sign in SIGNS_OF_THE_INSIDE), f"a message tells of the inside: {shown}")
    if of_a_client:
        private = (str(ROOT), sys.prefix, tempfile.gettempdir() + "/")
        require(not any(path in message for path in private), f"a message names a path of this machine: {shown}")


def require_array(name: str, array: npt.NDArray[Any], shape: Iterable[int], dtype: Any) -> None:
    """An array is of this shape and dtype, and finite.

    Raises:
        Finding: it is not.
    """
    require(array.shape == tuple(shape), f"{name} has shape {array.shape}, expected {tuple(shape)}")
    require(array.dtype == np.dtype(dtype), f"{name} is {array.dtype}, expected {dtype}")
    require(bool(np.isfinite(array).all()), f"{name} is not finite")
