"""Messages that parse and have a fault or a few, by fuzz target."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from google.protobuf import json_format
from hypothesis import strategies as st

from chunkcast.v1 import policy_pb2 as pb
from fuzz.mutators import places
from fuzz.policies import fitting, many_dtypes_policy, plain_policy
from fuzz.registry import TARGETS
from fuzz.targets import answer, health_reference, image, observation

SEEDS = {name: target.load().seeds() for name, target in TARGETS.items()}

INTEGERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([-1, 0, 1, 64, 2**31, 2**62]))
CODES = st.one_of(st.integers(-1, 12), st.just(2**31 - 1))
TENSORS: st.SearchStrategy[Any] = st.one_of(
    st.builds(pb.Tensor, dtype=CODES, shape=st.lists(INTEGERS, max_size=5), data=st.binary(max_size=64)),
    # Those whose data are as long as their shape says.
    st.builds(
        lambda axes, data: pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=[1] * axes + [len(data)], data=data),
        st.integers(0, 90),
        st.binary(max_size=9),
    ),
    st.builds(pb.Tensor, dtype=st.integers(1, 5), shape=st.lists(INTEGERS, max_size=5).map(lambda sizes: [0, *sizes])),
    st.builds(pb.Tensor, dtype=st.integers(1, 5), shape=st.integers(0, 400).map(lambda axes: [2**62] * axes)),
)
FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=32)


def of_actions(values: list[float]) -> pb.Tensor:
    rows = np.array(values, np.float32).reshape(-1, 4)
    return pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=rows.shape, data=rows.tobytes())


ACTIONS = st.integers(0, 5).flatmap(lambda n: st.lists(FLOATS, min_size=4 * n, max_size=4 * n)).map(of_actions)


@st.composite
def observations(draw: st.DrawFn, policy: pb.PolicySpec) -> pb.Observation:
    """One that the policy describes, but for a few fields."""
    made = fitting(policy, draw(st.sampled_from([0, 5, 6, 2**64 - 1])))
    key = draw(st.sampled_from(sorted(made.tensors)))
    faults: dict[str, st.SearchStrategy[Any]] = {
        "tensor": TENSORS.map(made.tensors[key].CopyFrom),
        "short": st.integers(0, 20).map(lambda n: setattr(made.tensors[key], "data", made.tensors[key].data[:n])),
        "numbers": ACTIONS.map(lambda actions: setattr(made.tensors[key], "data", actions.data[:16])),
        "missing": st.just(key).map(made.tensors.pop),
        "more": st.lists(st.text(max_size=20), max_size=20).map(lambda keys: [made.tensors[each] for each in keys]),
        "picture": st.builds(pb.Image, format=CODES, data=st.binary(max_size=99)).map(made.images[key].CopyFrom),
        "committed": st.one_of(TENSORS, ACTIONS).map(made.committed_actions.CopyFrom),
        "executed": st.one_of(TENSORS, ACTIONS).map(made.executed_actions.CopyFrom),
        "told": st.text(max_size=600).map(lambda text: setattr(made, "instruction", text)),
        "episode": st.text(max_size=200).map(lambda text: setattr(made, "episode_id", text)),
        "deadline": st.floats().map(lambda seconds: setattr(made, "deadline", seconds)),
        "seed": st.integers(0, 2**64 - 1).map(lambda seed: setattr(made, "noise_seed", seed)),
    }
    del made.images[key]
    for fault in draw(st.lists(st.sampled_from(sorted(faults)), min_size=1, max_size=3, unique=True)):
        if key in made.tensors or fault not in ("short", "numbers", "missing"):
            draw(faults[fault])
    return made


# characters() has halves of surrogate pairs too, which JSON can say and protobuf cannot.
ANY_TEXT = st.text(st.characters(), max_size=20)
DEEP = "to be replaced by brackets"
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, 10**400, 2**63, -(2**31) - 1]),
    st.floats(),
    ANY_TEXT,
    st.integers(0, 4000).map(lambda length: "x" * length),
    st.integers(-9, 2**64).map(str),
    st.sampled_from(["NaN", "Infinity", "-Infinity", "../x", "/etc", "a\nb", DEEP]),
)
JSON = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(ANY_TEXT, inner, max_size=4))
)


@st.composite
def documents(draw: st.DrawFn, whole: bytes) -> bytes:
    """A JSON document of which a few values are others, or are gone; or a key stands twice, or it is deep."""
    document = json.loads(whole)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(places(document)))
        if draw(st.booleans()):
            holder[key] = draw(JSON)
        else:
            del holder[key]
        if not places(document):
            break
    text = json.dumps(document)
    if isinstance(document, dict) and document and draw(st.booleans()):
        text = f"{text[:-1]}, {json.dumps(draw(st.sampled_from(sorted(document))))}: {json.dumps(draw(JSON))}}}"
    depth = draw(st.sampled_from([0, 50, 5000]))
    return text.replace(f'"{DEEP}"', "[" * depth + "]" * depth).encode()


def prefixed(choices: st.SearchStrategy[int], contents: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(lambda choice, content: bytes([choice]) + content, choices, contents)


def cut(messages: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Messages' bytes, sometimes not all of them."""
    whole = messages.map(lambda message: bytes(message.SerializeToString()))
    return st.one_of(
        whole, whole, st.builds(lambda data, share: data[: int(share * len(data))], whole, st.floats(0, 1))
    )


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    which = draw(st.integers(0, 3))
    made = draw(observations(observation.POLICIES[which]()))
    request = pb.StreamActionsRequest(observation=made)
    return bytes([which + draw(st.sampled_from([0, observation.NEW_SESSION]))]) + request.SerializeToString()


