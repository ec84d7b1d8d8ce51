"""Engines from typed ONNX: TensorRT-RTX, which builds without a GPU, and TensorRT for the GPU of this machine."""

from __future__ import annotations

import csv
import ctypes
import importlib
import io
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from edgeconvnext.backends.tensorrt.on_device import WEIGHTED, dequantized, short
from edgeconvnext.data.size import Size
from edgeconvnext.errors import ExportError, RuntimeMissingError
from edgeconvnext.files import atomic_write

Runtime = Literal["tensorrt_rtx", "tensorrt"]

_EXTRA = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt"}
_PRODUCT = {"tensorrt_rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}


@dataclass(frozen=True)
class NetworkLayer:
    """One layer of the parsed network: its ONNX name, kind ("CONVOLUTION"), and types such as "HALF" or "INT8".

    quantized: for convolutions and matrix products, whether data and weights both arrive from dequantize layers.
    """

    name: str
    kind: str
    input_types: tuple[str, ...]
    output_types: tuple[str, ...]
    output_shape: tuple[int, ...]
    quantized: bool


@dataclass(frozen=True)
class ParsedNetwork:
    """What the ONNX parser of `runtime` ("TensorRT-RTX 1.7.1") made of a file."""

    runtime: str
    layers: tuple[NetworkLayer, ...]
    warnings: tuple[str, ...]

    def kinds(self) -> dict[str, int]:
        """Number of layers of each kind, most frequent first."""
        return dict(Counter(layer.kind for layer in self.layers).most_common())

    def as_csv(self) -> str:
        """One line for each layer, in the network's order; several types are joined by spaces, sides of a shape by x."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["name", "kind", "input_types", "output_types", "output_shape", "int8"])
        for layer in self.layers:
            shape = "x".join(map(str, layer.output_shape))
            types = (" ".join(layer.input_types), " ".join(layer.output_types))
            table.writerow([layer.name, layer.kind, *types, shape, "yes" if layer.quantized else ""])
        return text.getvalue()

    def weighted(self) -> tuple[NetworkLayer, ...]:
        """The convolutions and matrix products."""
        return tuple(layer for layer in self.layers if layer.kind in WEIGHTED)


@dataclass(frozen=True)
class EngineBuild:
    """A built engine: where it lies, its size, how long the build took, its batches, and the network it came from.

    sparse_layers: linears that are 2:4 sparse in the file, for which the builder was allowed sparse kernels; whether it took them
    is known on the GPU only.
    """

    path: Path
    size_bytes: int
    seconds: float
    batch: tuple[int, int, int]
    network: ParsedNetwork
    sparse_layers: tuple[str, ...] = ()


def build_rtx_engine(
    onnx_path: Path, engine_path: Path, *, batch: Sequence[int] = (1, 8, 32), sizes: Sequence[Size] = ()
) -> EngineBuild:
    """Build a TensorRT-RTX engine; no GPU is needed. batch: smallest, typical and largest; sizes: likewise, where they are free.

    Raises RuntimeMissingError without TensorRT-RTX and ExportError with the parser's or builder's own words.
    """
    return _build(require_runtime("tensorrt_rtx"), onnx_path, engine_path, batch, sizes)


def build_gpu_engine(
    onnx_path: Path, engine_path: Path, *, batch: Sequence[int] = (1, 8, 32), sizes: Sequence[Size] = ()
) -> EngineBuild:
    """Build a TensorRT engine for the GPU of this machine. batch: smallest, typical and largest; sizes: likewise, where free.

    Raises RuntimeMissingError, before any work, where TensorRT or the GPU is missing.
    """
    return _build(require_gpu(), onnx_path, engine_path, batch, sizes)


def require_runtime(name: Runtime) -> ModuleType:
    """Import TensorRT or TensorRT-RTX, or raise RuntimeMissingError that says which extra to install."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise RuntimeMissingError(
            f"{_PRODUCT[name]} is not on this machine (cannot import {name}: {error}). "
            f"Install it with: pip install 'edgeconvnext[{_EXTRA[name]}]'."
        ) from error


def require_gpu() -> ModuleType:
    """Return TensorRT where it can build for a GPU of this machine; RuntimeMissingError names what is missing."""
    missing = [problem for problem in (_missing_driver(), _missing_package("tensorrt")) if problem]
    if missing:
        raise RuntimeMissingError(
            f"A TensorRT engine is built on the GPU it runs on, and on this machine {' and '.join(missing)}. Run this command on "
            "the machine with the GPU (NVIDIA driver, pip install 'edgeconvnext[tensorrt]'), or choose --target rtx, "
            "which builds without a GPU, or --target jetson, which builds on the board."
        )
    return require_runtime("tensorrt")


def _missing_package(name: Runtime) -> str | None:
    try:
        importlib.import_module(name)
    except (ImportError, OSError):
        return f"the Python package {name} is missing"
    return None


