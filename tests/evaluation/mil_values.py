"""What coremltools itself computes for a MIL operator on constants, and its arguments as the evaluator reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def inferred(kind: str, opset: Any, **arguments: Any) -> np.ndarray:
    """Value that coremltools infers for an operator of constants."""
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import Function

    with Function({}, opset_version=opset):
        found = getattr(mb, kind)(**arguments)
    value = found.val if found.val is not None else found.op.materialized_val_inference()
    assert value is not None, f"coremltools infers no value for {kind}"
    return np.asarray(value)


def as_read(value: Any) -> Any:
    """Return a constant as `read_program` hands it over: tensors, but whole numbers and text as Python's own."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f":
        return torch.from_numpy(np.asarray(value).astype(np.float32))
    if isinstance(value, np.ndarray | np.generic) and value.dtype in (np.int8, np.uint8):
        return torch.from_numpy(np.asarray(value))
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    return tuple(value) if isinstance(value, list) else value
