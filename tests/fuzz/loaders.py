"""Every loader of content from outside: valid files to start from, how they are made hostile, and the call that reads them."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from edgeconvnext.train.loop import Trainer

from mutations import Mutation, any_bytes, any_json, any_safetensors, any_toml, any_zip, mostly

CHECKOUT = Path(__file__).resolve().parents[2]
LAYOUTS = CHECKOUT / "tests" / "fixtures" / "layouts"


@dataclass(frozen=True)
class Loader:
    """name: of the table. seeds: valid contents. place: where the changed content is written. load: the call that reads it."""

    name: str
    seeds: tuple[bytes, ...]
    place: Path
    mutate: Mutation
    load: Callable[[Path], object]


def loaders(base: Path, work: Path) -> list[Loader]:
    """Return all loaders. base: folder of valid files, from `make_base`. work: an empty folder for the changed ones."""
    return [*quick_loaders(work), *_runs(base, work)]


def quick_loaders(work: Path) -> list[Loader]:
    """Return the loaders that need no run to start from."""
    work.mkdir(parents=True, exist_ok=True)
    return [*_checkpoints(work), *_images(work), *_texts(work)]


def make_base(base: Path) -> None:
    """Make the valid files once: a run of a micro network with a device kit, and what its device measured."""
    if (base / "done").exists():
        return
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    from safetensors.torch import save_file

    save_file(weights_of(LAYOUTS / "facebookresearch.safetensors"), base / "micro.safetensors")
    options = (
        "--model",
        "micro.safetensors",
        "--resolution",
        "32",
        "--num-images",
        "12",
        "--effort",
        "quick",
        "--no-latency",
    )
    _command(base, "export", "--target", "onnx", *options, "--calib", "digits", "--output", "run")
    subprocess.run(
        [sys.executable, "run/device/check.py", "--seconds", "0.05"], cwd=base, check=False, capture_output=True
    )
    (base / "done").touch()


def _command(folder: Path, *arguments: str) -> None:
    code = "from edgeconvnext.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if result.returncode not in (0, 3):
        raise RuntimeError(f"{' '.join(arguments)} ended with {result.returncode}: {result.stderr}")


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict of a recorded layout."""
    from safetensors.torch import load_file

    prefix = "weights."
    return {
        name.removeprefix(prefix): values.float() for name, values in load_file(path).items() if name.startswith(prefix)
    }


