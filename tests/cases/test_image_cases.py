"""Cases 18 to 23 and 27 of the shared folder `cases`: images, labels and preprocessing as users have them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import fails, run_command

from edgeconvnext.data.images import open_image
from edgeconvnext.data.loader import batches
from edgeconvnext.data.raster_formats import missing_decoders
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.errors import ImageSetError
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel

pytestmark = pytest.mark.data

QUICK = ("quantize", "--target", "onnx", "--effort", "quick", "--num-images", "30", "--json")
# What plain float32 reaches, as CASES.md says.
RELATIVE = 1e-5


def logits(model: LoadedModel, photographs: list[Path]) -> np.ndarray:
    pixels = np.stack([model.preprocess.apply(open_image(path)) for path in photographs])
    with torch.inference_mode():
        return model.module(torch.from_numpy(pixels)).numpy()


def relative_error(found: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(found - right).max() / np.abs(right).max())


def fp32_top1(
    cases: Path, weights: Path, evaluation: Path, output: Path, *options: str | Path
) -> tuple[float, list[str]]:
    """Return top-1 in FP32, percent, and the notes of a run."""
    images = ("--calib", cases / "photos", "--eval", evaluation)
    result = run_command(*QUICK, "--model", weights, *images, "--output", output, *options)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    return report["accuracy"]["fp32"]["value"], report["notes"]


def test_18_avif_is_read_and_heic_is_read_or_named(cases: Path) -> None:
    avif = resolve_image_set(cases / "18_avif_heic" / "avif")
    assert len(avif) == 40
    model = load_model("atto_imagenette")
    stream = batches(avif, model.preprocess, workers=0)
    assert sum(len(batch.indices) for batch in stream) == 40 and not stream.skipped
    if "HEIF" in missing_decoders():
        with pytest.raises(ImageSetError, match=r"40 HEIC files are there; to read them, .* or convert them"):
            resolve_image_set(cases / "18_avif_heic" / "heic")


def test_19_links_to_folders_are_followed_and_loops_are_not(cases: Path, tmp_path: Path) -> None:
    shutil.copytree(cases / "19_symlinked_subfolders", tmp_path / "19", symlinks=True)
    for _ in range(2):
        found = resolve_image_set(tmp_path / "19" / "set")
        assert [found.labels.count(label) for label in (0, 1)] == [20, 21]  # type: ignore[union-attr]
        if not (tmp_path / "19/set/n01440764/up").is_symlink():
            (tmp_path / "19/set/n01440764/up").symlink_to("..")


@pytest.mark.parametrize("separator", [None, "\t", ";"])
def test_20_numbers_in_a_label_file(cases: Path, atto_weights: Path, tmp_path: Path, separator: str | None) -> None:
    folder = cases / "20_label_indices_csv" / "set"
    options: tuple[str | Path, ...] = ()
    if separator is not None:
        lines = ["file,class", *(folder / "labels.csv").read_text().splitlines()]
        (tmp_path / "labels.txt").write_text("\n".join(line.replace(",", separator) for line in lines))
        options = ("--labels", tmp_path / "labels.txt")
    top1, notes = fp32_top1(cases, atto_weights, folder, tmp_path / "run", *options)
    assert top1 == pytest.approx(85.0)
    assert any("they are taken as the model's outputs" in note for note in notes)


def test_20_numbers_outside_are_refused(cases: Path, atto_weights: Path, tmp_path: Path) -> None:
    folder = cases / "20_label_indices_csv" / "set"
    lines = (folder / "labels.csv").read_text().splitlines()
    (tmp_path / "one.csv").write_text("\n".join(f"{n},{int(c) + 1}" for n, c in (line.split(",") for line in lines)))
    images = ("--calib", cases / "photos", "--eval", folder, "--labels", tmp_path / "one.csv")
    result = run_command(*QUICK, "--model", atto_weights, *images, "--output", tmp_path / "run")
    fails(result, 1, "gives the class 10;", "0 to 9", "subtract 1")


def test_21_integer_tiffs_show_what_their_png_shows(cases: Path) -> None:
    tiff, png = (resolve_image_set(cases / "21_int32_tiff" / kind) for kind in ("tiff", "png"))
    for number in range(4):
        assert np.array_equal(np.asarray(tiff.read(number)), np.asarray(png.read(number)))


@pytest.mark.parametrize("options", [{}, {"interpolation": "bilinear", "crop_pct": 224 / 236}])
def test_22_torchvision_preprocessing(cases: Path, photographs: Path, right_answers: Path, options: dict) -> None:
    model = load_model(cases / "22_torchvision_preprocessing" / "torchvision.pth", **options)
    chosen = sorted((photographs / "imagenette2-160" / "val").rglob("*.JPEG"))[::48][:12]
    found = logits(model, [cases / "photos" / path.name for path in chosen])
    assert relative_error(found, np.load(right_answers / "22_torchvision.npy")) < RELATIVE


def test_22_the_note_names_the_interpolation(cases: Path) -> None:
    assert "interpolation bilinear" in load_model(cases / "22_torchvision_preprocessing" / "torchvision.pth").notes[0]


def test_23_pointers_among_images_are_named(cases: Path, tmp_path: Path) -> None:
    for number in range(3):
        shutil.copy(cases / "23_lfs_pointer" / "model.safetensors", tmp_path / f"{number}.jpg")
    with pytest.raises(ImageSetError, match=r"Git LFS.*git lfs pull"):
        list(batches(resolve_image_set(tmp_path), load_model("atto_imagenette").preprocess))


def test_27_transformers_rounds_the_offset_of_a_crop_down(cases: Path, right_answers: Path) -> None:
    folder = cases / "27_hf_center_crop"
    found = logits(load_model(folder / "model"), sorted((folder / "photos").glob("*.png")))
    assert relative_error(found, np.load(right_answers / "27_hf.npy")) < RELATIVE
