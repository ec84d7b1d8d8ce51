"""The mutants of a source: where each changes it, the text that results, and which are drawn."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import parso
from cosmic_ray.ast import ast_nodes
from mutant_operators import OwnOperator, applies, children, operators
from parso.tree import NodeOrLeaf

_LEFT_ALONE = {
    "string",
    "fstring",
    "import_name",
    "import_from",
    "raise_stmt",
    "assert_stmt",
    "decorator",
    "decorators",
}
_MESSAGES = {"warn", "debug", "info", "warning", "error", "print"}
_TYPE_FORMS = {"Literal", "Callable", "Union", "Optional", "TypeVar"}


@dataclass(frozen=True)
class Mutant:
    """One change. occurrence: which of the operator's places, as cosmic-ray counts them; before, after: the changed lines.

    start, end: offsets of the text that `replacement` stands for. number: among mutants with the same lines in the function.
    """

    module: str
    operator: str
    occurrence: int
    function: str
    line: int
    start: int
    end: int
    replacement: str
    before: str
    after: str
    number: int = 0

    def apply(self, source: str) -> str:
        """Return the mutated source."""
        return source[: self.start] + self.replacement + source[self.end :]

    @property
    def identity(self) -> str:
        """Name the change by what it does, not by its line: the draw stays the same where other functions change."""
        return "|".join((self.module, self.function, self.operator, self.before, self.after, str(self.number)))


def mutants_of(module: str, source: str) -> list[Mutant]:
    """Return every mutant of a module, in the order of its lines; each has another text than all others and can be compiled."""
    tree = parso.parse(source)
    lines = source.splitlines(keepends=True)
    offsets = [0, *accumulate(len(line) for line in lines)]
    texts: set[str] = {ast.dump(ast.parse(source))}
    result: list[Mutant] = []
    for node, name, occurrence, index, position in _places(tree):
        if _is_left_alone(tree.get_leaf_for_position(position, include_prefixes=True)):
            continue
        start, end = (offsets[line - 1] + column for line, column in (node.start_pos, node.end_pos))
        operator = operators_by_name[name]
        changed = operator.mutate(node if isinstance(operator, OwnOperator) else _copy(node), index)
        mutant = Mutant(
            module,
            name,
            occurrence,
            _function_name(node),
            position[0],
            start,
            end,
            changed.get_code(include_prefix=False).lstrip(),
            "",
            "",
        )
        text = mutant.apply(source)
        try:
            meaning = ast.dump(ast.parse(text))
        except SyntaxError:
            continue
        if meaning in texts:
            continue
        texts.add(meaning)
        before, after = _changed_lines(source, text)
        result.append(replace(mutant, before=before, after=after))
    return _numbered(sorted(result, key=lambda mutant: (mutant.line, mutant.start)))


def draw(mutants: list[Mutant], seed: int, count: int) -> list[Mutant]:
    """Return `count` mutants in the order of their lines: those whose identity hashes lowest with the seed."""

    def rank(mutant: Mutant) -> str:
        return hashlib.sha256(f"{seed}|{mutant.identity}".encode()).hexdigest()

    chosen = set(sorted(mutants, key=rank)[:count])
    return [mutant for mutant in mutants if mutant in chosen]


operators_by_name = operators()


def _places(tree: NodeOrLeaf) -> Iterator[tuple[NodeOrLeaf, str, int, int, tuple[int, int]]]:
    """Yield (node, operator, occurrence in the source, index in the node, position)."""
    counts: Counter[str] = Counter()
    for node in ast_nodes(tree):
        for name, operator in operators_by_name.items():
            for index, (start, _) in enumerate(operator.mutation_positions(node)):
                if applies(name, node):
                    yield node, name, counts[name], index, start
                counts[name] += 1


def _copy(node: NodeOrLeaf) -> NodeOrLeaf:
    """Copy a node, but not the tree above it."""
    return copy.deepcopy(node, {id(node.parent): node.parent})


def _is_left_alone(leaf: NodeOrLeaf) -> bool:
    """Say whether a place is a message, an annotation, type-only, or cannot matter (assert, zip's strict)."""
    below, node = leaf, leaf.parent
    while node is not None:
        parts = children(node)
        if (
            node.type in _LEFT_ALONE
            or (node.type == "annassign" and below is parts[1])
            or (node.type == "param" and below.type == "tfpdef")
            or (node.type == "funcdef" and below is node.annotation)
            or (node.type == "if_stmt" and parts[1].get_code().strip().endswith("TYPE_CHECKING"))
            or (node.type == "expr_stmt" and _is_type_or_list_of_names(node))
            or (node.type == "argument" and node.get_code().strip() == "strict=True")
            or (node.type == "trailer" and parts[0].get_code() == "(" and _called(node) in _MESSAGES)
        ):
            return True
        below, node = node, node.parent
    return leaf.type in {"string", "fstring_string"}


def _called(trailer: NodeOrLeaf) -> str:
    name = trailer.get_previous_leaf()
    return name.get_code().strip() if name is not None else ""


def _is_type_or_list_of_names(statement: NodeOrLeaf) -> bool:
    first, value = children(statement)[0].get_code().strip(), children(statement)[-1].get_first_leaf()
    return first == "__all__" or (value is not None and value.get_code().strip() in _TYPE_FORMS)


def _function_name(node: NodeOrLeaf) -> str:
    """Return "Class.method", "function", or "" at module level."""
    names: list[str] = []
    above: NodeOrLeaf | None = node
    while above is not None:
        if above.type in {"funcdef", "classdef"}:
            names.insert(0, children(above)[1].get_code().strip())
        above = above.parent
    return ".".join(names)


def _changed_lines(source: str, text: str) -> tuple[str, str]:
    """Return the lines that differ, before and after, each as one line without indentation."""
    old, new = source.splitlines(), text.splitlines()
    head = next(i for i, (a, b) in enumerate(zip([*old, None], [*new, None], strict=False)) if a != b)
    tail = next(i for i, (a, b) in enumerate(zip(reversed(old[head:]), reversed(new[head:]), strict=False)) if a != b)
    return tuple(" ".join(line.strip() for line in part[head : len(part) - tail]) for part in (old, new))  # type: ignore[return-value]


def _numbered(mutants: list[Mutant]) -> list[Mutant]:
    seen: Counter[str] = Counter()
    result = []
    for mutant in mutants:
        result.append(replace(mutant, number=seen[mutant.identity]))
        seen[mutant.identity] += 1
    return result
