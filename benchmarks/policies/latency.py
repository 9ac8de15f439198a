"""What a bundle's graph takes by itself: bare ``session.run`` on one thread."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime

RUNS = 100
SECONDS = 5.0
"""After which a slow graph has run often enough."""
BATCHES = (1, 32)
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def graph_latency_ms(graph: Path) -> dict[str, float]:
    """Median milliseconds of a run by batch size."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    medians = {}
    for batch in BATCHES:
        feeds = {each.name: np.zeros([batch, *each.shape[1:]], TYPES[each.type]) for each in session.get_inputs()}
        session.run(None, feeds)
        seconds: list[float] = []
        while not seconds or (len(seconds) < RUNS and sum(seconds) < SECONDS):
            started = time.perf_counter()
            session.run(None, feeds)
            seconds.append(time.perf_counter() - started)
        medians[str(batch)] = round(statistics.median(seconds) * 1e3, 3)
    return medians
