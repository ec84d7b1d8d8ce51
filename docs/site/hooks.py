"""Pages that docs/ does not hold, made from the code or from elsewhere in the repository, and links to pages by file name."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import command_line
import exit_codes
import python_api
import target_files
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]

MADE = {
    "command-line.md": command_line.page,
    "python-reference.md": python_api.page,
    "target-files.md": target_files.page,
    "exit-codes.md": exit_codes.page,
}
"""Pages that are written at build."""

ELSEWHERE = {
    "architecture.md": "ARCHITECTURE.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "report-a-weakness.md": "SECURITY.md",
    "speed.md": "benchmarks/README.md",
}
"""Pages that lie elsewhere in the repository, by their name on the site."""

PICTURES = "benchmarks/results"
"""Where plots lie that pages show."""

LAST_IN_SEARCH = {"changelog.md", "mutants.md", "crashes.md"}
"""Pages that the search lists after all others."""

_CODE = re.compile(r"(^```.*?^```|^(?:    .*\n)+)", re.DOTALL | re.MULTILINE)
_NAMED = re.compile(r"`docs/([\w-]+\.md)`|(?<!\]\()(?<![\w/`\[])docs/([\w-]+\.md)")
_LINKED = re.compile(r"\]\((?!https?:)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that docs/ does not hold, and the plots of benchmarks."""
    for name, make in MADE.items():
        files.append(File.generated(config, name, content=make()))
    for name, source in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_relinked(text, Path(source).parent)))
    for picture in sorted((ROOT / PICTURES).glob("*.svg")):
        files.append(File.generated(config, f"plots/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn names of pages, as in `docs/gpu.md`, into links, and links out of docs/ into links to where the site has it."""
    if page.file.src_uri in LAST_IN_SEARCH:
        page.meta["search"] = {"boost": 0.1}
    if page.file.src_uri not in ELSEWHERE:
        markdown = _relinked(markdown, Path("docs"))
    return "".join(
        part if index % 2 else _NAMED.sub(lambda match: _link(match, files), part)
        for index, part in enumerate(_CODE.split(markdown))
    )


def _link(match: re.Match[str], files: Any) -> str:
    name = match[1] or match[2]
    file = files.get_file_from_path(name)
    return match[0] if file is None else f"[{_title(file)}]({name})"


def _title(file: Any) -> str:
    heading = re.search(r"^# (.+)$", file.content_string, re.MULTILINE)
    return heading[1].partition(":")[0] if heading else file.name


def _relinked(markdown: str, folder: Path) -> str:
    """Return a page with its links, which are relative to a folder of the repository, relative to the site."""
    return _LINKED.sub(lambda match: f"]({_on_site(match[1], folder)}{match[2] or ''})", markdown)


def _on_site(link: str, folder: Path) -> str:
    path = (ROOT / folder / link).resolve()
    if not path.is_relative_to(ROOT):
        return link
    place = path.relative_to(ROOT)
    by_source = {source: name for name, source in ELSEWHERE.items()}
    if place.as_posix() in by_source:
        return by_source[place.as_posix()]
    if place.parent.as_posix() == PICTURES:
        return f"plots/{place.name}"
    return place.relative_to("docs").as_posix() if place.is_relative_to("docs") else link
