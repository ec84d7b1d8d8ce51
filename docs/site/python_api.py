"""The page "Python": the functions and classes of the package, from their docstrings; nothing heavy is imported.

Sources are parsed, not run: torch is no part of building the pages. Options come from the classes that declare them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from docstrings import as_markdown
from markdown_table import cell, table

import edgeconvnext
from edgeconvnext.options import commands as options
from edgeconvnext.options.declaration import Declared, Options, declared_options

_OPENING = """# Python

Every function of `import edgeconvnext`, with its arguments, defaults and errors, and the classes that functions return.
This page is made from the docstrings. [From Python](python.md) shows how the functions are used together.

Keywords after `*` are given by name. Bad input raises a class of `edgeconvnext.errors` ([exit codes and errors](exit-codes.md)).
"""

_SOURCES = Path(edgeconvnext.__file__).parent

RESULTS = {
    "Outcome": "pipeline/commands.py",
    "Artifact": "prediction/artifact.py",
    "Answer": "prediction/networks.py",
    "Analyzed": "pipeline/commands.py",
    "Comparison": "schema/comparison.py",
    "LoadedModel": "model/loaded.py",
    "Preprocess": "data/preprocess.py",
    "FoldResult": "rewrite/exact.py",
    "Pruned": "api.py",
    "Compressed": "tuning/compress.py",
    "QuantizedModule": "tuning/larger_module.py",
    "ExportedModule": "tuning/larger_module.py",
}
"""Classes that functions return or take, and the files that define them."""


def page() -> str:
    """Return the page in Markdown."""
    public = [name for name in edgeconvnext.__all__ if not name.startswith("_")]
    lines = [_OPENING, "## Functions", ""]
    lines += [_function(name) for name in public if name[0].islower()]
    lines += ["## Classes", ""]
    lines += [
        _class(name, source)
        for name, source in ({name: _home(name) for name in public if name[0].isupper()} | RESULTS).items()
    ]
    return "\n".join(lines)


def _home(name: str) -> str:
    """Return the file that defines a public name."""
    return edgeconvnext._HOMES[name].partition(".")[2].replace(".", "/") + ".py"


def _definition(name: str, source: str) -> ast.FunctionDef | ast.ClassDef:
    tree = ast.parse((_SOURCES / source).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    raise LookupError(f"{source} defines no {name}")


def _function(name: str) -> str:
    node = _definition(name, _home(name))
    assert isinstance(node, ast.FunctionDef)
    taken = _options(node)
    names = {argument.arg for argument in _arguments(node)} | set(taken)
    lines = [f"### {name}", "", f"```python\n{_signature(node, bool(taken))}\n```", ""]
    lines += [as_markdown(ast.get_docstring(node) or "", names), ""]
    if taken:
        rows = [(f"`{key}`", _default(known), cell(known.about.help)) for key, known in taken.items()]
        lines += [table(("keyword", "default", "what it does"), rows), ""]
    return "\n".join(lines)


def _options(node: ast.FunctionDef) -> dict[str, Declared]:
    """Return the options that a function takes as keywords, as its decorator says."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in (
            "takes_options",
            "takes_subject_and_options",
        ):
            kind: type[Options] = getattr(options, ast.unparse(decorator.args[0]).partition(".")[2])
            return declared_options(kind)
    return {}


def _default(known: Declared) -> str:
    if known.required:
        return "required"
    return cell(known.about.default_text) or f"`{known.field.default!r}`"


def _arguments(node: ast.FunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def _signature(node: ast.FunctionDef, takes_options: bool) -> str:
    """Return how a function is called, one argument a line where there are more than two."""
    parts = [ast.unparse(argument) for argument in node.args.args if argument.arg != "self"]
    if takes_options:
        parts = [*parts[:-1], "**options"]
    elif node.args.kwonlyargs:
        parts.append("*")
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        parts.append(ast.unparse(argument) + (f" = {ast.unparse(default)}" if default is not None else ""))
    for index, default in enumerate(reversed(node.args.defaults), start=1):
        parts[len(node.args.args) - index - (1 if node.args.args[:1] and node.args.args[0].arg == "self" else 0)] += (
            f" = {ast.unparse(default)}"
        )
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    if len(parts) <= 2:
        return f"{node.name}({', '.join(parts)}){result}"
    return f"{node.name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"


def _class(name: str, source: str) -> str:
    node = _definition(name, source)
    assert isinstance(node, ast.ClassDef)
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and not _name(part).startswith("_")]
    lines = [f"### {name}", "", as_markdown(ast.get_docstring(node) or "", {_name(field) for field in fields}), ""]
    if fields:
        rows = [(f"`{_name(field)}`", f"`{ast.unparse(field.annotation)}`".replace("|", "\\|")) for field in fields]
        lines += [table(("field", "type"), rows), ""]
    for method in _methods(node):
        is_property = any(ast.unparse(decorator).endswith("property") for decorator in method.decorator_list)
        shown = (
            f"{method.name}: {ast.unparse(method.returns)}"
            if is_property and method.returns
            else _signature(method, False)
        )
        names = {argument.arg for argument in _arguments(method)}
        lines += [f"```python\n{shown}\n```", "", as_markdown(ast.get_docstring(method) or "", names), ""]
    return "\n".join(lines)


def _name(field: ast.AnnAssign) -> str:
    return ast.unparse(field.target)


def _methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Give the methods of a class that are documented and public."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and not part.name.startswith("_") and ast.get_docstring(part):
            yield part
