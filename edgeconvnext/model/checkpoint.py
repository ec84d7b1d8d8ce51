"""Weights files: reading tensors without running anything in them, and writing our own."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from edgeconvnext.errors import CheckpointError, ModelConfigError
from edgeconvnext.escape import for_terminal
from edgeconvnext.files import atomic_write, storage_errors
from edgeconvnext.model.build import config_from_json, config_json
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.network import NetworkConfig
from edgeconvnext.model.pretrained_config import to_timm_config
from edgeconvnext.model.renamed import listed
from edgeconvnext.model.torch_file import MOST_DIMENSIONS, TorchFile
from edgeconvnext.model.torch_pickle import OtherTensor, StoredTensor
from edgeconvnext.received import MIB, reading, reason, require_regular_file
from edgeconvnext.tensor_header import in_one_order

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# The largest ConvNeXt has 700 tensors, described in 70 kB. safetensors itself reads headers of 100 MB.
MOST_TENSORS, MOST_HEADER_BYTES = 20_000, 16 * MIB
_MOST_NAME_CHARACTERS = 500
_MOST_WRAPPERS = 16
_AGAIN = "Download or save it again."
_CONFIG_KEY = "edgeconvnext.config"
# Averaged weights first: they are the ones papers report. Then what trainers call the weights, then the bare module.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "weights",
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "timm_model.")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one weights file, float32, contiguous and sharing no memory with the file.

    config: what `save_checkpoint` wrote about the architecture; None in files of other origin.
    """

    tensors: dict[str, torch.Tensor]
    config: NetworkConfig | None = None
    notes: list[str] = field(default_factory=list)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a .pth/.pt/.bin or .safetensors file, unwrap it, and convert its weights to float32.

    Raises CheckpointError for a file that is missing, empty or damaged, that holds code, or NaN or infinite weights.
    """
    if not path.exists():
        raise CheckpointError(
            f"There is no weights file {path}. Check the path, or name a hub model such as timm/convnext_tiny.fb_in1k."
        )
    if path.suffix.lower() not in WEIGHTS_SUFFIXES:
        raise CheckpointError(f"{path} is no weights file this tool reads; it reads {', '.join(WEIGHTS_SUFFIXES)}.")
    if require_regular_file(path, CheckpointError) == 0:
        raise CheckpointError(f"{path} is empty. Download or save it again.")
    notes: list[str] = []
    metadata: Mapping[str, str] = {}
    if path.suffix.lower() == ".safetensors":
        stored, metadata = _read_safetensors(path)
    else:
        stored = _read_torch_file(path, notes)
    tensors = _strip_prefixes(stored)
    return Checkpoint(_to_float32(tensors, path), _stored_config(metadata, path), notes)


def prepare_output(path: Path, model: LoadedModel) -> None:
    """Check, before any work is done, that a checkpoint can be written to `path`, and make its folder.

    Raises CheckpointError for another ending than .safetensors, for a folder, and where the weights or the JSON of
    `model` itself would be written over; RunDirectoryError where the folder cannot be made.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"Checkpoints are written as .safetensors files; {path} ends in {path.suffix or 'nothing'}."
        )
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder. Name a file to write, ending in .safetensors.")
    source = Path(model.source).absolute()
    if path.absolute().with_suffix("") == source.with_suffix(""):
        raise CheckpointError(
            f"Writing {path} would write over {source.name} or the JSON beside it. Choose another name with --output."
        )
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def check_file(path: Path) -> Path:
    """Return `path`, which is written later; raises CheckpointError where a folder is in its place."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, and a file of that name is to be written. Choose another --output.")
    return path


def save_checkpoint(model: LoadedModel, path: Path) -> None:
    """Write weights to `path` (.safetensors) and preprocessing and labels to a JSON of the same stem, each atomically.

    Tensor names are the facebookresearch layout; the architecture goes into the metadata, because `before_pool` heads
    and epsilons cannot be told from tensors. Raises RunDirectoryError where the folder cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.module.state_dict().items()}
    content = in_one_order(save(tensors, metadata={"format": "pt", _CONFIG_KEY: config_json(model.module.config)}))
    description = json.dumps(to_timm_config(model), indent=2, ensure_ascii=False) + "\n"
    beside = path.with_suffix(".json")
    new = not beside.exists()
    atomic_write(beside, description)
    try:
        atomic_write(path, content)
    except BaseException:
        if new:
            beside.unlink()
        raise


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    _check_header(path)
    with reading(path, CheckpointError, _AGAIN):
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                _check_names(path, names)
                for name in names:
                    _check_dimensions(path, name, len(file.get_slice(name).get_shape()))
                return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
        except SafetensorError as error:
            raise CheckpointError(
                f"{for_terminal(path)} is no complete safetensors file ({reason(error)}): it is truncated or damaged. {_AGAIN}"
            ) from error


