"""A warm ONNX Runtime session and the one thread that runs it.

Does not know: gRPC, episodes, metrics. Its inputs and outputs are arrays with a batch axis.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from chunkcast.server.bundle import INSTRUCTION_INPUT, NOISE_INPUT, Bundle
from chunkcast.server.errors import BundleError
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.tensors import DTYPES

ACTIONS_OUTPUT = "actions"

SHORT_RUN_SECONDS = 0.005
"""A run this short may take place on the event loop when a robot is alone: handing it to another thread and back
costs 0.15 ms, and nobody else is kept waiting."""

WARM_UP_RUNS = 5
"""The first runs allocate arenas and pack weights: they take several times as long as later ones."""

_ORT_TYPES = {
    "tensor(float)": np.dtype("<f4"),
    "tensor(double)": np.dtype("<f8"),
    "tensor(uint8)": np.dtype("u1"),
    "tensor(int32)": np.dtype("<i4"),
    "tensor(int64)": np.dtype("<i8"),
}


class EngineResult(NamedTuple):
    """A run's actions, and what it took.

    Attributes:
        actions: float32 ``[B, H, A]``.
        inference: the session's run, seconds.
    """

    actions: npt.NDArray[np.float32]
    inference: float


class Engine:
    """Runs one policy's graph on a thread of its own, so that no inference blocks the event loop.

    Args:
        bundle: verified.
        threads: ONNX Runtime's threads inside one run. One is fastest for graphs of a few megaflops and leaves the
            other cores to transport and robots; see docs/serving.md for the measurement.

    Raises:
        BundleError: the graph cannot be loaded, or its inputs and outputs are not those of the specification.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        import onnxruntime

        self.spec = bundle.spec
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning saves some microseconds and burns a core that the robots' streams need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(bundle.graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no public base class
            reason = str(error).splitlines()[0]
            raise BundleError(f"{self.spec.name}: ONNX Runtime cannot load the graph ({reason})") from None
        self._check_graph()
        self._short = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"engine-{self.spec.name}")

    def warm_up(self) -> float:
        """Run on zeros until the session is warm; returns the last run's seconds.

        Raises:
            BundleError: the graph does not run, or answers with another shape than the specification's.
        """
        feeds = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self._expected_inputs().items()}
        action = self.spec.action
        expected = (1, action.horizon, len(action.elements))
        seconds = 0.0
        for _ in range(WARM_UP_RUNS):
            started = time.perf_counter()
            try:
                actions = self.run(feeds)
            except Exception as error:  # as above
                reason = str(error).splitlines()[0]
                raise BundleError(f"{self.spec.name}: the graph does not run ({reason})") from None
            seconds = time.perf_counter() - started
            if actions.shape != expected:
                raise BundleError(f"{self.spec.name}: the graph returns {actions.shape}, expected {expected}")
        self._short = seconds <= SHORT_RUN_SECONDS
        return seconds

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """One run on the caller's thread: actions float32 ``[B, H, A]``."""
        actions: npt.NDArray[np.float32] = self._session.run([ACTIONS_OUTPUT], feeds)[0]
        return actions

    async def infer(self, feeds: Mapping[str, npt.NDArray[Any]], *, alone: bool) -> EngineResult:
        """One run on the engine's thread, or right here if it is short and the caller is ``alone``."""

        def work() -> EngineResult:
            started = time.perf_counter()
            actions = self.run(feeds)
            return EngineResult(actions, time.perf_counter() - started)

        if alone and self._short:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Wait for the run in progress and end the thread."""
        self._thread.shutdown(wait=True)

    def _expected_inputs(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Name to (shape at batch size 1, dtype), as the specification implies them."""
        spec = self.spec
        inputs: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            entry.key: ((1, spec.observation_steps, *entry.shape), DTYPES[entry.dtype]) for entry in spec.observations
        }
        if spec.instructions:
            inputs[INSTRUCTION_INPUT] = ((1, len(spec.instructions[0].embedding)), DTYPES[pb.DATA_TYPE_FLOAT32])
        noise_shape = (1, spec.action.horizon, len(spec.action.elements))
        inputs[NOISE_INPUT] = (noise_shape, DTYPES[pb.DATA_TYPE_FLOAT32])
        return inputs

    def _check_graph(self) -> None:
        """The graph's inputs and output are those of the specification, in name, dtype and shape."""
        expected = self._expected_inputs()
        actual = {item.name: item for item in self._session.get_inputs()}
        if actual.keys() != expected.keys():
            raise BundleError(
                f"{self.spec.name}: the graph's inputs are {sorted(actual)}, policy.json implies {sorted(expected)}"
            )
        for name, (shape, dtype) in expected.items():
            graph_shape, graph_dtype = actual[name].shape, _ORT_TYPES.get(actual[name].type)
            fixed = list(graph_shape[1:])
            if fixed != list(shape[1:]) or isinstance(graph_shape[0], int) or graph_dtype != dtype:
                raise BundleError(
                    f"{self.spec.name}: graph input {name!r} is {actual[name].type} {graph_shape}, "
                    f"policy.json implies {dtype} ['batch', {', '.join(map(str, shape[1:]))}]"
                )
        outputs = {item.name: item.type for item in self._session.get_outputs()}
        if outputs.get(ACTIONS_OUTPUT) != "tensor(float)":
            raise BundleError(
                f"{self.spec.name}: the graph's outputs are {outputs}, expected {ACTIONS_OUTPUT!r} of tensor(float)"
            )
