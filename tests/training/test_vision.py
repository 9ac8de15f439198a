"""Policies with cameras: what they see, what they never see, and that their graph computes the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from chunkcast.server.bundle import read_bundle
from chunkcast.server.engine import Engine, expected_inputs
from chunkcast.server.health.scorer import read_scorer
from chunkcast.training.checkpoint import LAST_CHECKPOINT, load_policy, read_checkpoint
from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.draws import Draws
from chunkcast.training.errors import CheckpointError, DemonstrationsError, TrainingError
from chunkcast.training.policy import DiffusionPolicy
from chunkcast.training.run_identity import what_decides_the_result
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.trainer import Trainer
from chunkcast.training.vision.augmentation import recoloured, shifted
from chunkcast.training.vision.image_encoder import make_image_encoder
from chunkcast.training.vision.privileged import privileged_targets
from chunkcast.training.warm_start import start_from
from tests.training.conftest import ExportSeeing, train_in_two_parts

VIEWS = ("corner2-close", "gripper")


@pytest.fixture
def policy(seeing_run: Path) -> DiffusionPolicy:
    return load_policy(read_checkpoint(seeing_run / LAST_CHECKPOINT))


def seen(policy: DiffusionPolicy, count: int) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(3)
    config = policy.config
    pictures = tuple(
        torch.randint(256, (count, 1, size, size, 3), generator=generator, dtype=torch.uint8)
        for size in config.image_sizes
    )
    return (
        torch.randn(count, 1, config.state_size, generator=generator),
        torch.eye(2)[torch.arange(count) % 2],
        pictures,
    )


def test_a_policy_with_cameras_sees_itself_and_its_pictures_and_nothing_else_of_the_state(
    policy: DiffusionPolicy,
) -> None:
    assert policy.config.state_size == 4
    assert policy.config.views == VIEWS
    state, told, pictures = seen(policy, 3)
    encoded = policy.encode(state, told, pictures)
    for view in range(2):
        other = tuple(picture.flip(2) if index == view else picture for index, picture in enumerate(pictures))
        assert (policy.encode(state, told, other) != encoded).any()


def test_the_bundle_names_its_cameras_and_its_graph_computes_what_torch_does(export_seeing: ExportSeeing) -> None:
    exported = export_seeing(2, "fp32")
    assert exported.facts.parity < 1e-3
    bundle = read_bundle(exported.folder)
    state, first, second = bundle.spec.observations
    assert [element.name for element in state.elements] == ["hand_x", "hand_y", "hand_z", "gripper_opening"]
    assert (first.key, second.key) == tuple(f"observation.images.{view}" for view in VIEWS)
    assert (list(first.shape), list(second.shape)) == ([32, 32, 3], [48, 48, 3])
    assert (first.camera.name, first.camera.field_of_view, first.camera.turned) == ("corner2", 45.0, True)
    assert (second.camera.name, list(second.camera.position), second.camera.rendering) == ("gripperPOV", [], "fast")
    engine = Engine(bundle, max_batch=2)
    blank = {name: np.zeros(shape, dtype) for name, (shape, dtype) in expected_inputs(bundle.spec).items()}
    lit = {**blank, first.key: np.full_like(blank[first.key], 255)}
    dark, light = engine.run([blank, lit]).actions
    assert (dark != light).any()
    engine.close()
    # Health runs the encoder too.
    read_scorer(bundle)


def test_the_encoder_runs_once_whatever_the_evaluations(export_seeing: ExportSeeing) -> None:
    operations = {}
    for steps in (1, 2):
        graph = onnx.load(export_seeing(steps, "fp32").folder / "policy.onnx").graph
        operations[steps] = Counter(node.op_type for node in graph.node)
    assert operations[1]["Conv"] == operations[2]["Conv"] > 0
    assert operations[1]["Gemm"] + operations[1]["MatMul"] < operations[2]["Gemm"] + operations[2]["MatMul"]


def test_what_is_told_beside_is_where_things_are_within_their_task(frames_folder: Path) -> None:
    demonstrations = read_demonstrations(frames_folder)
    told = privileged_targets(demonstrations, 4, np.arange(6))
    # 14 numbers of two objects, 3 of the goal, 6 vectors between 4 points; the tick before is not told.
    assert told.shape == (len(demonstrations.states), 14 + 3 + 18)
    task = np.array([t == "pick-place-v3" for t in demonstrations.episode_tasks])[demonstrations.episode_index]
    assert np.abs(told[task].mean(0)).max() < 0.2  # clipped, so not quite zero
    puck = np.corrcoef(told[task, 0], demonstrations.states[task, 4])[0, 1]
    assert puck == pytest.approx(1.0, abs=1e-3)


def test_a_run_on_pictures_that_was_cut_in_two_equals_one_run(
    seeing_run: Path, frames_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded as needed after the cut, where they were held before."""
    whole = read_checkpoint(seeing_run / LAST_CHECKPOINT)
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in whole.run["config"].items()
    }
    cut = TrainConfig(**{**settings, "data": frames_folder, "out": tmp_path / "cut"})
    train_in_two_parts(cut, 1, monkeypatch, frame_memory_gb=0.0)
    resumed = read_checkpoint(cut.out / LAST_CHECKPOINT)
    assert whole.tensors.keys() == resumed.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name]), name


