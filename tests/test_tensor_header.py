"""Safetensors files with their metadata in one order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from edgeconvnext.tensor_header import in_one_order

TENSORS = {"b": torch.arange(3, dtype=torch.int8), "a": torch.full((2, 2), 0.5)}


def test_files_of_equal_content_are_equal_and_read_back(tmp_path: Path) -> None:
    metadata = {f"key{number}": "\u00e9" * number for number in range(9)}
    contents = {in_one_order(save(TENSORS, metadata=metadata)) for _ in range(20)}
    assert len(contents) == 1, "safetensors itself orders nine keys as a hash table has them"
    (content,) = contents
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 8 == 0
    assert list(json.loads(content[8:start])["__metadata__"]) == sorted(metadata)
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load(content).items())
    (tmp_path / "x.safetensors").write_bytes(content)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == metadata


@pytest.mark.parametrize("metadata", [None, {"one": "1"}])
def test_a_file_with_at_most_one_key_is_as_safetensors_writes_it(metadata: dict[str, str] | None) -> None:
    content = save(TENSORS, metadata=metadata)
    assert in_one_order(content) == content
