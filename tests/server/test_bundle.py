"""Whatever is wrong with a bundle is refused with one clear line, before anything is served."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chunkcast.server.bundle import read_bundle
from chunkcast.server.engine import Engine
from chunkcast.server.errors import BundleError
from chunkcast.training.export.bundle_writer import write_bundle
from tests.conftest import ROOT
from tests.handmade_bundle import echo_graph, echo_spec, write_echo_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_echo_bundle(tmp_path / "echo")


def edit_spec(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    file = bundle / "policy.json"
    spec = json.loads(file.read_text())
    edit(spec)
    file.write_text(json.dumps(spec))


def refused(bundle: Path, pattern: str) -> None:
    with pytest.raises(BundleError, match=pattern) as caught:
        read_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_a_whole_bundle_is_read(bundle: Path) -> None:
    read = read_bundle(bundle)
    assert read.spec.name == "echo"
    assert read.files["policy.onnx"] == echo_graph()


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "policy.json is missing; expected a bundle folder")


@pytest.mark.parametrize("name", ["policy.json", "policy.onnx"])
def test_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refused(bundle, f"{name} is missing")


def test_flipped_bit(bundle: Path) -> None:
    file = bundle / "policy.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refused(bundle, r"policy.onnx has SHA-256 \w+\.\.\., policy.json says \w+")


def test_truncated_graph(bundle: Path) -> None:
    file = bundle / "policy.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    refused(bundle, r"policy.onnx has \d+ bytes, policy.json says \d+")


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_unknown_version(bundle: Path, version: object) -> None:
    edit_spec(bundle, lambda spec: spec.update(format_version=version))
    refused(bundle, re.escape(f"has format_version {version!r}, this server reads 1"))


def test_truncated_specification(bundle: Path) -> None:
    file = bundle / "policy.json"
    file.write_text(file.read_text()[:-20])
    refused(bundle, "policy.json is not JSON")


def test_unknown_field(bundle: Path) -> None:
    edit_spec(bundle, lambda spec: spec.update(surprise=1))
    refused(bundle, "is not a policy specification .*surprise")


@pytest.mark.parametrize("path", ["../policy.onnx", "/etc/passwd", "sub/policy.onnx", "..", ""])
def test_paths_cannot_leave_the_bundle(bundle: Path, path: str) -> None:
    edit_spec(bundle, lambda spec: spec["files"].append({"path": path, "sha256": "0" * 64, "size_bytes": "1"}))
    refused(bundle, "expected a plain name in the bundle")


@pytest.mark.parametrize(
    ("edit", "pattern"),
    [
        (lambda s: s.update(name=""), "name and version"),
        (lambda s: s.update(observations=[]), "no observation entry"),
        (lambda s: s.update(observation_steps=0), "observation_steps is 0"),
        (lambda s: s["observations"].append(s["observations"][0]), "not distinct"),
        (lambda s: s["observations"][0].update(shape=["0"]), r"has shape \[0\]"),
        (lambda s: s["observations"][0].update(shape=["99999999", "99999999"]), "at most 16777216 elements"),
        (lambda s: s["observations"][0].update(dtype="DATA_TYPE_UNSPECIFIED"), "unknown dtype code 0"),
        (lambda s: s["observations"][0].update(key="noise"), "use a reserved name"),
        (lambda s: s["action"].update(elements=[]), "no action element"),
        (lambda s: s["action"]["elements"][0].update(high=1e38), "expected low < high and at most 1e\\+30"),
        (lambda s: s["action"].update(control_rate_hz="Infinity"), "control_rate_hz is inf"),
        (lambda s: s["action"]["elements"][0].update(low=200.0), "expected low < high"),
        (lambda s: s["action"]["elements"][0].update(high="NaN"), "expected low < high"),
        (lambda s: s["action"].update(execute_steps=4), r"execute_steps 4 must lie in \[1, horizon 3\]"),
        (lambda s: s["action"].update(control_rate_hz=0), "control_rate_hz is 0"),
        (lambda s: s["instructions"][0].update(embedding=[1]), "embeddings have sizes"),
        (lambda s: s["instructions"][0].update(text="right"), "instructions are not distinct"),
        (lambda s: s.update(files=[]), "lists no policy.onnx"),
    ],
)
def test_contradictions(bundle: Path, edit: Callable[[dict[str, Any]], None], pattern: str) -> None:
    edit_spec(bundle, edit)
    refused(bundle, pattern)


def test_graph_of_another_shape_than_the_specification(tmp_path: Path) -> None:
    spec = echo_spec()
    spec.observations[0].shape[0] = 5
    write_bundle(tmp_path / "bundle", echo_graph(), spec, overwrite=False)
    with pytest.raises(
        BundleError, match=r"graph input 'observation.state' is .* 3, 4\], policy.json implies .* 3, 5\]"
    ):
        Engine(read_bundle(tmp_path / "bundle"))


def test_graph_with_other_inputs_than_the_specification(tmp_path: Path) -> None:
    spec = echo_spec()
    del spec.instructions[:], spec.expected_success[:]
    write_bundle(tmp_path / "bundle", echo_graph(), spec, overwrite=False)
    with pytest.raises(BundleError, match=r"the graph's inputs are \['instruction', .*policy.json implies"):
        Engine(read_bundle(tmp_path / "bundle"))


def test_bytes_that_are_no_graph(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", b"not a graph", echo_spec(), overwrite=False)
    with pytest.raises(BundleError, match="ONNX Runtime cannot load the graph"):
        Engine(read_bundle(tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"task": "juggle"}, "expected success of 'juggle', which is no instruction of the policy"),
        ({"ratio": 0.4}, r"expected success of 'all tasks' is \[0.5, 0.4, 0.875\], expected low <= ratio <= high"),
        ({"high": 1.5}, "expected low <= ratio <= high"),
        ({"low": "NaN"}, "expected low <= ratio <= high"),
        ({"source": 99}, "expected success from the unknown source 99"),
        ({"source": "SUCCESS_SOURCE_UNSPECIFIED"}, "expected success from the unknown source 0"),
        ({"source": "SUCCESS_SOURCE_SEED_TABLE"}, "stands twice from one source"),
    ],
)
def test_expected_success_is_a_ratio_of_a_known_task(bundle: Path, changes: dict[str, Any], pattern: str) -> None:
    edit_spec(bundle, lambda spec: spec["expected_success"][0].update(changes))
    refused(bundle, pattern)


def test_findings_are_known_and_few(bundle: Path) -> None:
    edit_spec(bundle, lambda spec: spec["training"]["findings"][0].update(severity=77))
    refused(bundle, "finding 'no_improvement' has the severity 77")
    edit_spec(bundle, lambda spec: spec["training"].update(findings=spec["training"]["findings"] * 1000))
    refused(bundle, "2000 findings, expected at most 256")


def test_a_bundle_without_health_is_served_as_before(bundle: Path) -> None:
    def without_health(spec: dict[str, Any]) -> None:
        del spec["expected_success"], spec["training"]["findings"]

    edit_spec(bundle, without_health)
    assert not read_bundle(bundle).spec.expected_success


@pytest.mark.parametrize("bundle", sorted(file.parent.name for file in (ROOT / "policies").glob("*/policy.json")))
def test_a_shipped_policy_says_what_is_expected_of_it(bundle: str) -> None:
    spec = read_bundle(ROOT / "policies" / bundle).spec
    assert {each.text for each in spec.instructions} == {each.task for each in spec.expected_success} - {""}
    assert (ROOT / "policies" / bundle / "README.md").is_file()
