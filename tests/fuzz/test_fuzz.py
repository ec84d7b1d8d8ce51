"""A few cases of the fuzzer for every loader that needs no run; `make fuzz` runs as many as one likes for all of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz_cases import run_case
from loaders import case, quick_loaders
from mutations import any_bytes, any_json, any_safetensors, any_toml, any_zip

CASES = 12


def test_what_is_not_changed_is_read(tmp_path: Path) -> None:
    for loader in quick_loaders(tmp_path):
        for seed in loader.seeds:
            loader.place.write_bytes(seed)
            loader.load(loader.place)


def test_every_loader_reads_or_refuses_what_was_made_hostile(tmp_path: Path) -> None:
    for loader in quick_loaders(tmp_path):
        for number in range(CASES):
            content = case(loader, 1, number)
            assert run_case(loader, content) is None, (loader.name, number, content[:200])


def test_a_case_follows_from_its_number(tmp_path: Path) -> None:
    for loader in quick_loaders(tmp_path):
        assert case(loader, 3, 7) == case(loader, 3, 7)
        assert len({case(loader, 3, number) for number in range(20)}) > 10


@pytest.mark.parametrize(
    ("mutate", "content"),
    [
        (any_bytes, b"some bytes"),
        (any_json, b'{"a": [1, 2, {"b": "c"}], "d": null}'),
        (any_toml, b'a = 1\n[b]\nc = "d"\n'),
    ],
)
def test_a_mutation_changes_its_input(mutate, content: bytes) -> None:  # type: ignore[no-untyped-def]
    changed = {mutate(content, random.Random(number)) for number in range(50)}
    assert len(changed - {content}) > 25


def test_structured_mutations_stay_readable_as_containers(tmp_path: Path) -> None:
    import io
    import struct
    import zipfile

    loaders = {loader.name: loader for loader in quick_loaders(tmp_path)}
    archive = any_zip(loaders["checkpoint, zip"].seeds[0], random.Random(2))
    assert zipfile.ZipFile(io.BytesIO(archive)).namelist()
    tensors = any_safetensors(loaders["checkpoint, safetensors"].seeds[0], random.Random(2))
    assert struct.unpack("<Q", tensors[:8])[0] < len(tensors)
