"""One target under libFuzzer, which takes over the process: ``python -m fuzz.worker TARGET [libFuzzer's arguments]``.

Started by ``python -m fuzz``, with a folder of its own as TMPDIR.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris  # type: ignore[import-untyped]
import structlog

from fuzz.memory import limit_memory, watched
from fuzz.registry import CRASHES, TARGETS, Loaded, Target

FOUND = "found:"
"""Begins the line that tells of a finding."""


def main() -> None:
    """Fuzz until the time is over, exit code 0, or something is found, exit code 1."""
    name, *arguments = sys.argv[1:]
    fuzz(name, TARGETS[name], arguments)


def fuzz(name: str, target: Target, arguments: list[str], crashes: Path = CRASHES) -> None:
    """See ``main``."""
    with atheris.instrument_imports(include=list(target.instrumented)):
        loaded = target.load()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    # Arithmetic that numpy warns of ends in NaN; other warnings, such as Pillow's of odd files, are no findings.
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", RuntimeWarning)
    for file in (Path(argument) for argument in arguments if not argument.startswith("-")):
        # Whatever is set up at the first call is set up before the memory is bounded.
        for seed in sorted(file.glob("seed-*"))[:1]:
            reported(name, loaded.run, seed.read_bytes(), crashes)
    limit_memory()
    atheris.Setup(
        # How libFuzzer starts itself again, to merge corpora.
        [f"{sys.executable} -m fuzz.worker {name}", *arguments],
        lambda data: reported(name, loaded.run, data, crashes),
        custom_mutator=lambda data, most, seed: _mutated(loaded, data, most, seed),
    )
    atheris.Fuzz()


def _mutated(loaded: Loaded, data: bytes, most: int, seed: int) -> bytes:
    return loaded.mutate(data, most, seed, atheris.Mutate)[:most]


def reported(name: str, run: Callable[[bytes], None], data: bytes, crashes: Path) -> None:
    """Run a target; a finding's input is written, and the process ends with one line and the exit code 1."""
    try:
        watched(run, data)
    except BaseException as error:
        traceback.print_exc()
        crashes.mkdir(parents=True, exist_ok=True)
        file = crashes / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
        file.write_bytes(data)
        reason = (str(error).splitlines() or [""])[0][:300]
        print(f"{FOUND} {name}: {file}: {type(error).__name__}: {reason}", flush=True)
        os._exit(1)


if __name__ == "__main__":
    main()
