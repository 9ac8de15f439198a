"""Publishes the server's statistics to Prometheus: names and units as its conventions have them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from chunkcast.server.bundle import ALL_TASKS
from chunkcast.server.histogram import Histogram
from chunkcast.server.statistics import ServerStatistics
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
        refused = CounterMetricFamily(
            "chunkcast_refused_requests",
            "Requests refused for who sent them: without a good token, or beyond a client's rate or streams.",
            labels=["reason"],
        )
        for reason, count in statistics.refused_clients.items():
            refused.add_metric([reason], count)
        yield refused
        if statistics.certificate_expires is not None:
            yield GaugeMetricFamily(
                "chunkcast_certificate_expiry_timestamp_seconds",
                "When the server's certificate expires.",
                statistics.certificate_expires,
            )
        yield from self._policy_facts()
        yield from self._serving_health()
        yield from self._measured_success()

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
        by_timestep = GaugeMetricFamily(
            "chunkcast_training_noise_mse_by_timestep",
            "Noise-prediction MSE of the exported epoch on held-out episodes, by band of timesteps.",
            labels=["policy", "timesteps"],
        )
        action_mse = GaugeMetricFamily(
            "chunkcast_training_action_mse",
            "Error of sampled actions on held-out episodes, in [-1, 1]: the policy's, and each task's mean action's.",
            labels=["policy", "predictor"],
        )
        findings = GaugeMetricFamily(
            "chunkcast_health_findings",
            "Findings about the training run, by rule; always 1.",
            labels=["policy", "code", "severity"],
        )
        for policy, spec in list(self._statistics.specs.items()):
            prediction = pb.PredictionType.Name(spec.sampler.prediction_type).removeprefix("PREDICTION_TYPE_").lower()
            labels = [policy, spec.version, prediction, str(spec.sampler.evaluations), spec.training.data_sha256[:12]]
            info.add_metric(labels, 1)
            for split in ("train", "validation"):
                loss.add_metric([policy, split], getattr(spec.training, f"{split}_loss"))
                noise_mse.add_metric([policy, split], getattr(spec.training, f"{split}_noise_mse"))
            for band, value in sorted(spec.training.validation_noise_mse_by_timestep.items()):
                by_timestep.add_metric([policy, band], value)
            if spec.training.validation_action_variance:
                action_mse.add_metric([policy, "policy"], spec.training.validation_action_mse)
                action_mse.add_metric([policy, "task_mean"], spec.training.validation_action_variance)
            for code, severity in {(finding.code, finding.severity) for finding in spec.training.findings}:
                findings.add_metric([policy, code, _word(pb.FindingSeverity.Name(severity))], 1)
        yield from (info, loss, noise_mse, by_timestep, action_mse, findings)
        yield from self._expected_success()

    def _serving_health(self) -> Iterator[Metric]:
        """How the chunks were judged while they were served."""
        ratio = HistogramMetricFamily(
            "chunkcast_health_score_ratio",
            "A judged chunk's score over its threshold, by signal; above 1 the policy is out of its element.",
            labels=["policy", "signal"],
        )
        loss = HistogramMetricFamily(
            "chunkcast_online_denoising_loss",
            "Error with which the policy restores its own chunk from noise, averaged over the episode.",
            labels=["policy"],
        )
        judged = CounterMetricFamily(
            "chunkcast_health_judged_chunks", "Chunks judged by their health, by verdict.", labels=["policy", "verdict"]
        )
        skipped = CounterMetricFamily(
            "chunkcast_health_skipped_chunks", "Chunks that there was no time to judge.", labels=["policy"]
        )
        failures = CounterMetricFamily(
            "chunkcast_health_failures", "Chunks that could not be judged; the log says why.", labels=["policy"]
        )
        unhealthy = GaugeMetricFamily(
            "chunkcast_unhealthy_streams", "Streams whose latest judgement is unhealthy.", labels=["policy"]
        )
        busy = CounterMetricFamily(
            "chunkcast_health_busy_seconds", "Processor time spent on judging chunks.", labels=["policy"]
        )
        for policy, counted in list(self._statistics.policies.items()):
            health = counted.health
            for signal, histogram in list(health.ratios.items()):
                ratio.add_metric([policy, signal], _cumulative(histogram), histogram.total)
            loss.add_metric([policy], _cumulative(health.denoising_loss), health.denoising_loss.total)
            for verdict, count in health.verdicts.items():
                judged.add_metric([policy, verdict], count)
            skipped.add_metric([policy], health.skipped)
            failures.add_metric([policy], health.failures)
            unhealthy.add_metric([policy], health.unhealthy_streams)
            busy.add_metric([policy], health.busy_seconds)
        yield from (ratio, loss, judged, skipped, failures, unhealthy, busy)

    def _measured_success(self) -> Iterator[Metric]:
        """What robots reported lately, named and labelled as what was expected."""
        labels = ["policy", "task"]
        ratio = GaugeMetricFamily(
            "chunkcast_measured_success_ratio",
            "Share of successes in the promoted version's last 100 reported episodes of a task; 'all': of all of them.",
            labels=labels,
        )
        bounds = GaugeMetricFamily(
            "chunkcast_measured_success_bound_ratio",
            "Ends of the measured success's 95 % interval (Wilson).",
            labels=[*labels, "bound"],
        )
        episodes = GaugeMetricFamily(
            "chunkcast_measured_success_episodes", "Episodes that the measured success rests on.", labels=labels
        )
        for policy, counted in list(self._statistics.policies.items()):
            for task, success in counted.outcomes.measured().items():
                ratio.add_metric([policy, task], success.ratio)
                bounds.add_metric([policy, task, "low"], success.low)
                bounds.add_metric([policy, task, "high"], success.high)
                episodes.add_metric([policy, task], success.episodes)
        yield from (ratio, bounds, episodes)

    def _expected_success(self) -> Iterator[Metric]:
        """How often each policy is expected to succeed, from each source that its specification names."""
        labels = ["policy", "task", "source"]
        ratio = GaugeMetricFamily(
            "chunkcast_expected_success_ratio",
            "Expected share of successful episodes; the task 'all' is the mean over tasks.",
            labels=labels,
        )
        bounds = GaugeMetricFamily(
            "chunkcast_expected_success_bound_ratio",
            "Ends of the expected success's 95 % interval; of the seed_table, of its row.",
            labels=[*labels, "bound"],
        )
        for policy, spec in list(self._statistics.specs.items()):
            for expected in spec.expected_success:
                source = _word(pb.SuccessSource.Name(expected.source))
                values = [policy, expected.task or ALL_TASKS, source]
                ratio.add_metric(values, expected.ratio)
                bounds.add_metric([*values, "low"], expected.low)
                bounds.add_metric([*values, "high"], expected.high)
        yield from (ratio, bounds)


def _word(name: str) -> str:
    """The last word of an enumerator's name, in lower case."""
    return name.removeprefix("FINDING_SEVERITY_").removeprefix("SUCCESS_SOURCE_").lower()


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
    return buckets


def metrics_registry(statistics: ServerStatistics) -> CollectorRegistry:
    """What ``/metrics`` shows: the statistics, and the process."""
    registry = CollectorRegistry()
    registry.register(StatisticsCollector(statistics))
    ProcessCollector(registry=registry)
    return registry
