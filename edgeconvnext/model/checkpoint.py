"""Weights files: reading tensors without running anything in them, and writing our own."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from edgeconvnext.errors import CheckpointError, ModelConfigError
from edgeconvnext.files import atomic_write, storage_errors
from edgeconvnext.model.build import NetworkConfig, config_from_json, config_json
from edgeconvnext.model.infer import listed
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.pretrained_config import to_timm_config

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
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
_PICKLE_START = b"\x80"
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
    if not path.is_file():
        raise CheckpointError(
            f"There is no weights file {path}. Check the path, or name a hub model such as timm/convnext_tiny.fb_in1k."
        )
    if path.suffix.lower() not in WEIGHTS_SUFFIXES:
        raise CheckpointError(f"{path} is no weights file this tool reads; it reads {', '.join(WEIGHTS_SUFFIXES)}.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty. Download or save it again.")
    notes: list[str] = []
    metadata: Mapping[str, str] = {}
    if path.suffix.lower() == ".safetensors":
        stored, metadata = _read_safetensors(path)
    else:
        stored = _unwrap(_read_pickle(path), path, notes)
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
    content = save(tensors, metadata={"format": "pt", _CONFIG_KEY: config_json(model.module.config)})
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

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is no complete safetensors file ({error}): it is truncated or damaged. Download or save it again."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read_pickle(path: Path) -> object:
    """Load with weights_only, so that no code in the file runs; argparse.Namespace, which trainers save, is values."""
    try:
        # torch.load does not look at the archive's own checksums; a flipped bit would become a weight.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise CheckpointError(
                    f"{path} is damaged: the checksum of {damaged} does not match. Download or save it again."
                )
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols: what cannot be read is an error below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)|got <class '(\S+)'>", str(error))
        if refused:
            raise CheckpointError(
                f"{path} was refused because loading it would run code (it names {refused[1] or refused[2]}): only "
                "files of plain tensors are read (torch.load with weights_only=True). If you trust the file, load it "
                "where it came from and save `model.state_dict()` instead of the whole model."
            ) from error
        if "Unsupported operand" in str(error) and path.read_bytes()[:1] == _PICKLE_START:
            raise CheckpointError(
                f"{path} was refused: it was written with Python's pickle, which can hold code, and not with torch.save. "
                "If you trust the file, load it where it came from and save `model.state_dict()` with torch.save."
            ) from error
        raise CheckpointError(_damaged(path)) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript archive. Save the model's `state_dict()` instead."
            ) from error
        raise CheckpointError(_damaged(path)) from error
    except (EOFError, KeyError, ValueError, IndexError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        # What the unpickler raises on arbitrary bytes.
        raise CheckpointError(_damaged(path)) from error


def _damaged(path: Path) -> str:
    problem = "it is truncated, damaged or of another kind"
    return f"{path} is no complete PyTorch checkpoint: {problem}. Download or save it again."


def _unwrap(stored: object, path: Path, notes: list[str]) -> dict[str, torch.Tensor]:
    """Find the state dict inside what a trainer saved, and say which one was taken where there are several."""
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{path} holds a {type(stored).__name__}, not a state dict. Save `model.state_dict()`.")
    wrappers = [key for key in _WRAPPERS if isinstance(stored.get(key), Mapping) and stored[key]]
    if wrappers:
        if len(wrappers) > 1:
            notes.append(f"The file holds several sets of weights ({', '.join(wrappers)}); {wrappers[0]!r} was taken.")
        return _unwrap(stored[wrappers[0]], path, notes)
    tensors = {str(key): value for key, value in stored.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = ", ".join(str(key) for key in list(stored)[:8]) or "nothing"
        raise CheckpointError(f"{path} holds no tensors (its keys: {keys}). Save `model.state_dict()`.")
    return tensors


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
    except (ValueError, TypeError, AttributeError, ModelConfigError) as error:
        raise CheckpointError(
            f"{path} carries an {_CONFIG_KEY} that does not hold: {error}. Save the model again."
        ) from error
