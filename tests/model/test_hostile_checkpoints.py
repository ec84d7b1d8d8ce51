"""Weights files from anybody: nothing in them runs, nothing is allocated for what they merely claim, every refusal is an error.

Sizes are impossible on purpose (2**40 elements and more): a reader that allocated them would fail, and not with CheckpointError.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import subprocess
import sys
import tarfile
import warnings
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_files import (
    dictionary,
    name,
    number,
    storage,
    tensor,
    text,
    write_archive,
    write_legacy,
    write_safetensors,
)
from safetensors.torch import save

import edgeconvnext
from edgeconvnext.errors import CheckpointError, EdgeConvNextError
from edgeconvnext.model import ConvNeXt, ConvNeXtConfig, load_model
from edgeconvnext.model.torch_file import TorchFile

CONFIG = ConvNeXtConfig(depths=(1, 1, 1, 1), dims=(8, 16, 16, 24), num_classes=3)
ZEROS = {"data/0": bytes(16)}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return ConvNeXt(CONFIG).state_dict()


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 2000
    return message


# Nothing runs


class _Touches:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.marker),))


def _scripted(path: Path, harm: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    _append(path, "data.pkl2", pickle.dumps(harm, 2))


def _packaged(path: Path, harm: object) -> None:
    with torch.package.PackageExporter(path) as exporter:
        exporter.extern("**")
        exporter.save_pickle("model", "model.pkl", harm)


def _exported(path: Path, harm: object) -> None:
    """The members that torch.export.save of torch 2.13 writes; it reads weights, constants and sample inputs with pickle."""
    harmful = pickle.dumps(harm, 2)
    members = {"data/weights/weight_0": harmful, "data/constants/a": harmful, "data/sample_inputs/model.pt": harmful}
    write_archive(
        path, harmful, {**members, "models/model.json": b"{}", "archive_format": b"pt2", ".data/version": b"3"}
    )


def _append(path: Path, member: str, content: bytes) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/{member}", content)


def _tarred(path: Path, harm: object) -> None:
    with tarfile.open(path, "w") as archive:
        for member in ("storages", "tensors", "pickle"):
            (path.parent / member).write_bytes(pickle.dumps(harm, 2))
            archive.add(path.parent / member, member)


CONTAINERS: dict[str, tuple[Callable[[Path, object], object], str]] = {
    "torch.save": (lambda path, harm: torch.save({"model": {}, "hook": harm}, path), "would run code"),
    "torch.save before 1.6": (
        lambda path, harm: torch.save({"hook": harm}, path, _use_new_zipfile_serialization=False),
        "would run code",
    ),
    "pickle 0": (lambda path, harm: path.write_bytes(pickle.dumps(harm, 0)), "no complete PyTorch checkpoint"),
    "pickle 2": (lambda path, harm: path.write_bytes(pickle.dumps(harm, 2)), "would run code"),
    "pickle 5": (lambda path, harm: path.write_bytes(pickle.dumps(harm, 5)), "a file of Python's pickle"),
    "tar of torch 0.1": (_tarred, "a tar file of torch 0.1"),
    "TorchScript": (_scripted, "a TorchScript archive"),
    "torch.package": (_packaged, "a torch.package archive"),
    "torch.export": (_exported, "an archive of torch.export"),
    "NumPy objects": (
        lambda path, harm: np.save(path.open("wb"), np.array([harm], dtype=object)),
        "a NumPy array",
    ),
    "NumPy objects in torch.save": (
        lambda path, harm: torch.save({"a": np.array([harm], dtype=object)}, path),
        "would run code",
    ),
    "a dictionary's state": (
        lambda path, harm: write_archive(path, dictionary("head.weight", pickle.dumps(harm, 2)[2:-1])),
        "would run code",
    ),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_planted_call_does_not_run(container: str, tmp_path: Path) -> None:
    write, words = CONTAINERS[container]
    marker = tmp_path / "ran"
    write(tmp_path / "model.pth", _Touches(marker))
    assert words in refused(tmp_path / "model.pth")
    assert not marker.exists()


def test_a_planted_call_in_safetensors_metadata_does_not_run(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    harm = pickle.dumps(_Touches(marker), 0).decode("latin-1")
    for key in ("format", "pickle", "edgeconvnext.config"):
        (tmp_path / "model.safetensors").write_bytes(save(state, {key: harm}))
        if key == "edgeconvnext.config":
            assert "does not hold" in refused(tmp_path / "model.safetensors")
        else:
            load_model(tmp_path / "model.safetensors")
    assert not marker.exists()


def test_nothing_in_the_package_unpickles() -> None:
    """But torch.export.load, whose removal from runs is another module's; and np.load may not take objects."""
    words = r"\b(torch\.load\((?!weights)|torch\.jit\.load|pickle\.loads?\b|joblib|safe_globals|Unpickler|allow_pickle=True)"
    sources = Path(edgeconvnext.__file__).parent.rglob("*.py")
    found = {path.name: re.findall(words, path.read_text(encoding="utf-8")) for path in sources}
    assert {name: calls for name, calls in found.items() if calls} == {}


