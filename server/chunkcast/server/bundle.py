"""Reads a bundle and believes nothing: version, specification, file names, sizes and hashes are checked on load.

No pickle, no path from the specification that leaves the folder, and no file is read beyond its stated size.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from chunkcast.language.text_encoder import MAX_TEXT_LENGTH as MAX_PHRASE_LENGTH
from chunkcast.server.errors import BundleError
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import MAX_ACTION, MAX_RATE_HZ, MIN_RATE_HZ
from chunkcast.v1.tensors import DTYPES, MAX_AXES

FORMAT_VERSION = 1
SPEC_NAME = "policy.json"
GRAPH_NAME = "policy.onnx"
HEALTH_GRAPH_NAME = "health.onnx"
HEALTH_REFERENCE_NAME = "health.binpb"

MAX_SPEC_BYTES = 16 * 2**20
MAX_FILE_BYTES = 8 * 2**30
MAX_TENSOR_ELEMENTS = 2**24
"""Of one observation entry or one chunk: a 2048x2048 RGB image has 12.6 million."""
MAX_HISTORY_ELEMENTS = 2**26
"""Of all entries over all observation steps: what a server holds for every robot."""
MAX_OBSERVATION_STEPS = 1024
MAX_NAME_LENGTH = 128
"""Of a policy, its version, an observation's key: they go to logs, labels and messages."""
MAX_PATH_BYTES = 255
"""Of a file's name; no file system takes more."""
MAX_EPOCHS = 10_000
"""Of a loss curve."""
MAX_TEXT_LENGTH = 2000
"""Of a finding's evidence or advice, in characters."""
MAX_PHRASES = 4096
"""Instructions and paraphrases that a server embeds as it loads a policy; each takes some milliseconds."""
MAX_HEALTH_ENTRIES = 256
"""Findings, and bands of timesteps: each becomes a time series."""
INSTRUCTION_INPUT = "instruction"
NOISE_INPUT = "noise"
PREFIX_ACTIONS_INPUT = "prefix_actions"
PREFIX_LENGTH_INPUT = "prefix_length"
RESERVED_NAMES = frozenset({INSTRUCTION_INPUT, NOISE_INPUT, PREFIX_ACTIONS_INPUT, PREFIX_LENGTH_INPUT})
"""The graph's inputs that are no observations; an observation may not take their names."""
ALL_TASKS = "all"
"""The metrics page's task label of what holds over all tasks."""
FINDING_SEVERITIES = frozenset(pb.FindingSeverity.values()) - {pb.FINDING_SEVERITY_UNSPECIFIED}
SUCCESS_SOURCES = frozenset(pb.SuccessSource.values()) - {pb.SUCCESS_SOURCE_UNSPECIFIED}
HEALTH_SIGNALS = frozenset(pb.HealthSignal.values()) - {pb.HEALTH_SIGNAL_UNSPECIFIED}


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        spec: the policy's specification, consistent in itself.
        files: name to content, of the hashes that the specification names; the policy's graph is among them.
    """

    spec: pb.PolicySpec
    files: Mapping[str, bytes]


def read_bundle(folder: Path) -> Bundle:
    """Read and verify the bundle in ``folder``.

    Raises:
        BundleError: with one line that says what is wrong and what to do.
    """
    spec = _read_spec(folder)
    _check_spec(folder, spec)
    files = {file.path: file for file in spec.files}
    if GRAPH_NAME not in files:
        raise BundleError(f"{folder / SPEC_NAME} lists no {GRAPH_NAME}; export the policy again")
    contents = {path: _read_file(folder, file) for path, file in files.items()}
    return Bundle(spec, contents)


def _read_spec(folder: Path) -> pb.PolicySpec:
    file = folder / SPEC_NAME
    if not file.is_file():
        raise BundleError(f"{file} is missing; expected a bundle folder made by chunkcast-export")
    if file.stat().st_size > MAX_SPEC_BYTES:
        raise BundleError(f"{file} has {file.stat().st_size} bytes, expected at most {MAX_SPEC_BYTES}")
    try:
        parsed = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not JSON ({error}); export the policy again") from None
    version = parsed.get("format_version") if isinstance(parsed, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{file} has format_version {version!r}, this server reads {FORMAT_VERSION}; "
            "export the policy with the same release of chunkcast as the server's"
        )
    try:
        return json_format.ParseDict(parsed, pb.PolicySpec())
    except Exception as error:  # a ParseError; but a key that is half a surrogate pair is a SystemError of protobuf's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{file} is not a policy specification ({reason}); export the policy again") from None


def _check_spec(folder: Path, spec: pb.PolicySpec) -> None:
    """The specification is consistent in itself, and every size in it is bounded."""

    def require(holds: bool, problem: str) -> None:
        if not holds:
            raise BundleError(f"{folder / SPEC_NAME}: {problem}; export the policy again")

    require(bool(spec.name) and bool(spec.version), "name and version must not be empty")
    require(len(spec.observations) > 0, "no observation entry")
    require(
        1 <= spec.observation_steps <= MAX_OBSERVATION_STEPS,
        f"observation_steps is {spec.observation_steps}, expected 1 to {MAX_OBSERVATION_STEPS}",
    )
    keys = [entry.key for entry in spec.observations]
    require(len(set(keys)) == len(keys) and all(keys), f"observation keys {keys} are not distinct names")
    named = all(name.isprintable() and len(name) <= MAX_NAME_LENGTH for name in (spec.name, spec.version, *keys))
    require(named, f"name, version and observation keys must be printable, of at most {MAX_NAME_LENGTH} characters")
    require(not set(keys) & RESERVED_NAMES, f"observation keys {keys} use a reserved name")
    for entry in spec.observations:
        shape = list(entry.shape)
        require(entry.dtype in DTYPES, f"{entry.key} has the unknown dtype code {int(entry.dtype)}")
        require(len(shape) <= MAX_AXES, f"{entry.key} has {len(shape)} axes, expected at most {MAX_AXES}")
        require(
            all(size > 0 for size in shape) and math.prod(shape) <= MAX_TENSOR_ELEMENTS,
            f"{entry.key} has shape {shape}, expected positive sizes and at most {MAX_TENSOR_ELEMENTS} elements",
        )
        picture = entry.dtype == pb.DATA_TYPE_UINT8 and len(shape) == 3 and shape[-1] == 3
        require(
            picture or not entry.HasField("camera"),
            f"{entry.key} is a camera's, of dtype code {int(entry.dtype)} and shape {shape}, expected uint8 [H, W, 3]",
        )
    seen = [each for entry in spec.observations for each in entry.elements]
    ranges = [bound for each in seen for bound in (each.training_min, each.training_max)]
    require(all(abs(bound) <= MAX_ACTION for bound in ranges), f"a training range is beyond {MAX_ACTION:g}")
    elements = spec.observation_steps * sum(math.prod(entry.shape) for entry in spec.observations)
    require(elements <= MAX_HISTORY_ELEMENTS, f"{elements} elements in all, expected at most {MAX_HISTORY_ELEMENTS}")
    action = spec.action
    require(len(action.elements) > 0, "no action element")
    for element in action.elements:
        bounds = (element.low, element.high)
        require(
            all(abs(bound) <= MAX_ACTION for bound in bounds) and element.low < element.high,
            f"action {element.name!r} has bounds {list(bounds)}, expected low < high and at most {MAX_ACTION:g}",
        )
    require(
        1 <= action.execute_steps <= action.horizon and action.horizon * len(action.elements) <= MAX_TENSOR_ELEMENTS,
        f"execute_steps {action.execute_steps} must lie in [1, horizon {action.horizon}]",
    )
    require(
        action.max_committed_steps < action.horizon,
        f"max_committed_steps {action.max_committed_steps} must be below the horizon {action.horizon}",
    )
    require(
        MIN_RATE_HZ <= action.control_rate_hz <= MAX_RATE_HZ,
        f"control_rate_hz is {action.control_rate_hz}, expected {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g}",
    )
    texts = [instruction.text for instruction in spec.instructions]
    sizes = {len(instruction.embedding) for instruction in spec.instructions}
    require(len(set(texts)) == len(texts), "instructions are not distinct")
    require(len(sizes) <= 1 and 0 not in sizes, f"instruction embeddings have sizes {sorted(sizes)}, expected one")
    finite = all(math.isfinite(value) for instruction in spec.instructions for value in instruction.embedding)
    require(finite, "an instruction's embedding is not finite")
    predicted = spec.sampler.prediction_type
    require(predicted in pb.PredictionType.values(), f"prediction_type is the unknown code {int(predicted)}")
    _check_language(spec, require)
    _check_health(spec, require)


def _check_language(spec: pb.PolicySpec, require: Callable[[bool, str], None]) -> None:
    """A name means one instruction, and what a server embeds when it loads the policy is bounded."""
    owners: dict[str, str] = {}
    for each in spec.instructions:
        for name in filter(None, (each.text, each.task)):
            require(owners.setdefault(name, each.text) == each.text, f"two instructions are called {name[:64]!r}")
    if spec.text_encoder.sha256:
        phrases = [text for each in spec.instructions for text in (each.text, *each.paraphrases)]
        require(
            0 < len(phrases) <= MAX_PHRASES,
            f"{len(phrases)} instructions and paraphrases for a text encoder, expected 1 to {MAX_PHRASES}",
        )
        sentences = all(text.strip() and len(text) <= MAX_PHRASE_LENGTH for text in phrases)
        require(sentences, f"an instruction is blank or longer than {MAX_PHRASE_LENGTH} characters")
    least = spec.text_encoder.min_similarity
    require(-1.0 <= least <= 1.0, f"min_similarity is {least}, expected a cosine")


def _check_health(spec: pb.PolicySpec, require: Callable[[bool, str], None]) -> None:
    """What the metrics page makes labels and values of: bounded in number, known, and each once."""
    findings, bands = spec.training.findings, spec.training.validation_noise_mse_by_timestep
    for name, count in (("findings", len(findings)), ("timestep bands", len(bands))):
        require(count <= MAX_HEALTH_ENTRIES, f"{count} {name}, expected at most {MAX_HEALTH_ENTRIES}")
    for finding in findings:
        known = finding.severity in FINDING_SEVERITIES and re.fullmatch(r"[a-z0-9_]{1,64}", finding.code) is not None
        require(known, f"finding {finding.code[:64]!r} has the severity {int(finding.severity)}, or is no code")
        texts = max(len(finding.evidence), len(finding.advice))
        require(texts <= MAX_TEXT_LENGTH, f"finding {finding.code} has a text of {texts} characters")
    count = len(spec.training.loss_curve)
    require(count <= MAX_EPOCHS, f"a loss curve of {count} epochs, expected at most {MAX_EPOCHS}")
    for band in bands:
        require(
            re.fullmatch(r"\d{1,9}-\d{1,9}", band) is not None, f"{band[:64]!r} is no band of timesteps such as 0-9"
        )
    _check_thresholds(spec, require)
    tasks = {"", *(instruction.text for instruction in spec.instructions)}
    expected = [(each.task, each.source) for each in spec.expected_success]
    require(len(set(expected)) == len(expected), "a task's expected success stands twice from one source")
    require(
        ALL_TASKS not in tasks or not expected, f"an instruction is called {ALL_TASKS!r}, as all of them together are"
    )
    for each in spec.expected_success:
        require(each.task in tasks, f"expected success of {each.task!r}, which is no instruction of the policy")
        require(each.source in SUCCESS_SOURCES, f"expected success from the unknown source {int(each.source)}")
        ordered = 0.0 <= each.low <= each.ratio <= each.high <= 1.0
        values = [each.low, each.ratio, each.high]
        require(ordered, f"expected success of {each.task or 'all tasks'!r} is {values}, expected low <= ratio <= high")


def _check_thresholds(spec: pb.PolicySpec, require: Callable[[bool, str], None]) -> None:
    """Each threshold is of a known signal and instruction, above 0 and finite, and stands once."""
    thresholds = spec.serving_health.thresholds
    tasks = {"", *(instruction.text for instruction in spec.instructions)}
    named = [(each.signal, each.task) for each in thresholds]
    require(len(set(named)) == len(named), "a health signal's threshold stands twice")
    for each in thresholds:
        require(each.task in tasks, f"a health threshold of {each.task!r}, which is no instruction of the policy")
        require(each.signal in HEALTH_SIGNALS, f"a threshold of the unknown health signal {int(each.signal)}")
        require(0.0 < each.threshold < math.inf, f"a health threshold is {each.threshold}, expected above 0 and finite")


def _read_file(folder: Path, file: pb.BundleFile) -> bytes:
    """One file's content, if its name, size and hash are as the specification says."""
    plain = file.path not in ("", "..") and Path(file.path).name == file.path and file.path.isprintable()
    if not plain or len(file.path.encode()) > MAX_PATH_BYTES:
        raise BundleError(f"{folder / SPEC_NAME} names the file {file.path!r}; expected a plain name in the bundle")
    path = folder / file.path
    if not path.is_file():
        raise BundleError(f"{path} is missing; the bundle is incomplete: copy or export it again")
    size = path.stat().st_size
    if size != file.size_bytes or size > MAX_FILE_BYTES:
        raise BundleError(f"{path} has {size} bytes, {SPEC_NAME} says {file.size_bytes}; copy or export it again")
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != file.sha256:
        raise BundleError(
            f"{path} has SHA-256 {sha256[:12]}..., {SPEC_NAME} says {file.sha256[:12]}...; copy or export it again"
        )
    return content
