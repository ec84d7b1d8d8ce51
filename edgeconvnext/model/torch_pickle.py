"""The pickle inside a file of torch.save, read into plain values and claims about tensors; nothing in it is called.

torch.load(weights_only=True) runs no foreign code, but it calls torch's own constructors with whatever arguments the file gives
(`torch.Tensor` of nested lists, `bytearray` of any length), grows storages to the sizes tensors claim, and hashes keys that are
nested by reference, each without bound. Here a call makes a value of this module, and a tensor stays a claim until
`torch_file` compares it with the bytes that are stored.
"""

from __future__ import annotations

import io
import pickletools
import re
from dataclasses import dataclass
from typing import Any

import torch

# A training checkpoint of ConvNeXt-Huge (weights, average, AdamW's two moments) has 90,000.
MOST_OPCODES = 2_000_000
_MOST_KEY_ITEMS = 16
_TYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_STORAGE_TYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Untyped": torch.uint8,
}
_QUANTIZED_STORAGES = {"QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4"}
_OTHER_TENSORS = {
    "torch._utils._rebuild_qtensor": "quantized",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, without values",
    "torch._utils._rebuild_wrapper_subclass": "of a subclass of torch.Tensor",
    "torch._utils._rebuild_device_tensor_from_numpy": "of another kind of device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "of another kind of device",
}
_DENSE_TENSORS = {
    "torch._utils._rebuild_tensor": 4,
    "torch._utils._rebuild_tensor_v2": 6,
    "torch._utils._rebuild_tensor_v3": 7,
}
_PARAMETERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
}
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_OPAQUE = {
    "argparse.Namespace",
    "torch.Tensor",
    "torch.device",
    "torch.serialization._get_layout",
    *(f"torch.{scheme}" for scheme in ("per_tensor_affine", "per_tensor_symmetric", "per_channel_affine")),
    *(f"torch.{scheme}" for scheme in ("per_channel_symmetric", "per_channel_affine_float_qparams")),
}
# Values that trainers save beside the weights. None is made: what they are called with is dropped.
_HARMLESS = re.compile(
    r"numpy\.(dtype|ndarray|(_?core)\.multiarray\.(scalar|_reconstruct)|dtypes\.\w+)|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|"
    r"types\.SimpleNamespace|datetime\.(date|time|datetime|timedelta|timezone)|decimal\.Decimal|fractions\.Fraction|uuid\.UUID|"
    r"collections\.(deque|defaultdict)|builtins\.(int|float|bool|str|list|dict|tuple|slice|range|frozenset|type)|typing\.Any|"
    r"(omegaconf|yacs\.config|easydict|addict|ml_collections|mmengine\.(config|logging))\.[\w.]+|"
    r"(pytorch_lightning|lightning\.pytorch|lightning\.fabric|lightning_fabric)\.(utilities|callbacks|loops)\.[\w.]+|"
    r"transformers\.(training_args|trainer_utils|integrations)\.[\w.]+|torch\.optim\.[\w.]+"
)
_CONTAINERS = {"collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex"}
_BYTES = {"_codecs.encode", "builtins.bytearray"}
_KNOWN = {
    *_OTHER_TENSORS,
    *_DENSE_TENSORS,
    *_PARAMETERS,
    *_OPAQUE,
    *_CONTAINERS,
    *_BYTES,
    _FROM_TYPE,
    "torch.Size",
    "torch.storage.TypedStorage",
}
_PYTHON_2 = {"__builtin__": "builtins", "torch.tensor": "torch._tensor"}
_LITERALS = {"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class MalformedError(ValueError):
    """The stream is no pickle that torch.save writes."""


class ForbiddenCallError(ValueError):
    """The pickle names something that would have to be called. The message is its name. key: of the dictionary, where known."""

    key: str | None = None


@dataclass(frozen=True)
class Storage:
    """Where values lie. elements: as claimed, of `dtype`; view: of another storage, first element and number of them."""

    key: str
    dtype: torch.dtype | None
    elements: int
    view: tuple[str, int, int] | None = None


@dataclass(frozen=True)
class StoredTensor:
    """What the file says about a tensor, all of it unchecked: offset and stride count elements of `dtype`."""

    storage: Storage
    dtype: torch.dtype | None
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class OtherTensor:
    """A tensor that has no dense values. kind: the end of the sentence "it is ..."."""

    kind: str


@dataclass(frozen=True)
class Opaque:
    """A value that nobody asks for, such as an argparse.Namespace. name: of its class."""

    name: str


@dataclass(frozen=True)
class _Name:
    """What GLOBAL puts on the stack: a dotted name, never the thing itself."""

    path: str


def read_pickle(stream: io.BytesIO, storages: dict[str, Storage]) -> Any:
    """Read one pickle from where `stream` is, and leave the stream behind it.

    storages: filled with the storages that tensors name. Tensors become StoredTensor or OtherTensor, ordered dictionaries and
    counters plain ones. Raises MalformedError and ForbiddenCallError.
    """
    try:
        return _run(stream, storages)
    except (ForbiddenCallError, MalformedError, MemoryError):
        raise
    except Exception as error:  # whatever an arbitrary sequence of opcodes makes lists and tuples raise
        raise MalformedError(f"{type(error).__name__}: {error}") from error


def _run(stream: io.BytesIO, storages: dict[str, Storage]) -> Any:
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name = opcode.name
        if number >= MOST_OPCODES:
            raise MalformedError(f"its pickle has more than {MOST_OPCODES:,} opcodes")
        if name in _LITERALS:
            stack.append(argument)
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[_integer(argument)])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[_integer(argument)] = stack[-1]
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_SET":
            stack.append(set())
        elif name == "MARK":
            marked.append(stack)
            stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, marked.pop()
            if name == "TUPLE":
                stack.append(tuple(items))
            elif name == "APPENDS":
                if not isinstance(stack[-1], Opaque):
                    _of(list, stack[-1]).extend(items)
            else:
                _set_items(stack[-1], items)
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "APPEND":
            item = stack.pop()
            if not isinstance(stack[-1], Opaque):
                _of(list, stack[-1]).append(item)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set_items(stack[-1], [key, value])
        elif name == "GLOBAL":
            try:
                stack.append(_named(_of(str, argument)))
            except ForbiddenCallError as forbidden:
                forbidden.key = next(
                    (item for part in (stack, *reversed(marked)) for item in part[::-1] if isinstance(item, str)), None
                )
                raise
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = _of(tuple, stack.pop())
            stack[-1] = _called(_of(_Name, stack[-1]).path, arguments)
        elif name == "BUILD":
            stack.pop()
            _of((dict, StoredTensor, OtherTensor, Opaque), stack[-1])  # attributes, which nobody asks for
        elif name == "BINPERSID":
            storage = _storage(_of(tuple, stack.pop()))
            storages.setdefault(storage.view[0] if storage.view else storage.key, storage)
            stack.append(storage)
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise MalformedError(f"torch.save writes no {name}")
    raise MalformedError("it has no end")


