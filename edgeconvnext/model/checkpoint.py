"""Weights files: reading tensors without running anything in them, and writing our own."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from edgeconvnext.data.pointers import annex_link, pointer_in
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
from edgeconvnext.model.weight_sets import WeightSet, choose, largest_state_dict, weight_sets, without_masks
from edgeconvnext.received import MIB, read_json, reading, reason, require_regular_file
from edgeconvnext.tensor_header import in_one_order

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
"""Usual endings; what a file is, its content says."""
SHARD_INDEX = ".index.json"
# The largest ConvNeXt has 700 tensors, described in 70 kB. safetensors itself reads headers of 100 MB.
MOST_TENSORS, MOST_HEADER_BYTES = 20_000, 16 * MIB
_MOST_NAME_CHARACTERS = 500
_POINTER_BYTES = 1024
_MOST_SHARDS = 1000
_AGAIN = "Download or save it again."
_CONFIG_KEY = "edgeconvnext.config"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one weights file, float32, contiguous and sharing no memory with the file.

    config: what `save_checkpoint` wrote about the architecture; None in files of other origin. beside: names of the
    file's tensors that are in no network, with their number of dimensions.
    """

    tensors: dict[str, torch.Tensor]
    config: NetworkConfig | None = None
    notes: list[str] = field(default_factory=list)
    beside: dict[str, int] = field(default_factory=dict)


def read_checkpoint(path: Path, weights_from: str | None = None) -> Checkpoint:
    """Read a file of torch.save or safetensors, or the index of several, unwrap it, and convert its weights to float32.

    weights_from: which of several networks in the file, by its key; None takes averaged weights, else the usual key.
    Raises CheckpointError for a file that is missing, empty or damaged, that holds code, or NaN or infinite weights.
    """
    if not path.exists():
        if pointer := annex_link(path):
            raise CheckpointError(f"{for_terminal(path)} holds no weights: {pointer}.")
        raise CheckpointError(
            f"There is no weights file {path}. Check the path, or name a hub model such as timm/convnext_tiny.fb_in1k."
        )
    if path.name.endswith(SHARD_INDEX):
        return _read_shards(path, weights_from)
    if require_regular_file(path, CheckpointError) == 0:
        raise CheckpointError(f"{path} is empty. Download or save it again.")
    head = _head(path)
    if pointer := pointer_in(head):
        raise CheckpointError(f"{for_terminal(path)} holds no weights: {pointer}.")
    if _is_safetensors(path, head):
        stored, metadata = _read_safetensors(path)
        return _checkpoint(stored, metadata, path, weights_from)
    with TorchFile(path, CheckpointError) as file:
        chosen, notes = _chosen(file.value, (StoredTensor, OtherTensor), path, weights_from)
        _check_names(path, chosen.tensors)
        tensors = {name: file.tensor(claim, name) for name, claim in chosen.tensors.items()}
        beside = {name: len(getattr(claim, "size", ())) for name, claim in chosen.left_out.items()}
    return _finished(tensors, None, path, notes, beside)


def _checkpoint(
    stored: dict[str, torch.Tensor], metadata: Mapping[str, str], path: Path, weights_from: str | None
) -> Checkpoint:
    """Return the network among tensors that were read from safetensors."""
    config = _stored_config(metadata, path)
    if config is not None:
        return _finished(stored, config, path, [], {})
    chosen, notes = _chosen(stored, torch.Tensor, path, weights_from)
    return _finished(
        chosen.tensors, None, path, notes, {name: tensor.dim() for name, tensor in chosen.left_out.items()}
    )


