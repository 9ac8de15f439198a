"""A warm ONNX Runtime session with its input and output buffers bound once: a batch is copied in, run, copied out.

Does not know: gRPC, episodes, queues, metrics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from chunkcast.server.bundle import (
    INSTRUCTION_INPUT,
    NOISE_INPUT,
    PREFIX_ACTIONS_INPUT,
    PREFIX_LENGTH_INPUT,
    Bundle,
)
from chunkcast.server.choices import ProviderChoice
from chunkcast.server.errors import BundleError
from chunkcast.server.providers import open_session
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.tensors import DTYPES

ACTIONS_OUTPUT = "actions"

MAX_BUFFER_BYTES = 4 * 2**30

WARM_UP_RUNS = 3
"""Of each batch size: the first runs allocate arenas, pack weights and pick algorithms, and take several times as long
as later ones."""

_ORT_TYPES = {
    "tensor(float)": np.dtype("<f4"),
    "tensor(double)": np.dtype("<f8"),
    "tensor(uint8)": np.dtype("u1"),
    "tensor(int32)": np.dtype("<i4"),
    "tensor(int64)": np.dtype("<i8"),
}

GraphInputs = Mapping[str, npt.NDArray[Any]]
"""One observation's graph inputs, by name, without the batch axis."""


class EngineResult(NamedTuple):
    """A run's answer, and what it took.

    Attributes:
        actions: float32 ``[B, H, A]``, physical units.
        seconds: of the run, with copying in and out.
    """

    actions: npt.NDArray[np.float32]
    seconds: float


