"""Whether a module computes what its tensors say: its own forward against ours, on real images, part by part."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from edgeconvnext.errors import CheckpointError
from edgeconvnext.escape import for_terminal
from edgeconvnext.model.checkpoint import checkpoint_of
from edgeconvnext.model.in_memory import module_path, needs_agreement
from edgeconvnext.model.load import recognised
from edgeconvnext.model.loaded import LoadedModel

IMAGES = 4
# Two float32 evaluations of one function differ in the order of their sums. Each is off the exact value by about as much as ours,
# which is measured against float64; sums in another order, and fused or split products, stay well below 32 times that.
_TIMES_OUR_ROUNDING = 32
_STEP = torch.finfo(torch.float32).eps
_BETWEEN = ", between its layers"
_ACTIVATION = "An activation other than GELU in its exact form (erf), such as its tanh form, is a usual reason."


@dataclass(frozen=True)
class Agreement:
    """How far a module's answers are from ours on `images` images. error, tolerance: relative to the answers' size.

    by_parts: a backbone ends in a way of its own, such as a norm on each stage; then stem, downsampling and blocks were compared.
    """

    images: int
    error: float
    tolerance: float
    by_parts: bool = False


@dataclass(frozen=True)
class _Part:
    """A part of the network: its path in our network and in the module, and what it is called."""

    ours: str
    theirs: str
    title: str


def check_agreement(module: nn.Module, loaded: LoadedModel, images: torch.Tensor) -> Agreement:
    """Compare a module's own forward with that of the network made of its tensors; return how well they agree.

    images: real ones, prepared, float32 (N, C, H, W). Raises CheckpointError, naming the first part and layer that differ, where
    the difference is larger than float32 explains, and where the module cannot be run on such images.
    """
    theirs = _copied(module)
    ours, exact = loaded.module, copy.deepcopy(loaded.module).double()
    parts = _parts(theirs, loaded)
    with torch.inference_mode():
        with _outputs(theirs, [part.theirs for part in parts]) as their_outputs:
            answers = _run(theirs, images, module)
        with _outputs(ours, [part.ours for part in parts]) as our_outputs:
            our_answers = ours.outputs(images)
        with _outputs(exact, [part.ours for part in parts]) as exact_outputs:
            exact_answers = exact.outputs(images.double())
    shared = [part for part in parts if part.ours in exact_outputs and part.theirs in their_outputs]
    by_part = {
        part: _compare(their_outputs[part.theirs], our_outputs[part.ours], exact_outputs[part.ours]) for part in shared
    }
    compared = _compare_answers(module, loaded, answers, our_answers, exact_answers)
    by_parts = compared is None
    if by_parts and shared:
        compared = max(by_part.values(), key=lambda one: one.error / one.tolerance)
    if compared is None:
        raise CheckpointError(
            f"{_name(module)} gives nothing that can be compared with what its tensors say. Give its state dict instead."
        )
    if not compared.differs:
        return Agreement(len(images), compared.error, compared.tolerance, by_parts)
    first = next((part for part in shared if by_part[part].differs), None)
    if first is not None:
        raise _difference(module, theirs, loaded, first, by_part[first], images)
    raise CheckpointError(
        f"{_name(module)} computes something else than its tensors say: the blocks agree, and what comes after them does not "
        f"({_figures(compared)}). A head with a softmax, another pooling or a scale of its own would do that. Give a module that "
        "ends with logits, or its state dict, if the plain network is what you want."
    )


def checked(source: Any, loaded: LoadedModel) -> LoadedModel:
    """Return the model that was made of `source`; where that is a module, after comparing their forwards on noise.

    For where no images are at hand: noise shows a difference as well. Raises as `check_agreement`.
    """
    if needs_agreement(source):
        shape = (IMAGES, loaded.config.in_channels, *loaded.preprocess.input_size)
        check_agreement(source, loaded, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    return loaded


def _copied(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode, float32, on the CPU; the user's module stays as it is."""
    try:
        return copy.deepcopy(module).cpu().float().eval()
    except Exception as error:
        raise CheckpointError(
            f"{_name(module)} cannot be copied ({for_terminal(error, 200)}), so its forward cannot be compared with what its "
            "tensors say. Give its state dict instead."
        ) from error