def _chosen(
    stored: object, is_tensor: type | tuple[type, ...], path: Path, weights_from: str | None
) -> tuple[WeightSet, list[str]]:
    """Return the network that was asked for, with notes. Raises CheckpointError for a file without any tensors."""
    shown = for_terminal(path)
    if not isinstance(stored, dict):
        kind = "tensor" if isinstance(stored, is_tensor) else getattr(stored, "name", type(stored).__name__)
        raise CheckpointError(
            f"{shown} holds a {for_terminal(str(kind))[:80]}, not a state dict. Save `model.state_dict()`."
        )
    sets = weight_sets(stored, is_tensor)
    if sets:
        return choose(sets, weights_from, shown)
    largest = largest_state_dict(stored, is_tensor)
    if not largest:
        keys = ", ".join(for_terminal(key)[:80] for key in list(stored)[:8]) or "nothing"
        raise CheckpointError(f"{shown} holds no tensors (its keys: {keys}). Save `model.state_dict()`.")
    return WeightSet((), "", largest, {}), []


def _finished(
    tensors: dict[str, torch.Tensor],
    config: NetworkConfig | None,
    path: Path,
    notes: list[str],
    beside: dict[str, int],
) -> Checkpoint:
    tensors = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
    _check_names(path, tensors)
    unmasked, masked = without_masks(tensors)
    if masked:
        notes = [
            *notes,
            f"{len(masked)} weights have pruning masks (torch.nn.utils.prune); each was multiplied by its mask.",
        ]
    return Checkpoint(_to_float32(unmasked, path), config, notes, beside)


def _read_shards(index: Path, weights_from: str | None) -> Checkpoint:
    """Read the files that an index names, "weight_map" by tensor, and lie beside it. Raises CheckpointError for a missing one."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in shards_of(index):
        if pointer := pointer_in(_head(shard)):
            raise CheckpointError(f"{for_terminal(shard)} holds no weights: {pointer}.")
        if _is_safetensors(shard, _head(shard)):
            tensors |= _read_safetensors(shard)[0]
        else:
            with TorchFile(shard, CheckpointError) as file:
                claims = largest_state_dict(file.value, (StoredTensor, OtherTensor))
                _check_names(shard, claims)
                tensors |= {name: file.tensor(claim, name) for name, claim in claims.items()}
    return _checkpoint(tensors, {}, index, weights_from)


def shards_of(index: Path) -> list[Path]:
    """Return the files that the index of a sharded checkpoint names, each once. Raises CheckpointError for a missing one."""
    content = read_json(index, CheckpointError)
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise CheckpointError(f"{for_terminal(index)} is no index of shards: it has no weight_map. {_AGAIN}")
    names = sorted(set(named.values()))
    if len(names) > _MOST_SHARDS:
        raise CheckpointError(
            f"{for_terminal(index)} names {len(names):,} files, and {_MOST_SHARDS:,} are read. {_AGAIN}"
        )
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(
                f"{for_terminal(index)} names {for_terminal(name)[:200]}, which is not a file beside it."
            )
        if not (index.parent / name).exists():
            raise CheckpointError(f"The shard {for_terminal(index.parent / name)} is missing. {_AGAIN}")
    return [index.parent / name for name in names]


def holds_weights(path: Path) -> bool:
    """Whether a file begins as files of torch.save or safetensors do, whatever it is called."""
    head = _head(path)
    return head.startswith((b"PK\x03\x04", b"\x80")) or _is_safetensors(path, head)


def _head(path: Path) -> bytes:
    with reading(path, CheckpointError, _AGAIN), path.open("rb") as stream:
        return stream.read(_POINTER_BYTES)


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Whether a file begins with the length of a JSON object and that object, or is called so."""
    return head[8:9] == b"{" or path.suffix.lower() == ".safetensors"


def checkpoint_of(tensors: Mapping[str, torch.Tensor], source: str) -> Checkpoint:
    """Return the tensors of a state dict as those of a file: float32 copies on the CPU, under names without prefixes.

    source: what errors call it. Raises CheckpointError where it holds no tensors, too many, or NaN or infinite weights.
    """
    _check_names(Path(source), tensors)
    return _checkpoint({str(name): tensor.detach().cpu() for name, tensor in tensors.items()}, {}, Path(source), None)


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
