"""What each command takes: groups, and options of its own. What a command works on (a model, a run) is its argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeconvnext.choices import Effort, Score
from edgeconvnext.errors import OptionError
from edgeconvnext.options import parsers
from edgeconvnext.options.declaration import Options, about, option
from edgeconvnext.options.groups import (
    ArtifactEnds,
    Bits,
    CalibrationImages,
    Compression,
    EffortChoice,
    EvaluationImages,
    Input,
    InputSize,
    Latency,
    Measuring,
    NormChoice,
    Norms,
    Output,
    Preparation,
    Quantization,
    Recovery,
    Reuse,
    SourceRun,
    TargetChoice,
    TaskChoice,
    Threads,
    WeightsChoice,
)

REFIT_IMAGES = 768
"""Images that layers are re-fitted on, a third of them held out: as many as resolve half a point of agreement."""


@dataclass(frozen=True, kw_only=True)
class Quantize(Output, Compression, Quantization, Input):
    """Options of quantize."""


@dataclass(frozen=True, kw_only=True)
class Export(ArtifactEnds, Output, Measuring, Compression, Quantization, SourceRun, Input):
    """Options of export."""

    target: str = field(
        metadata=about("Target by name, or a TOML file (see: edgeconvnext targets).", metavar="<target>")
    )


@dataclass(frozen=True, kw_only=True)
class Validate(Measuring):
    """Options of validate."""

    PANEL = "Input"
    data: str | Path | Any | None = option(None, "Evaluation images: a set's name or a folder.", metavar="<set>")
    labels: str | Path | None = option(
        None, "File with the class of each of these images.", needs="data", parse=parsers.path, metavar="<path>"
    )
    skip_broken: bool = option(False, "Leave out images that cannot be read, however many.")
    again: bool = option(False, "Measure accuracy again, too; latency is measured again in any case.")
    device: str | Path | None = option(
        None,
        "device.json that the run's device kit wrote: merged, nothing is measured again.",
        parse=parsers.path,
        metavar="<path>",
    )

    def check(self) -> None:
        super().check()
        if self.device is not None and self.data is not None:
            raise OptionError(
                lambda spelled: f"{spelled('device')} merges a file and measures nothing; leave out {spelled('data')}."
            )
        if self.device is not None and self.again:
            raise OptionError(
                lambda spelled: f"{spelled('device')} merges a file and measures nothing; leave out {spelled('again')}."
            )


@dataclass(frozen=True, kw_only=True)
class Remote(Options):
    """Options of remote."""

    PANEL = "Device"
    host: str = field(metadata=about("Where ssh gets to the device, as in user@board.", metavar="<host>"))
    python: str = option("python3", "Python on the device that has the runtime.", metavar="<path>")
    workdir: str | None = option(
        None, "Folder on the device for the kit, removed after.", default_text="~/.cache/edgeconvnext", metavar="<path>"
    )


@dataclass(frozen=True, kw_only=True)
class Analyze(Reuse, Bits, EffortChoice, TargetChoice, CalibrationImages, WeightsChoice):
    """Options of analyze, all of a model; a run is analysed as it was made."""


@dataclass(frozen=True, kw_only=True)
class Search(Threads, InputSize, TargetChoice, CalibrationImages, WeightsChoice):
    """Options of search."""

    PANEL = "Output"
    calib: str | Path | Any = field(metadata=about("Calibration images: a set's name or a folder.", metavar="<set>"))
    num_images: int = option(96, "Calibration images in all; accuracy is judged on a third.")
    budget_minutes: float = option(
        20.0,
        "Minutes that measuring placements may take.",
        parse=parsers.finite,
        least=0.0,
        metavar="<float>",
        panel="Measuring",
    )
    output: str | Path | None = option(
        None,
        "Folder for the target file, the plot and what was measured. Default: searches/...",
        parse=parsers.path,
        metavar="<path>",
    )


@dataclass(frozen=True, kw_only=True)
class Inspect(Preparation):
    """Options of inspect."""

    PANEL = "Input"
    target: str | None = option(
        None,
        "Compile for this target, without images, and say what runs in INT8 and what in float.",
        metavar="<target>",
    )


@dataclass(frozen=True, kw_only=True)
class Prune(CalibrationImages, WeightsChoice):
    """Options of prune without training. macs, size, latency: one of them."""

    PANEL = "Pruning"
    calib: str | Path | Any = field(metadata=about("Calibration images: a set's name or a folder.", metavar="<set>"))
    output: str | Path | None = option(
        None, "Weights file to write, .safetensors.", parse=parsers.path, metavar="<path>"
    )
    macs: float | None = option(
        None,
        "Share of the multiply-adds to keep, above 0 and at most 1, as in 0.7.",
        parse=parsers.finite,
        metavar="<float>",
    )
    size: float | None = option(
        None, "Share of the weights' bytes at 8 bits to keep, as in 0.5.", parse=parsers.finite, metavar="<float>"
    )
    latency: float | None = option(
        None,
        "Share of the time measured in onnxruntime on this machine to keep, as in 0.7.",
        parse=parsers.finite,
        metavar="<float>",
    )
    blocks: int = option(0, "Whole blocks to take out first.")
    sparsity: Literal["2:4"] | None = option(None, "2:4: two of four weights of the blocks' linears become zero.")
    target: str | None = option(None, "Target whose multiple the widths get: 8, 16 or 32.", metavar="<target>")
    multiple: int | None = option(None, "Widths become multiples of it.", least=1, default_text="the target's, else 8")
    score: Score = option(
        "auto", "What chooses channels: auto (the best of each block), elimination, magnitude, energy or taylor."
    )
    torch_code: str | Path | None = option(
        None,
        "Python file to write as well: the network for torch alone, loading the weights file.",
        parse=parsers.path,
        metavar="<path>",
    )


@dataclass(frozen=True, kw_only=True)
class PruneAndRecover(Recovery, Prune):
    """Options of prune on the command line, where training may follow."""

    output: str | Path = field(
        metadata=about("Weights file to write, .safetensors.", parse=parsers.path, metavar="<path>")
    )

    def check(self) -> None:
        super().check()
        others = [
            name for name in ("size", "latency", "blocks", "sparsity", "torch_code", "score") if self.is_given(name)
        ]
        if self.recover and (self.macs is None or others):
            raise OptionError(
                lambda spelled: (
                    f"{spelled('recover')} trains a network whose channels {spelled('macs')} took out; "
                    + (f"leave out {' and '.join(map(spelled, others))}." if others else f"give {spelled('macs')}.")
                )
            )


@dataclass(frozen=True, kw_only=True)
class Compress(Measuring, Compression, TargetChoice, CalibrationImages, WeightsChoice):
    """Options of compress: prune, replace LayerNorms and recover, into a weights file."""

    calib: str | Path | Any = field(metadata=about("Calibration images: a set's name or a folder.", metavar="<set>"))
    num_images: int = option(REFIT_IMAGES, "Images that layers are re-fitted on; a third is held out.")
    multiple: int | None = option(None, "Hidden widths become multiples of it.", least=1)
    output: str | Path | None = option(
        None, "Weights file to write, .safetensors.", parse=parsers.path, metavar="<path>"
    )


@dataclass(frozen=True, kw_only=True)
class Fold(Latency, Recovery, NormChoice, TargetChoice, CalibrationImages, WeightsChoice):
    """Options of fold on the command line, where LayerNorms may be replaced as well."""

    PANEL = "Output"
    calib: str | Path = field(
        metadata=about("Images the fold is proven on: a set's name or a folder.", metavar="<set>")
    )
    output: str | Path = field(
        metadata=about("Weights file to write, .safetensors.", parse=parsers.path, metavar="<path>")
    )
    max_drop: float = option(
        Norms.norm_drop,
        "Points of the task's score, such as top-1, that replacing LayerNorms may cost.",
        needs="replace_norm",
        parse=parsers.finite,
        metavar="<float>",
    )
    num_images: int = option(
        REFIT_IMAGES, "Images that layers are re-fitted on; a third is held out.", needs="replace_norm"
    )
    target: str = option(
        TargetChoice.target, "Whose runtime LayerNorms are timed in.", needs="replace_norm", metavar="<target>"
    )
    latency: bool = option(True, "Measure latency.", needs="replace_norm")

    def check(self) -> None:
        if self.recover and not self.replace_norm:
            raise OptionError(
                lambda spelled: (
                    f"{spelled('recover')} makes up for what {spelled('replace_norm')} changed; an exact fold has "
                    "nothing to recover."
                )
            )
        super().check()


@dataclass(frozen=True, kw_only=True)
class Compare(
    Output,
    Compression,
    Bits,
    EffortChoice,
    TaskChoice,
    Preparation,
    EvaluationImages,
    CalibrationImages,
    WeightsChoice,
):
    """Options of compare."""

    PANEL = "Comparison"
    targets: Sequence[str] = option(
        (),
        "Targets by name, or TOML files, as in onnx,openvino.",
        parse=parsers.names,
        metavar="<targets>",
        default_text="one of each runtime that this machine times",
    )
    threads: Sequence[int] = option(
        (1,), "Threads of the runtimes while timing, as in 1,2.", parse=parsers.counts, metavar="<numbers>"
    )
    batch: Sequence[int] = option(
        (1,), "Images at once while timing, as in 1,8.", parse=parsers.counts, metavar="<numbers>"
    )
    seconds: float | None = option(
        None, "Measured time of each file.", parse=parsers.finite, least=0.01, metavar="<float>", default_text="3.0"
    )
    gate: float = option(
        1.0, "Points of the score that a winner may lose.", parse=parsers.finite, least=0.0, metavar="<float>"
    )
    again: bool = option(False, "Measure times again that an earlier comparison has measured.")
    host: str | None = option(
        None,
        "Where ssh gets to a device, as in user@board: the kits of targets that have one run there.",
        metavar="<host>",
    )
    python: str = option("python3", "Python on the device that has the runtimes.", needs="host", metavar="<path>")
    output: str | Path | None = option(
        None,
        "Folder of the comparison and its runs. Default: runs/compare-<model>-<key>.",
        parse=parsers.path,
        metavar="<path>",
    )
    page: str | Path | None = option(
        None,
        "Write the page to this file as well, with its plot and CSV beside it.",
        parse=parsers.path,
        metavar="<path>",
    )


@dataclass(frozen=True, kw_only=True)
class Bench(Threads):
    """Options of bench."""

    PANEL = "Measuring"
    against: str | Path | None = option(
        None,
        "A float ONNX to compare with. Default: the baseline of the run.",
        parse=parsers.path,
        metavar="<path>",
    )
    runtime: Literal["triton"] | None = option(
        None,
        "triton: the quantised network of a run as Triton kernels on this machine's NVIDIA GPU, against float forms in torch.",
        default_text="the artifact's own",
    )
    batch: int | None = option(
        None, "Images at once. Default: the artifact's own where fixed, else 1; triton: 1, 8, 32, 128.", least=1
    )
    seconds: float = option(3.0, "Measured time of each model.", parse=parsers.finite, least=0.1, metavar="<float>")
    profile: bool = option(False, "Also show what onnxruntime's operators take, and layers that fell back to float.")

    def check(self) -> None:
        super().check()
        if self.runtime == "triton" and (self.against is not None or self.threads != 1 or self.profile):
            raise OptionError(
                lambda spelled: (
                    f"{spelled('runtime')} triton times a run's own float forms on a GPU; leave out "
                    f"{spelled('against')}, {spelled('threads')} and {spelled('profile')}."
                )
            )


@dataclass(frozen=True, kw_only=True)
class Roadmap(Measuring, EffortChoice, TargetChoice, CalibrationImages):
    """Options of roadmap."""

    PANEL = "Output"
    calib: str | Path | None = option(
        None, "Calibration images: a set's name or a folder. Default: the digits of the package.", metavar="<set>"
    )
    eval: str | Path | None = option(None, "Labelled images for the steps with trained weights.", metavar="<set>")
    steps: str | None = option(
        None, "Only these, as in resnet50,kernel_7,convnext_tiny. Default: all.", metavar="<steps>"
    )
    trained: list[str] | None = option(None, "Trained weights of a step, as in resnet50=resnet50.pth; may be repeated.")
    num_images: int = option(64, "Calibration images in all; a third is held out.")
    effort: Effort = option("quick", "As in quantize.")
    resolution: int = option(224, "Input side in pixels.")
    output: str | Path | None = option(
        None,
        "Folder of the roadmap. Default: runs/roadmap-<target>-<resolution>.",
        parse=parsers.path,
        metavar="<path>",
    )
    page: str | Path | None = option(
        None,
        "Write the page to this file as well, with its plot and CSV beside it.",
        parse=parsers.path,
        metavar="<path>",
    )