def _run(copied: nn.Module, images: torch.Tensor, module: nn.Module) -> list[torch.Tensor]:
    try:
        output = copied(images)
    except Exception as error:
        shape = " x ".join(map(str, images.shape))
        raise CheckpointError(
            f"{_name(module)} does not run on images of {shape}: {for_terminal(error, 300)}. Give a module that takes prepared "
            "images alone, or its state dict, and the size it takes with resolution."
        ) from error
    return list(_tensors(output))


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)


def _name(module: nn.Module) -> str:
    return f"The module {for_terminal(type(module).__name__, 80)}"


def _parts(module: nn.Module, loaded: LoadedModel) -> list[_Part]:
    """Return stem, downsampling and blocks in the order data passes them."""
    titles = {}
    for stage, blocks in enumerate(loaded.module.stages):
        titles[f"downsample_layers.{stage}"] = (
            f"the downsampling in front of stage {stage + 1}" if stage else "the stem"
        )
        for block in range(len(cast(nn.Sequential, blocks))):
            titles[f"stages.{stage}.{block}"] = f"block {block + 1} of stage {stage + 1}"
    paths = _paths(module, loaded)
    parts = []
    for ours, title in titles.items():
        layers = {theirs: f"{layer}.".startswith(f"{ours}.") for layer, theirs in paths.items()}
        own, others = ([path for path, is_own in layers.items() if is_own == wanted] for wanted in (True, False))
        if len(own) > 1:
            path = _common_path(own)
            # Stem and downsampling may lie in a list, which is never called, or beside the blocks: their last layer ends them.
            in_list = isinstance(module.get_submodule(path), nn.ModuleList | nn.ModuleDict)
            shared = not path or any(f"{other}.".startswith(f"{path}.") for other in others)
            parts.append(_Part(ours, own[-1] if in_list or shared else path, title))
    return parts


def _common_path(paths: list[str]) -> str:
    """Return the path of the module that holds all of these."""
    levels = itertools.takewhile(
        lambda names: len(set(names)) == 1, zip(*(path.split(".") for path in paths), strict=False)
    )
    return ".".join(names[0] for names in levels)


def _paths(module: nn.Module, loaded: LoadedModel) -> dict[str, str]:
    """Return the module's path of each of our layers that have tensors, in the order of our layers."""
    _, renamed = recognised(checkpoint_of(module.state_dict(), _name(module)), _name(module))
    paths = {}
    for name in loaded.module.state_dict():
        path = module_path(module, renamed.theirs.get(name, name))
        layer = name.rpartition(".")[0]
        if path is not None and layer not in paths:
            paths[layer] = path
    return paths


