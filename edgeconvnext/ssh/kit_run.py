"""Run a device kit over ssh: copy it, start it, follow what it prints, bring back what it wrote, clean up.

What runs on the device is POSIX sh and the Python of the kit's script. The run itself goes on without a connection, so
that a dropped one is taken up again where it was: half a file at its last byte, the output at its last byte.

The script that is sent is this version's own, whatever lies in the kit: a run from somebody else runs no code on the
device. What the device says is bounded in bytes and time, and shown without control characters.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeconvnext.backends import kit_script_of
from edgeconvnext.backends.base import KitScript
from edgeconvnext.backends.kit.known import Kit
from edgeconvnext.backends.kit.record import device_record
from edgeconvnext.backends.kit.results import DeviceResults, read_results
from edgeconvnext.backends.kit.write import KIT_FILE, RESULTS_FILE, assemble_script
from edgeconvnext.errors import DeviceResultsError, RemoteError, RuntimeMissingError
from edgeconvnext.escape import for_terminal
from edgeconvnext.files import TEMPORARY_PREFIX, storage_errors, tree_sha256
from edgeconvnext.progress import progress_bar
from edgeconvnext.received import MOST_TEXT_BYTES, parse_json, require_regular_file
from edgeconvnext.ssh.connection import Answer, Connection, Unbounded, reconnecting, transfer_bounds
from edgeconvnext.ssh.exchange import MIB, Bounds

FOLDER_PREFIX = "edgeconvnext-"
DEFAULT_WORKDIR = "~/.cache/edgeconvnext"
OLDEST_PYTHON = (3, 8)
# What a run writes beside the kit, as a multiple of the kit's own size: TensorRT's engines hold every weight again.
ROOM_FOR_ENGINES = 2
ROOM_FOR_RESULTS = 8 * MIB
# What a kit prints is a few lines; TensorRT builds engines for up to an hour without a word.
KIT_RUNS = Bounds(output_bytes=16 * MIB, seconds=6 * 3600, silent_seconds=2 * 3600)
MOST_LINE = 2000
REFUSED_FILE = "device.refused.json"

Say = Callable[[str], None]

# $1: work folder, $2: name of the kit's folder, $3: Python, $4: module of the runtime. Prints one fact a line.
_PROBE = """
case $1 in "~") base=$HOME;; "~/"*) base=$HOME/${1#"~/"};; /*) base=$1;; *) base=$HOME/$1;; esac
mkdir -p "$base/$2" || exit 20
cd "$base/$2" || exit 20
echo "edgeconvnext folder $(pwd)"
echo "edgeconvnext free $(df -Pk . | tail -n 1)"
cd / || exit 20
command -v "$3" >/dev/null 2>&1 || exit 21
"$3" -c 'import sys; print("edgeconvnext python %d.%d.%d" % sys.version_info[:3])' || exit 21
"$3" -c 'import importlib, sys
try:
    print("edgeconvnext runtime " + importlib.import_module(sys.argv[1]).__version__)
except Exception as error:
    print("edgeconvnext absent " + " ".join(str(error).split()))' "$4"
"""

# $1: Python, $2: folder, the rest: names. Prints size and sha256 of each file that is there.
_STATE = """
cd "$2" || exit 20
python=$1
shift 2
"$python" -I -c 'import hashlib, json, os, sys
found = {}
for name in sys.argv[1:]:
    if os.path.isfile(name):
        digest = hashlib.sha256()
        with open(name, "rb") as stream:
            for piece in iter(lambda: stream.read(1 << 20), b""):
                digest.update(piece)
        found[name] = [os.path.getsize(name), digest.hexdigest()]
print("edgeconvnext state " + json.dumps(found))' "$@"
"""

# $1: folder, $2: name, $3: "new" or "more".
_RECEIVE = """
cd "$1" || exit 20
mkdir -p "$(dirname "$2")" || exit 20
if [ "$3" = new ]; then cat >"$2"; else cat >>"$2"; fi
"""

# $1: folder, $2: Python, $3: script. Starts the script on its own, unless it runs or ran already.
_START = """
cd "$1" || exit 20
if [ -f run.exit ]; then echo "edgeconvnext finished"; exit 0; fi
if [ -f run.pid ] && kill -0 "$(cat run.pid)" 2>/dev/null; then echo "edgeconvnext running"; exit 0; fi
: >run.log || exit 20
apart=$(command -v setsid || command -v nohup || echo env)
"$apart" sh -c '"$1" -u "$2" >run.log 2>&1; echo $? >run.code && mv run.code run.exit' sh "$2" "$3" >/dev/null 2>&1 </dev/null &
echo $! >run.pid
echo "edgeconvnext started"
"""

# $1: folder, $2: bytes of the output that arrived already. Ends when the script has ended and all was printed.
_FOLLOW = """
cd "$1" || exit 20
seen=$2
while :; do
    ended=; if [ -f run.exit ]; then ended=yes; elif ! kill -0 "$(cat run.pid)" 2>/dev/null; then ended=died; fi
    size=$(wc -c <run.log)
    if [ "$size" -gt "$seen" ]; then tail -c "+$((seen + 1))" run.log | head -c "$((size - seen))"; seen=$((size + 0)); fi
    if [ "$ended" = yes ] || { [ "$ended" = died ] && [ -f run.exit ]; }; then exit 0; fi
    if [ "$ended" = died ]; then exit 22; fi
    sleep 1
done
"""

# $1: folder. Ends the script that runs there, with all that it started where it has a session of its own.
_STOP = """
cd "$1" && [ -f run.pid ] && ! [ -f run.exit ] || exit 0
pid=$(cat run.pid)
kill -s KILL -- "-$pid" 2>/dev/null || kill -s KILL "$pid" 2>/dev/null
exit 0
"""

# $1: folder. Removes it, and the default work folder where that is empty then.
_CLEAN = """
case $1 in */edgeconvnext-????????????) ;; *) exit 20;; esac
cd / && rm -rf -- "$1"
rmdir "$HOME/.cache/edgeconvnext" 2>/dev/null
exit 0
"""


@dataclass(frozen=True)
class Device:
    """A device that can run the kit: folder on it, room there in bytes, versions of its Python and runtime."""

    folder: str
    free_bytes: int
    python: str
    runtime: str


def run_kit(kit: Path, connection: Connection, *, python: str, workdir: str | None, say: Say, print_: Say) -> Path:
    """Run the kit in `kit`, a run's device/ folder, on the device, and return the device.json that came back.

    say: told what is being done. print_: told what the kit's script prints. Files the script saved are put beside its
    device.json, into `kit`. Raises RuntimeMissingError where Python or the runtime is not there, RemoteError where the
    device cannot be reached, has no room, answers without end, or its run ended without a result; DeviceResultsError where its
    results do not hold: they are put aside, and the next run measures again.
    """
    known = Kit.load(kit)
    script = kit_script_of(known.about.module, known.about.artifact)
    if script is None:
        raise RemoteError(
            f"{kit} is a kit of {known.about.artifact}, which no runtime of this version has a script for."
        )
    name = FOLDER_PREFIX + tree_sha256(kit / KIT_FILE)[:12]
    device = probe(connection, workdir or DEFAULT_WORKDIR, name, python, script.imports)
    say(f"{connection.host}: Python {device.python}, {script.imports} {device.runtime}, {device.folder}")
    with tempfile.TemporaryDirectory(prefix="edgeconvnext-") as folder:
        session = KitRun(kit, known, script, Path(folder), connection, device, python, say)
        session.copy()
        session.start()
        session.follow(print_)
        results = session.fetch()
        session.clean()
    return results


def probe(connection: Connection, workdir: str, name: str, python: str, module: str) -> Device:
    """Make the kit's folder and ask for room, Python and runtime; a folder that is of no use is removed again."""
    answer = connection.run(_PROBE, workdir, name, python, module)
    facts = _facts(answer)
    if not facts.get("folder", "").endswith(f"/{name}"):
        raise RemoteError(
            f"The folder {workdir} cannot be used on {connection.host}: {_short(answer.error)}. "
            "Name another one with --workdir."
        )
    try:
        if "python" not in facts:
            raise RuntimeMissingError(
                f"{connection.host} has no Python called {python}{_in_brackets(answer.error)}. Install Python 3.8 or later "
                "there, or name the one to use with --python."
            )
        version = re.match(r"(\d{1,4})\.(\d{1,4})\b", facts["python"], re.ASCII)
        if version is None or (int(version[1]), int(version[2])) < OLDEST_PYTHON:
            raise RuntimeMissingError(
                f"{python} on {connection.host} is Python {facts['python']}; the kit needs 3.8 or later. Name another one "
                "with --python."
            )
        if "runtime" not in facts:
            raise RuntimeMissingError(
                f"{python} on {connection.host} cannot import {module}: {facts.get('absent') or _short(answer.error)}. Install it "
                "there, or name the Python that has it with --python."
            )
    except RuntimeMissingError:
        connection.run(_CLEAN, facts["folder"])
        raise
    return Device(facts["folder"], _free_bytes(facts.get("free", "")), facts["python"], facts["runtime"])


