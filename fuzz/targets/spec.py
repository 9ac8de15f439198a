"""A bundle's specification: ``policy.json`` beside a file that it names.

Input: the bytes of ``policy.json``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from google.protobuf import json_format
from prometheus_client import CollectorRegistry, generate_latest

from chunkcast.server.bundle import GRAPH_NAME, SPEC_NAME, read_bundle
from chunkcast.server.engine import expected_inputs
from chunkcast.server.errors import BundleError
from chunkcast.server.guard import ActionGuard
from chunkcast.server.health.judgement import Thresholds
from chunkcast.server.health.scorer import Scorer
from chunkcast.server.instructions import KnownInstructions
from chunkcast.server.prometheus_page import StatisticsCollector
from chunkcast.server.session import Session
from chunkcast.server.statistics import ServerStatistics
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import action_limits, contract_difference
from fuzz.checks import require, require_array, require_clear
from fuzz.mutators import as_json
from fuzz.policies import committed_policy, fitting, hearing_policy, plain_policy, seeing_policy
from fuzz.workspace import emptied, workspace

GRAPH = b"graph"
MOST_TRIED = 2**20
"""Elements of a policy's inputs that the target makes observations for."""

MOST_INPUT_BYTES = 2**30
"""Of all inputs for one observation, which a server holds for every robot."""

mutate = as_json


def run(data: bytes) -> None:
    """Read a specification; one that is accepted can be served."""
    folder = workspace() / "spec"
    if not folder.is_dir():
        (emptied("spec") / GRAPH_NAME).write_bytes(GRAPH)
    (folder / SPEC_NAME).write_bytes(data)
    try:
        spec = read_bundle(folder).spec
    except BundleError as refused:
        require_clear(refused, of_a_client=False)
        return
    _check_names(spec)
    _check_sizes(spec)
    _check_page(spec)
    require(contract_difference(spec, spec) == "", "a policy has another contract than itself")
    # Spelt once for the client, which compares whatever another server says.
    contract_difference(plain_policy(), spec)
    Thresholds(spec.serving_health)
    Scorer(spec, {}, None)
    ActionGuard(spec.action)


def _check_names(spec: pb.PolicySpec) -> None:
    """What goes to logs, labels and messages is printable and short."""
    names = [spec.name, spec.version, *(entry.key for entry in spec.observations)]
    for name in names:
        require(name.isprintable() and len(name) <= 256, f"a name of {len(name)} characters: {name[:99]!r}")


def _check_sizes(spec: pb.PolicySpec) -> None:
    """A session can be had for it, and takes observations that it describes."""
    rate = spec.action.control_rate_hz
    require(math.isfinite(spec.action.horizon / rate), f"a chunk lasts for ever at {rate} Hz")
    ranges = [[each.training_min, each.training_max] for entry in spec.observations for each in entry.elements]
    require(bool((np.abs(ranges) <= np.finfo(np.float32).max).all()), "a training range is not finite in float32")
    low, high = action_limits(spec.action)
    require(bool(np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()), "bounds are none")
    expected = expected_inputs(spec)
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in expected.values())
    require(size <= MOST_INPUT_BYTES, f"an observation's inputs take {size} bytes")
    if size > MOST_TRIED:
        return
    instructions = KnownInstructions(spec)  # without the encoder, as where a server has it not
    session, observation = Session(spec, instructions), fitting(spec)
    session.accept(observation, _pictures(spec))
    for name, array in session.graph_inputs(observation).items():
        require_array(name, array, *expected[name])


def _pictures(spec: pb.PolicySpec) -> dict[str, Any]:
    return {entry.key: np.ones(tuple(entry.shape), np.uint8) for entry in spec.observations if entry.HasField("camera")}


def _check_page(spec: pb.PolicySpec) -> None:
    """The metrics page can be written."""
    statistics, registry = ServerStatistics(), CollectorRegistry(auto_describe=False)
    statistics.specs[spec.name] = spec
    statistics.of_policy(spec.name)
    registry.register(StatisticsCollector(statistics))
    page = generate_latest(registry).decode()
    series = [line.rsplit(" ", 1)[0] for line in page.splitlines() if line and not line.startswith("#")]
    require(len(set(series)) == len(series), "the metrics page has a time series twice")


