"""ONNX Runtime's execution providers: which one runs a graph, and how its buffers are bound."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import structlog

from chunkcast.server.bundle import GRAPH_NAME, Bundle
from chunkcast.server.choices import ProviderChoice
from chunkcast.server.errors import BundleError, ProviderMissing

log = structlog.get_logger()

_NAMES: dict[str, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}

_ADVICE = {
    "tensorrt": "install TensorRT's libraries and onnxruntime-gpu, or leave tensorrt out of --providers",
    "cuda": "install an NVIDIA driver, CUDA 13 with cuDNN 9 and onnxruntime-gpu, or pass --providers cpu",
}


class Binding(Protocol):
    """A session with its inputs and output bound to buffers."""

    def run(self) -> None:
        """Compute the output buffer from the input buffers."""


class GraphSession:
    """An ONNX Runtime session and the provider that runs it.

    Attributes:
        inputs, outputs: ONNX Runtime's descriptions.
        provider: ONNX Runtime's name of the first provider.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs, self.outputs = session.get_inputs(), session.get_outputs()
        self.provider: str = session.get_providers()[0]

    @property
    def captures_shapes(self) -> bool:
        """Whether each batch size costs a captured graph or a compiled plan."""
        return self.provider != _NAMES["cpu"]

    def bind(self, inputs: Mapping[str, npt.NDArray[Any]], output: str, actions: npt.NDArray[np.float32]) -> Binding:
        """Bind the buffers, which must live as long as the binding does."""
        if self.captures_shapes:
            return _DeviceBinding(self._session, inputs, output, actions)
        return _HostBinding(self._session, inputs, output, actions)


class _HostBinding:
    """Buffers in the processor's memory are used where they lie: a run allocates nothing."""

    def __init__(
        self, session: Any, inputs: Mapping[str, npt.NDArray[Any]], output: str, actions: npt.NDArray[np.float32]
    ) -> None:
        self._session, self._kept = session, (inputs, actions)
        self._binding = session.io_binding()
        for name, buffer in inputs.items():
            self._binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        self._binding.bind_output(output, "cpu", 0, actions.dtype, actions.shape, actions.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)


class _DeviceBinding:
    """Buffers on the device at fixed addresses, as a captured CUDA graph needs them; one graph for each batch size."""

    def __init__(
        self, session: Any, inputs: Mapping[str, npt.NDArray[Any]], output: str, actions: npt.NDArray[np.float32]
    ) -> None:
        import onnxruntime

        self._session, self._actions = session, actions
        self._inputs = [
            (buffer, onnxruntime.OrtValue.ortvalue_from_numpy(buffer, "cuda", 0)) for buffer in inputs.values()
        ]
        self._output = onnxruntime.OrtValue.ortvalue_from_numpy(actions, "cuda", 0)
        self._binding = session.io_binding()
        for name, (_, value) in zip(inputs, self._inputs, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output(output, self._output)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(len(actions)))

    def run(self) -> None:
        for buffer, value in self._inputs:
            value.update_inplace(buffer)
        self._session.run_with_iobinding(self._binding, self._options)
        self._actions[:] = self._output.numpy()


@dataclass(frozen=True)
class _Request:
    """Providers to ask ONNX Runtime for.

    Attributes:
        names: in order.
        required: those that must be there.
    """

    names: list[str]
    required: list[str]


def open_session(bundle: Bundle, threads: int, providers: Sequence[ProviderChoice]) -> GraphSession:
    """A session for the bundle's graph on the first of ``providers`` that runs it.

    Args:
        bundle: verified.
        threads: inside one run, on a CPU.
        providers: in order; ``auto`` is CUDA where there is a driver, then the CPU.

    Raises:
        BundleError: ONNX Runtime cannot load the graph.
        ProviderMissing: a provider that was asked for by name cannot be used.
    """
    import onnxruntime

    request = _request(providers)
    available = onnxruntime.get_available_providers()
    for choice in request.required:
        if _NAMES[choice] not in available or (choice != "cpu" and not has_cuda_driver()):
            raise ProviderMissing(_missing(choice))
    session = None
    if request.names[0] == _NAMES["cuda"]:
        # A CUDA graph replays every kernel of a run with one launch; the unrolled sampler has neither If nor Loop.
        try:
            session = _session(bundle, threads, [(_NAMES["cuda"], {"enable_cuda_graph": "1"}), *request.names[1:]])
        except BundleError as refused:
            log.warning("no CUDA graphs: not every node runs on the device", reason=str(refused))
    session = session or _session(bundle, threads, list(request.names))
    opened = session.get_providers()
    for choice in request.required:
        # ONNX Runtime goes on without a provider whose libraries it cannot load.
        if _NAMES[choice] not in opened:
            raise ProviderMissing(_missing(choice))
    return GraphSession(session)


def cpu_session(bundle: Bundle, threads: int, file: str = GRAPH_NAME) -> Any:
    """A plain ONNX Runtime session on the CPU, as a user would make it: what the server is compared with, too.

    Args:
        file: which of the bundle's graphs.

    Raises:
        BundleError: ONNX Runtime cannot load the graph.
    """
    return _session(bundle, threads, [_NAMES["cpu"]], file)


def _session(bundle: Bundle, threads: int, providers: list[Any], file: str = GRAPH_NAME) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Spinning saves some microseconds and burns a core that the robots' streams need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # No fallback of ONNX Runtime's own, which would print to standard output.
        if file != GRAPH_NAME:
            # Weights that another graph shares with the policy's lie in that one's file.
            weights = bundle.files[GRAPH_NAME]
            options.add_external_initializers_from_files_in_memory([GRAPH_NAME], [weights], [len(weights)])
        return onnxruntime.InferenceSession(bundle.files[file], options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no public base class
        reason = str(error).splitlines()[0]
        what = "the graph" if file == GRAPH_NAME else file
        raise BundleError(f"{bundle.spec.name}: ONNX Runtime cannot load {what} ({reason})") from None


def _request(providers: Sequence[ProviderChoice]) -> _Request:
    names: list[str] = []
    for choice in providers:
        if choice == "auto":
            names += [_NAMES["cuda"]] if has_cuda_driver() else []
            names.append(_NAMES["cpu"])
        else:
            names.append(_NAMES[choice])
    return _Request(list(dict.fromkeys(names)), [choice for choice in providers if choice != "auto"])


def has_cuda_driver() -> bool:
    """Whether this machine has an NVIDIA driver: asking ONNX Runtime for CUDA without one takes seconds."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _missing(choice: str) -> str:
    return f"{_NAMES[choice]} was asked for (--providers {choice}) and cannot be used here; {_ADVICE[choice]}"
