"""The bundle's network in eager torch, as the peers run it: ``sample_chunk`` with diffusers' DDIM, one call at a time.

Weights come from a training run, or are random: the same layers do the same work, whatever the numbers in them.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.child import PeersError
from chunkcast.server.bundle import read_bundle
from chunkcast.training.checkpoint import load_policy, read_checkpoint
from chunkcast.training.choices import PredictionType
from chunkcast.training.policy import DiffusionPolicy, PolicyConfig
from chunkcast.training.sampling import sample_chunk, sampling_scheduler
from chunkcast.v1 import policy_pb2 as pb

STATE_KEY = "observation.state"
PROMPT_KEY = "prompt"
"""What openpi's policies call the instruction."""

WARM_UP_CALLS = 20


@dataclass(frozen=True)
class NetworkConfig:
    """The network that all of them run."""

    bundle: Path = Path("policies/metaworld-six")
    """The policy; chunkcast serves this."""
    run: Path | None = None
    """Training run with the same network's weights for torch; random ones by default, which take the same time."""
    width: int = 352
    """The denoiser's, where the weights are random; the bundle does not say."""
    blocks: int = 4
    """Likewise."""
    torch_threads: int = 1
    """torch's threads inside one operation, of both peers."""


class EagerPolicy:
    """One network, one observation at a time.

    Args:
        config: which; its ``torch_threads`` are set for the whole process.

    Raises:
        PeersError: torch's network would not be the bundle's.
    """

    def __init__(self, config: NetworkConfig) -> None:
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        torch.set_num_threads(config.torch_threads)
        self.spec = read_bundle(config.bundle).spec
        policy, self.weights = _network(config, self.spec)
        _check_same_network(policy, self.spec)
        self._policy = policy.eval().requires_grad_(False)
        self._scheduler = sampling_scheduler(policy.config, self.spec.sampler.evaluations)
        self._instructions = {item.text: torch.tensor([list(item.embedding)]) for item in self.spec.instructions}
        self._chunk_shape = (1, policy.config.horizon, policy.config.action_size)
        self._prefix_actions, self._prefix_length = torch.zeros(self._chunk_shape), torch.zeros(1, dtype=torch.int64)
        self._steps = policy.config.observation_steps

    def warm_up(self, observation: Mapping[str, Any]) -> None:
        """The first calls take several times as long as later ones."""
        for _ in range(WARM_UP_CALLS):
            self.infer(observation)

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """``actions [H, A]`` for a state ``[S]`` (taken for each of the network's observation steps) and a prompt."""
        state = torch.from_numpy(np.array(observation[STATE_KEY], np.float32)).expand(1, self._steps, -1)
        actions = sample_chunk(
            self._policy,
            self._scheduler,
            state,
            self._instructions[observation[PROMPT_KEY]],
            torch.randn(self._chunk_shape),
            self._prefix_actions,
            self._prefix_length,
        )
        return {"actions": actions[0].numpy()}


def served_in_turn(call: Callable[[], object], *, robots: int, warm_up: float, seconds: float) -> dict[str, Any]:
    """Milliseconds from asking to having a chunk, for ``robots`` that take turns and ask again at once.

    One thread calls for all of them, which is the best that one call at a time can do: no lock, no hand-over.
    """
    started = time.perf_counter()
    counted_from, until = started + warm_up, started + warm_up + seconds
    asked = [started] * robots
    latency_ms, inference_ms = [], []
    turn = 0
    while (begun := time.perf_counter()) < until:
        call()
        answered = time.perf_counter()
        if counted_from <= answered < until:
            latency_ms.append((answered - asked[turn]) * 1e3)
            inference_ms.append((answered - begun) * 1e3)
        asked[turn] = answered
        turn = (turn + 1) % robots
    return {"latency_ms": latency_ms, "inference_ms": inference_ms}


def _network(config: NetworkConfig, spec: pb.PolicySpec) -> tuple[DiffusionPolicy, str]:
    """The network and what its weights are."""
    if config.run is not None:
        file = config.run / "checkpoints" / "last.safetensors"
        policy = load_policy(read_checkpoint(file))
        own = hashlib.sha256(file.read_bytes()).hexdigest() == spec.provenance.checkpoint_sha256
        return policy, f"{file}, {'which' if own else 'not the one that'} the bundle was exported from"
    if [entry.key for entry in spec.observations] != [STATE_KEY] or len(spec.observations[0].shape) != 1:
        raise PeersError(f"{config.bundle} observes more than {STATE_KEY!r} [S]; the peers' network knows that alone")
    state_size, actions = spec.observations[0].shape[0], spec.action.elements
    prediction = pb.PredictionType.Name(spec.sampler.prediction_type).removeprefix("PREDICTION_TYPE_").lower()
    prediction_types: dict[str, PredictionType] = {
        "sample": "sample",
        "epsilon": "epsilon",
        "v_prediction": "v_prediction",
    }
    if spec.sampler.name != "DDIM":
        raise PeersError(f"{config.bundle} is sampled by {spec.sampler.name}; the peers' network is by DDIM alone")
    shapes = PolicyConfig(
        state_size=state_size,
        action_size=len(actions),
        instruction_size=len(spec.instructions[0].embedding) if spec.instructions else 0,
        observation_steps=spec.observation_steps,
        horizon=spec.action.horizon,
        denoiser="mlp",
        width=config.width,
        blocks=config.blocks,
        embedding_size=config.width,
        objective="diffusion",
        prediction_type=prediction_types[prediction],
        train_timesteps=spec.sampler.train_timesteps,
        max_committed_steps=spec.action.max_committed_steps,
    )
    low, high = (torch.tensor([getattr(element, bound) for element in actions]) for bound in ("low", "high"))
    mean, scale = torch.zeros(shapes.instruction_size), torch.ones(())
    return DiffusionPolicy(shapes, torch.zeros(state_size), torch.ones(state_size), mean, scale, low, high), "random"


def _check_same_network(policy: DiffusionPolicy, spec: pb.PolicySpec) -> None:
    """As many parameters and the same chunk; the same weights are not asked for."""
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    chunk = (policy.config.horizon, policy.config.action_size)
    expected = (spec.action.horizon, len(spec.action.elements))
    if parameters != spec.training.parameters or chunk != expected:
        raise PeersError(
            f"torch's network has {parameters} parameters and chunks of {chunk}, the bundle's "
            f"{spec.training.parameters} and {expected}; give its --run, or its --width and --blocks"
        )
