"""The floor that every figure is compared with: the network's bare run, without transport, queue or robots.

``python -m chunkcast.server.bare_run --bundle DIR --batch-sizes 1 8 32`` prints JSON: seconds of a plain
``session.run`` with fresh numpy inputs at each batch size. A process of its own, so that the robots' process needs no
ONNX Runtime.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class BareRunConfig:
    """Time a bundle's bare session.run; print JSON."""

    bundle: Path
    """Folder of the bundle."""
    batch_sizes: tuple[int, ...] = (1,)
    """To time, alternating."""
    threads: int = 1
    """ONNX Runtime's threads inside one run."""
    seconds: float = 2.0
    """For each batch size."""
    blocks: int = 5
    """Into which the time is divided: batch sizes alternate, so that a machine whose speed drifts slows all of them."""


def measure(config: BareRunConfig) -> dict[str, dict[str, float]]:
    """Batch size to ``p50_ms``, ``p90_ms``, ``p99_ms``, ``chunks_per_second`` and ``runs``.

    Raises:
        BundleError: the bundle cannot be served.
    """
    from chunkcast.server.bundle import read_bundle
    from chunkcast.server.engine import expected_inputs
    from chunkcast.server.providers import cpu_session

    bundle = read_bundle(config.bundle)
    session = cpu_session(bundle, config.threads)
    generator = np.random.default_rng(0)
    feeds = {
        size: {name: generator.random((size, *shape)).astype(dtype) for name, (shape, dtype) in inputs.items()}
        for size in config.batch_sizes
        for inputs in [expected_inputs(bundle.spec)]
    }
    seconds: dict[int, list[float]] = {size: [] for size in config.batch_sizes}
    for size in config.batch_sizes:
        for _ in range(3):
            session.run(None, feeds[size])
    for _ in range(config.blocks):
        for size in config.batch_sizes:
            until = time.perf_counter() + config.seconds / config.blocks
            while (started := time.perf_counter()) < until:
                session.run(None, feeds[size])
                seconds[size].append(time.perf_counter() - started)
    return {
        str(size): {
            **{f"p{p}_ms": round(float(np.percentile(runs, p)) * 1e3, 4) for p in (50, 90, 99)},
            "chunks_per_second": round(size / float(np.median(runs)), 1),
            "runs": len(runs),
        }
        for size, runs in seconds.items()
    }


def main() -> None:
    """For other programs; exit code 2 on bad input."""
    import tyro

    from chunkcast.server.errors import BundleError, ProviderMissing

    try:
        print(json.dumps(measure(tyro.cli(BareRunConfig))))
    except (BundleError, ProviderMissing) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
