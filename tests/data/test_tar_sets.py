"""Images in .tar files are read where they lie: ImageNet's validation archive, webdataset shards, class folders."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.imagenet import devkit_synsets, imagenet_classes
from edgeconvnext.data.images import BrokenImage
from edgeconvnext.data.labels import match_labels
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.data.shards import expanded
from edgeconvnext.data.tar_reader import TarReader
from edgeconvnext.errors import ImageSetError
from tests.grey_images import greys, png
from tests.in_process import run_command

# The devkit's numbers of the first ten validation images, and their classes in the order of outputs, as Caffe's val.txt has them.
FIRST_IDS = (490, 361, 171, 822, 297, 482, 13, 704, 599, 164)
FIRST_OUTPUTS = [65, 970, 230, 809, 516, 57, 334, 415, 674, 332]
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def write(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def validation(folder: Path, count: int = 10) -> Path:
    """Write the official archive's names, in another order than theirs. Each image's grey is its number."""
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, count + 1)]
    return write(folder / "ILSVRC2012_img_val.tar", {name: png(int(name[-8:-5])) for name in reversed(names)})


def classes(images: ImageSet) -> list[str | None]:
    return [images.class_of(index) for index in range(len(images))]


def test_the_devkit_counts_classes_in_its_own_order() -> None:
    outputs = list(imagenet_classes())
    assert sorted(devkit_synsets()) == outputs
    assert [outputs.index(devkit_synsets()[number - 1]) for number in FIRST_IDS] == FIRST_OUTPUTS
    assert [
        list(imagenet_classes().values())[outputs.index(devkit_synsets()[i])].split(",")[0] for i in (0, 1, 999)
    ] == [
        "kit fox",
        "English setter",
        "dumbbell",
    ]


@pytest.mark.parametrize("place", ["beside", "unpacked", "packed", "synsets", "option"])
def test_the_validation_archive_has_the_classes_of_its_devkit(tmp_path: Path, place: str) -> None:
    archive = validation(tmp_path)
    ids = "".join(f"{number}\n" for number in FIRST_IDS)
    labels = None
    if place == "beside":
        (tmp_path / GROUND_TRUTH).write_text(ids)
    elif place == "unpacked":
        (tmp_path / "ILSVRC2012_devkit_t12" / "data").mkdir(parents=True)
        (tmp_path / "ILSVRC2012_devkit_t12" / "data" / GROUND_TRUTH).write_text(ids)
    elif place == "packed":
        member = f"ILSVRC2012_devkit_t12/data/{GROUND_TRUTH}"
        write(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", {"a/readme.txt": b"x", member: ids.encode()}, "w:gz")
    else:
        labels = tmp_path / ("mine.txt" if place == "option" else "imagenet_2012_validation_synset_labels.txt")
        labels.write_text("".join(f"{devkit_synsets()[number - 1]}\n" for number in FIRST_IDS))
    images = resolve_image_set(archive, labels=labels if place == "option" else None)
    assert greys(images) == list(range(1, 11))
    assert images.labels is not None and isinstance(images.reader, TarReader)
    matched = match_labels(images, None, 1000)
    assert [int(matched[label]) for label in images.labels] == FIRST_OUTPUTS
    assert place == "option" or any(
        "the classes of ILSVRC2012_img_val.tar are those of" in note for note in images.notes
    )


def test_a_flat_folder_takes_the_devkits_list_as_well(tmp_path: Path) -> None:
    with tarfile.open(validation(tmp_path)) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            (tmp_path / "val").mkdir(exist_ok=True)
            (tmp_path / "val" / member.name).write_bytes(content.read())
    (tmp_path / GROUND_TRUTH).write_text("".join(f"{number}\n" for number in FIRST_IDS))
    images = resolve_image_set(tmp_path / "val", labels=tmp_path / GROUND_TRUTH)
    assert images.labels is not None
    matched = match_labels(images, None, 1000)
    assert [int(matched[label]) for label in images.labels] == FIRST_OUTPUTS


def solution(first: int = 1, last: int = 10) -> str:
    """Write Kaggle's LOC_val_solution.csv of the first validation images: not in their order, some with two boxes."""
    lines = ["ImageId,PredictionString"]
    for number in range(last, first - 1, -1):
        box = f"{devkit_synsets()[FIRST_IDS[(number - 1) % 10] - 1]} 111 108 {number} 366 "
        lines.append(f"ILSVRC2012_val_{number:08d},{box * (1 + number % 2)}")
    return "\n".join(lines)


