"""What a run's losses say about it, what they do not, and what rollouts say instead.

- ``loss_curve``: a history of any trainer, as numbers by epoch
- ``findings``, ``rules``, ``judge``: the seed's rules as pure functions over such a history
- ``seed_table``: the seed's bands and its estimate of success from a loss, kept as what it is
- ``offline_metrics``, ``rollouts``, ``calibration``: expected success, fitted on measured success
- ``report``: what people look at
"""
