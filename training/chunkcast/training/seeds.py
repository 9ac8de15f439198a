"""Which episodes are for what. Demonstrations take seeds from 0 on, evaluations from 1,000,000 on."""

from __future__ import annotations

EVALUATION_SEED = 1_000_000
"""From here on: what is chosen or measured by any other seed is evaluated on these, and nothing is chosen by them."""

CALIBRATION_SEED = 600_000
"""First episode seed: neither of demonstrations (from 0), nor of choices (500,000), nor of evaluations (1,000,000)."""

CHOICE_SEED = 500_000
"""First seed of the episodes that checkpoints and settings are chosen by."""

MONITOR_SEED = 650_000
"""First seed of the episodes that serving health is measured against; of none of those either."""
