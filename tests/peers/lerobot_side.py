"""Run in an environment that has lerobot and not this project: what it makes of a data set, or writes one.

python lerobot_side.py read ROOT OUT.npz       every row of every feature, and of the first episodes' pictures
python lerobot_side.py write ROOT OUT.npz      a data set of its own, with a camera
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

VECTORS = ("observation.state", "action", "executed_action", "timestamp", "seed", "episode_index", "frame_index")
FPS = 20
LENGTHS = (12, 9, 15)
SENTENCES = ("wave", "point", "wave")


def read(root: Path, out: Path) -> None:
    """As a DataLoader of lerobot's trainer would."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("local/chunkcast", root=root, video_backend="pyav")
    loader = torch.utils.data.DataLoader(data, batch_size=64)
    batches = list(loader)
    arrays = {name: torch.cat([batch[name] for batch in batches]).numpy() for name in VECTORS if name in data.features}
    arrays["tasks"] = np.array([task for batch in batches for task in batch["task"]])
    for key in data.meta.camera_keys:
        pictures = torch.cat([batch[key] for batch in batches])
        arrays[key] = (255.0 * pictures).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    chunk = {"action": [n / data.fps for n in range(16)]}
    ahead = LeRobotDataset("local/chunkcast", root=root, delta_timestamps=chunk, video_backend="pyav")
    arrays["chunk"] = ahead[3]["action"].numpy()
    arrays["mean"] = np.asarray(data.meta.stats["action"]["mean"])
    np.savez(out, allow_pickle=False, **arrays)


def write(root: Path, out: Path) -> None:
    """As lerobot's recorder would."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "observation.state": {"dtype": "float32", "shape": (4,), "names": ["a", "b", "c", "d"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["u", "v"]},
        "observation.images.front": {
            "dtype": "video",
            "shape": (48, 64, 3),
            "names": ["height", "width", "channels"],
        },
    }
    data = LeRobotDataset.create("local/theirs", FPS, features, root=root, robot_type="so101", vcodec="h264")
    generator = np.random.default_rng(0)
    states = generator.standard_normal((sum(LENGTHS), 4)).astype(np.float32)
    actions = generator.standard_normal((sum(LENGTHS), 2)).astype(np.float32)
    shades = np.arange(sum(LENGTHS)) * 5
    row = 0
    for length, sentence in zip(LENGTHS, SENTENCES, strict=True):
        for _ in range(length):
            data.add_frame(
                {
                    "observation.state": states[row],
                    "action": actions[row],
                    "observation.images.front": np.full((48, 64, 3), shades[row], np.uint8),
                    "task": sentence,
                }
            )
            row += 1
        data.save_episode()
    data.finalize()
    np.savez(out, states=states, actions=actions, shades=shades)


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