class KitRun:
    """One kit on one device: every step can be taken up again after the connection dropped."""

    def __init__(
        self,
        kit: Path,
        known: Kit,
        script: KitScript,
        scratch: Path,
        connection: Connection,
        device: Device,
        python: str,
        say: Say,
    ):
        """kit: the folder here. known: the same as read. scratch: an empty folder, where the script is assembled."""
        self.kit, self.known, self.connection, self.device, self.python = kit, known, connection, device, python
        self.say, self.script, self.about = say, scratch / script.name, known.about
        self.kit_script = script
        self.script.write_text(assemble_script(script), encoding="utf-8")
        # The script last: as long as it is not there, nothing can be started.
        self.sources = {name: kit / name for name in (*known.about.files, KIT_FILE)} | {script.name: self.script}
        self.sizes = {name: require_regular_file(path, RemoteError) for name, path in self.sources.items()}
        self.files = {**known.about.files, KIT_FILE: known.sha256, script.name: tree_sha256(self.script)}
        for name, path in self.sources.items():
            if tree_sha256(path) != self.files[name]:
                raise RemoteError(f"{path} is not the file that kit.json names. Export the model again.")

    def copy(self) -> None:
        """Bring every file of the kit to the device; what is there already, whole or in part, is not sent again."""
        for _ in range(2):
            there = self._state()
            if not self._missing(there):
                return
            self._check_room(there)
            with progress_bar("Copying the kit", sum(self.sizes.values()), "bytes") as advance:
                for name in self.files:
                    self._send(name, there.get(name), advance)
        wrong = self._missing(self._state())
        if wrong:
            raise RemoteError(
                f"{', '.join(wrong)} arrived on {self.connection.host} with other content than was sent, twice. Check its "
                "storage, or name another folder with --workdir."
            )

    def start(self) -> None:
        """Start the script, apart from the connection; one that runs or has ended there is taken up."""
        answer = self._run(_START, self.device.folder, self.python, self.script.name)
        state = next((fact for fact in _facts(answer) if fact in ("started", "running", "finished")), None)
        if state is None:
            self._refuse_full(answer)
            raise RemoteError(f"The kit cannot be started on {self.connection.host}: {_short(answer.error)}.")
        if state != "started":
            self.say(f"the kit was started earlier and is {state}: taking it up")

    def follow(self, print_: Say) -> None:
        """Hand over what the script prints until it has ended, a line at a time and without control characters.

        Raises RemoteError where it prints or runs without end; it is ended there then, and nothing of it stays.
        """
        received, rest = 0, b""

        def take(piece: bytes) -> None:
            nonlocal received, rest
            received += len(piece)
            if received > KIT_RUNS.output_bytes:  # over all connections
                raise Unbounded(
                    f"The kit's script printed more than {KIT_RUNS.output_bytes:,} bytes on {self.connection.host}."
                )
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                print_(_line(line))
            rest = rest[:MOST_LINE]

        def attempt() -> Answer:
            return self.connection.stream(_FOLLOW, self.device.folder, str(received), take=take, bounds=KIT_RUNS)

        try:
            answer = reconnecting(self.connection, attempt, self.say)
        except Unbounded:
            self._run(_STOP, self.device.folder)
            self.clean()
            raise
        if rest:
            print_(_line(rest))
        if answer.code == 22:
            told = self._tail()
            self.clean()
            if _tells_full(told):
                raise self._full()
            raise RemoteError(
                f"The kit's script was ended on {self.connection.host} before it finished: by the system for want of memory, "
                "or by a restart. Run the same command again."
            )
        if answer.code:
            raise RemoteError(
                f"The folder of the kit is gone on {self.connection.host}: {_short(answer.error, 'it was removed')}."
            )

    def fetch(self) -> Path:
        """Bring back device.json and the files it names as saved. Raises where the script ended without a result.

        Results that do not hold are put aside here and removed there: they would be fetched again otherwise.
        """
        answer = self._run('head -c 100 "$1/run.exit"', self.device.folder)
        code = for_terminal(answer.output.decode("utf-8", "replace").strip())
        if code not in ("0", "3"):
            told = self._tail()
            reason = next((line[7:] for line in told.splitlines() if line.startswith("Error: ")), told.strip())
            reason = for_terminal(reason)[:MOST_LINE]
            self.clean()
            if _tells_full(told):
                raise self._full()
            if code == "4":
                raise RuntimeMissingError(f"{self.connection.host}: {reason}")
            raise RemoteError(
                f"The kit's script failed on {self.connection.host} with {code or 'no exit code'}: {reason}"
            )
        try:
            path = self._fetch_file(RESULTS_FILE, MOST_TEXT_BYTES)
        except Unbounded:
            self.clean()
            raise
        results = self._checked(path)
        most = ROOM_FOR_ENGINES * sum(self.sizes.values()) + MOST_TEXT_BYTES
        for name in results.saved:
            if self.kit_script.saves_file(name) and name not in self.files:
                self._fetch_file(name, most)
        return path

    def _checked(self, path: Path) -> DeviceResults:
        try:
            results = read_results(path, self.known)
            device_record(results, self.known)
            return results
        except DeviceResultsError as problem:
            refused = path.replace(path.with_name(REFUSED_FILE))
            self.clean()
            raise DeviceResultsError(
                f"{problem} It came from {self.connection.host} and was removed there; {refused} is a copy. The same command "
                "measures again."
            ) from problem

    def _tail(self) -> str:
        """Return the last lines that the script printed."""
        answer = self._run('tail -c 4000 "$1/run.log" | tail -n 5', self.device.folder)
        return answer.output.decode("utf-8", "replace")

    def clean(self) -> None:
        """Remove the kit's folder from the device."""
        answer = self._run(_CLEAN, self.device.folder)
        if answer.code:
            self.say(f"{self.device.folder} could not be removed from {self.connection.host}: {_short(answer.error)}")

    def _run(self, script: str, *arguments: str) -> Answer:
        return reconnecting(self.connection, lambda: self.connection.run(script, *arguments), self.say)

    def _state(self, *names: str) -> dict[str, tuple[int, str]]:
        """Return size and sha256 of the kit's files on the device, of all or of those named."""
        answer = self._run(_STATE, self.python, self.device.folder, *(names or self.files))
        fault = f"{self.python} on {self.connection.host} does not list the files of the kit"
        told = _facts(answer).get("state")
        if told is None:
            raise RemoteError(f"{fault}: {_short(answer.error)}.")
        found = parse_json(told, f"{fault}: its answer", RemoteError)
        if not isinstance(found, dict) or not all(_is_state(entry) for entry in found.values()):
            raise RemoteError(f"{fault}: its answer is not a size and a sha256 for each.")
        return {name: (size, sha256) for name, (size, sha256) in found.items()}

    def _missing(self, there: dict[str, tuple[int, str]]) -> list[str]:
        return [name for name, sha256 in self.files.items() if there.get(name, (0, ""))[1] != sha256]

    def _check_room(self, there: dict[str, tuple[int, str]]) -> None:
        left = sum(size - min(size, there.get(name, (0, ""))[0]) for name, size in self.sizes.items())
        results = ROOM_FOR_RESULTS + (
            ROOM_FOR_ENGINES * sum(self.sizes.values()) if self.kit_script.builds_engines else 0
        )
        if left + results > self.device.free_bytes:
            raise self._full(left + results)

    def _send(self, name: str, there: tuple[int, str] | None, advance: Callable[[int], None]) -> None:
        """Send what the device lacks of one file, from the byte where an attempt stopped. there: what it has of it at first."""
        source, known = self.sources[name], [there]

        def attempt() -> Answer:
            # Only a dropped connection leaves it open what has arrived.
            size, sha256 = (known.pop() if known else self._state(name).get(name)) or (0, "")
            if sha256 == self.files[name]:
                advance(size)
                return Answer(0, b"", "")
            offset = size if 0 < size < source.stat().st_size and _starts_with(source, size, sha256) else 0
            if offset:
                self.say(f"{name}: {offset / 2**20:.1f} MiB are there, going on from there")
            advance(offset)
            mode = "more" if offset else "new"
            return self.connection.send(source, offset, _RECEIVE, self.device.folder, name, mode, advance=advance)

        answer = reconnecting(self.connection, attempt, self.say)
        if answer.code:
            self._refuse_full(answer)
            raise RemoteError(f"{name} cannot be written on {self.connection.host}: {_short(answer.error)}.")

    def _refuse_full(self, answer: Answer) -> None:
        if _tells_full(answer.error):
            raise self._full()

    def _full(self, needed: int | None = None) -> RemoteError:
        free = f", of which {self.device.free_bytes / 2**20:.0f} MiB are free" if needed else ""
        need = f"the kit and its results need {needed / 2**20:.0f} MiB{free}" if needed else "no space is left there"
        return RemoteError(
            f"{self.connection.host} is full: {need} ({self.device.folder}). Free some space there, or name a folder on "
            "another disk with --workdir."
        )

    def _fetch_file(self, name: str, most: int) -> Path:
        """Bring one file of at most `most` bytes back, whole or not at all."""
        target = self.kit / name
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{name}")

        def attempt() -> Answer:
            with temporary.open("wb") as stream:
                return self.connection.stream(
                    'cat "$1/$2"',
                    *(self.device.folder, name),
                    take=lambda piece: _all(stream, piece),
                    bounds=transfer_bounds(most, output_bytes=most),
                )

        with storage_errors(target):
            try:
                answer = reconnecting(self.connection, attempt, self.say)
                if answer.code:
                    raise RemoteError(
                        f"{name} cannot be brought back from {self.connection.host}: {_short(answer.error)}."
                    )
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        return target


