"""MetaWorld's fifty tasks by difficulty, as published tables group them (Seo et al. 2023, arXiv:2206.14244)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    """Mean success of each group, and the mean of the four, which published tables call average; ``None`` unless all
    fifty were played.

    Args:
        tasks: task to ``success_rate`` and more.
    """
    if len(tasks) < TASKS:
        return None
    groups: dict[str, list[float]] = {"easy": [], "medium": [], "hard": [], "very hard": []}
    for task, facts in tasks.items():
        groups[GROUP_OF.get(task, "easy")].append(float(facts["success_rate"]))
    means = {group: round(sum(rates) / len(rates), 4) for group, rates in groups.items()}
    return {
        "groups": {group: {"tasks": len(groups[group]), "success_rate": mean} for group, mean in means.items()},
        "mean_of_groups": round(sum(means.values()) / len(means), 4),
        "lowest_task": min(tasks, key=lambda task: float(tasks[task]["success_rate"])),
    }
