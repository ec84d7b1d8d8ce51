"""A network family of this file's own, from one entry in FAMILIES to a quantised run: nothing else of the package names it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import edgeconvnext
from edgeconvnext.choices import Operator
from edgeconvnext.errors import CheckpointError, RewriteError
from edgeconvnext.model.describe import describe
from edgeconvnext.model.families import FAMILIES
from edgeconvnext.model.family import Architecture, Family
from edgeconvnext.model.load import load_model
from edgeconvnext.model.network import EndsWith, ExactFold, Network, NetworkBlock, NetworkConfig
from edgeconvnext.model.renamed import Renamed
from edgeconvnext.quantization.plan_storage import load_plan

SIDE = 32
PREFIXES = {"downsample_layers.0.0.": "entry.", "stages.0.": "body.", "head.": "classifier."}
"""Of tensor names: ours and the file's."""
PACKAGE = Path(edgeconvnext.__file__).parent


@dataclass(frozen=True)
class PlainConfig(NetworkConfig):
    """One stage of `depths[0]` blocks of `dims[0]` channels."""

    depths: tuple[int, ...] = (2,)
    dims: tuple[int, ...] = (8,)
    num_classes: int = 10
    in_channels: int = 3
    kernel_size: int = 3
    ends_with: EndsWith = "head"
    folded: bool = False

    @property
    def total_stride(self) -> int:
        return 4

    def without_batch_norms(self) -> PlainConfig:
        return self.replace(folded=True)


class PlainBlock(NetworkBlock):
    operators: ClassVar[dict[str, Operator]] = {"first": "conv", "second": "projection"}

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        width = config.dims[0]
        self.first = nn.Conv2d(width, width, config.kernel_size, padding=1, bias=config.folded)
        self.norm = nn.Identity() if config.folded else nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.norm(self.first(x)).relu())


class Plain(Network):
    config: PlainConfig

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config = config
        width = config.dims[0]
        self.downsample_layers = nn.ModuleList([nn.Sequential(nn.Conv2d(config.in_channels, width, 4, 4))])
        self.stages = nn.ModuleList([nn.Sequential(*(PlainBlock(config) for _ in range(config.depths[0])))])
        self.norm = nn.Identity()
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(2, 3)))

    @property
    def exact_folds(self) -> tuple[ExactFold, ...]:
        return () if self.config.folded else ("batch_norm",)

    def norms_behind(self) -> Iterator[tuple[str, str]]:
        if not self.config.folded:
            paths = (f"stages.0.{block}" for block in range(self.config.depths[0]))
            yield from ((f"{path}.first", f"{path}.norm") for path in paths)


class PlainFamily(Family):
    name = "plain"
    title = "Plain"
    readable = "plain networks as saved by this test"
    config = PlainConfig
    network = Plain
    architectures: ClassVar[Mapping[str, Architecture]] = {"plain2": Architecture("plain2", PlainConfig(), 0.25)}

    def rename(self, tensors: Mapping[str, torch.Tensor], source: str) -> Renamed | None:
        if "entry.weight" not in tensors:
            return None
        ours = {name: our_name(name) for name in tensors}
        known = {our: name for name, our in ours.items() if our}
        unexpected = tuple(name for name, our in ours.items() if not our)
        return Renamed("this test", {our: tensors[name] for our, name in known.items()}, known, unexpected)

    def infer(self, renamed: Renamed, source: str) -> PlainConfig:
        depth = len({name.split(".")[2] for name in renamed.tensors if name.startswith("stages.")})
        classes, width = renamed.tensors["head.weight"].shape
        return PlainConfig(depths=(depth,), dims=(width,), num_classes=classes)


def our_name(name: str) -> str | None:
    return next((our + name.removeprefix(theirs) for our, theirs in PREFIXES.items() if name.startswith(theirs)), None)


def their_name(name: str) -> str:
    return next(theirs + name.removeprefix(our) for our, theirs in PREFIXES.items() if name.startswith(our))


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "plain", PlainFamily())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A state dict under names of its own, as another library would save it."""
    torch.manual_seed(0)
    module = Plain(PlainConfig())
    for name, value in module.state_dict().items():
        if name.endswith("running_mean"):
            nn.init.normal_(value)
        elif name.endswith("running_var"):
            nn.init.uniform_(value, 0.5, 2.0)
    path = tmp_path / "plain.safetensors"
    save_file({their_name(name): tensor for name, tensor in module.state_dict().items()}, path)
    return path


def test_its_checkpoint_loads_and_is_described(weights: Path) -> None:
    model = load_model(weights, resolution=SIDE)
    assert (model.layout, model.config) == ("this test", PlainConfig())
    described = describe(model)
    assert (described.architecture, described.published_gflops) == ("plain2", 0.25)
    assert described.macs == 64 * (8 * 48 + 2 * (8 * 72 + 64)) + 80


def test_a_tensor_that_does_not_fit_is_named_as_in_the_file(weights: Path, tmp_path: Path) -> None:
    state = {name: value for name, value in load_file(weights).items() if name != "body.1.second.bias"}
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit the Plain .* 1 missing: stages\.0\.1\.second\.bias"):
        load_model(tmp_path / "broken.safetensors", resolution=SIDE)


def test_a_file_of_no_family_lists_what_each_reads(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="plain networks as saved by this test"):
        load_model(tmp_path / "other.safetensors")


def test_it_folds_and_comes_back_from_its_own_file(weights: Path, tmp_path: Path) -> None:
    model = load_model(weights, resolution=SIDE)
    folded = edgeconvnext.fold(model, calib="digits", output=tmp_path / "folded.safetensors")
    assert list(folded.errors) == ["batch_norm"] and folded.errors["batch_norm"] < 1e-5
    again = load_model(tmp_path / "folded.safetensors")
    assert again.config == PlainConfig(folded=True) and again.layout == "edgeconvnext"
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():  # float32 rounding of weights that were folded in float64
        torch.testing.assert_close(again.module(images), model.module(images), rtol=1e-4, atol=1e-5)


def test_it_is_quantised_with_the_operators_that_it_names(weights: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    edgeconvnext.quantize(
        model=weights, target="onnx", calib="digits", num_images=12, effort="quick", resolution=SIDE, output=run
    )
    (stored,) = run.rglob("folded.safetensors")
    (plan_file,) = run.rglob("plan.safetensors")
    plan, network = load_plan(plan_file, load_model(stored).module)
    assert isinstance(network, Plain)
    assert set(plan.weights) == {
        "head",
        *(f"stages.0.{block}.{name}" for block in (0, 1) for name in ("first", "second")),
    }


def test_what_its_blocks_are_not_made_for_is_refused(weights: Path) -> None:
    with pytest.raises(RewriteError, match="plain is no ConvNeXt"):
        edgeconvnext.prune(load_model(weights, resolution=SIDE), calib="digits", macs=0.5)


def test_no_module_asks_whether_a_network_is_of_a_family() -> None:
    folders = {PACKAGE / "model" / "convnext", PACKAGE / "model" / "resnet"}
    trees = {file: ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")}
    classes = {
        node.name
        for file, tree in trees.items()
        if file.parent in folders and file.name == "network.py"
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    assert {"ConvNeXt", "ConvNeXtConfig", "Block", "ResNet", "ResNetConfig", "Bottleneck"} <= classes
    asked = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}"
        for file, tree in trees.items()
        if file.parent not in folders
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("isinstance", "issubclass")
        if {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} & classes
    ]
    assert asked == []
