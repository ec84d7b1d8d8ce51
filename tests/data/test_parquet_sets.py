"""Images in parquet shards, as the hub serves them, are read by row where they lie."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeconvnext.data import parquet_sets
from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.imagenet import imagenet_classes
from edgeconvnext.data.images import BrokenImage
from edgeconvnext.data.labels import match_labels
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.errors import ImageSetError
from tests.grey_images import greys, png


def write(path: Path, rows: list[tuple[bytes | None, Any]], names: list[str] | None = None, group: int = 2) -> Path:
    """Write a shard as the library `datasets` does: struct image, label, and the features in the metadata."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": content, "path": f"{number}.png"} for number, (content, _) in enumerate(rows)]
    columns = {"image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    if any(label is not None for _, label in rows):
        columns["label"] = pa.array([label for _, label in rows])
    table = pa.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group)
    return path


def outputs(images: ImageSet) -> list[int]:
    assert images.labels is not None
    matched = match_labels(images, None, 1000)
    return [int(matched[label]) for label in images.labels]


def test_rows_of_all_shards_are_images_with_labels(tmp_path: Path) -> None:
    write(tmp_path / "train-00001-of-00002.parquet", [(png(4), 3), (png(5), 0), (png(6), 3)])
    write(tmp_path / "train-00000-of-00002.parquet", [(png(grey), grey) for grey in (1, 2, 3)])
    (tmp_path / "README.md").write_text("---")
    images = resolve_image_set(tmp_path)
    assert images.ids[0] == "train-00000-of-00002.parquet/00000000" and len(images) == 6
    assert greys(images) == [1, 2, 3, 4, 5, 6] and outputs(images) == [1, 2, 3, 3, 0, 3]
    backwards = pickle.loads(pickle.dumps(images)).select([5, 0, 3])
    assert greys(backwards) == [6, 1, 4]
    assert greys(resolve_image_set(f"{tmp_path}/train-00001*.parquet")) == [4, 5, 6]