def unpacked(archive: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("place", ["archive", "folder", "inside", "kaggle", "option"])
def test_labels_as_kaggle_ships_them_name_the_validation_images(tmp_path: Path, place: str) -> None:
    path = archive = validation(tmp_path / "tar")
    beside = {"archive": tmp_path / "tar", "inside": tmp_path / "val"}.get(place, tmp_path)
    if place != "archive":
        path = unpacked(archive, tmp_path / ("ILSVRC/Data/CLS-LOC/val" if place == "kaggle" else "val"))
    file = beside / ("mine.csv" if place == "option" else "LOC_val_solution.csv")
    file.write_text(solution(last=10 if place == "option" else 12))  # of all images, some of which are there
    images = resolve_image_set(path, labels=file if place == "option" else None)
    matched = match_labels(images, None, 1000)
    assert images.labels is not None and greys(images) == list(range(1, 11))
    assert [int(matched[label]) for label in images.labels] == FIRST_OUTPUTS
    assert place == "option" or any("LOC_val_solution.csv" in note for note in images.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01751748 1 2 3", "line 2: expected 'synset x y x y'"),
        ("n01751748 1 2 3 x", "line 2: expected 'synset x y x y'"),
        ("n01751748 1 2 3 4 n01440764 1 2 3 4", "line 2: the boxes are of 2 classes, n01440764, n01751748"),
    ],
)
def test_boxes_that_name_no_class_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\nILSVRC2012_val_00000001,{text}\n")
    with pytest.raises(ImageSetError, match=message):
        resolve_image_set(validation(tmp_path, 1))


def test_some_of_the_validation_images_count_by_their_number_in_the_whole_list(tmp_path: Path) -> None:
    folder = unpacked(validation(tmp_path), tmp_path / "val")
    for number in (1, 2, 4, 5, 6, 8):
        (folder / f"ILSVRC2012_val_{number:08d}.JPEG").unlink()
    (tmp_path / GROUND_TRUTH).write_text("".join(f"{number}\n" for number in FIRST_IDS) + "1\n" * 49_990)
    images = resolve_image_set(folder)
    assert images.labels is not None and greys(images) == [3, 7, 9, 10]
    matched = match_labels(images, None, 1000)
    assert [int(matched[label]) for label in images.labels] == [FIRST_OUTPUTS[row] for row in (2, 6, 8, 9)]


def test_without_a_list_the_validation_images_have_no_classes(tmp_path: Path) -> None:
    assert resolve_image_set(validation(tmp_path)).labels is None


