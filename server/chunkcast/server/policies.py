"""The policies that a server runs, and their versions: loaded aside, promoted, rolled back, unloaded.

One version of a policy is promoted and answers every stream that pins none; the one before it stays warm for a
rollback. A version enters only whole: read, verified, warm, and with the contract of the one that it replaces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import structlog

from chunkcast.language.text_encoder import TextEncoderError
from chunkcast.server.batcher import Batcher, BatcherConfig
from chunkcast.server.bundle import HEALTH_REFERENCE_NAME, read_bundle
from chunkcast.server.choices import ProviderChoice
from chunkcast.server.engine import Engine
from chunkcast.server.errors import BundleError, PolicyError, UnknownPolicy
from chunkcast.server.guard import ActionGuard
from chunkcast.server.health.judgement import Thresholds
from chunkcast.server.health.monitor import HealthMonitor
from chunkcast.server.health.outcomes import Outcomes
from chunkcast.server.health.scorer import Scorer, read_scorer
from chunkcast.server.identifiers import MAX_IDENTIFIER_LENGTH
from chunkcast.server.images import ImageDecoder
from chunkcast.server.instructions import KnownInstructions, TextEncoders
from chunkcast.server.statistics import LoadedVersion, PolicyStatistics, ServerStatistics
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import contract_difference

JOIN_SECONDS = 1.0
"""For a monitor to finish a judgement, when the server ends."""

log = structlog.get_logger()


@dataclass(frozen=True)
class EngineConfig:
    """How bundles are made ready.

    Attributes:
        threads: ONNX Runtime's, inside one run.
        providers: execution providers in order of preference.
        health_share: of one processor that judging a policy's chunks may take; 0 does not judge.
        text_encoders: folder of text encoders; ``None`` looks beside each bundle.
    """

    threads: int = 1
    providers: Sequence[ProviderChoice] = ("cpu",)
    health_share: float = 0.05
    text_encoders: Path | None = None


@dataclass(eq=False)
class PolicyVersion:
    """A warm version with everything that a chunk passes.

    Attributes:
        spec: its specification.
        batcher: its queue and engine.
        guard: its last check.
        instructions: what it can be told.
        monitor: judges its chunks, or ``None``.
        statistics: the policy's, shared by its versions.
        pinned_streams: streams that stay with this version.
        outdated: it was replaced twice over, and goes when its last stream does.
        chunks: that it answered.
    """

    spec: pb.PolicySpec
    batcher: Batcher
    guard: ActionGuard
    instructions: KnownInstructions
    statistics: PolicyStatistics
    monitor: HealthMonitor | None = None
    pinned_streams: int = 0
    outdated: bool = False
    chunks: int = 0


class Prepared(NamedTuple):
    """A bundle that is warm, not yet served.

    Attributes:
        engine: runs its graph.
        scorer: measures its health signals, or ``None`` where health is off.
        instructions: what it can be told.
    """

    engine: Engine
    scorer: Scorer | None
    instructions: KnownInstructions


@dataclass
class _Policy:
    promoted: PolicyVersion
    previous: PolicyVersion | None = None
    versions: dict[str, PolicyVersion] = field(default_factory=dict)


class Policies:
    """Every policy and version that is served. For the event loop's thread, but for ``prepare``.

    Args:
        statistics: where the versions count.
        engine_config, batcher_config: for every version.

    Attributes:
        on_forgotten: called when a version was unloaded.
    """

    def __init__(
        self, statistics: ServerStatistics, engine_config: EngineConfig, batcher_config: BatcherConfig
    ) -> None:
        self._statistics, self._engine_config, self._batcher_config = statistics, engine_config, batcher_config
        self._text_encoders = TextEncoders(engine_config.text_encoders)
        self._policies: dict[str, _Policy] = {}
        self.on_forgotten: Callable[[], None] = lambda: None
        self.image_decoder = ImageDecoder()

    def prepare(self, folder: Path) -> Prepared:
        """Read, verify and warm a bundle; takes its time, and may run on any thread.

        Raises:
            BundleError: it cannot be served.
            ProviderMissing: a requested provider cannot be used.
        """
        started = time.perf_counter()
        bundle = read_bundle(folder)
        config = self._engine_config
        try:
            instructions = KnownInstructions(bundle.spec, self._text_encoders.of(bundle.spec, folder))
        except TextEncoderError as error:
            raise BundleError(str(error)) from None
        engine = Engine(bundle, config.threads, max_batch=self._batcher_config.max_batch, providers=config.providers)
        engine.warm_up()
        scorer = read_scorer(bundle) if config.health_share else None
        log.info(
            "loaded",
            policy=bundle.spec.name,
            version=bundle.spec.version,
            provider=engine.provider,
            seconds=round(time.perf_counter() - started, 3),
            run_ms={size: round(seconds * 1e3, 3) for size, seconds in engine.run_seconds.items()},
        )
        return Prepared(engine, scorer, instructions)

    def add(self, prepared: Prepared) -> PolicyVersion:
        """Take in a prepared version; a policy's first is promoted. One that is there already is left as it is.

        Raises:
            BundleError: its contract is not that of the policy's promoted version, its version is taken, or its text
                encoder is missing where the promoted one has its own.
        """
        engine, scorer, instructions = prepared
        spec = engine.spec
        policy = self._policies.get(spec.name)
        if policy is not None:
            free_text = policy.promoted.instructions.takes_free_text and bool(spec.text_encoder.sha256)
            if free_text and not instructions.takes_free_text:
                engine.close()
                raise BundleError(
                    f"{spec.name} {spec.version} needs the text encoder {spec.text_encoder.name} "
                    f"{spec.text_encoder.sha256[:12]}, which is not here, and robots are told in free text; put it "
                    "beside the others (chunkcast-serve --text-encoders)"
                )
            if spec.version in policy.versions:
                engine.close()
                loaded = policy.versions[spec.version]
                if _without_measurements(loaded.spec) != _without_measurements(spec):
                    raise BundleError(
                        f"{spec.name} {spec.version} is loaded with another specification; export the bundle with a "
                        "--version of its own"
                    )
                # What is expected of the same graph, and how its health is judged, may be known better by now. A new
                # object: the metrics page reads the old one on its own thread.
                loaded.spec, loaded.instructions = spec, instructions
                if loaded.monitor:
                    loaded.monitor.close()
                loaded.monitor = self._monitor(spec, scorer, loaded.statistics)
                if policy.promoted is loaded:
                    self._statistics.specs[spec.name] = spec
                return loaded
            if difference := contract_difference(policy.promoted.spec, spec):
                engine.close()
                raise BundleError(
                    f"{spec.name} {spec.version} has another contract than {policy.promoted.spec.version}, which is "
                    f"served: {difference}; give it a name of its own"
                )
        statistics = self._statistics.of_policy(spec.name)
        batcher = Batcher(
            engine,
            self._batcher_config,
            fastest_run=engine.run_seconds[1],
            on_batch=statistics.batch_size.observe,
        )
        monitor = self._monitor(spec, scorer, statistics)
        version = PolicyVersion(spec, batcher, ActionGuard(spec.action), instructions, statistics, monitor)
        if policy is None:
            policy = self._policies[spec.name] = _Policy(version)
            self._statistics.specs[spec.name] = spec
            # A copy: the metrics page asks on its own thread, while versions come and go.
            statistics.waiting = lambda: sum(one.batcher.waiting for one in list(policy.versions.values()))
        policy.versions[spec.version] = version
        self._publish_versions(policy)
        return version

    @property
    def promoted(self) -> list[PolicyVersion]:
        """Each policy's promoted version."""
        return [policy.promoted for policy in self._policies.values()]

    def find(self, name: str, version: str = "") -> PolicyVersion:
        """A version of the policy called ``name``: the promoted one unless ``version`` says which.

        Args:
            name: empty for a server's only policy.

        Raises:
            UnknownPolicy: there is none.
        """
        policy = self._policy(name)
        if not version:
            return policy.promoted
        if version not in policy.versions:
            raise UnknownPolicy(
                f"version {version[:MAX_IDENTIFIER_LENGTH]!r} of {policy.promoted.spec.name} is not loaded; expected "
                f"one of: {', '.join(policy.versions)}"
            )
        return policy.versions[version]

    def promote(self, name: str, version: str) -> PolicyVersion:
        """Let ``version`` answer from now on; the one that it replaces is kept for rollback, the one before it is not.

        Raises:
            UnknownPolicy: it is not loaded.
            PolicyError: its contract is not that of the version that is promoted.
        """
        if not version:
            raise PolicyError("no version given; chunkcast-admin list shows those that are loaded")
        policy, chosen = self._policy(name), self.find(name, version)
        if chosen is policy.promoted:
            return chosen
        # Checked when it was loaded, but against what was promoted then.
        if difference := contract_difference(policy.promoted.spec, chosen.spec):
            raise PolicyError(f"{name} {version} has another contract than the version that is served: {difference}")
        return self._promote(policy, chosen)

    def _promote(self, policy: _Policy, chosen: PolicyVersion) -> PolicyVersion:
        outdated, policy.previous, policy.promoted = policy.previous, policy.promoted, chosen
        chosen.outdated = False
        if outdated is not None and outdated is not chosen:
            outdated.outdated = True
            if not outdated.pinned_streams:
                self._forget(policy, outdated)
        self._statistics.specs[chosen.spec.name] = chosen.spec
        # What robots reported of another version says nothing of this one.
        chosen.statistics.outcomes = Outcomes()
        chosen.statistics.health.latest = {}
        self._publish_versions(policy)
        log.info("promoted", policy=chosen.spec.name, version=chosen.spec.version)
        return chosen

    def roll_back(self, name: str) -> PolicyVersion:
        """Promote the version that was promoted before; a second rollback undoes the first.

        Raises:
            UnknownPolicy: there is no such policy.
            PolicyError: no version was promoted before, or it was unloaded.
        """
        policy = self._policy(name)
        if policy.previous is None:
            raise PolicyError(f"{policy.promoted.spec.name} has no version to roll back to; load and promote one")
        # Robots that follow an instruction which only the newer version knows are told so; the others come first.
        return self._promote(policy, policy.previous)

    def unload(self, name: str, version: str) -> None:
        """Forget a version; what waits for it is answered first.

        Raises:
            UnknownPolicy: it is not loaded.
            PolicyError: it is promoted, or streams pin it.
        """
        policy, chosen = self._policy(name), self.find(name, version)
        if chosen is policy.promoted:
            raise PolicyError(f"{name} {version} is promoted; promote another version or roll back first")
        if chosen.pinned_streams:
            raise PolicyError(f"{name} {version} is pinned by {chosen.pinned_streams} streams; wait until they end")
        if chosen is policy.previous:
            policy.previous = None
        self._forget(policy, chosen)

    def pin(self, version: PolicyVersion) -> None:
        """A stream stays with ``version`` until ``unpin``."""
        version.pinned_streams += 1

    def unpin(self, version: PolicyVersion) -> None:
        """A stream that pinned ``version`` is over."""
        version.pinned_streams -= 1
        if version.outdated and not version.pinned_streams:
            self._forget(self._policy(version.spec.name), version)

    def list(self) -> list[tuple[PolicyVersion, bool, bool]]:
        """Every version, whether it is promoted, and whether it was promoted before."""
        return [
            (version, version is policy.promoted, version is policy.previous)
            for policy in self._policies.values()
            for version in policy.versions.values()
        ]

    def close(self) -> None:
        """End every engine's thread."""
        self.image_decoder.close()
        for policy in self._policies.values():
            for version in policy.versions.values():
                version.batcher.close()
                if version.monitor:
                    version.monitor.close()
                    version.monitor.join(JOIN_SECONDS)

    def _monitor(
        self, spec: pb.PolicySpec, scorer: Scorer | None, statistics: PolicyStatistics
    ) -> HealthMonitor | None:
        if scorer is None:
            return None
        return HealthMonitor(
            scorer,
            Thresholds(spec.serving_health),
            statistics.health,
            share=self._engine_config.health_share,
            name=spec.name,
        )

    def _policy(self, name: str) -> _Policy:
        if not name and len(self._policies) == 1:
            return next(iter(self._policies.values()))
        policy = self._policies.get(name)
        if policy is None and not name:
            raise UnknownPolicy(f"this server has several policies; name one of: {', '.join(self._policies)}")
        if policy is None:
            raise UnknownPolicy(
                f"policy {name[:MAX_IDENTIFIER_LENGTH]!r} is not served here; expected one of: "
                f"{', '.join(self._policies)}"
            )
        return policy

    def _publish_versions(self, policy: _Policy) -> None:
        def state(version: PolicyVersion) -> str:
            if version is policy.promoted:
                return "promoted"
            return "previous" if version is policy.previous else "loaded"

        versions = tuple(LoadedVersion(name, state(version)) for name, version in policy.versions.items())
        self._statistics.versions[policy.promoted.spec.name] = versions

    def _forget(self, policy: _Policy, version: PolicyVersion) -> None:
        del policy.versions[version.spec.version]
        self._publish_versions(policy)
        self.on_forgotten()
        version.batcher.close()
        if version.monitor:
            version.monitor.close()
        log.info("unloaded", policy=version.spec.name, version=version.spec.version)


def _without_measurements(spec: pb.PolicySpec) -> pb.PolicySpec:
    """What a version is, without what was measured of it since."""
    copy = pb.PolicySpec()
    copy.CopyFrom(spec)
    copy.ClearField("expected_success")
    copy.ClearField("serving_health")
    kept = [file for file in copy.files if file.path != HEALTH_REFERENCE_NAME]
    del copy.files[:]
    copy.files.extend(kept)
    return copy
