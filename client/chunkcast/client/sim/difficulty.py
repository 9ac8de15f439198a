"""MetaWorld's fifty tasks by difficulty, as published tables group them (Seo et al. 2023, arXiv:2206.14244)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chunkcast.simulation.success import success_rate

MEDIUM = (
    "basketball bin-picking box-close coffee-pull coffee-push hammer peg-insert-side push-wall soccer sweep sweep-into"
)
HARD = "assembly hand-insert pick-out-of-hole pick-place push push-back"
VERY_HARD = "shelf-place disassemble stick-pull stick-push pick-place-wall"
GROUP_OF = {
    f"{task}-v3": group
    for group, tasks in (("medium", MEDIUM), ("hard", HARD), ("very hard", VERY_HARD))
    for task in tasks.split()
}
"""Every other task is easy."""
TASKS = 50


def by_difficulty(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Success of each group, and the mean of the four, which published tables call average; ``None`` unless all fifty
    were played.

    Args:
        tasks: task to ``successes``, ``episodes`` and ``success_rate``; as many episodes of each.
    """
    if len(tasks) < TASKS:
        return None
    members: dict[str, list[Mapping[str, Any]]] = {"easy": [], "medium": [], "hard": [], "very hard": []}
    for task, facts in tasks.items():
        members[GROUP_OF.get(task, "easy")].append(facts)
    groups = {
        group: {
            "tasks": len(each),
            **success_rate(sum(facts["successes"] for facts in each), sum(facts["episodes"] for facts in each)),
        }
        for group, each in members.items()
    }
    return {
        "groups": groups,
        "mean_of_groups": round(sum(group["success_rate"] for group in groups.values()) / len(groups), 4),
        "lowest_task": min(tasks, key=lambda task: float(tasks[task]["success_rate"])),
    }