def test_names_of_classes_come_from_the_hubs_metadata(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", [(png(1), 1), (png(2), 0)], ["cat", "dog"])
    images = resolve_image_set(file)
    assert images.class_names == ("cat", "dog") and images.labels == (1, 0)


def test_imagenets_names_become_synsets(tmp_path: Path) -> None:
    """The hub calls two classes "crane", the bird (134) and the machine (517)."""
    words = list(imagenet_classes().values())
    images = resolve_image_set(write(tmp_path / "a.parquet", [(png(1), 517), (png(2), 134)], words))
    assert outputs(images) == [517, 134] and images.class_names[517] == "n03126707"


def test_labels_may_be_text_absent_or_unknown(tmp_path: Path) -> None:
    text = resolve_image_set(write(tmp_path / "a.parquet", [(png(1), "dog"), (png(2), "cat")]))
    assert text.class_names == ("cat", "dog") and text.labels == (1, 0)
    assert resolve_image_set(write(tmp_path / "b.parquet", [(png(1), None)])).labels is None
    assert resolve_image_set(write(tmp_path / "c.parquet", [(png(1), -1), (png(2), -1)])).labels is None
    with pytest.raises(ImageSetError, match=r"d\.parquet/00000001 .*has no label"):
        resolve_image_set(write(tmp_path / "d.parquet", [(png(1), 1), (png(2), -1)]))
    with pytest.raises(ImageSetError, match="has the label 2, and names 2 classes"):
        resolve_image_set(write(tmp_path / "e.parquet", [(png(1), 2)], ["cat", "dog"]))


def test_a_list_names_the_classes_of_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", [(png(1), None), (png(2), None)])
    (tmp_path / "classes.txt").write_text("n01443537\nn01440764\n")
    assert outputs(resolve_image_set(file, labels=tmp_path / "classes.txt")) == [1, 0]


def test_splits_and_other_files_are_told_apart(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        write(tmp_path / f"{name}-00000-of-00001.parquet", [(png(1), 1)])
    with pytest.raises(ImageSetError, match=r"splits train, validation.*train-\*\.parquet'"):
        resolve_image_set(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ImageSetError, match=r"\.tar and \.parquet"):
        resolve_image_set(f"{tmp_path}/*")


def test_broken_rows_are_broken_images(tmp_path: Path) -> None:
    images = resolve_image_set(write(tmp_path / "a.parquet", [(None, 1), (png(1)[:30], 1), (png(3), 1)], group=3))
    with pytest.raises(BrokenImage, match="no bytes"):
        images.read(0)
    with pytest.raises(BrokenImage, match="damaged"):
        images.read(1)
    assert images.read(2).size == (16, 8)


def test_files_that_are_damaged_or_no_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.parquet", [(png(1), 1), (png(2), 1)])
    whole = file.read_bytes()
    for content in (whole[:-20], b"PAR1", b"PAR1" + b"\xff" * 100 + b"PAR1", b""):
        (tmp_path / "b.parquet").write_bytes(content)
        with pytest.raises(ImageSetError, match=r"b\.parquet cannot be read"):
            resolve_image_set(tmp_path / "b.parquet")
    monkeypatch.setattr(parquet_sets, "_MOST_GROUP_BYTES", 100)
    with pytest.raises(ImageSetError, match="smaller row groups"):
        resolve_image_set(file)
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "c.parquet")
    with pytest.raises(ImageSetError, match="no column of images: its columns are text, n"):
        resolve_image_set(tmp_path / "c.parquet")


def test_a_damaged_page_is_a_broken_image(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", [(np.random.default_rng(0).bytes(5000), 1)])
    images = resolve_image_set(file)
    content = bytearray(file.read_bytes())
    content[4:60] = b"\xff" * 56
    file.write_bytes(content)
    parquet_sets._row_group.cache_clear()
    with pytest.raises(BrokenImage, match="parquet file cannot be read"):
        images.read(0)


def test_memory_holds_one_row_group(tmp_path: Path) -> None:
    """Eight times the rows take the same memory: Arrow's own count of it, since tracemalloc does not see it."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    noise = np.random.default_rng(0)
    for count in (8, 64):
        rows = [(png(1) + noise.bytes(100_000), 1) for _ in range(count)]
        write(tmp_path / f"{count}.parquet", rows, group=4)
        del rows
    peaks = []
    for count in (8, 64):
        parquet_sets._row_group.cache_clear()
        pool = pa.proxy_memory_pool(pa.default_memory_pool())
        pa.set_memory_pool(pool)
        try:
            images = resolve_image_set(tmp_path / f"{count}.parquet")
            assert greys(images) == [1] * count
            peaks.append(pool.max_memory())
        finally:
            parquet_sets._row_group.cache_clear()
            del images
            pa.set_memory_pool(pa.system_memory_pool())
    group = 4 * 100_000
    assert peaks[1] < peaks[0] + group, peaks
    assert peaks[1] < 8 * group, "64 rows would be 16 groups"


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(parquet_sets, "find_spec", lambda name: None)
    with pytest.raises(ImageSetError, match=r"pip install 'edgeconvnext\[parquet\]'"):
        resolve_image_set(tmp_path / "a.parquet")


def test_rows_go_through_the_loaders_processes(tmp_path: Path) -> None:
    images = resolve_image_set(write(tmp_path / "a.parquet", [(png(grey), 1) for grey in range(1, 7)]))
    assert greys(images) == [1, 2, 3, 4, 5, 6]  # Arrow was used in this process before the others begin
    prepare = Preprocess((8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    read = [batch.images.numpy().mean((1, 2, 3)) * 255 for batch in batches(images, prepare, 2, workers=2)]
    assert np.allclose(np.concatenate(read), [1, 2, 3, 4, 5, 6], atol=1e-4)
