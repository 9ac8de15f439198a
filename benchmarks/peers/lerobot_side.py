"""Run in an environment that has lerobot and not this project: the same demonstrations, and a policy that answers.

python lerobot_side.py convert TABLE.npz ROOT     a LeRobotDataset that lerobot's Diffusion Policy can be trained on
python lerobot_side.py answer CHECKPOINT STEPS    observations on standard input, actions on standard output

Its Diffusion Policy sees an image or an environment's state beside the robot's own; and it is told no task, so the task
is a part of that state, one-hot.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROBOT = 4
"""Entries of the state that are the robot's own."""
FPS = 80


def convert(table: Path, root: Path) -> None:
    """Write episodes as lerobot's recorder would."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    with np.load(table) as arrays:
        states, codes, actions, episodes = (arrays[name] for name in ("states", "codes", "actions", "episodes"))
    environment = states.shape[1] + codes.shape[1]
    features = {
        "observation.state": {"dtype": "float32", "shape": (ROBOT,), "names": None},
        "observation.environment_state": {"dtype": "float32", "shape": (environment,), "names": None},
        "action": {"dtype": "float32", "shape": (actions.shape[1],), "names": None},
    }
    data = LeRobotDataset.create("local/six", FPS, features, root=root, use_videos=False)
    last = episodes[0]
    for row, episode in enumerate(episodes):
        if episode != last:
            data.save_episode()
            last = episode
        data.add_frame(
            {
                "observation.state": states[row, :ROBOT],
                "observation.environment_state": np.concatenate([states[row], codes[row]]),
                "action": actions[row],
                "task": "MetaWorld",
            }
        )
    data.save_episode()
    data.finalize()


def answer(checkpoint: Path, steps: int) -> None:
    """A line of protocol: uint32 1 for a new episode or 0, then the observation; back comes the action."""
    # lerobot prints on standard output too: that goes to standard error, beside the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    import torch
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.factory import make_pre_post_processors

    policy = DiffusionPolicy.from_pretrained(checkpoint).eval()
    # Its hundred steps of DDPM would take half a minute a chunk here; DDIM with fewer is its own option.
    policy.config.noise_scheduler_type = "DDIM"
    policy.diffusion = _with_ddim(policy, steps)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint))
    size = policy.config.env_state_feature.shape[0]
    while header := sys.stdin.buffer.read(4):
        if struct.unpack("<I", header)[0]:
            policy.reset()
        observation = np.frombuffer(sys.stdin.buffer.read(4 * size), np.float32)
        batch = {
            "observation.state": torch.from_numpy(observation[:ROBOT].copy())[None],
            "observation.environment_state": torch.from_numpy(observation.copy())[None],
        }
        with torch.no_grad():
            action = after(policy.select_action(before(batch)))
        answers.write(np.asarray(action[0].cpu(), np.float32).tobytes())
        answers.flush()


def _with_ddim(policy: Any, steps: int) -> Any:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    model = policy.diffusion
    kept = model.noise_scheduler.config
    model.noise_scheduler = DDIMScheduler(
        num_train_timesteps=kept.num_train_timesteps,
        beta_schedule=kept.beta_schedule,
        clip_sample=kept.clip_sample,
        clip_sample_range=kept.clip_sample_range,
        prediction_type=kept.prediction_type,
    )
    model.num_inference_steps = steps
    return model


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        answer(Path(sys.argv[2]), int(sys.argv[3]))