# Nothing is allocated for a claim


def _doubled_key() -> bytes:
    """A tuple that holds the one before it twice, 60 times: hashing it visits 2**60 tuples."""
    steps = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))
    return b"\x80\x02)q\x00" + steps + b"}h\x3cNs."


def _called(module: str, attribute: str, *arguments: bytes) -> bytes:
    return b"\x80\x02" + name(module, attribute) + b"(" + b"".join(arguments) + b"tR."


BOMBS: dict[str, tuple[bytes, str]] = {
    "expanded": (
        dictionary("head.weight", tensor(storage(4), (2**31,), (0,))),
        "head.weight is expanded: 2,147,483,648",
    ),
    "larger than an int": (dictionary("x", tensor(storage(4), (2**62, 2**62), (0, 0))), "x is expanded"),
    "strided beyond": (dictionary("x", tensor(storage(4), (2,), (2**40,))), "reaches to element 1,099,511,627,776"),
    "offset beyond": (
        dictionary("x", tensor(storage(4), (1,), (1,), 4)),
        "reaches to element 4 of a storage that has 4",
    ),
    "a storage of 2**60": (dictionary("x", tensor(storage(2**60), (2**60,), (1,))), "over a storage of 4"),
    "negative size": (dictionary("x", tensor(storage(4), (-1,), (1,))), "negative"),
    "negative stride": (dictionary("x", tensor(storage(4), (2,), (-1,))), "negative"),
    "negative offset": (dictionary("x", tensor(storage(4), (1,), (1,), -1)), "negative"),
    "200 dimensions": (dictionary("x", tensor(storage(4), (1,) * 200, (1,) * 200)), "has 200 dimensions"),
    "sizes without strides": (dictionary("x", tensor(storage(4), (1, 1), (1,))), "2 dimensions and 1 strides"),
    "no elements, huge strides": (dictionary("x", tensor(storage(4), (0, 2**62, 2**62), (1, 1, 1))), "cannot be read"),
    "no such storage": (dictionary("x", tensor(storage(4, key="7"), (4,), (1,))), "it has no data/7"),
    "a storage elsewhere": (
        dictionary("x", tensor(storage(4, key="../data.pkl"), (4,), (1,))),
        "it has no data/../data.pkl",
    ),
    "torch.Tensor(2**60)": (_called("torch", "Tensor", number(2**60)), "not a state dict"),
    "torch.FloatTensor(2**60)": (_called("torch", "FloatTensor", number(2**60)), "run code"),
    "bytearray(2**60)": (_called("__builtin__", "bytearray", number(2**60)), "run code"),
    "bytes doubled as hex": (_called("_codecs", "encode", text("a"), text("hex")), "run code"),
    "a text of 4 GiB": (b"\x80\x02X\xff\xff\xff\xff.", "truncated"),
    "a text of 2**60": (b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b".", "truncated"),
    "bytes of 2**60": (b"\x80\x05\x8e" + (2**60).to_bytes(8, "little") + b".", "truncated"),
    "an integer of 2 GiB": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "truncated"),
    "a key that is hashed for ever": (_doubled_key(), "a tuple where something else belongs"),
    "an unhashable key": (b"\x80\x02}]Ns.", "a list where something else belongs"),
    "an own memo": (b"\x80\x02r\xff\xff\xff\xff.", "truncated"),
    "a memo never written": (b"\x80\x02h\x07.", "truncated"),
    "an empty stack": (b"\x80\x02.", "truncated"),
    "no end": (b"\x80\x02}", "truncated"),
    "nested wrappers": (
        b"\x80\x02" + (b"}" + text("model")) * 10_000 + b"}" + b"s" * 10_000 + b".",
        "holds no tensors",
    ),
    "a wrapper of itself": (b"\x80\x02}q\x00" + text("model") + b"h\x00s.", "holds no tensors"),
    "nested lists": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "holds a list"),
    "a list of itself": (b"\x80\x02]q\x00h\x00a.", "holds a list"),
    "nested tuples": (b"\x80\x02)" + b"\x85" * 100_000 + b".", "holds a tuple"),
    "a call of a number": (b"\x80\x02K\x01)R.", "truncated"),
    "a storage for a tensor": (dictionary("x", storage(4)), "holds no tensors"),
    "a persistent number": (b"\x80\x02K\x01Q.", "truncated"),
    "a module": (b"\x80\x02(" + text("module") + text("a") * 3 + b"tQ.", "truncated"),
    "names with controls": (dictionary("\x1b[2J\nhead", tensor(storage(4), (9,), (0,))), r"\x1b[2J\nhead is expanded"),
    "a name of 600 letters": (dictionary("x" * 600, tensor(storage(4), (4,), (1,))), "has 600 characters"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_claim_is_refused_before_anything_is_allocated(bomb: str, tmp_path: Path) -> None:
    pickled, words = BOMBS[bomb]
    assert words in refused(write_archive(tmp_path / "model.pth", pickled, ZEROS))


def test_too_many_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_archive(tmp_path / "model.pth", b"\x80\x02}" + b"NNs" * 500 + b".", ZEROS)  # 1,503 opcodes
    monkeypatch.setattr("edgeconvnext.model.torch_pickle.MOST_OPCODES", 1503)
    assert "holds no tensors" in refused(path)
    monkeypatch.setattr("edgeconvnext.model.torch_pickle.MOST_OPCODES", 1502)
    assert "more than 1,502 opcodes" in refused(path)


def test_a_large_refusal_needs_little_memory(tmp_path: Path) -> None:
    """The 8 GiB of a tensor expanded over four elements, within an address space of 2 GiB more than torch's own."""
    expanded = dictionary("head.weight", tensor(storage(4), (2**31,), (0,)))
    path = write_archive(tmp_path / "model.pth", expanded, ZEROS)
    code = (
        "import resource, sys, torch\n"
        "from edgeconvnext.errors import CheckpointError\n"
        "from pathlib import Path\n"
        "from edgeconvnext.model.torch_file import TorchFile\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31,) * 2)\n"
        "try:\n    TorchFile(Path(sys.argv[1]), CheckpointError).everything()\n"
        "except CheckpointError as error:\n    print(error)\n"
    )
    if sys.platform != "linux":
        pytest.skip("address space is limited on Linux only")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert "is expanded" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("elements", "size", "keys", "storages", "words"),
    [
        (2**40, 2**40, ["0"], (2**40).to_bytes(8, "little"), "reaches beyond the end"),
        (2**40, 2**40, [], b"", "storage 0 is missing"),
        (4, 2**40, ["0"], (4).to_bytes(8, "little") + bytes(16), "is expanded"),
        (4, 4, ["0"], (-1).to_bytes(8, "little", signed=True) + bytes(16), "reaches beyond the end"),
        (4, 4, ["1"], bytes(8), "a storage that no tensor has"),
        (4, 4, ["0"], b"", "truncated"),
    ],
)
def test_claims_in_files_before_torch_1_6(
    elements: int, size: int, keys: list[str], storages: bytes, words: str, tmp_path: Path
) -> None:
    pickled = dictionary("x", tensor(storage(elements, legacy=True), (size,), (0 if size > elements else 1,)))
    assert words in refused(write_legacy(tmp_path / "model.pth", pickled, keys, storages))


