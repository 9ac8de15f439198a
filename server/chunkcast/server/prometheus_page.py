"""Publishes the server's statistics to Prometheus: names and units as its conventions have them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from chunkcast.server.statistics import Histogram, ServerStatistics
from chunkcast.v1 import policy_pb2 as pb


class StatisticsCollector(Collector):
    """Reads the statistics anew at each scrape."""

    def __init__(self, statistics: ServerStatistics) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """One metric family after the other; none has a label whose values a client chooses."""
        statistics = self._statistics
        latency = HistogramMetricFamily(
            "chunkcast_chunk_latency_seconds", "Time spent on a chunk, by stage.", labels=["policy", "stage"]
        )
        chunks = CounterMetricFamily(
            "chunkcast_chunks", "Chunks sent (ok), or refused with an error, by outcome.", labels=["policy", "outcome"]
        )
        episodes = CounterMetricFamily(
            "chunkcast_episodes", "Episodes reported by robots.", labels=["policy", "task", "outcome"]
        )
        batch_size = HistogramMetricFamily(
            "chunkcast_batch_size", "Observations computed in one run.", labels=["policy"]
        )
        dropped = CounterMetricFamily(
            "chunkcast_observations_dropped",
            "Observations that were overtaken by a newer one of their stream, or past their deadline, before a run.",
            labels=["policy", "reason"],
        )
        waiting = GaugeMetricFamily(
            "chunkcast_waiting_observations", "Observations in the queue now.", labels=["policy"]
        )
        for policy, counted in list(statistics.policies.items()):
            for stage, histogram in counted.latency.items():
                latency.add_metric([policy, stage], _cumulative(histogram), histogram.total)
            for outcome, count in list(counted.chunks.items()):
                chunks.add_metric([policy, outcome], count)
            for (task, outcome), count in list(counted.episodes.items()):
                episodes.add_metric([policy, task, outcome], count)
            batch_size.add_metric([policy], _cumulative(counted.batch_size), counted.batch_size.total)
            waiting.add_metric([policy], counted.waiting())
            for reason, count in list(counted.dropped.items()):
                dropped.add_metric([policy, reason], count)
        reloads = CounterMetricFamily(
            "chunkcast_bundle_loads", "Bundles loaded while serving (ok), or refused, by outcome.", labels=["outcome"]
        )
        for outcome, count in statistics.reloads.items():
            reloads.add_metric([outcome], count)
        streams = GaugeMetricFamily("chunkcast_active_streams", "Streams open now.", statistics.active_streams)
        yield from (latency, chunks, episodes, batch_size, dropped, waiting, reloads, streams)
        yield from self._policy_facts()

    def _policy_facts(self) -> Iterator[Metric]:
        """What each policy was when it left training."""
        info = GaugeMetricFamily(
            "chunkcast_policy_info",
            "The policies served; always 1.",
            labels=["policy", "version", "prediction_type", "evaluations", "data_sha256"],
        )
        loss = GaugeMetricFamily(
            "chunkcast_training_loss", "Loss of the exported epoch: the objective.", labels=["policy", "split"]
        )
        noise_mse = GaugeMetricFamily(
            "chunkcast_training_noise_mse",
            "Noise-prediction MSE of the exported epoch, comparable across prediction types.",
            labels=["policy", "split"],
        )
        for policy, spec in list(self._statistics.specs.items()):
            prediction = pb.PredictionType.Name(spec.sampler.prediction_type).removeprefix("PREDICTION_TYPE_").lower()
            labels = [policy, spec.version, prediction, str(spec.sampler.evaluations), spec.training.data_sha256[:12]]
            info.add_metric(labels, 1)
            for split in ("train", "validation"):
                loss.add_metric([policy, split], getattr(spec.training, f"{split}_loss"))
                noise_mse.add_metric([policy, split], getattr(spec.training, f"{split}_noise_mse"))
        yield from (info, loss, noise_mse)


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
    return buckets


class MetricsPage:
    """The HTTP server behind ``/metrics``, on a thread of its own.

    Args:
        host, port: where to listen; port 0 takes a free one.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, statistics: ServerStatistics, host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(StatisticsCollector(statistics))
        ProcessCollector(registry=registry)
        self._server, self._thread = start_http_server(port, host, registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