@contextmanager
def _outputs(module: nn.Module, paths: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Give what the modules at `paths` return meanwhile; those that are never called have no entry."""
    outputs: dict[str, torch.Tensor] = {}
    modules = dict(module.named_modules())

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = next(_tensors(output), None)
            if tensor is not None:
                outputs[path] = tensor.detach()

        return hook

    handles = [modules[path].register_forward_hook(keep(path)) for path in paths if path in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _inputs(module: nn.Module, paths: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Give what the modules at `paths` take meanwhile."""
    inputs: dict[str, torch.Tensor] = {}
    modules = dict(module.named_modules())

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and isinstance(arguments[0], torch.Tensor):
                inputs[path] = arguments[0].detach()

        return hook

    handles = [modules[path].register_forward_pre_hook(keep(path)) for path in paths if path in modules]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Compared:
    """How far two tensors are apart, and how far float32 explains; both relative."""

    error: float
    tolerance: float

    @property
    def differs(self) -> bool:
        return not self.error <= self.tolerance


def _compare(theirs: torch.Tensor, ours: torch.Tensor, exact: torch.Tensor) -> _Compared:
    """Compare two float32 tensors with the exact one by their relative distance (Frobenius norm), channels first or last."""
    size = float(exact.norm()) or 1.0
    rounding = float((ours.double() - exact).norm()) / size
    errors = [float((form.double() - exact).norm()) / size for form in _forms(theirs, exact.shape)]
    error = min((error for error in errors if error == error), default=math.inf)
    return _Compared(error, _TIMES_OUR_ROUNDING * max(rounding, _STEP))


def _forms(tensor: torch.Tensor, shape: torch.Size) -> list[torch.Tensor]:
    """Return a tensor as `shape` has it, with channels first and last where both fit; [] where it is of something else."""
    if tensor.dim() == 4 and len(shape) == 4:
        orders = ((0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2))
        return [tensor.permute(order) for order in orders if tensor.permute(order).shape == shape]
    if tensor.dim() == 4 and tensor.shape[2:] == (1, 1):  # pooled features that keep their axes
        tensor = tensor.flatten(1)
    return [tensor] if tensor.shape == shape else []


def _compare_answers(
    module: nn.Module,
    loaded: LoadedModel,
    answers: list[torch.Tensor],
    ours: tuple[torch.Tensor, ...],
    exact: tuple[torch.Tensor, ...],
) -> _Compared | None:
    """Compare the outputs of both networks; of several of one shape, the nearest counts.

    None: a backbone ends in another way. It has no output of the shape, or, where ours ends with its stages, none of the values.
    """
    worst: _Compared | None = None
    stages_alone = loaded.config.ends_with != "head"
    for our_output, exact_output in zip(ours, exact, strict=True):
        candidates = [answer for answer in answers if _forms(answer, exact_output.shape)]
        if not candidates:
            if not loaded.config.num_classes:
                return None
            shapes = ", ".join(str(tuple(answer.shape)) for answer in answers[:4]) or "nothing"
            raise CheckpointError(
                f"{_name(module)} gives {shapes} for {len(exact_output)} images, and its tensors are those of a classifier that "
                f"gives {tuple(exact_output.shape)}. Give a module that ends with logits, or its state dict."
            )
        compared = min((_compare(answer, our_output, exact_output) for answer in candidates), key=lambda one: one.error)
        if compared.differs and stages_alone:
            return None
        worst = compared if worst is None else max(worst, compared, key=lambda one: one.error)
    return worst


def _difference(
    module: nn.Module, copied: nn.Module, loaded: LoadedModel, part: _Part, compared: _Compared, images: torch.Tensor
) -> CheckpointError:
    where = _first_layer(copied, loaded, part, images)
    hint = f" {_ACTIVATION}" if where.startswith(_BETWEEN) else ""
    return CheckpointError(
        f"{_name(module)} computes something else than its tensors say. The first difference is in {part.title} "
        f"({for_terminal(part.theirs, 120)}){where} ({_figures(compared)}).{hint} Networks that "
        "compute what the published ones do can be quantised. Give its state dict, if the plain network is what you want."
    )


def _figures(compared: _Compared) -> str:
    if compared.error == math.inf:
        return "it has another shape, or no number at all"
    return f"{compared.error:.1e} relative, where float32 explains {compared.tolerance:.1e}"


def _first_layer(copied: nn.Module, loaded: LoadedModel, part: _Part, images: torch.Tensor) -> str:
    """Name the first layer of a part whose input or output differs; "" where none can be seen."""
    paths = {ours: theirs for ours, theirs in _paths(copied, loaded).items() if ours.startswith(f"{part.ours}.")}
    ours, exact = loaded.module, copy.deepcopy(loaded.module).double()
    records = []
    with torch.inference_mode():
        for network, names, batch in ((ours, paths, images), (exact, paths, images.double()), (copied, None, images)):
            layers = list(paths) if names is not None else list(paths.values())
            with _inputs(network, layers) as inputs, _outputs(network, layers) as outputs:
                network(batch)
            records.append((inputs, outputs))
    (our_in, our_out), (exact_in, exact_out), (their_in, their_out) = records
    before = None
    for layer, theirs in paths.items():
        name = for_terminal(theirs.removeprefix(f"{part.theirs}."), 80)
        for theirs_of, ours_of, exact_of, is_input in (
            (their_in, our_in, exact_in, True),
            (their_out, our_out, exact_out, False),
        ):
            if theirs not in theirs_of or layer not in exact_of:
                continue
            compared = _compare(theirs_of[theirs], ours_of[layer], exact_of[layer])
            if compared.differs:
                if not is_input:
                    return f", in its layer {name}"
                return f"{_BETWEEN} {before} and {name}" if before else f", in front of its layer {name}"
        before = name
    return f", after its layer {before}" if before else ""