def test_many_tensors_over_one_storage(tmp_path: Path) -> None:
    """Each is no larger than the storage of 4 kB; together they would be a thousand times the file."""
    tensors = b"".join(text(f"x{i}") + tensor(storage(1024), (1024,), (1,)) for i in range(1000))
    write_archive(tmp_path / "model.pth", b"\x80\x02}(" + tensors + b"u.", {"data/0": bytes(4096)})
    assert "claim more than twice" in refused(tmp_path / "model.pth")


def test_compressed_doubled_and_overlapping_members(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    write_archive(path, b"\x80\x02" + b"N" * 2**24 + b".", compression=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refused(path)
    write_archive(path, b"\x80\x02" + b"N0" * 2**23 + b".")
    assert "its data.pkl has 16,777,219 bytes" in refused(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_archive(path, b"\x80\x02}.", {"data.pkl": b"\x80\x02}."})
    assert "members occur twice" in refused(path)
    write_archive(path, b"\x80\x02}.", {"data/0": bytes(64)})
    content = path.read_bytes()
    claim = content.rfind((64).to_bytes(4, "little") * 2)  # sizes in the directory
    path.write_bytes(content[:claim] + (2**31).to_bytes(4, "little") * 2 + content[claim + 8 :])
    assert "its members overlap" in refused(path)
    path.write_bytes(content + b"something behind the end")
    assert "its end is missing" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"x")
    assert "it has no data.pkl" in refused(path)


# Tensors that hold no dense floats


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
        (lambda: torch.zeros(2, device="meta"), "a meta tensor"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8), "quantized"),
        (lambda: torch.zeros(3, dtype=torch.complex64).conj(), "conjugated"),
        (lambda: torch.ones(3).expand(5, 3), "expanded: 15 elements over a storage of 3"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_other_kinds_of_tensors_are_refused_by_name(
    make: Callable[[], torch.Tensor], kind: str, tmp_path: Path
) -> None:
    torch.save({"state_dict": {"head.weight": make()}}, tmp_path / "model.pth")
    message = refused(tmp_path / "model.pth")
    assert "head.weight" in message and kind in message


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.bool])
def test_values_that_are_no_floats_are_refused_by_name(
    dtype: torch.dtype, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(state | {"head.weight": state["head.weight"].to(dtype)}, tmp_path / "model.pth")
    assert "1 not floating-point (already quantised?): head.weight" in refused(tmp_path / "model.pth")


@pytest.mark.parametrize("shape", [lambda t: t.new_zeros(()), lambda t: t.new_zeros(0), lambda t: t.reshape(-1)])
def test_shapes_of_no_network(
    shape: Callable[[torch.Tensor], torch.Tensor], state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({key: shape(value) for key, value in state.items()}, tmp_path / "model.pth")
    refused(tmp_path / "model.pth")
    torch.save(state | {"head.weight": shape(state["head.weight"])}, tmp_path / "model.pth")
    assert "head.weight" in refused(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "names",
    [
        ["layer1.0.conv1.weight", "layer1.0.conv3.weight", "conv1.weight", "bn1.xrunning_var"],
        [f"layer{'9' * 450}.0.conv1.weight", "layer1.0.conv1.weight"],
        [f"layer1.{'9' * 450}.conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv3.weight"],
        ["layer0.0.conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv3.weight"],
        ["layer1.٣.conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv3.weight"],
        [f"stages.{'9' * 450}.0.gamma", "stages.0.0.gamma"],
        ["stages.0.9999.gamma", "stages.9999.0.gamma", "stages.0.0.gamma"],
        ["", ".", "..", "\x00", "💣", "head." * 80],
    ],
)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (), (0, 0)])
def test_odd_names(names: list[str], size: tuple[int, ...], tmp_path: Path) -> None:
    torch.save({key: torch.zeros(size) for key in names}, tmp_path / "model.pth")
    refused(tmp_path / "model.pth")


