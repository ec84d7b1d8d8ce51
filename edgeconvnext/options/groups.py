"""The groups of options. A class inherits the groups that its command takes; later bases come first in help and signatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeconvnext.backends import DEFAULT_TARGET
from edgeconvnext.choices import (
    DEFAULT_ADAROUND_MINUTES,
    ActivationBits,
    Calibrator,
    ClassifierTask,
    Effort,
    Head,
    InputType,
    Interpolation,
    NormScope,
    Rounding,
    Smoothing,
    WeightBits,
)
from edgeconvnext.data.size import Size, parse_size, parse_sizes
from edgeconvnext.errors import OptionError
from edgeconvnext.options import parsers
from edgeconvnext.options.declaration import Options, about, option


@dataclass(frozen=True, kw_only=True)
class CalibrationImages(Options):
    """Images that a network is calibrated on."""

    PANEL = "Input"
    calib: str | Path | Any | None = option(
        None, "Calibration images: a set's name, a folder, or shards.", metavar="<set>"
    )
    num_images: int = option(256, "Calibration images in all; a third is held out.")
    skip_broken: bool = option(
        False, "Leave out images that cannot be read, however many. Default: more than 1 % of a set are an error."
    )


@dataclass(frozen=True, kw_only=True)
class InputSize(Options):
    """The input size of the network."""

    PANEL = "Input"
    resolution: int | Size | None = option(
        None,
        "Input side in pixels, or HEIGHTxWIDTH as in 224x320. Default: the checkpoint's own.",
        parse=parse_size,
        metavar="<size>",
    )


@dataclass(frozen=True, kw_only=True)
class WeightsChoice(Options):
    """Which weights of a file."""

    PANEL = "Input"
    weights_from: str | None = option(
        None,
        "Which network of a file that holds several, by its key, as in model_ema. Default: averaged weights first.",
        metavar="<key>",
    )


@dataclass(frozen=True, kw_only=True)
class ModelChoice(WeightsChoice):
    """The network."""

    PANEL = "Input"
    model: str | Path | Any | None = field(
        default=None,
        kw_only=False,
        metadata=about(
            "Weights file, folder, hub name or preset. Default: $EDGECONVNEXT_MODEL, else convnext_tiny; atto_imagenette "
            "where no hub answers.",
            metavar="<model>",
        ),
    )
    head: Head = option(
        "classifier",
        "What the network ends with: classifier, features (all stage outputs), none (the last one) or gap (an embedding).",
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationImages(Options):
    """Images that accuracy is measured on."""

    PANEL = "Input"
    eval: str | Path | Any | None = option(
        None, "Evaluation images, labelled for a classifier: a set's name, a folder, or shards.", metavar="<set>"
    )
    labels: str | Path | None = option(
        None,
        "File with the classes of each evaluation image: a line file,class for each, columns of 0 and 1, or a list in the order "
        "of the file names.",
        needs="eval",
        parse=parsers.path,
        metavar="<path>",
    )


@dataclass(frozen=True, kw_only=True)
class Preparation(InputSize, WeightsChoice):
    """How images are prepared, where the checkpoint does not say or is wrong."""

    PANEL = "Input"
    crop_pct: float | None = option(
        None, "Crop share of evaluation. Default: the checkpoint's.", parse=parsers.finite, metavar="<float>"
    )
    interpolation: Interpolation | None = option(
        None, "Resampling of images: nearest, bilinear, bicubic or lanczos. Default: the checkpoint's."
    )
    mean: Sequence[float] | None = option(
        None, "Input means in 0..1, as in 0.485,0.456,0.406.", parse=parsers.numbers, metavar="<numbers>"
    )
    std: Sequence[float] | None = option(
        None, "Input standard deviations, as in 0.229,0.224,0.225.", parse=parsers.numbers, metavar="<numbers>"
    )


@dataclass(frozen=True, kw_only=True)
class TaskChoice(Options):
    """What the answers of the network mean."""

    PANEL = "Input"
    task: ClassifierTask | None = option(
        None,
        "What the logits mean: single-label (one class an image), binary (sign of one logit) or multi-label (sign of each). "
        "Default: binary for one logit, multi-label where a label file names several classes an image, else single-label.",
    )


@dataclass(frozen=True, kw_only=True)
class Input(TaskChoice, Preparation, EvaluationImages, CalibrationImages, ModelChoice):
    """The network, the images, and how they are prepared."""

    PANEL = "Input"
    sizes: Sequence[Size] = option(
        (), "Further input sizes that the artifact takes, as in 224,384x512,1280.", parse=parse_sizes, metavar="<sizes>"
    )


@dataclass(frozen=True, kw_only=True)
class SourceRun(Options):
    """A finished run that a command starts from."""

    PANEL = "Input"
    from_run: str | Path | None = option(
        None,
        "A finished run: its model, images, options and statistics are used again. An option given as well overrides the run's.",
        flag="--from",
        parse=parsers.path,
        metavar="<run>",
    )

    def check(self) -> None:
        super().check()
        names = ("model", "weights_from", "resolution", "crop_pct", "interpolation", "mean", "std")
        if self.from_run is not None and any(getattr(self, name, None) is not None for name in names):
            raise OptionError(
                lambda spelled: (
                    f"{spelled('from_run')} names a run and its model; leave out "
                    f"{', '.join(map(spelled, names[:-1]))} and {spelled(names[-1])}."
                )
            )


@dataclass(frozen=True, kw_only=True)
class TargetChoice(Options):
    """The target."""

    PANEL = "Quantization"
    target: str = option(
        DEFAULT_TARGET, "Target by name, or a TOML file (see: edgeconvnext targets).", metavar="<target>"
    )


@dataclass(frozen=True, kw_only=True)
class EffortChoice(Options):
    """How much is tried."""

    PANEL = "Quantization"
    effort: Effort = option(
        "default",
        "quick (each tensor by itself, nearest codes), default (layers one after the other, GPTQ) or best (AdaRound too).",
    )


@dataclass(frozen=True, kw_only=True)
class Bits(Options):
    """Bits of weights and activations, of the whole network or by layer."""

    PANEL = "Quantization"
    weights: WeightBits | None = option(None, "Bits of weights, 4 or 8. Default: the plan's or the target's.")
    activations: ActivationBits | None = option(
        None, "Bits of activations, 8 or 16. Default: the plan's or the target's."
    )
    plan: str | Path | None = option(
        None, "TOML file with bits by layer; every run writes its own, plan.toml.", parse=parsers.path, metavar="<path>"
    )


@dataclass(frozen=True, kw_only=True)
class Method(EffortChoice):
    """How a plan is made. A run stores these options, and its stages depend on them."""

    PANEL = "Quantization"
    calibrator: Calibrator = option(
        "auto", "Range estimator: auto (the best one of each tensor), minmax, percentile, entropy, mse or output."
    )
    smoothing: Smoothing = option(
        "auto",
        "Scales and shifts in front of quantizers: auto (those that help), none or force.",
        was="prepare",
    )
    rounding: Rounding = option(
        "auto", "How weights are rounded: auto (the best way for each layer), nearest, gptq or adaround."
    )
    bias_correction: bool = option(True, "Correct biases by the outputs' measured shift.")
    adaround_minutes: float = option(
        DEFAULT_ADAROUND_MINUTES,
        "Time AdaRound may take in all (effort best, or rounding adaround).",
        parse=parsers.finite,
        metavar="<float>",
    )
    max_drop: float | None = option(
        None,
        "Points of the task's score, such as top-1, or of agreement that may be lost; the costliest layers stay float until that "
        "holds.",
        parse=parsers.finite,
        metavar="<float>",
    )


@dataclass(frozen=True, kw_only=True)
class Quantization(Method, Bits, TargetChoice):
    """What is quantised, to what, and how."""


@dataclass(frozen=True, kw_only=True)
class Pruning(Options):
    """How much of the network stays."""

    PANEL = "Pruning and norms"
    prune_macs: float | None = option(
        None,
        "Share of the multiply-adds that pruning keeps, as in 0.6. Default: no pruning.",
        parse=parsers.finite,
        metavar="<float>",
    )


@dataclass(frozen=True, kw_only=True)
class NormChoice(Options):
    """Whether LayerNorms are replaced, and which."""

    PANEL = "Pruning and norms"
    replace_norm: bool = option(False, "Replace the LayerNorms that may go by what folds into convs.")
    norms: NormScope = option(
        "all", "Which LayerNorms may be replaced: all, or those of blocks only.", needs="replace_norm"
    )


@dataclass(frozen=True, kw_only=True)
class Norms(NormChoice):
    """Whether LayerNorms are replaced, which, and at what cost."""

    PANEL = "Pruning and norms"
    norm_drop: float = option(
        0.5,
        "Points of the task's score, such as top-1, that replacing LayerNorms may cost before quantization.",
        needs="replace_norm",
        parse=parsers.finite,
        metavar="<float>",
    )


@dataclass(frozen=True, kw_only=True)
class Recovery(Options):
    """Training that makes up for what was changed."""

    PANEL = "Pruning and norms"
    recover: bool = option(False, "Train the changed network, without labels, towards the original.")
    epochs: int = option(10, "Passes of the recovery over the calibration set.", needs="recover")
    budget_minutes: float | None = option(
        None,
        "Minutes that the recovery may take: of processor time, or of a GPU's.",
        needs="recover",
        parse=parsers.finite,
        metavar="<float>",
    )


@dataclass(frozen=True, kw_only=True)
class Compression(Recovery, Norms, Pruning):
    """What is changed before quantization."""

    @property
    def changes(self) -> bool:
        """Whether the network is changed at all."""
        return self.prune_macs is not None or self.replace_norm

    def check(self) -> None:
        if self.recover and not self.changes:
            raise OptionError(
                lambda spelled: (
                    f"{spelled('recover')} makes up for {spelled('prune_macs')} or {spelled('replace_norm')}; "
                    "give one of them."
                )
            )
        super().check()


@dataclass(frozen=True, kw_only=True)
class Latency(Options):
    """Whether latency is measured."""

    PANEL = "Measuring"
    latency: bool = option(True, "Measure latency.")


@dataclass(frozen=True, kw_only=True)
class Threads(Options):
    """Threads of the runtime."""

    PANEL = "Measuring"
    threads: int = option(1, "Threads of the runtime while timing.", least=1)


@dataclass(frozen=True, kw_only=True)
class Measuring(Threads, Latency):
    """What is timed, and how."""


@dataclass(frozen=True, kw_only=True)
class Reuse(Options):
    """Whose finished stages count."""

    PANEL = "Output"
    reuse: bool = option(
        False, "Use what runs of others beside this one have finished, too; your own runs are used in any case."
    )


@dataclass(frozen=True, kw_only=True)
class Output(Reuse):
    """Where the run goes."""

    PANEL = "Output"
    output: str | Path | None = option(
        None, "Run directory. Default: runs/<model>-<target>-<key>.", parse=parsers.path, metavar="<path>"
    )


@dataclass(frozen=True, kw_only=True)
class ArtifactEnds(Options):
    """What the artifact takes and gives."""

    PANEL = "Output"
    input: InputType = option(
        "float32", "What the artifact takes: float32, or uint8 for pixels as image files hold them."
    )
    probabilities: bool = option(False, "Add an output with probabilities to the artifact, beside its logits.")