def _named(argument: str) -> _Name | torch.dtype:
    """Return the name a GLOBAL means; raises ForbiddenCallError for all that torch.save does not write."""
    module, _, name = argument.partition(" ")
    path = f"{_PYTHON_2.get(module, module)}.{name}"
    if path in _TYPES:
        return _TYPES[path]
    if path in _KNOWN or _storage_kind(path) or _HARMLESS.fullmatch(path):
        return _Name(path)
    raise ForbiddenCallError(f"{module}.{name}")


def _storage_kind(path: str) -> str | None:
    match = re.fullmatch(r"torch(?:\.storage|\.cuda)?\.(\w+)Storage", path)
    return match[1] if match and match[1] in {*_STORAGE_TYPES, *_QUANTIZED_STORAGES} else None


def _called(path: str, arguments: tuple[Any, ...]) -> Any:
    if path in _OTHER_TENSORS:
        return OtherTensor(_OTHER_TENSORS[path])
    if path in _DENSE_TENSORS:
        return _tensor(path, arguments)
    if path in _PARAMETERS:
        return _of((StoredTensor, OtherTensor), arguments[0]) if arguments else OtherTensor("empty")
    if path == _FROM_TYPE:
        function, _, values, *_ = arguments
        path = _of(_Name, function).path
        if path not in _DENSE_TENSORS:
            return OtherTensor("of a subclass of torch.Tensor")
        return _tensor(path, _of(tuple, values))
    if path in _BYTES:
        return _bytes(arguments)
    if path == "torch.Size":
        return tuple(_of((tuple, list), arguments[0])) if arguments else ()
    if path == "builtins.complex":
        return complex(*(float(_of((int, float), part)) for part in arguments))
    if path == "builtins.set":
        return {_key(item) for item in (_of((list, tuple, set), arguments[0]) if arguments else ())}
    if path in _CONTAINERS:
        return _dictionary(arguments[0]) if arguments else {}
    if _HARMLESS.fullmatch(path):
        return Opaque(path)
    if path in _OPAQUE:
        return OtherTensor("of torch 0.3 or older") if path == "torch.Tensor" else Opaque(path)
    raise MalformedError(f"it calls {path}")


