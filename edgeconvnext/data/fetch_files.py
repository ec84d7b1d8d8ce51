"""Getting a set of public files, one by one: several at once, each checked, finished ones used again, one final rename."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from edgeconvnext.data.download import download
from edgeconvnext.data.names import unsafe_name
from edgeconvnext.data.part_files import (
    disk_errors,
    locked,
    opened,
    refuse_what_is_no_file,
    require_sha256,
    require_space,
)
from edgeconvnext.data.sets import FilesSection
from edgeconvnext.errors import ConfigFileError, DownloadError
from edgeconvnext.escape import for_terminal
from edgeconvnext.progress import progress_bar
from edgeconvnext.received import MIB, require_regular_file
from edgeconvnext.resources import resource_dir

AT_ONCE = 4
_LINE = re.compile(r"([^\t]{1,200})\t([0-9]{1,12})\t([0-9a-f]{64})")


@dataclass(frozen=True)
class ListedFile:
    """One line of a list: a published file, its size and its hash."""

    name: str
    size_bytes: int
    sha256: str

    @property
    def place(self) -> str:
        """Path below the set's folder, as in "n01440764/n01440764_tench.JPEG"."""
        return f"{self.name.partition('_')[0]}/{self.name}"


def read_list(path: Path) -> list[ListedFile]:
    """Read a list of files: name, bytes and sha256 between tabs; lines that begin with "#" say where it is from.

    Raises ConfigFileError for another file, for unsafe names and for names that are there twice.
    """
    require_regular_file(path, ConfigFileError, most=MIB)
    files = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigFileError(f"{for_terminal(path)}, line {number}: not a name, a number of bytes and a sha256.")
        listed = ListedFile(match[1], int(match[2]), match[3])
        if "/" in listed.name or unsafe_name(listed.place):
            raise ConfigFileError(
                f"{for_terminal(path)}, line {number}: the name {for_terminal(listed.name)} is unsafe."
            )
        files.append(listed)
    if len({listed.place.lower() for listed in files}) < len(files):
        raise ConfigFileError(f"{for_terminal(path)} names a file twice.")
    return files


def fetch_files(files: FilesSection, destination: Path, listed: list[ListedFile] | None = None) -> Path:
    """Fetch every file of a list into `destination`/`files.folder`; files that arrived before an interruption are used again.

    listed: the files; None reads the list that ships. Raises DownloadError as `fetch` does.
    """
    folder = destination / files.folder
    if folder.is_dir():
        return folder
    listed = read_list(resource_dir("calib") / files.list) if listed is None else listed
    part = destination / f".{files.folder}.part"
    with disk_errors(destination):
        destination.mkdir(parents=True, exist_ok=True)
        with locked(part):
            if folder.is_dir():  # another process has finished since the first look
                return folder
            if part.is_symlink():
                raise DownloadError(
                    f"{for_terminal(part)} is a link, and the download needs a folder there. Remove it."
                )
            part.mkdir(exist_ok=True)
            missing = [one for one in listed if not _is_there(part / one.place, one)]
            require_space(sum(one.size_bytes for one in missing), destination, files.folder)
            _fetch_missing(files, listed, missing, part)
            part.rename(folder)
    return folder


def _fetch_missing(files: FilesSection, listed: list[ListedFile], missing: list[ListedFile], part: Path) -> None:
    """Download `missing` into `part`, AT_ONCE at a time; the first error ends the others before they begin."""
    total = sum(one.size_bytes for one in listed)
    pool = ThreadPoolExecutor(AT_ONCE)
    lock = threading.Lock()
    with ExitStack() as stack:
        advance = stack.enter_context(progress_bar(f"Downloading {files.folder}", total, unit="bytes"))
        stack.callback(pool.shutdown, cancel_futures=True)
        advance(total - sum(one.size_bytes for one in missing))
        for done in as_completed([pool.submit(_fetch_one, files, one, part, lock, advance) for one in missing]):
            done.result()


def _fetch_one(
    files: FilesSection,
    listed: ListedFile,
    part: Path,
    lock: threading.Lock,
    advance: Callable[[int], None],
) -> None:
    target = part / listed.place
    target.parent.mkdir(exist_ok=True)
    arriving = target.with_name(f".{target.name}.part")
    url = files.url + quote(listed.name)
    with opened(arriving) as stream:
        download(
            url,
            listed.size_bytes,
            stream,
            description=f"Downloading {listed.name}",
            way_out=f"Without network, copy the files into {files.folder}/ of the data folder yourself.",
        )
        require_sha256(stream, listed.sha256, arriving, url, "file")
    arriving.replace(target)
    with lock:
        advance(listed.size_bytes)


def _is_there(path: Path, listed: ListedFile) -> bool:
    """Say whether a file arrived before, whole; refuses a link in its place or in that of its folder."""
    if path.parent.is_symlink():
        raise DownloadError(f"{for_terminal(path.parent)} is a link, and the download needs a folder there. Remove it.")
    refuse_what_is_no_file(path)
    if not path.is_file() or path.stat().st_size != listed.size_bytes:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == listed.sha256