def test_pairs_name_the_images_of_an_archive(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("ILSVRC2012_val_00000002.JPEG 970\nILSVRC2012_val_00000001.JPEG 65\n")
    images = resolve_image_set(validation(tmp_path, 2), labels=tmp_path / "val.txt")
    assert classes(images) == ["65", "970"] and images.classes_from == "file"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (GROUND_TRUTH, "1\n2\n", "has 2 lines.*holds 3 images"),
        (GROUND_TRUTH, "1\n0\n3\n", "line 2: expected an ILSVRC2012_ID"),
        (GROUND_TRUTH, "1\n1001\n3\n", "line 2: expected an ILSVRC2012_ID"),
        ("labels.txt", "490\n1000\n171\n", "call the file ILSVRC2012_validation_ground_truth.txt"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ImageSetError, match=message):
        resolve_image_set(validation(tmp_path, 3), labels=tmp_path / name)


def test_a_devkit_without_its_list_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", {"readme.txt": b"x"}, "w:gz")
    with pytest.raises(ImageSetError, match="holds no ILSVRC2012_validation_ground_truth"):
        resolve_image_set(validation(tmp_path, 3))


def write_shards(folder: Path) -> Path:
    write(
        folder / "imagenet-000001.tar",
        {
            "c.json": json.dumps({"label": 7, "filename": "c"}).encode(),
            "c.png": png(3),
            "d.cls": b"12",
            "d.png": png(4),
        },
    )
    write(
        folder / "imagenet-000000.tar",
        {
            "a.png": png(1),
            "a.cls": b"7\n",
            "a.json": b'{"label": 900}',
            "b.png": png(2),
            "b.cls": b"3",
            "._b.png": b"x",
        },
    )
    (folder / "sizes.json").write_text("{}")
    return folder


def test_shards_of_samples_have_the_classes_beside_the_images(tmp_path: Path) -> None:
    images = resolve_image_set(write_shards(tmp_path / "shards"))
    names = ["imagenet-000000.tar/a.png", "imagenet-000000.tar/b.png"]
    assert list(images.ids) == [*names, "imagenet-000001.tar/c.png", "imagenet-000001.tar/d.png"]
    assert greys(images) == [1, 2, 3, 4] and classes(images) == ["7", "3", "7", "12"]
    assert images.labels is not None
    matched = match_labels(images, None, 1000)
    assert [int(matched[label]) for label in images.labels] == [7, 3, 7, 12]


def test_a_pattern_names_some_shards(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards")
    assert greys(resolve_image_set(f"{folder}/imagenet-*1.tar")) == [3, 4]


def test_braces_name_shards_as_webdataset_does(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards")
    for braces in ("{000000..000001}", "{000000,000001}", "00000{0..1}", "{0,1}{00..00}{001..001}"):
        name = f"{folder}/imagenet-{braces}.tar"
        if braces.startswith("{0,1}"):
            with pytest.raises(ImageSetError, match=r"names 2 shards; 1 of them are missing: imagenet-100001\.tar"):
                resolve_image_set(name)
        else:
            assert greys(resolve_image_set(name)) == [1, 2, 3, 4]
    assert greys(resolve_image_set(f"{folder}/imagenet-{{000001..000001}}.tar")) == [3, 4]
    with pytest.raises(ImageSetError, match="no image set"):
        resolve_image_set(f"{folder}/other-{{0..3}}.tar")
    with pytest.raises(ImageSetError, match=r"more than 100,000 files"):
        resolve_image_set(f"{folder}/imagenet-{{0..999999999}}.tar")
    write_shards(tmp_path / "more")
    with pytest.raises(ImageSetError, match="several shards of one name"):
        resolve_image_set(f"{tmp_path}/{{shards,more}}/imagenet-000000.tar")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("v-{08..10}.tar", ["v-08.tar", "v-09.tar", "v-10.tar"]),
        ("v-{8..10}", ["v-8", "v-9", "v-10"]),
        ("v-{2..0}", ["v-2", "v-1", "v-0"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("{one}/{,x}", ["{one}/", "{one}/x"]),
    ],
)
def test_braces_stand_for_what_they_do_in_a_shell(pattern: str, names: list[str]) -> None:
    assert expanded(pattern) == names


def test_a_sample_is_one_image_with_one_class(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"a.png": png(1), "a.cls": b"1", "b.png": png(2)})
    with pytest.raises(ImageSetError, match=r"1 of 2 images have no class.*b\.png"):
        resolve_image_set(tmp_path / "a.tar")
    write(tmp_path / "b.tar", {"a.png": png(1), "a.cls": b"1", "a.depth.png": png(2)})
    with pytest.raises(ImageSetError, match="the sample a holds two images"):
        resolve_image_set(tmp_path / "b.tar")
    write(tmp_path / "c.tar", {"a.png": png(1), "a.cls": b"-1"})
    assert resolve_image_set(tmp_path / "c.tar").labels is None
    write(tmp_path / "d.tar", {"a.png": png(1), "a.cls": b"\x80\x04K\x01."})
    with pytest.raises(ImageSetError, match=r"a\.cls holds no class"):
        resolve_image_set(tmp_path / "d.tar")
    write(tmp_path / "e.tar", {"a.png": png(1), "a.json": b"[" * 200})
    with pytest.raises(ImageSetError, match=r"a\.json cannot be read"):
        resolve_image_set(tmp_path / "e.tar")


def test_splits_are_told_apart(tmp_path: Path) -> None:
    for name in ("train-000.tar", "val-000.tar"):
        write(tmp_path / name, {"a.png": png(1), "a.cls": b"1"})
    with pytest.raises(ImageSetError, match=r"splits train, val.*'.*train-\*\.tar'"):
        resolve_image_set(tmp_path)
    write(tmp_path / "one" / "both.tar", {"train/cat/1.png": png(1), "val/cat/2.png": png(1)})
    with pytest.raises(ImageSetError, match="splits train, val"):
        resolve_image_set(tmp_path / "one" / "both.tar")


@pytest.mark.parametrize("top", ["", "imagenet/val/"])
def test_class_folders_in_an_archive_are_those_of_a_folder(tmp_path: Path, top: str) -> None:
    names = {"dog/1.png": 5, "cat/2.png": 6, "cat/1.png": 7}
    archive = write(tmp_path / "pets.tar", {f"{top}{name}": png(grey) for name, grey in names.items()})
    for name, grey in names.items():
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(png(grey))
    packed, folder = resolve_image_set(archive), resolve_image_set(tmp_path / "pets")
    assert packed.list_sha256 == folder.list_sha256 and packed.class_names == ("cat", "dog")
    assert greys(packed) == greys(folder) == [7, 6, 5]
    assert greys(pickle.loads(pickle.dumps(packed))) == [7, 6, 5]


def test_the_training_archives_have_the_synsets_of_their_names(tmp_path: Path) -> None:
    for synset in ("n01443537", "n01440764"):
        write(tmp_path / "train" / f"{synset}.tar", {f"{synset}_10.JPEG": png(9), f"{synset}_9.JPEG": png(8)})
    images = resolve_image_set(tmp_path / "train")
    assert images.class_names == ("n01440764", "n01443537") and images.labels == (0, 0, 1, 1)
    assert images.descriptions == ("tench", "goldfish")
    inner = (tmp_path / "train" / "n01440764.tar").read_bytes()
    write(tmp_path / "ILSVRC2012_img_train.tar", {"n01440764.tar": inner})
    with pytest.raises(ImageSetError, match="holds archives, not images"):
        resolve_image_set(tmp_path / "ILSVRC2012_img_train.tar")


def test_a_packed_archive_of_class_folders_is_taken_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    archive = write(tmp_path / "pets.tar.gz", {"cat/1.png": png(1), "dog/1.png": png(2)}, "w:gz")
    assert greys(resolve_image_set(archive)) == [1, 2]


def test_a_folder_of_images_stays_one_with_an_archive_beside(tmp_path: Path) -> None:
    write(tmp_path / "old.tar", {"a.png": png(1)})
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(png(2))
    assert resolve_image_set(tmp_path).ids == ("cat/1.png",)


def test_the_fingerprint_follows_the_archive(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar", {"a.png": png(1)})
    first = resolve_image_set(archive)
    assert resolve_image_set(archive).fingerprint == first.fingerprint
    write(archive, {"a.png": png(1, (64, 64)), "b.txt": b"x" * 20_000})
    assert resolve_image_set(archive).fingerprint != first.fingerprint


@pytest.mark.parametrize(("top", "labelled"), [("val", False), ("images", False), ("pets", False), ("cat", True)])
def test_one_folder_in_an_archive_is_a_class_where_its_name_says_something(
    tmp_path: Path, top: str, labelled: bool
) -> None:
    images = resolve_image_set(write(tmp_path / "pets.tar", {f"{top}/1.png": png(1), f"{top}/2.png": png(2)}))
    assert images.labelled == labelled and greys(images) == [1, 2]


def test_imagenet_1k_subset_is_the_first_of_each_class_of_the_validation_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECONVNEXT_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    validation(tmp_path / "imagenet", 4)
    with pytest.raises(ImageSetError, match="has no classes"):
        resolve_image_set("imagenet_1k_subset")
    (tmp_path / "imagenet" / GROUND_TRUTH).write_text("490\n361\n490\n361\n")
    images = resolve_image_set("imagenet_1k_subset")
    assert greys(images) == [1, 2] and images.descriptions == ("sea snake", "alp")
    write(tmp_path / "imagenet" / "ILSVRC2012_img_train.tar", {"n01440764.tar": b""})
    assert greys(resolve_image_set("imagenet_1k_subset")) == [1, 2]
    with pytest.raises(ImageSetError, match=r"holds ILSVRC2012_img_train\.tar, ILSVRC2012_img_val\.tar\. Name one"):
        resolve_image_set(tmp_path / "imagenet")
    assert any("holds 2 images here" in note for note in images.notes)


# Archives that mean harm


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../a.png", tarfile.REGTYPE, "leads outside"),
        ("/etc/a.png", tarfile.REGTYPE, "leads outside"),
        ("a\x1b[31m.png", tarfile.REGTYPE, "control characters"),
        ("a.png", tarfile.SYMTYPE, "is a link"),
        ("a.png", tarfile.LNKTYPE, "is a link"),
        ("a.png", tarfile.CHRTYPE, "is a link, a device"),
    ],
)
def test_names_and_links_that_lead_elsewhere_are_refused(tmp_path: Path, name: str, kind: bytes, message: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ImageSetError, match=message):
        resolve_image_set(tmp_path / "a.tar")


def test_members_beyond_the_archive_are_refused(tmp_path: Path) -> None:
    """A truncated download, and a header that claims a terabyte."""
    archive = write(tmp_path / "a.tar", {"a.png": png(1), "b.png": png(2) + b"\0" * 5000})
    whole = archive.read_bytes()
    archive.write_bytes(whole[: 3 * 512 + 300])
    with pytest.raises(ImageSetError, match=r"a\.tar cannot be read"):
        resolve_image_set(archive)
    header = tarfile.TarInfo("a.png")
    header.size = 2**40
    archive.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + png(1))
    with pytest.raises(ImageSetError, match=r"a\.tar cannot be read"):
        resolve_image_set(archive)
    archive.write_bytes(b"x" * 5000)
    with pytest.raises(ImageSetError, match=r"a\.tar cannot be read"):
        resolve_image_set(archive)


