"""A set is found by name or path, lists the same images on every machine, and is never replaced by another."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
from PIL import Image

from edgeconvnext.data import raster_formats
from edgeconvnext.data.sets import load_set_file, resolve_image_set, set_files
from edgeconvnext.errors import ConfigFileError, ImageSetError


def make_images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that EDGECONVNEXT_DATA names."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("EDGECONVNEXT_DATA", str(folder))
    return folder


def test_every_shipped_file_holds_and_is_called_as_its_set() -> None:
    photographs = {"imagenet_1k_subset", "imagenette", "imagenette_val", "tiny_imagenet", "tiny_imagenet_val"}
    assert set(set_files()) == {"digits", "digits_test"} | photographs
    for name in set_files():
        assert load_set_file(name).name == name


@pytest.mark.parametrize(("name", "count"), [("digits", 400), ("digits_test", 599)])
def test_embedded_sets_match_the_list_their_file_promises(name: str, count: int) -> None:
    digits = resolve_image_set(name)
    assert len(digits) == count
    assert digits.name == name
    assert digits.notes == ()
    assert digits.class_names == tuple("0123456789")


def test_an_image_folder_has_its_subfolders_as_classes(photo_folder: Path) -> None:
    photos = resolve_image_set(photo_folder)
    assert photos.class_names == ("flower", "temple")
    assert len(photos) == 24
    assert photos.ids[0] == "flower/flower_00.jpg"
    assert [photos.class_of(index) for index in (0, 23)] == ["flower", "temple"]
    assert photos.read(0).size == (200, 160)


def test_the_list_does_not_depend_on_where_it_lies(photo_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(photo_folder, copy)
    here, there = resolve_image_set(photo_folder), resolve_image_set(copy)
    assert here.ids == there.ids
    assert here.list_sha256 == there.list_sha256
    assert here.take(7).ids == there.take(7).ids


def test_the_fingerprint_changes_with_an_image(photo_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(photo_folder, copy)
    photos = resolve_image_set(copy)
    before = photos.fingerprint
    assert photos.fingerprint == before
    Image.new("RGB", (9, 9)).save(copy / photos.ids[3])
    assert photos.fingerprint != before
    (copy / photos.ids[3]).unlink()
    assert photos.fingerprint != before


def test_a_set_travels_to_worker_processes(photo_folder: Path) -> None:
    for image_set in (resolve_image_set(photo_folder), resolve_image_set("digits")):
        assert pickle.loads(pickle.dumps(image_set)) == image_set


def test_linked_folders_count_and_links_back_up_do_not(tmp_path: Path) -> None:
    make_images(tmp_path, "batches/cat/0.png", "batches/cat/1.png", "set/dog/0.png", "set/dog/deep/1.png")
    (tmp_path / "set/cat").mkdir()
    (tmp_path / "set/cat/batch").symlink_to("../../batches/cat")
    for name, target in (("self", "."), ("up", ".."), ("above", "../.."), ("again", "deep"), ("gone", "nowhere")):
        (tmp_path / "set/dog" / name).symlink_to(target)
    (tmp_path / "set/all").symlink_to(".")
    found = resolve_image_set(tmp_path / "set")
    assert found.ids == ("cat/batch/0.png", "cat/batch/1.png", "dog/0.png", "dog/deep/1.png")
    assert found.class_names == ("cat", "dog")
    remark = next(remark for remark in found.remarks if "links lead back" in remark)
    assert remark.startswith("5 links lead back") and "dog/up" in remark and "all" in remark


def test_links_to_links_do_not_multiply(tmp_path: Path) -> None:
    """Twenty folders, each with two links to the next, are a million ways to one image."""
    for depth in range(20):
        (tmp_path / f"chain/{depth}").mkdir(parents=True)
        for link in ("a", "b"):
            (tmp_path / f"chain/{depth}/{link}").symlink_to(f"../{depth + 1}")
    make_images(tmp_path, "chain/20/0.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/cat").symlink_to("../chain/0")
    assert len(resolve_image_set(tmp_path / "set")) == 1


def test_images_without_a_decoder_are_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster_formats, "missing_decoders", lambda: frozenset({"HEIF"}))
    raster_formats.image_suffixes.cache_clear()
    for number in range(3):
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(b"")
    with pytest.raises(
        ImageSetError, match=r"3 HEIC files are there; to read them, install pillow-heif .* convert them"
    ):
        resolve_image_set(tmp_path)
    make_images(tmp_path, "a.png")
    assert "3 HEIC files are there" in resolve_image_set(tmp_path).notes[0]
    raster_formats.image_suffixes.cache_clear()


def test_links_whose_target_is_absent_are_broken_images_not_absent_ones(tmp_path: Path) -> None:
    make_images(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to("nowhere.png")
    assert resolve_image_set(tmp_path).ids == ("a.png", "b.png")


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    make_images(tmp_path, "b.png", "a.JPEG", "c.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    flat = resolve_image_set(tmp_path)
    assert flat.ids == ("a.JPEG", "b.png", "c.png")
    assert flat.labels is None
    assert "notes.txt" in flat.notes[0]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("labels.csv", 'file,class\nb.png,golf ball\na.png,tench\n"c.png","golf ball"\n'),
        ("labels.txt", "a.png tench\nb.png golf ball\nc.png golf ball\n"),
        ("labels.csv", "a.png,tench\n\nb.png,golf ball\nc.png,golf ball"),
        ("labels.csv", "a.png;tench\nb.png;golf ball\nc.png;golf ball"),
        ("labels.tsv", "image\tclass\r\na.png\ttench\r\nb.png\tgolf ball\r\nc.png\tgolf ball\r\n"),
        ("labels.csv", "id,label\na,tench\nb,golf ball\nc,golf ball\n"),
        ("labels.csv", "label;width;file\ntench;8;a.png\ngolf ball;8;b.png\ngolf ball;9;c.png\n"),
    ],
)
def test_a_labels_file_gives_a_flat_folder_its_classes(tmp_path: Path, file: str, text: str) -> None:
    make_images(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / file).write_text(text)
    flat = resolve_image_set(tmp_path)
    assert flat.class_names == ("golf ball", "tench")
    assert flat.labels == (1, 0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,tench\nz.png,tench\n", "1 of them are missing.*z.png"),
        ("a.png,tench\na.png,church\n", "line 2: a.png is 'church' here and 'tench' above"),
        ("a.png,tench\nb.png\n", "line 2: expected 'file,class'"),
        ("file,class\n", "names no images"),
    ],
)
def test_a_labels_file_that_does_not_hold_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    make_images(tmp_path, "a.png", "b.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ImageSetError, match=message):
        resolve_image_set(tmp_path)


def test_a_label_file_elsewhere_names_images_in_subfolders(tmp_path: Path) -> None:
    make_images(tmp_path, "set/x/a.png", "set/y/b.png")
    (tmp_path / "mine.csv").write_text("x/a.png,7\ny/b.png,3\n")
    found = resolve_image_set(tmp_path / "set", labels=tmp_path / "mine.csv")
    assert (found.ids, found.class_names, found.labels) == (("x/a.png", "y/b.png"), ("3", "7"), (1, 0))
    assert found.classes_from == "file"
    with pytest.raises(ImageSetError, match=r"digits is a named set, .*mine\.csv goes with a folder"):
        resolve_image_set("digits", labels=tmp_path / "mine.csv")


def test_images_that_the_labels_file_leaves_out_are_noted(tmp_path: Path) -> None:
    make_images(tmp_path, "a.png", "b.png")
    (tmp_path / "labels.csv").write_text("a.png,tench\n")
    flat = resolve_image_set(tmp_path)
    assert flat.ids == ("a.png",)
    assert "b.png" in flat.notes[0]


def test_splits_are_not_classes(tmp_path: Path) -> None:
    make_images(tmp_path, "train/tench/a.png", "val/tench/b.png")
    with pytest.raises(ImageSetError, match="holds the splits train, val"):
        resolve_image_set(tmp_path)
    assert resolve_image_set(tmp_path / "val").class_names == ("tench",)
    assert resolve_image_set(tmp_path / "val").name == f"{tmp_path.name}/val"


def test_images_beside_folders_of_images_have_no_classes(tmp_path: Path) -> None:
    make_images(tmp_path, "a.png", "more/b.png")
    mixed = resolve_image_set(tmp_path)
    assert mixed.ids == ("a.png", "more/b.png")
    assert mixed.labels is None


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(ImageSetError, match="holds no images"):
        resolve_image_set(tmp_path)


def test_a_file_or_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, "a.png")
    with pytest.raises(ImageSetError, match="is a file, not a folder"):
        resolve_image_set(tmp_path / "a.png")
    with pytest.raises(ImageSetError, match="no image set or folder"):
        resolve_image_set(tmp_path / "nowhere")


def test_a_misspelt_name_gets_the_nearest_ones() -> None:
    with pytest.raises(ImageSetError, match=r"Did you mean imagenette.*Known sets: digits, digits_test"):
        resolve_image_set("imagenete")


def test_a_name_is_found_in_the_data_folder_first(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = data_folder.parent / "home"
    monkeypatch.setenv("HOME", str(home))
    cached = home / ".cache" / "edgeconvnext"
    make_images(cached, "imagenette2-160/val/n01440764/cached.JPEG")
    assert resolve_image_set("imagenette_val").ids == ("n01440764/cached.JPEG",)
    make_images(data_folder, "imagenette2-320/val/n01440764/chosen.JPEG")
    found = resolve_image_set("imagenette_val")
    assert found.ids == ("n01440764/chosen.JPEG",)
    assert found.descriptions == ("tench",)
    assert "holds 1 images here; the published set has 3925" in found.notes[0]


def test_a_folder_is_found_below_the_data_folder(data_folder: Path) -> None:
    make_images(data_folder, "line_7/scratched/a.png")
    assert resolve_image_set("line_7").class_names == ("scratched",)


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("imagenette", "edgeconvnext data get imagenette"),
        ("imagenet_1k_subset", "image-net.org"),
    ],
)
def test_a_set_that_is_not_here_says_how_to_get_it(data_folder: Path, name: str, way_out: str) -> None:
    with pytest.raises(ImageSetError, match=rf"not on this machine.*{way_out}") as error:
        resolve_image_set(name)
    assert str(data_folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("root", ["imagenet/train", "imagenet/val", "imagenet"])
def test_the_subset_takes_the_first_image_of_each_imagenet_class(data_folder: Path, root: str) -> None:
    make_images(data_folder / root, *(f"{synset}/{n}.JPEG" for synset in ("n01440764", "n01443537") for n in "cab"))
    subset = resolve_image_set("imagenet_1k_subset")
    assert subset.ids == ("n01440764/a.JPEG", "n01443537/a.JPEG")


def test_the_subset_is_taken_from_a_flat_folder_with_labels(data_folder: Path) -> None:
    root = data_folder / "imagenet"
    make_images(root, *(f"val_{number}.JPEG" for number in range(6)))
    lines = [f"val_{number}.JPEG,{('n01443537', 'n01440764')[number % 2]}" for number in range(6)]
    (root / "labels.csv").write_text("\n".join(lines))
    subset = resolve_image_set("imagenet_1k_subset")
    assert subset.ids == ("val_0.JPEG", "val_1.JPEG")
    assert subset.class_names == ("n01440764", "n01443537")
    (root / "labels.csv").unlink()
    with pytest.raises(ImageSetError, match="has no classes"):
        resolve_image_set("imagenet_1k_subset")


def test_a_file_of_the_users_own_names_folders_beside_itself(tmp_path: Path) -> None:
    make_images(tmp_path, "line_7/good/a.png", "line_7/good/b.png", "line_7/scratched/c.png")
    path = tmp_path / "line_7.toml"
    path.write_text('name = "line_7"\ndescription = "camera 7"\nfolders = ["line_7"]\nimages_per_class = 1\n')
    assert resolve_image_set(path).ids == ("good/a.png", "scratched/c.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\ndescription = "y"\nfolder = ["z"]\n', "unknown key folder.*folders"),
        ('name = "x"\ndescription = "y"\nfolders = ["z"]\nimages_per_class = "one"\n', "images_per_class"),
        ('name = "x"\ndescription = "y"\narchives = ["../*.tar"]\n', "archives.*leads outside"),
        ('name = "x"\ndescription = "y"\n', "either folders and archives or embedded"),
    ],
)
def test_a_file_that_does_not_hold_names_its_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigFileError, match=message):
        resolve_image_set(path)


@pytest.mark.data
def test_the_photographs_match_the_lists_their_files_promise(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECONVNEXT_DATA", str(photographs))
    subset = resolve_image_set("imagenet_1k_subset")
    assert (len(subset), len(subset.class_names), subset.notes) == (1000, 1000, ())
    assert subset.descriptions[:2] == ("tench", "goldfish")  # type: ignore[index]
    train = resolve_image_set("imagenette")
    assert (len(train), len(train.class_names), train.notes) == (9469, 10, ())
