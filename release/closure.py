"""What an extra brings along: the distribution's requirements and theirs, whatever else is in the environment."""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release.common import NAME, ReleaseError


def closure(extra: str | None = None) -> set[str]:
    """Canonical names of all that ``pip install chunkcast[extra]`` installs here, chunkcast itself left out.

    Markers are evaluated for this interpreter and platform.

    Raises:
        ReleaseError: a requirement is not installed, or chunkcast has no such extra.
    """
    if extra and extra not in (_distribution(NAME, NAME).metadata.get_all("Provides-Extra") or ()):
        raise ReleaseError(f"{NAME} has no extra {extra!r}")
    start = (canonicalize_name(NAME), frozenset({extra} if extra else ()))
    seen = {start}
    waiting = [(start, NAME)]
    while waiting:
        (name, extras), wanted_by = waiting.pop()
        for line in _distribution(name, wanted_by).requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": one}) for one in extras or {""}):
                continue
            found = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if found not in seen:
                seen.add(found)
                waiting.append((found, name))
    return {str(name) for name, _ in seen} - {NAME}


def _distribution(name: str, wanted_by: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError:
        raise ReleaseError(f"{name}, which {wanted_by} requires, is not installed") from None
