"""Weights by hub name, through huggingface-hub and its cache."""

from __future__ import annotations

import inspect
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeconvnext.errors import CheckpointError, ConfigFileError, HubUnreachableError
from edgeconvnext.escape import for_terminal
from edgeconvnext.model.pretrained_config import MOST_CONFIG_BYTES
from edgeconvnext.received import MIB, read_bytes

_HUB_NAME = re.compile(r"(?:hf-hub:|hf_hub:)?(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# ConvNeXt V2 Huge has 2.6 GB.
MOST_WEIGHTS_BYTES = 8192 * MIB


@dataclass(frozen=True)
class HubFiles:
    """Files of one repository in the local cache. commit: the revision they belong to."""

    weights: Path
    config: Path | None
    preprocessor: Path | None
    repository: str
    commit: str


def parse_hub_name(name: str) -> tuple[str, str | None] | None:
    """Split "org/name", "hf-hub:org/name" or "org/name@revision" into repository and revision; None for other names."""
    match = _HUB_NAME.fullmatch(name)
    # The cache joins the revision to its own path: neither "/etc/passwd" nor "../x" is one.
    if match is None or any(part in ("", ".", "..") for part in (match["revision"] or "main").split("/")):
        return None
    return match["repository"], match["revision"]


def fetch(repository: str, revision: str | None = None) -> HubFiles:
    """Fetch config and weights of a repository, or take them from the cache; safetensors where there are any.

    Cached files are used without asking the hub, so that a run repeats; name a revision to get another. HF_ENDPOINT,
    HF_HOME and HF_HUB_OFFLINE are honoured. Raises CheckpointError where the repository or its weights do not exist, or
    cannot be reached and are not in the cache.
    """
    config = _fetch_file(repository, "config.json", revision)
    if config is not None:
        revision = _commit(config)  # weights of the same commit, even if the branch moves meanwhile
    preprocessor = _fetch_file(repository, "preprocessor_config.json", revision) if _is_transformers(config) else None
    for name in _WEIGHTS:
        weights = _fetch_file(repository, name, revision)
        if weights is not None:
            return HubFiles(weights, config, preprocessor, repository, _commit(weights))
    raise CheckpointError(
        f"The repository {repository} has neither {' nor '.join(_WEIGHTS)}. "
        "Download the weights file you mean by hand and pass its path."
    )


def _commit(cached: Path) -> str:
    """The cache lays files out as snapshots/<commit>/<file>."""
    return cached.parent.name


def _is_transformers(config: Path | None) -> bool:
    return config is not None and b'"model_type"' in read_bytes(config, ConfigFileError, most=MOST_CONFIG_BYTES)


def _fetch_file(repository: str, file: str, revision: str | None) -> Path | None:
    """Fetch one file; None where the repository does not have it."""
    from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # huggingface-hub reads HF_ENDPOINT once, when it is imported; a caller may set it later.
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    try:
        cached = try_to_load_from_cache(repository, file, revision=revision)
        if cached is _CACHED_NO_EXIST:
            return None
        if isinstance(cached, str):
            return Path(cached)
        most = MOST_CONFIG_BYTES if file.endswith(".json") else MOST_WEIGHTS_BYTES
        _check_reachable(repository, file, revision, endpoint, most)
        # huggingface-hub 1.0 takes no progress bar.
        takes_bar = "tqdm_class" in inspect.signature(hf_hub_download).parameters
        bar: dict[str, Any] = {"tqdm_class": _bounded_progress(f"{file} of {repository}", most)} if takes_bar else {}
        return Path(hf_hub_download(repository, file, revision=revision, endpoint=endpoint, **bar))
    except GatedRepoError as error:
        raise CheckpointError(
            f"The repository {repository} asks you to accept its terms. Do so on its page, log in with "
            "`hf auth login`, and try again."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no repository {repository} on the hub ({endpoint}), or it is private. Check the name, or log in "
            "with `hf auth login`; a file on this machine is named by its path."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"The repository {repository} has no revision {revision!r}.") from error
    except HFValidationError as error:
        raise CheckpointError(f"{repository!r} is no hub name: {error}") from error
    except LocalEntryNotFoundError as error:
        raise HubUnreachableError(_unreachable(repository, file, endpoint, error.__cause__ or error)) from error
    except EntryNotFoundError:
        return None
    except OSError as error:  # every HTTP error of huggingface-hub is one, and so is a full disk
        raise HubUnreachableError(_unreachable(repository, file, endpoint, error)) from error


def _bounded_progress(what: str, most: int) -> type[Any]:
    """Return a progress bar that ends a download at `most` bytes: an answer in chunks has no length to compare with."""
    from huggingface_hub.utils import tqdm

    class Bounded(tqdm):  # type: ignore[misc]
        received = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.received += int(n or 0)
            if self.received > most:
                raise CheckpointError(_too_large(what, self.received, most))
            return super().update(n)  # type: ignore[no-any-return]

    return Bounded


def _too_large(what: str, size: int, most: int) -> str:
    return f"{what} has {size:,} bytes or more, and at most {most:,} are fetched. It is no ConvNeXt's; check the name."


def _check_reachable(repository: str, file: str, revision: str | None, endpoint: str, most: int) -> None:
    """Ask once, without the 23 seconds of retries a download spends on a network that is not there.

    Raises CheckpointError where nothing answers, and for a file of over `most` bytes.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        metadata = get_hf_file_metadata(hf_hub_url(repository, file, revision=revision, endpoint=endpoint), timeout=10)
    except (OSError, ValueError):
        return  # an answer (404, 401, ...) or offline mode: the download turns it into the right error
    except Exception as error:  # the HTTP library's own, whose name depends on the version of huggingface-hub
        raise HubUnreachableError(_unreachable(repository, file, endpoint, error)) from error
    if metadata.size is not None and metadata.size > most:
        raise CheckpointError(_too_large(f"{file} of {repository}", metadata.size, most))


def _unreachable(repository: str, file: str, endpoint: str, cause: BaseException) -> str:
    reason = for_terminal(" ".join(str(cause).split("\n")[0].split()))[:200]
    return (
        f"{file} of {repository} is not in the local cache and cannot be fetched from {endpoint} "
        f"({type(cause).__name__}: {reason}). Connect to the network once, set HF_ENDPOINT to a mirror, or copy the "
        "weights here and pass the file's path as the model. Two models come with the package: `atto_imagenette` for photographs "
        "of ten classes, and `digits` for the embedded images of the same name."
    )
