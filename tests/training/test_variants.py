"""A graph in smaller numbers: nearer to the original than its bound, or not written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from chunkcast.server.bundle import read_bundle
from chunkcast.server.engine import Engine, expected_inputs
from chunkcast.server.health.scorer import read_scorer
from chunkcast.training.checkpoint import LAST_CHECKPOINT
from chunkcast.training.choices import Precision
from chunkcast.training.errors import DemonstrationsError, ExportError
from chunkcast.training.export import variants
from chunkcast.training.export.exporter import export_bundle
from chunkcast.training.export.variants import BOUND
from tests.training.conftest import ExportSeeing


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_variant_is_smaller_serves_and_judges_health_and_says_how_far_it_is(
    export_seeing: ExportSeeing, precision: Precision
) -> None:
    exports = export_seeing(1, "fp32"), export_seeing(1, precision)
    whole, small = (each.facts for each in exports)
    assert not whole.spec.HasField("variant")
    assert small.spec.variant.precision == precision
    assert 0.0 < small.spec.variant.action_difference <= small.spec.variant.bound == BOUND
    assert small.spec.variant.observations > 5
    assert small.graph_bytes < 0.7 * whole.graph_bytes
    bundles = [read_bundle(each.folder) for each in exports]
    assert bundles[0].spec.version != bundles[1].spec.version
    generator = np.random.default_rng(0)
    inputs = {
        name: (generator.integers(0, 255, shape) if dtype == np.uint8 else np.zeros(shape)).astype(dtype)
        for name, (shape, dtype) in expected_inputs(bundles[0].spec).items()
    }
    engines = [Engine(bundle, max_batch=1) for bundle in bundles]
    original, smaller = (engine.run([inputs]).actions for engine in engines)
    for engine in engines:
        engine.close()
    assert 0.0 < np.abs(original - smaller).max() < 0.5
    read_scorer(bundles[1])
    # The health graph shares the variant's weights: it cannot differ from what is served, and is small.
    assert len(bundles[1].files["health.onnx"]) < 0.2 * small.graph_bytes


def test_only_the_image_encoders_are_computed_in_int8(export_seeing: ExportSeeing) -> None:
    graph = onnx.load(export_seeing(1, "int8").folder / "policy.onnx").graph
    weights = {each.name: each.data_type for each in graph.initializer}
    encoders = [name for name in weights if name.startswith("policy.image_encoders") and "first.weight" in name]
    assert encoders
    assert all(weights[name] == onnx.TensorProto.INT8 for name in encoders if name.endswith("_quantized"))
    assert any(name.endswith("_quantized") for name in encoders)
    assert onnx.TensorProto.FLOAT16 in weights.values(), "the others are stored in half of their bytes"
    elsewhere = ("policy.denoiser", "policy.encoder", ".stages.0.", ".keypoints.", ".read.", ".out.")
    assert not [name for name in weights if any(part in name for part in elsewhere) and name.endswith("_quantized")]


def test_one_that_differs_by_too_much_is_refused(
    seeing_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "BOUND", 1e-9)
    with pytest.raises(ExportError, match=r"the int8 graph's actions differ .* expected at most 1e-09; no bundle"):
        export_bundle(seeing_run / LAST_CHECKPOINT, tmp_path / "b", name="seeing", steps=1, precision="int8")
    assert not (tmp_path / "b").exists()


def test_what_cannot_be_compared_is_refused(
    seeing_run: Path, small_run: Path, demonstrations_folder: Path, frames_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="has no image encoder"):
        export_bundle(small_run / LAST_CHECKPOINT, tmp_path / "b", name="b", precision="int8")
    with pytest.raises(DemonstrationsError, match="holds neither"):
        export_bundle(seeing_run / LAST_CHECKPOINT, tmp_path / "b", name="b", precision="int8", data=tmp_path)
    other = tmp_path / "without"
    shutil.copytree(demonstrations_folder, other)
    with pytest.raises(DemonstrationsError, match="has no camera frames"):
        export_bundle(seeing_run / LAST_CHECKPOINT, tmp_path / "b", name="b", precision="int8", data=other)