def test_a_run_goes_on_with_its_own_frames_only(seeing_run: Path) -> None:
    run = read_checkpoint(seeing_run / LAST_CHECKPOINT).run
    rendered_again = {**run, "frames": {**run["frames"], "quality": 50}}
    assert what_decides_the_result(rendered_again) != what_decides_the_result(run)


def test_where_nothing_else_was_recorded_nothing_can_be_told_beside(frames_folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=frames_folder, out=tmp_path, cameras=VIEWS, proprioception=39, device="cpu")
    with pytest.raises(DemonstrationsError, match="nothing for the image encoder to tell; pass --privileged-weight 0"):
        Trainer(config, read_demonstrations(frames_folder), torch.device("cpu"), False)


def test_a_new_run_begins_with_a_seeing_bundles_weights_but_not_with_a_variants(
    export_seeing: ExportSeeing, policy: DiffusionPolicy, seeing_run: Path
) -> None:
    told = read_checkpoint(seeing_run / LAST_CHECKPOINT).instructions
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    for parameter in policy.parameters():
        parameter.add_(1.0)
    start_from(policy, told, export_seeing(1, "fp32").folder, LAST_CHECKPOINT)
    for name, value in policy.state_dict().items():
        assert name.startswith("privileged") or torch.equal(value, weights[name]), name
    with pytest.raises(CheckpointError, match="is in int8; begin with the run it was exported from"):
        start_from(policy, told, export_seeing(1, "int8").folder, LAST_CHECKPOINT)


def test_history_needs_a_frame_of_every_tick(frames_folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=frames_folder, out=tmp_path, cameras=VIEWS, observation_steps=3, device="cpu")
    with pytest.raises(DemonstrationsError, match="render every tick"):
        Trainer(config, read_demonstrations(frames_folder), torch.device("cpu"), False)


def test_shifts_move_whole_pictures_and_light_changes_no_shape() -> None:
    picture = torch.arange(2 * 1 * 8 * 8 * 3).reshape(2, 1, 8, 8, 3)
    moved = shifted(picture, 2, Draws(torch.Generator().manual_seed(1)))
    for window in range(2):
        inside = moved[window, 0, 2:6, 2:6]
        matches = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(inside, picture[window, 0, 2 + dy : 6 + dy, 2 + dx : 6 + dx])
        ]
        assert len(matches) == 1
    assert shifted(picture, 0, Draws(torch.Generator())) is picture
    grey = torch.full((64, 1, 2, 2, 3), 100, dtype=torch.uint8)
    lit = recoloured(grey, 0.2, Draws(torch.Generator().manual_seed(1)))
    assert lit.shape == grey.shape
    assert lit.amin() >= 100 * 0.8 - 25.5
    assert lit.amax() <= 100 * 1.2 + 25.5
    assert lit.std() > 5
    assert (lit[:, :, 0, 0] == lit[:, :, 1, 1]).all()


def test_encoders_that_are_not_there_are_refused() -> None:
    with pytest.raises(TrainingError, match="a multiple of 16"):
        make_image_encoder("conv", size=100, features=8, instruction_size=2)
    with pytest.raises(TrainingError, match="timm"):
        make_image_encoder("no-such-model", size=64, features=8, instruction_size=2)


def test_bad_settings_are_one_line(frames_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--image-shift must be finite and not negative, got -1"):
        TrainConfig(data=frames_folder, out=tmp_path, image_shift=-1)
    with pytest.raises(TrainingError, match="--teacher is for policies without --cameras"):
        TrainConfig(data=frames_folder, out=tmp_path, cameras=VIEWS, teacher=tmp_path)
