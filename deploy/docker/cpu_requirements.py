"""Prints what the installed chunkcast needs to serve on a CPU: its extra "server", but onnxruntime without -gpu."""

from __future__ import annotations

from importlib.metadata import requires


def cpu_requirements(declared: list[str]) -> list[str]:
    """The requirements of chunkcast and of its extra "server", without markers.

    Args:
        declared: all of a distribution's, as its metadata has them.
    """
    wanted = set[str]()
    for line in declared:
        requirement, _, marker = line.partition(";")
        if "extra ==" not in marker or "extra == 'server'" in marker.replace('"', "'"):
            wanted.add(requirement.strip().replace("onnxruntime-gpu", "onnxruntime"))
    return sorted(wanted)


if __name__ == "__main__":
    print(*cpu_requirements(requires("chunkcast") or []), sep="\n")
