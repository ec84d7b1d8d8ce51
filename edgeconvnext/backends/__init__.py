"""Artifacts and the runtimes that execute them: one folder per runtime, one registry of them all.

A backend is looked up by the exporter that a target names. Importing this package imports none of them, and no runtime.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeconvnext.backends.base import Backend, KitScript, RuntimePackage
    from edgeconvnext.choices import ActivationBits, WeightBits
    from edgeconvnext.evaluation.runner import Runner
    from edgeconvnext.rewrite.float_timer import FloatTimer
    from edgeconvnext.targets import Target

DEFAULT_TARGET = "onnx"
"""The target that commands take where none is named."""

HOMES = {
    "onnx": "edgeconvnext.backends.onnxruntime.backend",
    "openvino": "edgeconvnext.backends.openvino.backend",
    "executorch": "edgeconvnext.backends.executorch.backend",
    "tensorrt-onnx": "edgeconvnext.backends.tensorrt.backend",
    "tensorrt-rtx": "edgeconvnext.backends.tensorrt.backend",
    "tensorrt": "edgeconvnext.backends.tensorrt.backend",
    "coreml": "edgeconvnext.backends.coreml.backend",
}
"""The module of each backend, by name; its BACKENDS holds it."""

_loaded: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Make a backend of somebody else's known to this process. Raises ValueError where its name is taken."""
    if backend.name in HOMES or backend.name in _loaded:
        raise ValueError(f"there is a backend {backend.name!r} already")
    _loaded[backend.name] = backend


def names() -> tuple[str, ...]:
    """Return the names of all backends, which are the exporters that targets may name."""
    return (*HOMES, *(name for name in _loaded if name not in HOMES))


def backend(name: str) -> Backend:
    """Return the backend of a name; raises TargetError, with the nearest name, where there is none."""
    from edgeconvnext.errors import TargetError

    if name not in _loaded:
        if name not in HOMES:
            raise TargetError(f"{_unknown('exporter', name, names())}")
        _loaded.update({known.name: known for known in import_module(HOMES[name]).BACKENDS})
    return _loaded[name]


def backends() -> tuple[Backend, ...]:
    """Return every backend."""
    return tuple(backend(name) for name in names())


def backend_for(target: Target) -> Backend:
    """Return the backend of a target's exporter."""
    return backend(target.exporter)


def backend_of(path: Path) -> Backend | None:
    """Return the backend that opens a file where only its path is known, by its suffix; None for a suffix of nobody's."""
    return next((known for known in backends() if path.suffix in known.suffixes), None)


def artifact_runner(path: Path) -> Runner:
    """Open an artifact in what runs it on this machine; the first backend says what is wrong with a suffix of nobody's.

    Raises ExportError for a file that is missing or broken, RuntimeMissingError where nothing runs it here.
    """
    return (backend_of(path) or backends()[0]).runner(path)


def timing_runtime() -> FloatTimer:
    """Return what times float networks on this machine: for pruning, for norms, for a network of no target."""
    timers = (known.float_timer() for known in backends())
    return next(timer for timer in timers if timer is not None)


def kit_script_of(module: str | None, artifact: str) -> KitScript | None:
    """Return the script of a kit by what kit.json says of it; None where no backend has such a kit.

    module: the package that its script builds with, else None. artifact: the file's name.
    """
    suffix = Path(artifact).suffix
    for known in backends():
        script = known.kit_script()
        if script is not None and script.module == module and (module or Path(known.artifact).suffix == suffix):
            return script
    return None


def runtime_packages() -> tuple[RuntimePackage, ...]:
    """Return the packages of all backends, each once, and of the kernels that `bench` runs a network with."""
    from edgeconvnext.backends.triton import packages

    every = [package for known in backends() for package in known.packages]
    return tuple({package.name: package for package in [*every, *packages()]}.values())


def refusal(target: Target) -> str | None:
    """Return what of a target its backend does not take, without the full stop; None where it takes all of it."""
    if target.exporter not in names():
        return _unknown("exporter", target.exporter, names()).rstrip(".")
    runtimes = dict.fromkeys(known.runtime for known in backends())
    if target.runtime.name not in runtimes:
        return _unknown("runtime.name", target.runtime.name, tuple(runtimes)).rstrip(".")
    chosen = backend_for(target)
    return chosen.limits.refusal(target, chosen.runtime)


def check_target(target: Target) -> None:
    """Raise TargetError where the backend of a target does not take what it asks for."""
    from edgeconvnext.errors import TargetError

    refused = refusal(target)
    if refused is not None:
        raise TargetError(f"Target {target.name} does not hold: {refused}.")


def check_bits(target: Target, asked: dict[str, tuple[WeightBits, ActivationBits]]) -> None:
    """Raise QuantizationError for the first layer with bits that the target's runtime has no operators for.

    asked: bits of weights and activations by layer, as `precision.asked_bits` gives them.
    """
    from edgeconvnext.errors import QuantizationError

    limits = backend_for(target).limits
    for layer, (weights, activations) in asked.items():
        refused = limits.refused_bits(target, weights, activations, layer)
        if refused is not None:
            raise QuantizationError(refused)


def load_target(name_or_path: str) -> Target:
    """Read a shipped target by name, or a user's own TOML file by path.

    Raises TargetError for an unknown name and ConfigFileError for a file that does not hold, or whose backend does not take it.
    """
    from edgeconvnext.config_file import parse_toml
    from edgeconvnext.errors import ConfigFileError, TargetError, nearest
    from edgeconvnext.escape import for_terminal
    from edgeconvnext.received import user_path
    from edgeconvnext.targets import Target, target_files

    files = target_files()
    path = files.get(name_or_path)
    if path is None:
        path = user_path(name_or_path, TargetError)
        if path.suffix != ".toml":
            raise TargetError(
                f"There is no target {name_or_path!r}.{nearest(name_or_path, files)} "
                f"Known targets: {', '.join(files)}; a file of your own is named by its path, ending in .toml."
            )
        if not path.is_file():
            raise TargetError(f"There is no target file {path}. Known targets: {', '.join(files)}.")
    target = parse_toml(path, Target)
    refused = refusal(target)
    if refused is not None:
        raise ConfigFileError(f"{path} does not hold: {for_terminal(f'{refused}.', 500)}")
    return target


def _unknown(key: str, name: str, known: tuple[str, ...]) -> str:
    """Say which names there are, as `config_file.explain` does for a choice."""
    from edgeconvnext.errors import nearest
    from edgeconvnext.escape import for_terminal

    *others, last = (repr(choice) for choice in known)
    return f"{key}: input should be {', '.join(others)} or {last} (found {for_terminal(repr(name), 80)}).{nearest(name, known)}"
