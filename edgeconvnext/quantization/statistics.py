"""One streaming pass over the calibration images: what every quantizable tensor of the network looks like.

The statistics belong to the model and the images, not to a target: they can be saved, and a plan for another target needs no
image again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from edgeconvnext.errors import QuantizationError, RunDirectoryError
from edgeconvnext.memory import trim_heap
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.network import Network
from edgeconvnext.quantization.float16_range import watched_peaks
from edgeconvnext.quantization.histogram import MAX_BINS, Histogram, StreamingHistogram
from edgeconvnext.received import parse_json, reading, require_regular_file
from edgeconvnext.rewrite.residual_streams import stream_paths
from edgeconvnext.tensor_header import in_one_order

# Of tensors at least twice as large, so many values of one image (up to twice as many) are binned; extremes always come from
# all values. Of the 501,760 hidden values of an Atto's first stage at 224, every seventh position is binned.
BINNED_PER_IMAGE = 65_536


@dataclass(frozen=True)
class TensorStatistics:
    """One activation tensor. fit: the images ranges are fitted on; held_out: the third they are judged on.

    channel_low, channel_high: extremes of each channel over all images, (C,).
    """

    fit: Histogram
    held_out: Histogram
    channel_low: np.ndarray
    channel_high: np.ndarray

    def scaled(self, factor: float) -> TensorStatistics:
        """Return the statistics of the same tensor times a power of two, exactly."""
        return TensorStatistics(
            self.fit.scaled(factor),
            self.held_out.scaled(factor),
            self.channel_low * np.float32(factor),
            self.channel_high * np.float32(factor),
        )


@dataclass(frozen=True)
class Statistics:
    """Statistics of all observed tensors by name ("stages.0.1.pwconv2:input"), and how many images they come from.

    peaks: largest magnitude of every module's output by its path, where that was looked at.
    """

    tensors: dict[str, TensorStatistics]
    fit_images: int
    held_out_images: int
    peaks: dict[str, float] = field(default_factory=dict)

    def for_scaled_streams(self, module: Network, exponents: Sequence[int]) -> Statistics:
        """Return what the network would have given whose residual stream of stage s is 2^-exponents[s] times the one seen."""
        factors = {
            path: 2.0**-exponent
            for stage, exponent in enumerate(exponents)
            for path in stream_paths(module, stage)
            if exponent
        }
        reads = {f"{path}:output": factor for path, factor in factors.items()}
        # A block's depthwise conv reads the stream itself; what else reads a stream has a norm in front.
        reads |= {f"{path}:input": factor for path, factor in factors.items() if path.endswith(".dwconv")}
        tensors = {
            name: tensor.scaled(reads[name]) if name in reads else tensor for name, tensor in self.tensors.items()
        }
        return replace(
            self, tensors=tensors, peaks={path: peak * factors.get(path, 1.0) for path, peak in self.peaks.items()}
        )

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file."""
        from safetensors.numpy import save

        arrays: dict[str, np.ndarray] = {}
        scalars: dict[str, list[float]] = {}
        for name, tensor in self.tensors.items():
            arrays[f"{name}|channel_low"] = tensor.channel_low
            arrays[f"{name}|channel_high"] = tensor.channel_high
            for part, histogram in (("fit", tensor.fit), ("held_out", tensor.held_out)):
                arrays[f"{name}|{part}"] = histogram.counts
                scalars[f"{name}|{part}"] = [histogram.first, histogram.width, histogram.low, histogram.high]
        metadata = {
            "scalars": json.dumps(scalars),
            "names": json.dumps(list(self.tensors)),
            "images": json.dumps([self.fit_images, self.held_out_images]),
            "peaks": json.dumps(self.peaks),
        }
        # Not safetensors' own save_file: that makes files only their owner can read, unlike all others of a run.
        path.write_bytes(in_one_order(save(arrays, metadata=metadata)))

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote; raises RunDirectoryError where the file holds anything else."""
        from safetensors import safe_open

        require_regular_file(path, RunDirectoryError)
        with reading(path, RunDirectoryError, "Make the run again with the same command."):
            with safe_open(str(path), framework="numpy") as file:
                described = {
                    key: parse_json(text, path, RunDirectoryError) for key, text in (file.metadata() or {}).items()
                }
                metadata = _Metadata.model_validate(described)
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  the file is no mapping

            def histogram(key: str) -> Histogram:
                first, width, low, high = metadata.scalars[key]
                counts = arrays[key]
                if (
                    counts.dtype != np.float64
                    or not 1 <= counts.size <= MAX_BINS
                    or counts.ndim != 1
                    or not low <= high
                ):
                    raise ValueError(f"{key} is no histogram")
                return Histogram(counts, int(first), width, low, high)

            tensors = {
                name: TensorStatistics(
                    histogram(f"{name}|fit"),
                    histogram(f"{name}|held_out"),
                    _extremes(arrays, f"{name}|channel_low"),
                    _extremes(arrays, f"{name}|channel_high"),
                )
                for name in metadata.names
            }
        fit_images, held_out_images = metadata.images
        return cls(tensors, fit_images, held_out_images, metadata.peaks)


class _Metadata(BaseModel):
    """What a statistics file says beside its tensors. scalars: first bin, width, low and high of a histogram."""

    model_config = ConfigDict(allow_inf_nan=False)

    scalars: dict[str, tuple[float, float, float, float]]
    names: list[str]
    images: tuple[int, int]
    peaks: dict[str, float]


def _extremes(arrays: dict[str, np.ndarray], key: str) -> np.ndarray:
    values = arrays[key]
    if values.dtype != np.float32 or values.ndim != 1:
        raise ValueError(f"{key} holds no number for each channel")
    return values


class _TensorObserver:
    """Gathers the statistics of one tensor while the network runs."""

    def __init__(self, channel_axis: int) -> None:
        self.channel_axis = channel_axis
        self.fit = StreamingHistogram()
        self.held_out = StreamingHistogram()
        self.low: torch.Tensor | None = None
        self.high: torch.Tensor | None = None

    def update(self, x: torch.Tensor, held_out: bool) -> None:
        channels_last = x.movedim(self.channel_axis, -1)
        rows = channels_last.reshape(-1, channels_last.shape[-1])
        low, high = rows.amin(dim=0), rows.amax(dim=0)
        smallest, largest = float(low.min()), float(high.max())
        if not (np.isfinite(smallest) and np.isfinite(largest)):
            raise QuantizationError("activations are not finite")
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        # Image by image, so that the positions that are binned do not depend on the batch.
        stride = max(1, rows.numel() // (BINNED_PER_IMAGE * len(x)))
        positions = rows.view(len(x), -1, rows.shape[-1])[:, ::stride]
        (self.held_out if held_out else self.fit).update(positions, smallest, largest)

    def result(self) -> TensorStatistics:
        assert self.low is not None and self.high is not None
        return TensorStatistics(
            self.fit.result(), self.held_out.result(), self.low.float().numpy(), self.high.float().numpy()
        )


def collect_statistics(
    module: Network,
    fit: Iterable[torch.Tensor],
    held_out: Iterable[torch.Tensor],
    outputs_of: Iterable[str] = (),
) -> Statistics:
    """Run `module` once over every image and return the statistics of each weighted layer's input.

    fit, held_out: batches (N, C, H, W); the network sees each image once. outputs_of: operators whose outputs are observed too.
    Raises QuantizationError when there are no images, or when an activation is NaN or infinite.
    """
    kinds = weighted_layers(module)
    wanted_outputs = set(outputs_of)
    observers: dict[str, _TensorObserver] = {}
    handles = []
    images = {False: 0, True: 0}
    phase = {"held_out": False}

    def observe(name: str, axis: int, x: torch.Tensor) -> None:
        try:
            observers.setdefault(name, _TensorObserver(axis)).update(x, phase["held_out"])
        except QuantizationError as error:
            raise QuantizationError(
                f"The tensor {name} contains NaN or infinity on the calibration images. Check the checkpoint and that the "
                "preprocessing (mean, std, resolution) is the one it was trained with."
            ) from error

    def input_hook(name: str, axis: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _module, args: observe(f"{name}:input", axis, args[0])

    def output_hook(name: str, axis: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        return lambda _module, _args, output: observe(f"{name}:output", axis, output)

    for name, kind in kinds.items():
        layer = module.get_submodule(name)
        axis = 1 if isinstance(layer, nn.Conv2d) else -1
        handles.append(layer.register_forward_pre_hook(input_hook(name, axis)))
        if kind in wanted_outputs:
            handles.append(layer.register_forward_hook(output_hook(name, axis)))
    try:
        with torch.inference_mode(), watched_peaks(module) as peaks:
            for phase["held_out"], batches in ((False, fit), (True, held_out)):
                for number, batch in enumerate(batches):
                    module(batch)
                    images[phase["held_out"]] += len(batch)
                    if number % 8 == 0:
                        trim_heap()
    finally:
        for handle in handles:
            handle.remove()
    if not images[False] or not images[True]:
        raise QuantizationError(
            f"Calibration needs images to fit ranges on and images to judge them on; there are {images[False]} and "
            f"{images[True]}. Give at least 3 images, better 100 or more."
        )
    tensors = {name: observer.result() for name, observer in observers.items()}
    return Statistics(tensors, images[False], images[True], peaks)