def _checkpoints(work: Path) -> list[Loader]:
    import torch
    from safetensors.torch import save

    from edgeconvnext.model.load import load_model

    weights = weights_of(LAYOUTS / "facebookresearch.safetensors")
    zipped, legacy, nested = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(weights, zipped)
    torch.save({"model": weights, "epoch": 3, "args": {"lr": 0.1}}, nested)
    torch.save(weights, legacy, _use_new_zipfile_serialization=False)
    folder = work / "hub"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(save(weights))
    config = {
        "architectures": ["ConvNextForImageClassification"], "model_type": "convnext", "depths": [1, 1, 2, 1],
        "hidden_sizes": [8, 16, 24, 32], "image_size": 64, "num_channels": 3, "layer_norm_eps": 1e-12,
        "id2label": {str(number): f"class {number}" for number in range(11)}, "layer_scale_init_value": 1e-6,
        "patch_size": 4, "hidden_act": "gelu",
    }  # fmt: skip
    preprocessor = {
        "crop_pct": 0.875, "do_resize": True, "do_normalize": True, "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": {"shortest_edge": 64},
    }  # fmt: skip
    timm = {
        "architecture": "convnext_atto", "num_classes": 11, "label_names": [f"c{number}" for number in range(11)],
        "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5] * 3,
                           "std": [0.5] * 3, "num_classes": 11, "first_conv": "stem.0"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    in_folder = _in_folder(folder, lambda path: load_model(path.parent))
    (work / "timm").mkdir(exist_ok=True)
    (work / "timm" / "model.safetensors").write_bytes(save(weights))
    # Nothing in a file of one channel says how its input is normalised.
    known = [path for path in sorted(LAYOUTS.glob("*.safetensors")) if "grey" not in path.name]
    layout_files = tuple(save(weights_of(path)) for path in known)
    return [
        Loader("checkpoint, zip", (zipped.getvalue(), nested.getvalue()), work / "a.pth", mostly(any_zip), load_model),
        Loader("checkpoint, pickle", (legacy.getvalue(),), work / "b.pth", any_bytes, load_model),
        Loader("checkpoint, safetensors", layout_files, work / "d.safetensors", mostly(any_safetensors), load_model),
        Loader("config.json", (json.dumps(config).encode(),), folder / "config.json", mostly(any_json), in_folder),
        Loader(
            "preprocessor_config.json", (json.dumps(preprocessor).encode(),), folder / "preprocessor_config.json",
            mostly(any_json), in_folder,
        ),
        Loader(
            "timm's config.json", (json.dumps(timm).encode(),), work / "timm" / "config.json", mostly(any_json),
            lambda path: load_model(path.parent),
        ),
        Loader("last.ckpt", (_checkpoint_of_a_training(work),), work / "last.ckpt", mostly(any_zip), _go_on),
    ]  # fmt: skip


def _in_folder(folder: Path, load: Callable[[Path], object]) -> Callable[[Path], object]:
    """Put the folder's files back after each load, so that one case changes one file."""
    valid = {path: path.read_bytes() for path in folder.iterdir()}

    def run(path: Path) -> object:
        try:
            return load(path)
        finally:
            path.write_bytes(valid[path])

    return run


def _trainer() -> Trainer:
    import torch

    from edgeconvnext.errors import TrainingError
    from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
    from edgeconvnext.train.loop import LoopSettings, Trainer
    from edgeconvnext.train.world import World

    module = ConvNeXt(ConvNeXtConfig((1, 1), (8, 16), num_classes=5))
    return Trainer(
        module=module,
        optimizers=[torch.optim.AdamW(module.parameters())],
        loss=lambda *_: torch.zeros(()),
        settings=LoopSettings("Training", 1, 2, rate_factor=lambda share: 1.0, error=TrainingError),
        world=World(0, 1, torch.device("cpu")),
    )


def _go_on(path: Path) -> object:
    return _trainer().load(path, "identity")


def _checkpoint_of_a_training(work: Path) -> bytes:
    trainer = _trainer()
    for parameter in trainer.module.parameters():
        parameter.grad = parameter.detach() * 0.1
    trainer.optimizers[0].step()
    trainer.save(work / "valid.ckpt", "identity")
    return (work / "valid.ckpt").read_bytes()


def _images(work: Path) -> list[Loader]:
    import numpy as np
    from PIL import Image

    from edgeconvnext.data.images import open_image

    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = []
    for name, image, options in (
        ("JPEG", picture, {"exif": exif, "quality": 90}),
        ("PNG", picture, {}),
        ("WEBP", picture, {}),
        ("GIF", picture, {"save_all": True, "append_images": [picture.rotate(90)]}),
        ("BMP", picture, {}),
        ("TIFF", picture, {"compression": "tiff_lzw"}),
        ("PPM", picture, {}),
        ("PNG", Image.fromarray(pixels[:, :, 0].astype(np.uint16)), {}),
        ("PNG", picture.convert("P"), {"transparency": 0}),
        ("JPEG", picture.convert("CMYK"), {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        kinds.append(buffer.getvalue())
    return [
        Loader("image", tuple(kinds), work / "image.jpg", any_bytes, open_image),
        Loader(
            "image, decoded smaller", tuple(kinds), work / "small.jpg", any_bytes, lambda path: open_image(path, 16)
        ),
    ]


def _texts(work: Path) -> list[Loader]:
    from PIL import Image

    from edgeconvnext.backends import load_target
    from edgeconvnext.data.sets import resolve_image_set
    from edgeconvnext.quantization.precision import read_plan
    from edgeconvnext.train.recipe import Recipe, read_recipe, recipe_toml
    from edgeconvnext.tuning.placement_trials import _remembered

    labelled = work / "labelled"
    labelled.mkdir(exist_ok=True)
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(labelled / name)
    labels = (b"file,class\na.png,cat\nb.png,dog\nc.png,cat\n", b"a.png,0\nb.png,1\nc.png,0\n")
    (work / "set").mkdir(exist_ok=True)
    (labelled / "labels.csv").write_bytes(labels[0])
    shutil.copytree(labelled, work / "set" / "pictures", dirs_exist_ok=True)
    set_toml = b'name = "own"\ndescription = "mine"\nfolders = ["pictures"]\nimages_per_class = 2\nhow_to_get = "ask"\n'
    targets = tuple(path.read_bytes() for path in sorted((CHECKOUT / "targets").glob("*.toml")))
    plan = (
        b'weights = 8\nactivations = 16\n\n[layers.head]\nfloat = true\n\n[layers."stages.0.0.pwconv1"]\nweights = 4\n'
    )
    measured = {
        "speedup": {"value": 1, "low": 1, "high": 1},
        "ms": 1,
        "fp32_ms": 1,
        "sqnr_db": 3,
        "kl": 0,
        "agreement": 9,
        "size_bytes": 9,
    }
    memory = (json.dumps({"key": "a", "measured": measured}) + "\n").encode()
    return [
        Loader("target file", targets, work / "target.toml", mostly(any_toml), lambda path: load_target(str(path))),
        Loader("plan file", (plan,), work / "plan.toml", mostly(any_toml), read_plan),
        Loader("recipe", (recipe_toml(Recipe()).encode(),), work / "recipe.toml", mostly(any_toml), read_recipe),
        Loader("image set file", (set_toml,), work / "set" / "set.toml", mostly(any_toml), resolve_image_set),
        Loader("labels.csv", labels, labelled / "labels.csv", any_bytes, lambda path: resolve_image_set(path.parent)),
        Loader("archive of images", (_archive(labelled),), work / "archive.tar", any_bytes, _unpack),
        Loader("shard of samples", (_shard(),), work / "shard.tar", any_bytes, _read_shard),
        *_parquets(work),
        Loader("search memory", (memory,), work / "measured.jsonl", mostly(any_json), _remembered),
    ]  # fmt: skip


def _archive(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, "labelled")
    return buffer.getvalue()


def _shard() -> bytes:
    from PIL import Image

    picture, buffer = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "png")
    samples = {"a.png": picture.getvalue(), "a.cls": b"1", "b.png": picture.getvalue(), "b.json": b'{"label": 2}'}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(content), {"comment": "a sample"}
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _parquets(work: Path) -> list[Loader]:
    """Return the loader of parquet shards; none where pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        return []
    import pyarrow as pa
    import pyarrow.parquet
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "png")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": picture.getvalue(), "path": f"{row}.png"} for row in range(5)], kind)
    seeds = []
    for labels, compression in (([0, 1, 0, 1, 1], "snappy"), (["a", "b", "b", "a", "a"], "none")):
        table, buffer = pa.table({"image": images, "label": pa.array(labels)}), io.BytesIO()
        if compression == "snappy":
            names = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
        pyarrow.parquet.write_table(table, buffer, row_group_size=2, compression=compression)
        seeds.append(buffer.getvalue())
    return [Loader("parquet shard", tuple(seeds), work / "shard.parquet", any_bytes, _read_shard)]


def _read_shard(path: Path) -> object:
    from edgeconvnext.data.images import BrokenImage
    from edgeconvnext.data.sets import resolve_image_set

    images = resolve_image_set(path)
    for index in range(len(images)):
        with suppress(BrokenImage):
            images.read(index)
    return None


def _unpack(path: Path) -> object:
    from edgeconvnext.data.unpack import unpack

    folder = path.parent / "unpacked" / "labelled"
    folder.parent.mkdir(exist_ok=True)
    try:
        with path.open("rb") as stream:
            unpack(stream, path.stat().st_size, folder, "https://example.org/a.tar")
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)
    return None


def _runs(base: Path, work: Path) -> list[Loader]:
    from edgeconvnext.backends.kit.record import Kit, device_record, read_results
    from edgeconvnext.backends.onnx.write import read_metadata
    from edgeconvnext.model.load import load_model
    from edgeconvnext.pipeline.stages.values import FoldValues
    from edgeconvnext.quantization.plan_storage import load_plan
    from edgeconvnext.quantization.statistics import Statistics
    from edgeconvnext.run.directory import RunDirectory
    from edgeconvnext.run.manifest import load_run

    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(base / "run", run)
    folded = load_model(run / "folded.safetensors").module
    kit = Kit.load(run / "device")
    config = json.loads((run / "manifest.json").read_text())["config"]

    def open_run(path: Path) -> None:
        with suppress(KeyError), RunDirectory.open(path, config) as opened:
            opened.stored("fold", FoldValues)

    def open_moving(path: Path) -> None:
        open_run(path.parent.parent)

    def in_run(name: str, mutate: Mutation, load: Callable[[Path], object]) -> Loader:
        return Loader(name, ((run / name).read_bytes(),), run / name, mutate, _restoring(run / name, load))

    device = base / "run" / "device" / "device.json"
    return [
        in_run("folded.safetensors", mostly(any_safetensors), load_model),
        in_run("manifest.json", mostly(any_json), lambda path: load_run(path.parent)),
        in_run("config.json", mostly(any_json), lambda path: open_run(path.parent)),
        in_run("stages/fold.json", mostly(any_json), lambda path: open_run(path.parent.parent)),
        Loader("stages/fold.moving", (b'["folded.safetensors"]',), run / "stages" / "fold.moving", mostly(any_json), open_moving),
        in_run("plan.safetensors", mostly(any_safetensors), lambda path: load_plan(path, folded)),
        in_run("plan_statistics.safetensors", mostly(any_safetensors), Statistics.load),
        in_run("model.onnx", any_bytes, read_metadata),
        in_run("device/kit.json", mostly(any_json), lambda path: Kit.load(path.parent)),
        Loader(
            "device.json", (device.read_bytes(),), work / "device.json", mostly(any_json),
            lambda path: device_record(read_results(path, kit), kit),
        ),
    ]  # fmt: skip


def _restoring(place: Path, load: Callable[[Path], object]) -> Callable[[Path], object]:
    valid = place.read_bytes()

    def run(path: Path) -> object:
        try:
            return load(path)
        finally:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(valid)

    return run


def case(loader: Loader, seed: int, number: int) -> bytes:
    """Return the content of one case; the same for the same loader, seed and number."""
    rng = random.Random(f"{seed}:{loader.name}:{number}")
    return loader.mutate(rng.choice(loader.seeds), rng)
