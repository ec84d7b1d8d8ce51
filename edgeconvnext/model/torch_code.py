"""A network as one Python file that needs torch and nothing of this package."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType

from edgeconvnext.errors import ExportError
from edgeconvnext.files import atomic_write
from edgeconvnext.model import blocks, network
from edgeconvnext.model.checkpoint import MOST_HEADER_BYTES
from edgeconvnext.model.loaded import LoadedModel

# What stands in for what networks import from other packages.
_FALLBACKS = '''Operator = str


class ModelConfigError(ValueError):
    """Sizes that no network can have."""
'''
_LOADER = '''

{constants}


def load_network(weights: str | Path = WEIGHTS) -> {network}:
    """Return the trained network in eval mode: logits (N, {classes}) from images (N, {channels}, {height}, {width})."""
    with torch.device("meta"):
        network = {network}(CONFIG)
    network.load_state_dict(read_safetensors(weights), assign=True)
    return network.eval()


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read float32 tensors: eight bytes with the length of a JSON header, the header, then the tensors' bytes.

    Raises ValueError for a file that is no safetensors file, or claims more than it holds.
    """
    if not Path(path).is_file():
        raise ValueError(f"{{path}} is no file.")
    tensors = {{}}
    with Path(path).open("rb") as file:
        size = Path(path).stat().st_size
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > min(size, MOST_HEADER_BYTES):
            raise ValueError(f"{{path}} is no safetensors file: its header would have {{start - 8}} bytes.")
        try:
            entries = dict(json.loads(file.read(start - 8)))
            entries.pop("__metadata__", None)
            for name, entry in entries.items():
                shape, (first, last) = entry["shape"], entry["data_offsets"]
                if entry["dtype"] != "F32":
                    raise ValueError(f"{{name}} is {{entry['dtype']}}, not F32; load it with the safetensors package")
                if not 0 <= first <= last <= size - start or math.prod(shape) * 4 != last - first:
                    raise ValueError(f"{{name}} claims other bytes than there are")
                file.seek(start + first)
                content = bytearray(file.read(last - first))
                tensors[name] = torch.frombuffer(content, dtype=torch.float32).view(shape) if content else torch.empty(shape)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError) as error:
            raise ValueError(f"{{path}} cannot be read: {{error}}.") from error
    return tensors
'''


def check_torch_code_path(path: Path) -> None:
    """Raise ExportError, before any work, unless `path` is a .py file to be."""
    if path.suffix != ".py" or path.is_dir():
        raise ExportError(f"The network's code is written as one Python file; {path} must end in .py.")
    if not path.stem.isidentifier():
        raise ExportError(
            f"{path.name} cannot be imported: a module's name is made of letters, digits and underscores."
        )


def write_torch_code(model: LoadedModel, weights: Path, path: Path) -> Path:
    """Write the definition of `model`'s network and a function that loads `weights`, a checkpoint of `save_checkpoint`.

    The file holds the network as this package defines it, its sizes, preprocessing and labels. It looks for the weights where
    they are now relative to it. Raises ExportError for a path that does not end in .py.
    """
    check_torch_code_path(path)
    preprocess = model.preprocess
    constants = "\n".join(
        [
            f"CONFIG = {model.config!r}",
            f"PREPROCESS = {_plain(preprocess)!r}",
            f"LABELS = {None if model.labels is None else model.labels.names!r}",
            f"WEIGHTS = Path(__file__).resolve().parent / {_relative(weights, path)!r}",
            f"MOST_HEADER_BYTES = {MOST_HEADER_BYTES}",
        ]
    )
    channels, (height, width) = preprocess.in_channels, preprocess.input_size
    sizes = {"classes": model.config.num_classes, "channels": channels, "height": height, "width": width}
    definition = _definition(inspect.getmodule(type(model.module)))
    atomic_write(path, definition + _LOADER.format(constants=constants, network=type(model.module).__name__, **sizes))
    return path


def _definition(family: ModuleType | None) -> str:
    """Return the source of the network that the module `family` defines, with what it takes from `blocks` and `network`."""
    assert family is not None
    imports: set[str] = {"import json", "import math", "from pathlib import Path"}
    provided = {"Operator", "ModelConfigError"}
    bodies = []
    for module in (network, blocks, family):
        lines, tree = inspect.getsource(module).splitlines(), ast.parse(inspect.getsource(module))
        body = next(node for node in tree.body[1:] if not _is_import(node))
        for node in tree.body:
            text = ast.unparse(node)
            if isinstance(node, ast.Import | ast.ImportFrom) and "__future__" not in text:
                if "edgeconvnext" not in text:
                    imports.add(text)
                elif not {alias.name for alias in node.names} <= provided:
                    raise AssertionError(f"{module.__name__}: a file of its own cannot hold `{text}`")
        provided |= vars(module).keys()
        start = min([body.lineno, *(item.lineno for item in getattr(body, "decorator_list", []))])
        bodies.append("\n".join(lines[start - 1 :]).rstrip())
    docstring = inspect.getdoc(family)
    head = f'"""{docstring}\n"""\n\nfrom __future__ import annotations\n\n' + "\n".join(sorted(imports))
    return "\n\n\n".join([head, _FALLBACKS.rstrip(), *bodies]) + "\n"


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _plain(preprocess: object) -> dict[str, object]:
    names = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std", "crop_offset")
    return {name: getattr(preprocess, name) for name in names}


def _relative(weights: Path, path: Path) -> str:
    target, folder = weights.absolute(), path.absolute().parent
    try:
        return target.relative_to(folder).as_posix()
    except ValueError:
        return target.as_posix()