def test_a_class_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    for number, length in enumerate((2**20 + 1, 2000)):
        archive = write(tmp_path / f"{number}.tar", {"a.png": png(1), "a.cls": b"1" * length})
        with pytest.raises(ImageSetError, match="a class"):
            resolve_image_set(archive)


def test_an_archive_that_shrinks_gives_broken_images(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar", {"a.png": png(1)})
    images = resolve_image_set(archive)
    archive.write_bytes(archive.read_bytes()[:520])
    with pytest.raises(BrokenImage, match="shorter"):
        images.read(0)
    archive.unlink()
    with pytest.raises(BrokenImage, match="its archive cannot be read"):
        images.read(0)


def test_memory_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    """Ten times the bytes in as many images: listing and reading take the same memory. tarfile alone would keep 1 kB a member."""

    def peak(size: int) -> int:
        archive = write(tmp_path / f"{size}.tar", {f"{number:04d}.png": png(1) + b"\0" * size for number in range(200)})
        tracemalloc.start()
        images = resolve_image_set(archive)
        for index in range(len(images)):
            images.read(index)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)  # imports
    small, large = peak(10_000), peak(100_000)
    assert large - small < 2 * 100_000, "one image is held, of 200"  # its bytes, once read and once in a stream
    assert small < 500_000