def _all(stream: Any, piece: bytes) -> None:
    stream.write(piece)


def _facts(answer: Answer) -> dict[str, str]:
    """Return what the scripts above print, by its first word and without control characters; the last line of each counts.

    A login shell may print lines of its own before, and a device anything.
    """
    facts = {}
    for line in answer.output.decode("utf-8", "replace").split("\n"):
        mark, _, rest = line.partition(" ")
        if mark == "edgeconvnext":
            name, _, value = rest.partition(" ")
            facts[name] = value if name == "state" else for_terminal(value)[:MOST_LINE]
    return facts


def _is_state(entry: object) -> bool:
    """Say whether a device's word on a file is a size and a sha256."""
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and type(entry[0]) is int
        and 0 <= entry[0] < 2**63
        and isinstance(entry[1], str)
    )


def _short(error: str, otherwise: str = "no reason given") -> str:
    """Return the last line that ssh or the device wrote to stderr."""
    lines = [line for line in error.splitlines() if line.strip()]
    return lines[-1].strip()[:MOST_LINE].rstrip(".") if lines else otherwise


def _line(content: bytes) -> str:
    return for_terminal(content[:MOST_LINE].decode("utf-8", "replace").rstrip("\r"))


def _free_bytes(line: str) -> int:
    """Read the last line of POSIX df: "/dev/root 30G-blocks used available 12% /", in units of 1024 bytes."""
    numbers = [word for word in line.split() if re.fullmatch(r"\d{1,18}", word, re.ASCII)]
    return 1024 * int(numbers[2]) if len(numbers) > 2 else 0


def _starts_with(source: Path, size: int, sha256: str) -> bool:
    """Say whether the first `size` bytes of a file are those that hash to `sha256`."""
    digest = hashlib.sha256()
    with source.open("rb") as stream:
        while size > 0 and (piece := stream.read(min(size, 1 << 20))):
            digest.update(piece)
            size -= len(piece)
    return digest.hexdigest() == sha256


def _tells_full(text: str) -> bool:
    """Say whether sh, cat or Python complained of a full disk or quota."""
    return any(sign in text for sign in ("No space left", "quota exceeded", "Errno 28"))


def _in_brackets(text: str) -> str:
    return f" ({text.splitlines()[-1]})" if text else ""