def test_names_that_are_no_texts(tmp_path: Path) -> None:
    torch.save(
        {1: torch.zeros(1), None: torch.zeros(1), b"x": torch.zeros(1), (1, "a"): torch.zeros(1)}, tmp_path / "m.pth"
    )
    assert "holds no tensors (its keys: 1, None, b'x', (1, 'a'))" in refused(tmp_path / "m.pth")


# Safetensors


def _entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, tuple[object, bytes, int | None, str]] = {
    "a header of 2**63": (b"{}", b"", 2**63, "truncated or damaged"),
    "a header of 17 MiB": (b"{}" + b" " * 17 * 2**20, b"", None, "describes its tensors in 17,825,794 bytes"),
    "nested": (b'{"a":' * 50_000, b"", None, "truncated or damaged"),
    "metadata that nests": (b'{"__metadata__":{"a":' + b"[" * 90 + b"]" * 90 + b"}}", b"", None, "damaged"),
    "no text": (b"\xff\xfe{}", b"", None, "damaged"),
    "nothing": ({}, b"", None, "holds no tensors"),
    "200 dimensions": ({"x": _entry([1] * 200, [0, 4])}, bytes(4), None, "x has 200 dimensions"),
    "2**62 columns, no rows": ({"x": _entry([0, 2**62], [0, 0])}, b"", None, "no known layout"),
    "more than is there": ({"x": _entry([2**40], [0, 2**42])}, bytes(4), None, "damaged"),
    "overlapping": ({"x": _entry([1], [0, 4]), "y": _entry([1], [0, 4])}, bytes(4), None, "damaged"),
    "four bits": ({"x": _entry([2], [0, 1], "F4")}, bytes(1), None, ""),
    "20,001 tensors": ({f"x{i}": _entry([0], [0, 0]) for i in range(20_001)}, b"", None, "has 20,001 tensors"),
    "a long name": ({"module." * 10_000: _entry([0], [0, 0])}, b"", None, "has 70,000 characters"),
}


