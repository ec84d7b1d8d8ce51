"""Getting a public image set: download with resume, checksum, careful unpacking, one final rename."""

from __future__ import annotations

import os
import shutil
from io import BufferedRandom
from pathlib import Path

from edgeconvnext.data.download import download
from edgeconvnext.data.fetch_files import fetch_files
from edgeconvnext.data.part_files import disk_errors, locked, opened, require_sha256, require_space
from edgeconvnext.data.sets import ArchiveSection, cache_dir, load_set_file
from edgeconvnext.data.unpack import unpack
from edgeconvnext.errors import DownloadError
from edgeconvnext.received import user_path

# JPEGs hardly compress, so the unpacked files need about what the archive does, plus their last blocks.
_UNPACKED_SHARE = 1.2


def fetch(
    name: str,
    destination: Path | None = None,
    url: str | None = None,
    *,
    accept_terms: bool = False,
) -> Path:
    """Download a public image set; returns its folder, at once where it is there already.

    destination: data folder that the set's folder goes into; EDGECONVNEXT_DATA where that is a writable folder, else
    ~/.cache/edgeconvnext.
    url: a mirror of the same files; checksums have to be the published ones all the same.
    accept_terms: the user agrees to the set's terms, where it has some (`terms_of`).
    Raises DownloadError for sets that cannot be fetched (embedded ones), for terms that nobody agreed to, a failed download, a
    wrong checksum, an archive with unsafe members, or a full disk.
    """
    description = load_set_file(name)
    place = destination or default_destination()
    if description.files is not None:
        if not accept_terms:
            raise DownloadError(
                f"{terms_of(name)} Agree to them with --accept-terms (accept_terms=True), and {name} is fetched."
            )
        files = description.files if url is None else description.files.model_copy(update={"url": url})
        return fetch_files(files, place)
    if description.archive is None:
        reason = description.how_to_get or "It is part of the package: use it by its name."
        raise DownloadError(f"The image set {name} cannot be downloaded. {reason}")
    archive = description.archive if url is None else description.archive.model_copy(update={"url": url})
    return fetch_archive(archive, place)


def terms_of(name: str) -> str | None:
    """Return the terms of a shipped set that its user has to agree to; None where there are none."""
    files = load_set_file(name).files
    return None if files is None else files.terms.strip()


def default_destination() -> Path:
    """Return the data folder that downloads go to."""
    chosen = os.environ.get("EDGECONVNEXT_DATA")
    folder = user_path(chosen, DownloadError) if chosen else None
    return folder if folder is not None and folder.is_dir() and os.access(folder, os.W_OK) else cache_dir()


def fetch_archive(archive: ArchiveSection, destination: Path) -> Path:
    """Download, check and unpack one archive below `destination`; what arrived before an interruption is used again."""
    folder = destination / archive.folder
    if folder.is_dir():
        return folder
    part = destination / f".{archive.folder}.part"
    with disk_errors(destination):
        destination.mkdir(parents=True, exist_ok=True)
        with locked(part):
            if folder.is_dir():  # another process has finished since the first look
                part.unlink(missing_ok=True)
                return folder
            with opened(part) as stream:
                _remove_leftovers(archive, destination)
                _check_space(archive, destination, stream)
                download(
                    archive.url,
                    archive.size_bytes,
                    stream,
                    description=f"Downloading {archive.folder}",
                    way_out=f"Without network, unpack a copy of the archive in the data folder yourself, so that it holds "
                    f"{archive.folder}/.",
                )
                require_sha256(stream, archive.sha256, part, archive.url, "archive")
                unpack(stream, archive.size_bytes, folder, archive.url)
            part.unlink()
    return folder


def _remove_leftovers(archive: ArchiveSection, destination: Path) -> None:
    """Remove what a process that was killed while unpacking left behind; the lock says that none is at work."""
    for leftover in destination.glob(f".{archive.folder}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _check_space(archive: ArchiveSection, destination: Path, stream: BufferedRandom) -> None:
    needed = int(archive.size_bytes * (1 + _UNPACKED_SHARE)) - stream.seek(0, os.SEEK_END)
    require_space(needed, destination, archive.folder)
