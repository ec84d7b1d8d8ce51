"""Which of the tensors in a file are the network: trainers wrap them, prefix them, and save several networks and other things.

Only names are looked at; no tensor is read. A network is where a stem is, under whatever keys of dictionaries and whatever
prefix of names; the families' layouts say which of the tensors beside it belong to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from edgeconvnext.errors import CheckpointError, nearest
from edgeconvnext.escape import for_terminal
from edgeconvnext.model.families import FAMILIES
from edgeconvnext.model.renamed import listed

Value = TypeVar("Value")
DEEPEST = 5
"""Dictionaries inside each other that are looked into."""
MOST_NETWORKS = 64
# The first conv of each layout: a network begins there.
_STEM = re.compile(
    r"(?:^|\.)(stem\.0|stem_0|downsample_layers\.0\.0|features\.0\.0|embeddings\.patch_embeddings|stages\.0\.downsample_layers\.0|"
    r"conv1|0\.0)\.weight$"
)
# Names that other networks have as well: what else has to lie beside them.
_BESIDE_STEM = {"conv1": "layer1.0.conv1.weight", "0.0": "1.0.block.0.weight"}
# Averaged weights first: they are the ones papers report. Then what trainers call the weights.
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|averaged|swa|teacher)(?:$|[._])")
_USUAL = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
_MEASURES = re.compile(
    r"(?:^|[._])(?:loss|losses|criterion|criteria|metrics?|acc|accuracy|auc|auroc|f1|meter|n_averaged)(?:$|[._\d])"
)
_PLACEHOLDER = torch.empty(0)


@dataclass(frozen=True)
class WeightSet:
    """The tensors of one network in a file, by their names without prefix.

    keys: of the dictionaries around it. prefix: what its names began with, "model." or "". left_out: names of the same dictionary
    that belong to no network. title: what to call it by, unlike any other set's.
    """

    keys: tuple[str, ...]
    prefix: str
    tensors: dict[str, Any]
    left_out: dict[str, Any]
    title: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that a user may mean it by."""
        prefix = re.sub(r"(\.(module|_orig_mod))+$", "", self.prefix.rstrip("."))
        whole = ".".join((*self.keys, *([prefix] if prefix else [])))
        return tuple(
            dict.fromkeys(name for name in (self.title, whole, ".".join(self.keys), *self.keys[-1:], prefix) if name)
        )


def weight_sets(stored: Any, is_tensor: type | tuple[type, ...]) -> list[WeightSet]:
    """Return every network in what was saved, the one that is taken by default first. is_tensor: what stands for a tensor."""
    sets: list[WeightSet] = []
    for keys, tensors in _state_dicts(stored, is_tensor, ()):
        sets += _networks(keys, tensors)
        if len(sets) > MOST_NETWORKS:
            raise CheckpointError(
                f"The file holds more than {MOST_NETWORKS} networks. Save `model.state_dict()` of one."
            )
    sets.sort(key=_rank)
    return _titled(sets)


def choose(sets: list[WeightSet], asked: str | None, shown: str) -> tuple[WeightSet, list[str]]:
    """Return the set that was asked for, or the default one, and notes on what was assumed. shown: the file, for errors.

    Raises CheckpointError, with the names there are, where none or several are meant.
    """
    titles = [one.title for one in sets]
    if asked is None:
        chosen = sets[0]
    else:
        meant = [one for one in sets if one.title == asked] or [one for one in sets if asked in one.names]
        if len(meant) != 1:
            what = "no set of weights" if not meant else f"{len(meant)} sets of weights"
            raise CheckpointError(
                f"{shown} has {what} {for_terminal(asked, 80)!r}.{nearest(asked, titles)} It has {listed(titles)}; name one of "
                "these with --weights-from."
            )
        (chosen,) = meant
    notes = []
    if len(sets) > 1 and asked is None:
        notes.append(
            f"The file holds several sets of weights ({listed(titles)}); {for_terminal(chosen.title)!r} was taken. --weights-from "
            "takes another."
        )
    if chosen.prefix not in ("", "module.", "_orig_mod.", "model."):
        notes.append(f"The names of the tensors begin with {for_terminal(chosen.prefix)!r}; that was taken off.")
    return chosen, notes


def largest_state_dict(stored: Any, is_tensor: type | tuple[type, ...]) -> dict[str, Any]:
    """Return the tensors of the dictionary that has most of them, by name; empty where there are none."""
    return max((tensors for _, tensors in _state_dicts(stored, is_tensor, ())), key=len, default={})


def is_measure(name: str) -> bool:
    """Whether a name is that of a loss or a metric, which the network does not use."""
    return _MEASURES.search(name) is not None