def _missing_driver() -> str | None:
    """Ask the CUDA driver itself for GPUs: it is there before any toolkit."""
    try:
        driver = ctypes.CDLL("libcuda.so.1" if os.name != "nt" else "nvcuda.dll")
    except OSError:
        return "there is no NVIDIA driver (libcuda)"
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver finds no GPU"
    return None


def _build(
    runtime: ModuleType, onnx_path: Path, engine_path: Path, batch: Sequence[int], sizes: Sequence[Size]
) -> EngineBuild:
    low, typical, high = batch
    builder, network, log = _parse(runtime, onnx_path)
    config = builder.create_builder_config()
    image = network.get_input(0)
    shape = tuple(image.shape)
    if -1 in shape:
        counts = (low, typical, high) if shape[0] == -1 else (shape[0],) * 3
        sides = sizes or (shape[2:],) * 3
        profile = builder.create_optimization_profile()
        profile.set_shape(image.name, *((n, shape[1], *size) for n, size in zip(counts, sides, strict=True)))
        config.add_optimization_profile(profile)
    sparse = _allow_sparse_kernels(runtime, config, onnx_path)
    parsed = _describe(runtime, network)
    start = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if engine is None:
        raise ExportError(
            f"{parsed.runtime} parsed {onnx_path.name} but did not build an engine: {_told(log)}. "
            "If memory was short, lower the largest batch in the target file."
        )
    atomic_write(engine_path, bytes(memoryview(engine)))
    return EngineBuild(engine_path, engine_path.stat().st_size, seconds, (low, typical, high), parsed, sparse)


def _allow_sparse_kernels(runtime: ModuleType, config: Any, onnx_path: Path) -> tuple[str, ...]:
    """Set SPARSE_WEIGHTS where linears of the file are 2:4 sparse, and return these; the flag does nothing for other files."""
    from edgeconvnext.backends.onnx.sparse import sparse_linears

    sparse = tuple(layer for layer, is_sparse in sparse_linears(onnx_path).items() if is_sparse)
    flag = getattr(runtime.BuilderFlag, "SPARSE_WEIGHTS", None)
    if not sparse or flag is None:
        return ()
    config.set_flag(flag)
    return sparse


def _parse(runtime: ModuleType, onnx_path: Path) -> tuple[Any, Any, list[tuple[str, str]]]:
    """Return builder, network and the log of this parse. 10.x needs the flag; 11.x is always strongly typed."""
    logger = _logger(runtime)
    logger.lines.clear()
    builder = runtime.Builder(logger)
    flag = getattr(runtime.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = runtime.OnnxParser(network, logger)
    product = f"{_PRODUCT[runtime.__name__]} {runtime.__version__}"
    if not onnx_path.is_file():
        raise ExportError(
            f"There is no file {onnx_path} for {product} to read. Name the model.onnx of a run directory."
        )
    if not parser.parse_from_file(str(onnx_path)):
        told = "; ".join(_parser_error(parser.get_error(index)) for index in range(parser.num_errors))
        raise ExportError(
            f"{product} does not read {onnx_path}: {told or _told(logger.lines)}. Export the model again; a network of "
            "this toolkit that TensorRT refuses is a bug worth reporting."
        )
    if not network.num_inputs or not network.num_layers:
        raise ExportError(f"{onnx_path} holds no network for {product}. Name the model.onnx of a run directory.")
    return builder, network, logger.lines


def _parser_error(error: Any) -> str:
    place = " at ".join(part for part in (error.node_operator(), error.node_name()) if part)
    return f"{place}: {error.desc()}" if place else str(error.desc())


def _describe(runtime: ModuleType, network: Any) -> ParsedNetwork:
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    lines = _logger(runtime).lines
    return ParsedNetwork(
        runtime=f"{_PRODUCT[runtime.__name__]} {runtime.__version__}",
        layers=tuple(_layer(layer, makers) for layer in layers),
        warnings=tuple(text for severity, text in lines if severity == "WARNING"),
    )


def _layer(layer: Any, makers: dict[str, Any]) -> NetworkLayer:
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    tensors = [tensor for tensor in inputs if tensor is not None]
    outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
    kind = short(layer.type)
    # A convolution's optional third input is its bias, which stays float.
    quantized = kind in WEIGHTED and len(tensors) >= 2 and all(dequantized(makers, tensor) for tensor in tensors[:2])
    return NetworkLayer(
        name=layer.name,
        kind=kind,
        input_types=tuple(short(tensor.dtype) for tensor in tensors),
        output_types=tuple(short(tensor.dtype) for tensor in outputs),
        output_shape=tuple(outputs[0].shape) if outputs else (),
        quantized=quantized,
    )


def _told(lines: list[tuple[str, str]]) -> str:
    errors = [text for severity, text in lines if severity in ("ERROR", "INTERNAL_ERROR")]
    return "; ".join(errors[-3:]) or "it gave no reason"


@cache
def _logger(runtime: ModuleType) -> Any:
    """The one logger of a runtime: it keeps the first it is given for good."""

    class Logger(runtime.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((short(severity), message))

    return Logger()