@st.composite
def references(draw: st.DrawFn) -> Any:
    made = health_reference.reference()
    task = draw(st.sampled_from(list(made.tasks)))
    name = draw(st.sampled_from([field.name for field in task.DESCRIPTOR.fields if field.name != "task"]))
    getattr(task, name).CopyFrom(draw(st.one_of(TENSORS, ACTIONS)))
    if draw(st.booleans()):
        made.tasks[0].task = draw(st.text(max_size=20))
    return made


RESPONSES = st.one_of(
    st.builds(
        lambda **fields: pb.StreamActionsResponse(chunk=pb.ActionChunk(episode_id="e", **fields)),
        actions=st.one_of(TENSORS, ACTIONS),
        policy_version=st.text(max_size=90),
        health=st.builds(pb.ChunkHealth, signal=CODES, score=st.floats(), threshold=st.floats()),
    ),
    st.builds(
        lambda **fields: pb.StreamActionsResponse(error=pb.ObservationError(episode_id="e", **fields)),
        code=st.integers(0, 20),
        message=st.one_of(st.text(), st.integers(0, 4000).map(lambda length: "x" * length)),
        retry_after=st.floats(),
    ),
    st.builds(
        lambda reason: pb.StreamActionsResponse(dropped=pb.ObservationDropped(episode_id="e", reason=reason)), CODES
    ),
)
POLICIES = documents(json_format.MessageToJson(plain_policy(), preserving_proto_field_name=True).encode())


def as_policy(document: bytes) -> bytes:
    """The specification that the document is, or none of it where it is none."""
    try:
        return json_format.Parse(document, pb.PolicySpec(), ignore_unknown_fields=True).SerializeToString()
    except Exception:  # protobuf's own reading raises what it likes; the target has what can be said in bytes
        return b""


def of_seed(name: str) -> Callable[[str], st.SearchStrategy[bytes]]:
    return lambda label: documents(SEEDS[name][label])


STRUCTURED: dict[str, st.SearchStrategy[bytes]] = {
    "tensor": cut(observations(many_dtypes_policy())),
    "image": st.one_of(
        prefixed(st.just(image.RAW), cut(TENSORS)),
        *(
            prefixed(st.just(data[0]), st.builds(lambda n, tail, d=data: d[1:n] + tail, st.integers(), st.binary()))
            for data in SEEDS["image"].values()
            if data[0] != image.RAW
        ),
    ),
    "observation": requests(),
    "spec": st.sampled_from(["plain", "committed", "seeing", "hearing"]).flatmap(of_seed("spec")),
    "bundle": st.sampled_from(sorted(SEEDS["bundle"])).flatmap(of_seed("bundle")),
    "health-reference": cut(references()),
    "text-encoder": st.sampled_from(["description", "tokenizer"]).flatmap(
        lambda label: prefixed(st.just(SEEDS["text-encoder"][label][0]), documents(SEEDS["text-encoder"][label][1:]))
    ),
    "admin": st.sampled_from(sorted(SEEDS["admin"])).flatmap(of_seed("admin")),
    "answer": st.one_of(
        prefixed(st.just(answer.ANSWER), cut(RESPONSES)),
        prefixed(st.just(answer.POLICY), POLICIES.map(as_policy)),
        prefixed(
            st.just(answer.END),
            prefixed(
                st.integers(0, 16), st.builds(b"%d\0%b".__mod__, st.tuples(st.integers(), st.binary(max_size=99)))
            ),
        ),
    ),
}