def _state_dicts(
    stored: Any, is_tensor: type | tuple[type, ...], keys: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield each dictionary that holds tensors by name, with the keys that lead to it."""
    if not isinstance(stored, dict) or len(keys) > DEEPEST:
        return
    tensors = {key: value for key, value in stored.items() if isinstance(key, str) and isinstance(value, is_tensor)}
    if tensors:
        yield keys, tensors
    for key, value in stored.items():
        if isinstance(key, str) and isinstance(value, dict):
            yield from _state_dicts(value, is_tensor, (*keys, key))


def _networks(keys: tuple[str, ...], tensors: dict[str, Any]) -> list[WeightSet]:
    names = {name.removesuffix("_orig"): name for name in tensors if not name.endswith("_mask")}
    places = list(dict.fromkeys(_stem_places(names)))
    sets = []
    for place in places[: MOST_NETWORKS + 1]:
        others = [other for other in places if other != place and other.startswith(place)]
        own = [name for name in names if name.startswith(place) and not name.startswith(tuple(others) or ("\0",))]
        prefix = _best_prefix(place, [*own, *(name for name in names if not name.startswith(tuple(places) or ("\0",)))])
        if prefix is not None:
            sets.append(_set(keys, prefix, tensors, [other for other in places if not prefix.startswith(other)], place))
    return sets


def _stem_places(names: Iterable[str]) -> Iterator[str]:
    """Yield what stands in front of each stem."""
    names = set(names)
    for name in names:
        match = _STEM.search(name)
        if match is None:
            continue
        place = name[: match.start(1)]
        beside = _BESIDE_STEM.get(match[1])
        if beside is None or f"{place}{beside}" in names:
            yield place


def _best_prefix(place: str, names: list[str]) -> str | None:
    """Return the prefix under which a layout knows most of the names: `place`, or what is above it where the head lies there."""
    best: tuple[int, int, str] | None = None
    parts = place.rstrip(".").split(".") if place else []
    for length in range(len(parts), -1, -1):
        prefix = "".join(f"{part}." for part in parts[:length])
        stripped = {name[len(prefix) :]: _PLACEHOLDER for name in names if name.startswith(prefix)}
        known = max((_known(family, stripped) for family in FAMILIES.values()), default=0)
        if known and (best is None or known > best[0]):
            best = (known, length, prefix)
    return None if best is None else best[2]


def _known(family: Any, stripped: dict[str, torch.Tensor]) -> int:
    try:
        renamed = family.rename(stripped, "")
    except CheckpointError:
        return 0
    return 0 if renamed is None else len(renamed.tensors)


def _set(keys: tuple[str, ...], prefix: str, tensors: dict[str, Any], other_places: list[str], place: str) -> WeightSet:
    others = tuple(other for other in other_places if other != place and not place.startswith(other))
    own, left_out = {}, {}
    for name, value in tensors.items():
        if others and name.startswith(others):
            continue
        if name.startswith(prefix):
            own[name[len(prefix) :]] = value
        else:
            left_out[name] = value
    return WeightSet(keys, prefix, own, left_out)


def _rank(one: WeightSet) -> tuple[int, int]:
    last = one.keys[-1] if one.keys else ""
    words = (*one.keys, one.prefix)
    if any(_AVERAGED.search(word) for word in words):
        return 0, 0
    return 1, _USUAL.index(last) if last in _USUAL else len(_USUAL)


def _titled(sets: list[WeightSet]) -> list[WeightSet]:
    """Give each set the shortest of its names that no other set has."""
    titled = []
    for one in sets:
        others = {name for other in sets if other is not one for name in other.names}
        candidates = sorted((name for name in one.names if name not in others), key=len)
        whole = one.names[0] if one.names else "the file itself"
        titled.append(replace(one, title=candidates[0] if candidates else whole))
    return titled


def without_masks(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Multiply `weight_orig` by `weight_mask`, as torch.nn.utils.prune does at every call; return also what was masked."""
    result = {name: tensor for name, tensor in tensors.items() if not name.endswith(("_orig", "_mask"))}
    masked = []
    for name, tensor in tensors.items():
        if not name.endswith("_orig"):
            if name.endswith("_mask") and f"{name[: -len('_mask')]}_orig" not in tensors:
                result[name] = tensor
            continue
        plain = name[: -len("_orig")]
        mask = tensors.get(f"{plain}_mask")
        if mask is None or mask.shape != tensor.shape:
            result[name] = tensor
            continue
        result[plain] = tensor * mask.to(tensor.dtype)
        masked.append(plain)
    return result, masked
