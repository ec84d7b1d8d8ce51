"""Sets in parquet shards, as the Hugging Face hub serves them: a row for each image, read by row group where it lies."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from edgeconvnext.data.folders import FolderListing, labels_of_file, listing_of_labels
from edgeconvnext.data.imagenet import imagenet_classes
from edgeconvnext.data.images import MOST_FILE_BYTES, BrokenImage, decode_image
from edgeconvnext.errors import ImageSetError
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import parse_json, reading, require_regular_file

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "target")
# A reader holds one row group. The hub's have 100 to 1,000 images, about 100 MB.
_MOST_GROUP_BYTES = 2 * 2**30
_ROWS_AT_ONCE = 16
_MOST_ROWS = 20_000_000
# Two lists of ImageNet's classes differ in the wording of a few.
_SAME_LIST = 0.95


@dataclass(frozen=True)
class ParquetReader:
    """Images in rows of parquet files. starts: first row of each row group, by file; column: the images' bytes.

    ids: "file/row", the row as eight digits. stamps: size and time of each file when it was listed.
    """

    files: dict[str, Path]
    stamps: dict[str, str]
    starts: dict[str, tuple[int, ...]]
    column: str
    in_memory: bool = False

    def read(self, image_id: str, shorter_side: int | None = None) -> Image.Image:
        name, row = _place(image_id)
        group = bisect_right(self.starts[name], row) - 1
        try:
            value = _row_group(str(self.files[name]), self.stamps[name], group, self.column)[
                row - self.starts[name][group]
            ]
            content = value.as_py()
        except Exception as error:
            raise BrokenImage("its parquet file cannot be read, or changed since it was listed") from error
        if content is None:
            raise BrokenImage("its row holds no bytes")
        if len(content) > MOST_FILE_BYTES:
            raise BrokenImage(f"it has {len(content):,} bytes; at most {MOST_FILE_BYTES:,} are read")
        return decode_image(io.BytesIO(content), shorter_side)

    def stamp(self, image_id: str) -> str:
        name, row = _place(image_id)
        return f"{self.stamps[name]}:{row}"


def read_parquet(files: Sequence[Path], labels_file: Path | None = None) -> tuple[FolderListing, ParquetReader]:
    """List the rows of parquet files with a column of images and, where there is one, of labels.

    An image is a struct with `bytes`, or bytes alone. Labels are numbers of outputs, or text. Where the hub's metadata name the
    classes, these names are taken, and ImageNet's synsets where the names are ImageNet's in their order. -1 in all rows is no
    class. Raises ImageSetError for files that are damaged or have no such columns, and where pyarrow is not installed.
    """
    parquet = _pyarrow_parquet(files[0])
    starts: dict[str, tuple[int, ...]] = {}
    ids: list[str] = []
    labels: list[Any] = []
    columns: set[tuple[str, str | None]] = set()
    names: list[str] | None = None
    for file in files:
        require_regular_file(file, ImageSetError)
        with reading(file, ImageSetError), parquet.ParquetFile(file, pre_buffer=False) as shard:
            columns.add(column_of := _columns(shard.schema_arrow, file))
            starts[file.name] = _group_starts(shard, file)
            rows = shard.metadata.num_rows
            ids += [f"{file.name}/{row:08d}" for row in range(rows)]
            if column_of[1] is not None and labels_file is None:
                names = names or _class_names(shard.schema_arrow, column_of[1], file)
                batches = shard.iter_batches(columns=[column_of[1]])
                of_shard = [label for batch in batches for label in batch.column(0).to_pylist()]
                if len(of_shard) != rows:
                    raise ImageSetError(f"{for_terminal(file)} claims {rows:,} rows, and has {len(of_shard):,} labels.")
                labels += of_shard
    if len(columns) > 1:
        raise ImageSetError(
            f"{for_terminal(files[0].parent)} holds parquet files of different columns. Name those of one set, as in "
            "'folder/train-*.parquet'."
        )
    if not ids:
        raise ImageSetError(f"{for_terminal(files[0])} holds no rows.")
    stamps = {file.name: f"{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files}
    reader = ParquetReader({file.name: file.resolve() for file in files}, stamps, starts, columns.pop()[0])
    if labels_file is not None:
        known = set(ids)
        pairs = labels_of_file(labels_file, files[0].parent, ids, lambda name: name if name in known else None)
        return listing_of_labels(pairs, ids, labels_file), reader
    return _listing(ids, labels, names, files[0]), reader


def _pyarrow_parquet(file: Path) -> Any:
    if find_spec("pyarrow") is None:
        raise ImageSetError(
            f"{for_terminal(file)} is a parquet file, which takes pyarrow to read: pip install 'edgeconvnext[parquet]'."
        )
    import pyarrow.parquet

    return pyarrow.parquet


def _columns(schema: Any, file: Path) -> tuple[str, str | None]:
    """Return the columns of the images' bytes and of their labels."""
    import pyarrow.types as types

    for name in sorted(schema.names, key=lambda name: (*_IMAGE_COLUMNS, name).index(name)):
        kind = schema.field(name).type
        binary = types.is_binary(kind) or types.is_large_binary(kind)
        inside = types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        if inside or (binary and name in _IMAGE_COLUMNS):
            label = next((column for column in _LABEL_COLUMNS if column in schema.names), None)
            if label is not None and not _is_label(schema.field(label).type):
                label = None
            return (f"{name}.bytes" if inside else name), label
    raise ImageSetError(
        f"{for_terminal(file)} has no column of images: its columns are {for_terminal(', '.join(schema.names[:10]))[:300]}. A "
        "column 'image' with the bytes of files is expected, and 'label' beside it."
    )