@pytest.mark.parametrize("header", HEADERS)
def test_safetensors_headers(header: str, tmp_path: Path) -> None:
    described, content, length, words = HEADERS[header]
    assert words in refused(write_safetensors(tmp_path / "model.safetensors", described, content, length))


def test_thousands_of_blocks_are_refused_before_they_are_built(tmp_path: Path) -> None:
    header = {f"stages.0.{i}.dwconv.weight": _entry([1, 1, 1, 1], [4 * i, 4 * i + 4]) for i in range(1000)}
    write_safetensors(tmp_path / "model.safetensors", header, bytes(4000))
    assert "match no known layout" in refused(tmp_path / "model.safetensors")  # of 200 blocks, which explain too few


# Files that are no files


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_only_regular_files_are_read(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    assert "is a named pipe, not a regular file" in refused(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    assert "is a device, not a regular file" in refused(tmp_path / f"zero{suffix}")
    assert "is a device" in refused(Path("/dev/zero"))


# What torch.save writes comes back as torch.load gives it


@pytest.mark.parametrize("archive", [True, False])
def test_every_value_is_what_torch_load_gives(archive: bool, tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    linear = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = {
        "state": linear.state_dict(),
        "optimizer": optimizer.state_dict(),
        "views": [base, base.T, base[1:3, 2:4], base[0, 0], base[:0]],
        "dtypes": [base.to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool)],
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "complex": torch.randn(3, dtype=torch.complex64),
        "values": (1, -5, 2**70, 1.5, float("-inf"), None, True, "ä", b"a\xff", 3j, torch.Size([2, 3]), torch.float16),
        "containers": [{1, "a"}, OrderedDict(a=1), Counter("aab"), {(1, "a"): [(2,), []]}, bytearray(b"xy")],
    }
    if archive:
        saved["float8"] = base.to(torch.float8_e4m3fn)
        saved["uint16"] = torch.zeros(3, dtype=torch.uint16)
    path = tmp_path / "model.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=archive)
    with TorchFile(path, CheckpointError) as file:
        _assert_same(file.everything(), torch.load(path, weights_only=True))


def _assert_same(ours: object, theirs: object) -> None:
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, torch.Tensor)
        assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        assert (
            ours.contiguous().flatten().view(torch.uint8).tolist()
            == (theirs.detach().contiguous().flatten().view(torch.uint8).tolist())
            if ours.numel()
            else True
        )
    elif isinstance(theirs, dict):
        assert isinstance(ours, dict) and list(ours) == list(theirs)
        for key in theirs:
            _assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert isinstance(ours, list | tuple) and len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            _assert_same(mine, other)
    else:
        assert ours == theirs


def test_what_a_trainer_keeps_beside_the_weights_is_not_read(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """A sparse tensor and a namespace beside the state dict hinder nothing."""
    beside = {"args": Namespace(lr=1e-3), "mask": torch.eye(3).to_sparse(), "rng": torch.get_rng_state()}
    torch.save({"model": state, **beside}, tmp_path / "model.pth")
    assert load_model(tmp_path / "model.pth").config == CONFIG


def test_weights_of_a_machine_of_the_other_byte_order(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3.25, 0.0], dtype=">f4")
    members = {"data/0": values.tobytes(), "byteorder": b"big"}
    write_archive(tmp_path / "big.pth", dictionary("x", tensor(storage(4), (4,), (1,))), members)
    with TorchFile(tmp_path / "big.pth", CheckpointError) as file:
        assert file.everything()["x"].tolist() == [1.0, -2.5, 3.25, 0.0]


# Damage


@pytest.mark.parametrize("kind", ["archive", "legacy", "safetensors"])
def test_100_random_changes_end_in_an_error_or_a_network(
    kind: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Each changes one to four bytes, in half of the cases near a structure's place, or cuts the file off."""
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pth")
    if kind == "safetensors":
        path.write_bytes(save(state, {"format": "pt"}))
    else:
        torch.save({"model": state, "epoch": 3}, path, _use_new_zipfile_serialization=kind == "archive")
    whole = path.read_bytes()
    chance = random.Random(23)
    for _ in range(100):
        content = bytearray(whole)
        if chance.random() < 0.2:
            content = content[: chance.randrange(len(content))]
        else:
            last = chance.choice((200, 6000, len(content)))
            for _ in range(chance.randrange(1, 5)):
                place = chance.randrange(last)
                content[-1 - place if chance.random() < 0.3 else place] = chance.randrange(256)
        path.write_bytes(content)
        try:
            load_model(path)
        except EdgeConvNextError as error:
            assert str(error).isprintable()