def _tensor(path: str, arguments: tuple[Any, ...]) -> StoredTensor | OtherTensor:
    storage, offset, size, stride, *rest = arguments
    storage = _of(Storage, storage)
    dtype = _of(torch.dtype, rest[2]) if path.endswith("_v3") else storage.dtype
    metadata = arguments[_DENSE_TENSORS[path]] if len(arguments) > _DENSE_TENSORS[path] else None
    if metadata:
        return OtherTensor("a view that is conjugated or negated when it is read")
    sizes, strides = (tuple(_integer(number) for number in _of((tuple, list), shape)) for shape in (size, stride))
    return StoredTensor(storage, dtype, _integer(offset), sizes, strides)


def _storage(identity: tuple[Any, ...]) -> Storage:
    word, kind, key, _, elements, *views = identity
    if word not in ("storage", b"storage"):
        raise MalformedError("it refers to something that is no storage")
    name = _storage_kind(_of(_Name, kind).path)
    view = None
    if views and views[0] is not None:
        view_key, offset, length = _of(tuple, views[0])
        view, key = (str(_key(key)), _integer(offset), _integer(length)), view_key
    return Storage(str(_key(key)), _STORAGE_TYPES.get(name or ""), _integer(elements), view)


def _bytes(arguments: tuple[Any, ...]) -> bytes:
    """What torch.save makes of bytes: (text, "latin1"); or the bytes themselves, or none."""
    if not arguments:
        return b""
    content, *encoding = arguments
    if isinstance(content, bytes) and not encoding:
        return content
    if encoding not in (["latin1"], ["latin-1"]):  # "hex" would double what it is given, call after call
        raise ForbiddenCallError("_codecs.encode")
    return _of(str, content).encode("latin-1")


def _dictionary(content: Any) -> dict[Any, Any]:
    pairs = content.items() if isinstance(content, dict) else _of((list, tuple), content)
    return {_key(key): value for key, value in pairs}


def _set_items(target: Any, items: list[Any]) -> None:
    if isinstance(target, Opaque):
        return
    dictionary = _of(dict, target)
    for key, value in zip(items[::2], items[1::2], strict=True):
        dictionary[_key(key)] = value


def _key(value: Any) -> Any:
    """Return a value that is hashed in bounded time: a tuple that holds another twice, and so on, takes for ever."""
    if isinstance(value, tuple) and len(value) <= _MOST_KEY_ITEMS:
        return tuple(_of((str, bytes, int, float), item) for item in value)
    if value is None:
        return value
    return _of((str, bytes, int, float, torch.dtype), value)


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise MalformedError("a number of elements is negative or no integer")
    return value


def _of(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise MalformedError(f"a {type(value).__name__} where something else belongs")
    return value
