"""Free text: understood through the text encoder, refused where it is far from everything known or there is none."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from chunkcast.client import ObservationError, PolicyClient
from chunkcast.client.wire import encode_observation
from chunkcast.language.text_encoder import TextEncoder
from chunkcast.server.batcher import BatcherConfig
from chunkcast.server.errors import BundleError, ObservationRejected
from chunkcast.server.instructions import REMEMBERED, KnownInstructions, TextEncoders
from chunkcast.server.policies import EngineConfig, Policies
from chunkcast.server.session import Session
from chunkcast.server.statistics import ServerStatistics
from chunkcast.training.export.bundle_writer import write_bundle
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import contract_difference
from tests.conftest import SHIPPED_ENCODER, ServeBundle
from tests.handmade_bundle import STATE_KEY, STATE_SIZE, echo_graph, echo_spec

OBSERVATION = {STATE_KEY: np.zeros(STATE_SIZE, np.float32)}
PHRASES = {
    "drawer-open-v3": ("open the drawer", ["pull the drawer open"]),
    "door-lock-v3": ("lock the door", ["bolt the door"]),
}


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(SHIPPED_ENCODER)


@pytest.fixture
def spec(encoder: TextEncoder) -> pb.PolicySpec:
    spec = echo_spec()
    del spec.instructions[:], spec.expected_success[:]
    for task, (text, paraphrases) in PHRASES.items():
        embedding = encoder.encode([text])[0].tolist()
        spec.instructions.add(text=text, task=task, embedding=embedding, paraphrases=paraphrases)
    spec.text_encoder.name, spec.text_encoder.sha256 = encoder.name, encoder.sha256
    spec.text_encoder.min_similarity = 0.6
    return spec


@pytest.fixture
def known(spec: pb.PolicySpec, encoder: TextEncoder) -> KnownInstructions:
    return KnownInstructions(spec, encoder)


def test_known_texts_and_task_names_need_no_encoder(spec: pb.PolicySpec) -> None:
    known = KnownInstructions(spec)
    told = known.understand("open the drawer")
    assert (told.instruction, told.similarity) == ("open the drawer", 1.0)
    assert known.understand("drawer-open-v3") is told
    assert known.named("door-lock-v3") == "lock the door"
    for text in ("pull the drawer open", "please open the drawer", ""):
        with pytest.raises(ObservationRejected, match=r"is not known to echo; expected one of \['open the drawer', "):
            known.understand(text)


def test_free_text_has_its_own_embedding_and_the_nearest_instruction(
    known: KnownInstructions, encoder: TextEncoder
) -> None:
    assert known.is_new("please open that drawer")
    assert known.named("please open that drawer") is None
    told = known.understand("please open that drawer")
    assert told.instruction == "open the drawer"
    assert 0.6 < told.similarity < 1.0
    np.testing.assert_array_equal(told.embedding, encoder.encode(["please open that drawer"])[0])
    # Once for all streams.
    assert not known.is_new("please open that drawer")
    assert known.understand("please open that drawer") is told
    assert known.named("please open that drawer") == "open the drawer"


def test_a_paraphrase_is_of_its_own_instruction(known: KnownInstructions, encoder: TextEncoder) -> None:
    told = known.understand("bolt the door")
    assert not known.is_new("bolt the door")
    assert told.instruction == "lock the door"
    np.testing.assert_allclose(told.embedding, encoder.encode(["bolt the door"])[0], atol=1e-5)


def test_an_encoder_that_fails_ends_no_stream(known: KnownInstructions, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(texts: object) -> None:
        raise MemoryError

    monkeypatch.setattr(known._encoder, "encode", fail)
    asyncio.run(known.learn("please open that drawer"))
    with pytest.raises(MemoryError):
        known.understand("please open that drawer")
    monkeypatch.undo()
    assert known.understand("please open that drawer").instruction == "open the drawer"


@pytest.mark.parametrize("text", ["make me a sandwich", "what is the weather today?", "\n", "x" * 513])
def test_what_is_far_from_everything_is_refused(known: KnownInstructions, text: str) -> None:
    for _ in range(2):  # the refusal is remembered too
        with pytest.raises(ObservationRejected) as caught:
            known.understand(text)
        assert caught.value.code == pb.ERROR_CODE_UNKNOWN_INSTRUCTION
        assert len(str(caught.value)) < 600
    assert known.named(text) is None


def test_only_so_many_sentences_are_remembered(known: KnownInstructions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_embed", lambda text: f"refused: {text}")
    for number in range(REMEMBERED + 10):
        with pytest.raises(ObservationRejected, match=f"refused: {number}$"):
            known.understand(str(number))
    assert known.is_new("9")
    assert not known.is_new("10")


def test_a_session_understands_anew_where_the_words_change(
    known: KnownInstructions, spec: pb.PolicySpec, encoder: TextEncoder
) -> None:
    """A bundle that was loaded again, or another version."""
    session = Session(spec, known)
    session.accept(encode_observation(OBSERVATION, episode_id="e", instruction="could you open the drawer?"))
    assert session.instruction == "open the drawer"
    renamed = pb.PolicySpec()
    renamed.CopyFrom(spec)
    renamed.instructions[0].text = "pull at the drawer"
    session.adopt_instructions(KnownInstructions(renamed, encoder))
    later = encode_observation(OBSERVATION, episode_id="e", step=1)
    asyncio.run(session.learn(later))
    session.accept(later)
    assert session.instruction == "pull at the drawer"
    # Without the encoder the words mean nothing, and the observation is refused before anything changes.
    session.adopt(spec, KnownInstructions(spec))
    with pytest.raises(ObservationRejected, match="other words need its text encoder all-minilm-l6-v2"):
        session.accept(encode_observation(OBSERVATION, episode_id="e", step=2))
    assert session.instruction == "pull at the drawer"


def test_a_version_that_understands_less_is_another_contract(spec: pb.PolicySpec) -> None:
    less = pb.PolicySpec()
    less.CopyFrom(spec)
    assert contract_difference(spec, less) == ""
    less.instructions[0].task = ""
    assert contract_difference(spec, less) == "it does not know the instructions ['drawer-open-v3']"
    assert contract_difference(less, spec) == ""
    less.CopyFrom(spec)
    less.ClearField("text_encoder")
    assert contract_difference(spec, less) == "it takes no free text"


def test_an_encoder_is_loaded_once_and_a_missing_one_is_no_failure(spec: pb.PolicySpec, tmp_path: Path) -> None:
    encoders = TextEncoders(SHIPPED_ENCODER.parent)
    first = encoders.of(spec, tmp_path)
    assert first is not None
    assert encoders.of(spec, tmp_path / "other") is first
    assert TextEncoders(tmp_path).of(spec, tmp_path) is None
    assert TextEncoders(SHIPPED_ENCODER.parent).of(echo_spec(), tmp_path) is None
    spec.instructions[0].embedding.append(0.0)
    with pytest.raises(BundleError, match="embeddings of 385 entries, its text encoder all-minilm-l6-v2 makes 384"):
        encoders.of(spec, tmp_path)


@pytest.fixture
def bundle(spec: pb.PolicySpec, tmp_path: Path) -> Path:
    folder = tmp_path / "store" / "told"
    spec.name = "told"
    write_bundle(folder, echo_graph(instruction_size=384), spec, overwrite=False)
    return folder


@pytest.fixture
def with_encoder(bundle: Path) -> Path:
    """The encoder where a server looks by default: beside the bundle."""
    shutil.copytree(SHIPPED_ENCODER, bundle.parent / "text-encoders" / "minilm")
    return bundle


def test_a_robot_is_told_in_its_own_words(with_encoder: Path, serve_bundle: ServeBundle) -> None:
    server = serve_bundle(with_encoder)
    with PolicyClient(server.address) as client, client.stream() as stream:
        for step, told in enumerate(["drawer-open-v3", "open the drawer", "could you open the drawer?", ""]):
            chunk = stream.request(OBSERVATION, episode_id="e", step=step, instruction=told)
            assert chunk.step == step
        with pytest.raises(ObservationError, match="is far from everything that told knows") as caught:
            stream.request(OBSERVATION, episode_id="e", step=4, instruction="make me a sandwich")
        assert caught.value.code == pb.ERROR_CODE_UNKNOWN_INSTRUCTION
        # The episode goes on with what it was told before.
        assert stream.request(OBSERVATION, episode_id="e", step=5).step == 5
        assert client.predict_chunk(OBSERVATION, instruction="bolt the door").step == 0
        with pytest.raises(ObservationError, match="is far from everything"):
            client.predict_chunk(OBSERVATION, instruction="make me a sandwich")


def test_a_server_without_the_encoder_serves_what_stands_in_the_bundle(bundle: Path, serve_bundle: ServeBundle) -> None:
    server = serve_bundle(bundle)
    with PolicyClient(server.address) as client, client.stream() as stream:
        assert stream.request(OBSERVATION, episode_id="e", step=0, instruction="lock the door").step == 0
        with pytest.raises(ObservationError, match="is not known to told; expected one of"):
            stream.request(OBSERVATION, episode_id="e", step=1, instruction="bolt the door")


def test_a_version_without_its_encoder_takes_no_robots_words_away(
    bundle: Path, with_encoder: Path, spec: pb.PolicySpec, tmp_path: Path
) -> None:
    again = tmp_path / "elsewhere" / "told"
    spec.version, spec.text_encoder.sha256 = "2", "0" * 64
    write_bundle(again, echo_graph(instruction_size=384), spec, overwrite=False)

    async def promote() -> None:
        policies = Policies(ServerStatistics(), EngineConfig(), BatcherConfig())
        policies.add(policies.prepare(with_encoder))
        with pytest.raises(BundleError, match="told 2 needs the text encoder all-minilm-l6-v2 000000000000, which is"):
            policies.add(policies.prepare(again))

    asyncio.run(promote())


def test_a_damaged_encoder_is_refused_by_name(
    with_encoder: Path, encoder: TextEncoder, serve_bundle: ServeBundle
) -> None:
    graph = with_encoder.parent / "text-encoders" / "minilm" / "encoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(Exception, match=r"encoder\.onnx has SHA-256"):
        serve_bundle(with_encoder)


@pytest.mark.parametrize("text", ["", " ", "x" * 513])
def test_a_paraphrase_is_a_sentence(bundle: Path, serve_bundle: ServeBundle, text: str) -> None:
    file = bundle / "policy.json"
    spec = json.loads(file.read_text())
    spec["instructions"][1]["paraphrases"].append(text)
    file.write_text(json.dumps(spec))
    with pytest.raises(Exception, match="an instruction is blank or longer than 512 characters"):
        serve_bundle(bundle)


def test_a_task_name_means_one_instruction(bundle: Path, serve_bundle: ServeBundle) -> None:
    file = bundle / "policy.json"
    spec = json.loads(file.read_text())
    spec["instructions"][1]["task"] = "drawer-open-v3"
    file.write_text(json.dumps(spec))
    with pytest.raises(Exception, match="two instructions are called"):
        serve_bundle(bundle)