def test_the_list_takes_less_than_a_kilobyte_for_an_image(tmp_path: Path) -> None:
    archive = write(tmp_path / "many.tar", {f"{number:06d}.png": b"" for number in range(5000)})
    tracemalloc.start()
    images = resolve_image_set(archive)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(images) == 5000
    assert most < 5000 * 400


def test_images_of_shards_go_through_the_loader(tmp_path: Path) -> None:
    images = resolve_image_set(write_shards(tmp_path / "shards"))
    stream = batches(images, Preprocess((8, 8), mean=(0.0,) * 3, std=(1.0,) * 3), workers=2, batch_size=4)
    (batch,) = list(stream)
    assert batch.indices == [0, 1, 2, 3] and not stream.skipped
    assert np.allclose(batch.images.numpy().mean((1, 2, 3)) * 255, [1, 2, 3, 4], atol=1e-4)


def test_a_network_is_quantised_with_shards(micro: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = {}
    for number in range(24):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file, "png")
        samples |= {f"{number:02d}.png": file.getvalue(), f"{number:02d}.cls": str(number % 10).encode()}
    write(tmp_path / "shards" / "a-0.tar", dict(list(samples.items())[:24]))
    write(tmp_path / "shards" / "a-1.tar", dict(list(samples.items())[24:]))
    options = ("--target", "onnx", "--effort", "quick", "--output", tmp_path / "run")
    done = run_command("quantize", "--model", micro, "--calib", "shards/a-{0..1}.tar", *options, cwd=tmp_path)
    assert done.returncode in (0, 3), done.stderr
    stored = json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]["calibration"]["set"]
    assert stored == str(tmp_path / "shards/a-{0..1}.tar"), "a run is taken up from another folder, too"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["accuracy"]["fp32"]["n"] == 8, "a third is held out"
