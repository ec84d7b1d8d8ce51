"""A set in archives is the set of a folder with the same files, read by index, and unpacked once."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeconvnext.data.archives import PackReader
from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.images import BrokenImage
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.errors import ImageSetError

NAMES = ("cat/1.png", "cat/0.webp", "ant/2.png")
SET = 'name = "pets"\ndescription = "pets"\nfolders = ["pets/all"]\narchives = ["pets/part-*.tar*"]\n'


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds pets.toml; the cache is beside it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "data" / "pets").mkdir(parents=True)
    (tmp_path / "data" / "pets.toml").write_text(SET)
    return tmp_path / "data"


def encoded(name: str) -> bytes:
    """A photograph of one grey, which its name decides."""
    file = io.BytesIO()
    image = Image.new("RGB", (16, 8), (sum(name.encode()) % 256,) * 3)
    image.save(file, name.rpartition(".")[2], **({"lossless": True} if name.endswith("webp") else {}))
    return file.getvalue()


def write(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_pets(data_folder: Path, *names: str) -> None:
    """Write two archives, one of them packed."""
    write(data_folder / "pets" / "part-0.tar.gz", {name: encoded(name) for name in names[::2]})
    write(data_folder / "pets" / "part-1.tar", {f"./{name}": encoded(name) for name in names[1::2]})


def pets(data_folder: Path) -> ImageSet:
    return resolve_image_set(data_folder / "pets.toml")


def test_archives_hold_the_set_of_their_folder(data_folder: Path) -> None:
    write_pets(data_folder, *NAMES)
    packed = pets(data_folder)
    assert packed.ids == ("ant/2.png", "cat/0.webp", "cat/1.png")
    assert packed.class_names == ("ant", "cat") and packed.labels == (0, 1, 1)
    for name in NAMES:
        file = data_folder / "pets" / "all" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(name))
    folder = pets(data_folder)
    assert not isinstance(folder.reader, PackReader)
    assert packed.list_sha256 == folder.list_sha256
    reader = pickle.loads(pickle.dumps(packed))
    for index, name in enumerate(packed.ids):
        assert np.array_equal(np.asarray(reader.read(index)), np.asarray(folder.read(index))), name
        assert np.asarray(reader.read(index))[0, 0, 0] == sum(name.encode()) % 256


def test_archives_are_unpacked_once_and_again_when_they_change(data_folder: Path) -> None:
    write_pets(data_folder, *NAMES)
    first = pets(data_folder)
    assert isinstance(first.reader, PackReader)
    written = first.reader.file.stat().st_mtime_ns
    assert pets(data_folder).reader.file.stat().st_mtime_ns == written
    assert pets(data_folder).fingerprint == first.fingerprint
    write_pets(data_folder, *NAMES, "dog/3.png")
    changed = pets(data_folder)
    assert changed.ids == (*first.ids, "dog/3.png") and changed.fingerprint != first.fingerprint


def test_the_fingerprint_is_that_of_the_contents(data_folder: Path) -> None:
    """A copy of the archives, or a new time of theirs, is the same set; another image under the same name is not."""
    write_pets(data_folder, *NAMES)
    first = pets(data_folder).fingerprint
    archive = data_folder / "pets" / "part-1.tar"
    archive.write_bytes(archive.read_bytes())
    assert pets(data_folder).fingerprint == first
    write(archive, {NAMES[1]: encoded("cat/x.webp")})
    assert pets(data_folder).fingerprint != first


def test_a_cache_that_was_cut_off_is_written_again(data_folder: Path) -> None:
    write_pets(data_folder, *NAMES)
    reader = pets(data_folder).reader
    assert isinstance(reader, PackReader)
    whole = reader.file.read_bytes()
    for content in (whole[:-1], b""):
        reader.file.write_bytes(content)
        assert pets(data_folder).read(2).size == (16, 8)
        assert reader.file.read_bytes() == whole
    reader.file.with_suffix(".tsv").write_text("cat/0.webp\tmany\tbytes\n")
    assert len(pets(data_folder)) == 3
    reader.file.unlink()
    with pytest.raises(BrokenImage, match="cache of its archive"):
        reader.read("cat/0.webp")


def test_a_damaged_image_is_named_as_broken(data_folder: Path) -> None:
    write(
        data_folder / "pets" / "part-0.tar", {"cat/0.png": encoded("cat/0.png")[:40], "cat/1.png": b"", "cat/x": b"!"}
    )
    images = pets(data_folder)
    assert images.ids == ("cat/0.png", "cat/1.png")
    with pytest.raises(BrokenImage, match="damaged"):
        images.read(0)
    with pytest.raises(BrokenImage, match="empty"):
        images.read(1)


def test_the_first_of_each_class_are_taken(data_folder: Path) -> None:
    write_pets(data_folder, *NAMES)
    (data_folder / "pets.toml").write_text(SET + "images_per_class = 1\n")
    assert pets(data_folder).ids == ("ant/2.png", "cat/0.webp")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("../cat/0.png",), "leads outside"),
        (("cat/0.png", "dog/0.png", "./cat/0.png"), "in the archives twice"),
        (("0.png", "readme.txt"), "holds no images in folders"),
    ],
)
def test_archives_that_are_no_set_are_refused(data_folder: Path, names: tuple[str, ...], message: str) -> None:
    write(data_folder / "pets" / "part-0.tar.gz", dict.fromkeys(names, b"x"))
    with pytest.raises(ImageSetError, match=message):
        pets(data_folder)
    assert not list((data_folder.parent / "home").rglob("*.images*"))


def test_a_damaged_archive_is_an_error(data_folder: Path) -> None:
    write_pets(data_folder, *NAMES)
    archive = data_folder / "pets" / "part-0.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ImageSetError, match="cannot be unpacked"):
        pets(data_folder)


def test_links_in_an_archive_are_refused(data_folder: Path) -> None:
    with tarfile.open(data_folder / "pets" / "part-0.tar", "w") as tar:
        link = tarfile.TarInfo("cat/0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ImageSetError, match="is a link"):
        pets(data_folder)


@pytest.mark.data
@pytest.mark.parametrize(("name", "images", "each"), [("tiny_imagenet", 80_000, 400), ("tiny_imagenet_val", 5000, 25)])
def test_tiny_imagenet_is_read_from_its_archives(
    name: str, images: int, each: int, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (photographs / "tiny_imagenet").is_dir():
        pytest.skip(f"no tiny_imagenet under {photographs}")
    monkeypatch.setenv("EDGECONVNEXT_DATA", str(photographs))
    monkeypatch.setenv("HOME", str(tmp_path))
    photographs = resolve_image_set(name)
    assert len(photographs) == images and photographs.notes == ()
    assert photographs.labels is not None and len(photographs.class_names) == 200
    assert {photographs.labels.count(label) for label in (0, 99, 199)} == {each}
    assert photographs.descriptions is not None and photographs.descriptions[0] == "goldfish"
    assert {photographs.read(index).size for index in range(0, images, images // 20)} == {(64, 64)}
