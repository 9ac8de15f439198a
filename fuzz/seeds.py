"""Writes the seed corpus: ``python -m fuzz.seeds``. Files that a search has found are left as they are."""

from __future__ import annotations

import sys

from fuzz.registry import CORPUS, TARGETS

SEED = "seed-"
"""How a seed's file name begins, and no other's."""


def main() -> None:
    """Console script."""
    for name in sys.argv[1:] or TARGETS:
        write(name)


def write(name: str) -> None:
    """Write one target's seeds anew."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{SEED}*"):
        old.unlink()
    seeds = TARGETS[name].load().seeds()
    for label, data in seeds.items():
        (folder / f"{SEED}{label}").write_bytes(data)
    print(f"{name}: {len(seeds)} seeds, {sum(map(len, seeds.values()))} bytes")


if __name__ == "__main__":
    main()