class Engine:
    """Runs one policy's graph on batches of up to ``max_batch`` observations, one at a time, on a thread of its own.

    Args:
        bundle: verified.
        threads: ONNX Runtime's threads inside one run. One is fastest for graphs of a few megaflops and leaves the
            other cores to transport and robots; see docs/benchmarks.md for the measurement.
        max_batch: the largest batch; buffers are allocated for it.
        providers: execution providers in order of preference.

    Raises:
        BundleError: the graph cannot be loaded, or its inputs and outputs are not those of the specification.
        ProviderMissing: a requested provider cannot be used on this machine.
    """

    def __init__(
        self, bundle: Bundle, threads: int = 1, *, max_batch: int = 32, providers: Sequence[ProviderChoice] = ("cpu",)
    ) -> None:
        self.spec, self.max_batch = bundle.spec, max_batch
        self._session = open_session(bundle, threads, providers)
        self._check_graph()
        self._require_room()
        self._inputs = {
            name: np.zeros((max_batch, *shape), dtype) for name, (shape, dtype) in expected_inputs(self.spec).items()
        }
        action = self.spec.action
        self._actions = np.zeros((max_batch, action.horizon, len(action.elements)), np.float32)
        self._bindings: dict[int, Any] = {}
        self.run_seconds: dict[int, float] = {}
        # A CUDA graph is captured for one shape, and compiling providers build one plan a shape: they get few shapes,
        # padded. A CPU computes any number of rows, and no more than it must.
        self._padded = self._session.captures_shapes
        # A captured CUDA graph belongs to the thread that captured it: warm-up and service share this one.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"engine-{self.spec.name}")
        self.buckets = tuple(sorted({*(2**i for i in range(max_batch.bit_length()) if 2**i <= max_batch), max_batch}))

    @property
    def provider(self) -> str:
        """The execution provider that runs the graph, in ONNX Runtime's name."""
        return self._session.provider

    @property
    def may_run_anywhere(self) -> bool:
        """Whether ``run`` may be called on another thread than the engine's, while that one is idle."""
        return not self._session.captures_shapes

    def warm_up(self) -> None:
        """Run on zeros until every bucket of batch sizes is warm; ``run_seconds`` then has each one's fastest run.

        Raises:
            BundleError: the graph does not run.
        """
        self._thread.submit(self._warm_up).result()

    def start(self, observations: Sequence[GraphInputs]) -> Future[EngineResult]:
        """``run`` on the engine's thread."""
        return self._thread.submit(self.run, observations)

    def close(self) -> None:
        """End the thread after what it has been given. Nothing may be started afterwards."""
        self._thread.shutdown(wait=False)

    def _warm_up(self) -> None:
        blank = {name: buffer[0].copy() for name, buffer in self._inputs.items()}
        for size in self.buckets:
            for _ in range(WARM_UP_RUNS):
                try:
                    seconds = self.run([blank] * size).seconds
                except Exception as error:  # onnxruntime's exceptions have no public base class
                    reason = str(error).splitlines()[0]
                    raise BundleError(f"{self.spec.name}: the graph does not run ({reason})") from None
                self.run_seconds[size] = min(self.run_seconds.get(size, math.inf), seconds)

    def run(self, observations: Sequence[GraphInputs]) -> EngineResult:
        """One run over ``B`` observations, 1 to ``max_batch``, on the caller's thread; no two at once."""
        started = time.perf_counter()
        count = len(observations)
        for name, buffer in self._inputs.items():
            for row, inputs in enumerate(observations):
                buffer[row] = inputs[name]
        size = next(bucket for bucket in self.buckets if bucket >= count) if self._padded else count
        binding = self._bindings.get(size)
        if binding is None:
            binding = self._bindings[size] = self._session.bind(
                {name: buffer[:size] for name, buffer in self._inputs.items()}, ACTIONS_OUTPUT, self._actions[:size]
            )
        binding.run()
        return EngineResult(self._actions[:count].copy(), time.perf_counter() - started)

    def _require_room(self) -> None:
        """Refuse buffers beyond reason before any is allocated."""
        sizes = (math.prod(shape) * dtype.itemsize for shape, dtype in expected_inputs(self.spec).values())
        size = self.max_batch * sum(sizes)
        if size > MAX_BUFFER_BYTES:
            raise BundleError(
                f"{self.spec.name}: the inputs of {self.max_batch} observations take {size / 2**30:.1f} GiB, expected "
                f"at most {MAX_BUFFER_BYTES / 2**30:g} GiB; serve it with a smaller --max-batch"
            )

    def _check_graph(self) -> None:
        """The graph's inputs and output are those of the specification, in name, dtype and shape."""
        expected = expected_inputs(self.spec)
        actual = {item.name: item for item in self._session.inputs}
        if actual.keys() != expected.keys():
            raise BundleError(
                f"{self.spec.name}: the graph's inputs are {sorted(actual)}, policy.json implies {sorted(expected)}"
            )
        for name, (shape, dtype) in expected.items():
            graph_shape, graph_dtype = actual[name].shape, _ORT_TYPES.get(actual[name].type)
            if list(graph_shape[1:]) != list(shape) or isinstance(graph_shape[0], int) or graph_dtype != dtype:
                raise BundleError(
                    f"{self.spec.name}: graph input {name!r} is {actual[name].type} {graph_shape}, "
                    f"policy.json implies {dtype} [{', '.join(map(str, ('batch', *shape)))}]"
                )
        action = self.spec.action
        answer = [action.horizon, len(action.elements)]
        outputs = {item.name: (item.type, list(item.shape)[1:]) for item in self._session.outputs}
        if outputs.get(ACTIONS_OUTPUT) != ("tensor(float)", answer):
            raise BundleError(
                f"{self.spec.name}: the graph's outputs are {outputs}, expected {ACTIONS_OUTPUT!r} of tensor(float) "
                f"['batch', {answer[0]}, {answer[1]}]"
            )


def expected_inputs(spec: pb.PolicySpec) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Name to (shape without the batch axis, dtype), as the specification implies them."""
    float32 = DTYPES[pb.DATA_TYPE_FLOAT32]
    inputs: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        entry.key: ((spec.observation_steps, *entry.shape), DTYPES[entry.dtype]) for entry in spec.observations
    }
    if spec.instructions:
        inputs[INSTRUCTION_INPUT] = ((len(spec.instructions[0].embedding),), float32)
    chunk_shape = (spec.action.horizon, len(spec.action.elements))
    inputs[NOISE_INPUT] = (chunk_shape, float32)
    if spec.action.max_committed_steps:
        inputs[PREFIX_ACTIONS_INPUT] = (chunk_shape, float32)
        inputs[PREFIX_LENGTH_INPUT] = ((), DTYPES[pb.DATA_TYPE_INT64])
    return inputs