def _check_header(path: Path) -> None:
    """Raise CheckpointError for a header that is larger than any network's: the file begins with its length, eight bytes."""
    with reading(path, CheckpointError, _AGAIN), path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if MOST_HEADER_BYTES < length <= path.stat().st_size:
        raise CheckpointError(
            f"{for_terminal(path)} describes its tensors in {length:,} bytes, and {MOST_HEADER_BYTES:,} are read. {_AGAIN}"
        )


def _read_torch_file(path: Path, notes: list[str]) -> dict[str, torch.Tensor]:
    """Read the state dict of a file of torch.save, and nothing else of it."""
    with TorchFile(path, CheckpointError) as file:
        stored = _unwrap(file.value, path, notes)
        _check_names(path, stored)
        return {name: file.tensor(claim, name) for name, claim in stored.items()}


def _check_dimensions(path: Path, name: str, dimensions: int) -> None:
    if dimensions > MOST_DIMENSIONS:
        raise CheckpointError(
            f"{for_terminal(path)}: {for_terminal(name)} has {dimensions} dimensions, and {MOST_DIMENSIONS} are read. {_AGAIN}"
        )


def _check_names(path: Path, names: Collection[str]) -> None:
    if not names:
        raise CheckpointError(f"{for_terminal(path)} holds no tensors. Save `model.state_dict()`.")
    if len(names) > MOST_TENSORS:
        raise CheckpointError(
            f"{for_terminal(path)} has {len(names):,} tensors, and {MOST_TENSORS:,} are read. {_AGAIN}"
        )
    longest = max(names, key=len, default="")
    if len(longest) > _MOST_NAME_CHARACTERS:
        raise CheckpointError(
            f"{for_terminal(path)} has a tensor whose name, {for_terminal(longest[:80])}..., has {len(longest):,} characters. "
            f"{_AGAIN}"
        )


def _unwrap(stored: object, path: Path, notes: list[str]) -> dict[str, StoredTensor | OtherTensor]:
    """Find the state dict inside what a trainer saved, and say which one was taken where there are several."""
    shown = for_terminal(path)
    for _ in range(_MOST_WRAPPERS):
        if not isinstance(stored, dict):
            raise CheckpointError(f"{shown} holds a {_kind(stored)}, not a state dict. Save `model.state_dict()`.")
        wrappers = [key for key in _WRAPPERS if isinstance(stored.get(key), dict) and stored[key]]
        if not wrappers:
            break
        if len(wrappers) > 1:
            notes.append(f"The file holds several sets of weights ({', '.join(wrappers)}); {wrappers[0]!r} was taken.")
        stored = stored[wrappers[0]]
    else:
        raise CheckpointError(f"{shown} wraps its weights more than {_MOST_WRAPPERS} times. Save `model.state_dict()`.")
    tensors = {str(key): value for key, value in stored.items() if isinstance(value, StoredTensor | OtherTensor)}
    if not tensors:
        keys = ", ".join(for_terminal(key)[:80] for key in list(stored)[:8]) or "nothing"
        raise CheckpointError(f"{shown} holds no tensors (its keys: {keys}). Save `model.state_dict()`.")
    return tensors


def _kind(stored: object) -> str:
    return "tensor" if isinstance(stored, StoredTensor | OtherTensor) else type(stored).__name__


def _strip_prefixes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop what data-parallel training, torch.compile, averaging and trainers put in front of the names."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
    while tensors:
        # Most names, not all: a trainer may keep a tensor of its own beside the model's, to be reported as unexpected.
        half = len(tensors) / 2
        prefix = next((prefix for prefix in _PREFIXES if sum(name.startswith(prefix) for name in tensors) > half), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _to_float32(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Convert 16, 32 and 64-bit floats; leave integers and 8-bit floats for `load_model` to refuse by name."""
    broken = []
    for name in list(tensors):
        if tensors[name].is_floating_point() and tensors[name].dtype.itemsize >= 2:
            tensors[name] = tensors[name].detach().to(torch.float32, copy=True).contiguous()
            if not bool(torch.isfinite(tensors[name]).all()):
                broken.append(name)
    if broken:
        raise CheckpointError(
            f"{path} has NaN or infinite weights in {len(broken)} of {len(tensors)} tensors: {listed(broken)}. "
            "Training diverged or the file is damaged; use an earlier checkpoint."
        )
    return tensors


def _stored_config(metadata: Mapping[str, str], path: Path) -> NetworkConfig | None:
    """Rebuild the config that `save_checkpoint` wrote."""
    text = metadata.get(_CONFIG_KEY)
    if text is None:
        return None
    try:
        return config_from_json(text)
    except ModelConfigError as error:
        raise CheckpointError(
            f"{for_terminal(path)} carries an {_CONFIG_KEY} that does not hold: {reason(error)} Save the model again."
        ) from error