def written(spec: pb.PolicySpec, change: Callable[[dict[str, Any]], object] = lambda _: None) -> bytes:
    """``policy.json`` of ``spec``, with the file beside it named, then changed."""
    del spec.files[:]
    spec.files.add(path=GRAPH_NAME, sha256=hashlib.sha256(GRAPH).hexdigest(), size_bytes=len(GRAPH))
    document = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    change(document)
    return json.dumps(document, separators=(",", ":")).encode()


def seeds() -> dict[str, bytes]:
    """The policies whole, and each with one fault."""
    made = {
        build.__name__.removesuffix("_policy"): written(build())
        for build in (plain_policy, committed_policy, seeing_policy, hearing_policy)
    }
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "version-2": lambda d: d.update(format_version=2),
        "version-true": lambda d: d.update(format_version=True),
        "version-long": lambda d: d.update(format_version="x" * 3000),
        "name-of-lines": lambda d: d.update(name="a\nb"),
        "name-long": lambda d: d.update(name="x" * 3000),
        "name-half-surrogate": lambda d: d.update(name="\ud800"),
        "key-half-surrogate": lambda d: d.update({"\udfff": 1}),
        "unknown-field": lambda d: d.update({"x\n" * 2000: 1}),
        "key-of-lines": lambda d: d["observations"][0].update(key="a\nb"),
        "many-axes": lambda d: d["observations"][0].update(shape=[1] * 65),
        "endless-shape": lambda d: d["observations"][0].update(shape=["4611686018427387904"] * 700),
        "large-history": lambda d: d.update(observation_steps=1024) or d["observations"][0].update(shape=[2**24]),
        "unknown-dtype": lambda d: d["observations"][0].update(dtype=77),
        "unknown-prediction": lambda d: d.update(sampler={"prediction_type": 77}),
        "bounds-nan": lambda d: d["action"]["elements"][0].update(low="NaN"),
        "bounds-swapped": lambda d: d["action"]["elements"][0].update(low=101.0),
        "embedding-nan": lambda d: d["instructions"][0].update(embedding=["NaN", 0.0]),
        "rate-infinite": lambda d: d["action"].update(control_rate_hz="Infinity"),
        "rate-tiny": lambda d: d["action"].update(control_rate_hz=1e-311),
        "training-range-nan": lambda d: d["observations"][0].update(
            elements=[{"name": "a", "training_min": "-Infinity", "training_max": "NaN"}] * 4
        ),
        "training-range-large": lambda d: d["observations"][0].update(
            elements=[{"name": "a", "training_min": -1e300, "training_max": 1e300}] * 4
        ),
        "file-with-path": lambda d: d["files"][0].update(path="../policy.onnx"),
        "file-long-name": lambda d: d["files"].append({"path": "x" * 300}),
        "file-zero-byte": lambda d: d["files"].append({"path": "a\0b"}),
        "numbers-as-strings": lambda d: d.update(observation_steps="3", format_version=1.0),
        "task-of-lines": lambda d: d["expected_success"][1].update(task="a\nb"),
        "band-of-other-digits": lambda d: d["training"].update(
            validation_noise_mse_by_timestep={"\N{ARABIC-INDIC DIGIT THREE}-9": 0.5}
        ),
        "losses-nan": lambda d: d["training"].update(train_loss="NaN", validation_action_variance="Infinity"),
    }
    small = plain_policy()
    small.ClearField("sampler")
    small.training.ClearField("data_sha256")
    del small.training.findings[:], small.expected_success[2:], small.action.elements[1:]
    made |= {name: written(small, change) for name, change in changes.items()}
    made["deep"] = b'{"format_version": 1, "name": ' + b"[" * 3000
    made["twice"] = written(plain_policy())[:-1] + b', "name": "other"}'
    made["no-json"] = b"\xff\xfe{"
    made["list"] = b"[]"
    return made
