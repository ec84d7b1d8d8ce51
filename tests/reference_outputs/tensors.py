"""Compare named arrays bit by bit: .safetensors and .npz."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .figures import description_differences
from .renamed import renamed_tensor


def safetensors_differences(first: Path, second: Path) -> list[str]:
    """Compare all tensors, and the values of the descriptions in the metadata, whatever their keys are called."""
    from safetensors import safe_open
    from safetensors.numpy import load_file

    descriptions = []
    for path in (first, second):
        with safe_open(path, framework="np") as file:
            descriptions.append(file.metadata() or {})
    return array_differences(load_file(first), load_file(second)) + description_differences(*descriptions)


def npz_differences(first: Path, second: Path) -> list[str]:
    """Compare all arrays."""
    with np.load(first) as ours, np.load(second) as theirs:
        return array_differences(dict(ours), dict(theirs))


def array_differences(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> list[str]:
    """Return a line for each array that is absent or differs in type, shape or any bit."""
    renamed = {renamed_tensor(name): array for name, array in first.items()}
    absent = [f"{name} only in the first" for name in sorted(renamed.keys() - second.keys())]
    added = [f"{name} only in the second" for name in sorted(second.keys() - renamed.keys())]
    changed = (array_difference(name, renamed[name], second[name]) for name in sorted(renamed.keys() & second.keys()))
    return absent + added + [line for line in changed if line is not None]


def array_difference(name: str, first: np.ndarray, second: np.ndarray) -> str | None:
    """Say how two arrays differ; None where they are equal bit by bit, so that 0.0 and -0.0 are different."""
    if first.dtype != second.dtype:
        return f"{name}: {first.dtype} -> {second.dtype}"
    if first.shape != second.shape:
        return f"{name}: shape {first.shape} -> {second.shape}"
    unequal = (_bits(first) != _bits(second)).any(axis=1)
    if not unequal.any():
        return None
    index = np.unravel_index(int(unequal.argmax()), first.shape)
    place = [int(position) for position in index]
    return f"{name}: {int(unequal.sum()):,} of {first.size:,} values, first {place}: {first[index]} -> {second[index]}"


def _bits(values: np.ndarray) -> np.ndarray:
    """Return the bytes of each value, (values, bytes)."""
    flat = np.frombuffer(np.ascontiguousarray(values).tobytes(), dtype=np.uint8)
    return flat.reshape(values.size, values.dtype.itemsize)
