"""What a run's losses say about it, what they do not, and what rollouts say instead.

- ``log_rows``, ``loss_curve``, ``whole_run``: the history of any trainer, as numbers by epoch
- ``findings``, ``rules``, ``judge``: the seed's warning signs, as pure functions over such a history
- ``seed_table``: the seed's bands and its estimate of success from a loss, kept as what they are
- ``offline_metrics``, ``rollouts``, ``calibration``, ``calibrate``, ``calibration_file``: expected success, fitted on
  measured success
- ``messages``: findings and expectations as a bundle has them
- ``report``, ``plots``, ``tables``: what people look at
"""