def _is_label(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


def _group_starts(shard: Any, file: Path) -> tuple[int, ...]:
    """Return the first row of each row group; refuse groups that would fill the memory."""
    metadata = shard.metadata
    if metadata.num_rows > _MOST_ROWS:
        raise ImageSetError(f"{for_terminal(file)} claims {metadata.num_rows:,} rows; at most {_MOST_ROWS:,} are read.")
    starts = []
    first = 0
    for number in range(metadata.num_row_groups):
        # Not column(): pyarrow 26 ends the process there where the metadata of a column are damaged.
        group = metadata.row_group(number)
        size = group.total_byte_size
        if size > _MOST_GROUP_BYTES:
            raise ImageSetError(
                f"{for_terminal(file)}: row group {number} unpacks to {size:,} bytes; at most {_MOST_GROUP_BYTES:,} are read. "
                "Write the file with smaller row groups."
            )
        starts.append(first)
        first += group.num_rows
    if first != metadata.num_rows:
        raise ImageSetError(
            f"{for_terminal(file)} claims {metadata.num_rows:,} rows, and its row groups have {first:,}."
        )
    return tuple(starts)


def _class_names(schema: Any, column: str, file: Path) -> list[str] | None:
    """Return the names of classes in the hub's metadata; None where there are none."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    value = parse_json(text, file, ImageSetError)
    for key in ("info", "features", column, "names"):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None
    return _imagenet_synsets(value) or value


def _imagenet_synsets(names: list[str]) -> list[str] | None:
    """Return ImageNet's synsets where the names are those of its classes in their order: two classes are called "crane"."""
    classes = imagenet_classes()
    if len(names) != len(classes):
        return None
    pairs = zip(names, classes.values(), strict=True)
    agreeing = sum(name.split(",")[0].casefold() == words.split(",")[0].casefold() for name, words in pairs)
    return list(classes) if agreeing >= _SAME_LIST * len(names) else None


def _listing(ids: list[str], labels: list[Any], names: list[str] | None, file: Path) -> FolderListing:
    if not labels or set(labels) <= {-1, None}:
        return FolderListing(tuple(ids), None, ())
    lacking = next((image for image, label in zip(ids, labels, strict=True) if label is None or label == -1), None)
    if lacking is not None:
        raise ImageSetError(
            f"{for_terminal(lacking)} in {for_terminal(file.parent)} has no label, and other rows have."
        )
    if names is None or not all(isinstance(label, int) for label in labels):
        pairs = {image: str(label) for image, label in zip(ids, labels, strict=True)}
        return listing_of_labels(pairs, (), file)
    outside = next((label for label in labels if not 0 <= label < len(names)), None)
    if outside is not None:
        raise ImageSetError(f"{for_terminal(file)} has the label {outside}, and names {len(names)} classes.")
    return FolderListing(tuple(ids), tuple(labels), tuple(names), (), "file")


def _place(image_id: str) -> tuple[str, int]:
    name, _, row = image_id.rpartition("/")
    return name, int(row)


@lru_cache(maxsize=1)
def _row_group(file: str, stamp: str, group: int, column: str) -> Any:
    """Return the images' bytes in one row group. The latest group stays in memory: images are mostly read in order.

    Without threads of Arrow's own (pre_buffer, use_threads), which the loader's forked processes would not have.
    """
    import pyarrow.parquet

    size, parts = 0, []
    with pyarrow.parquet.ParquetFile(file, pre_buffer=False) as shard:
        for batch in shard.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False):
            size += batch.nbytes
            if size > _MOST_GROUP_BYTES:
                raise ValueError("it unpacks to more than its metadata say")
            parts.append(batch.column(0).field("bytes") if column.endswith(".bytes") else batch.column(0))
    return pyarrow.chunked_array(parts)
