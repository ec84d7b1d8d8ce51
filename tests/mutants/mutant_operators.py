"""What a mutant changes: operators of cosmic-ray, and those it has none for (augmented assignment, returned values, ...)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain

import parso
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.operators.provider import OperatorProvider
from parso.python.tree import Function, Name
from parso.tree import NodeOrLeaf

Position = tuple[tuple[int, int], tuple[int, int]]

# Of cosmic-ray's replacements those that a test can miss: `a << b` in place of `a + b` fails on every float.
_BINARY = {
    "Add": ("Sub",),
    "Sub": ("Add",),
    "Mul": ("Div",),
    "Div": ("Mul",),
    "FloorDiv": ("Mul", "Div"),
    "Mod": ("FloorDiv",),
    "Pow": ("Mul",),
    "LShift": ("RShift",),
    "RShift": ("LShift",),
    "BitOr": ("BitAnd",),
    "BitAnd": ("BitOr",),
    "BitXor": ("BitOr",),
}
_COMPARISON = {
    "Lt": ("LtE", "GtE"),
    "LtE": ("Lt", "Gt"),
    "Gt": ("GtE", "LtE"),
    "GtE": ("Gt", "Lt"),
    "Eq": ("NotEq",),
    "NotEq": ("Eq",),
    "Is": ("IsNot",),
    "IsNot": ("Is",),
}
_OTHERS = (
    "NumberReplacer",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ReplaceUnaryOperator_Delete_USub",
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_Invert",
    "AddNot",
)

_ARITHMETIC_NODES = {"term", "arith_expr", "expr", "and_expr", "xor_expr", "shift_expr", "power"}
_AUGMENTED = {
    "+=": "-=",
    "-=": "+=",
    "*=": "/=",
    "/=": "*=",
    "//=": "*=",
    "|=": "&=",
    "&=": "|=",
    "@=": "*=",
    "%=": "//=",
}
_FUNCTIONS = {
    "round": "floor",
    "round_": "floor_",
    "rint": "floor",
    "floor": "ceil",
    "ceil": "floor",
    "min": "max",
    "max": "min",
    "amin": "amax",
    "amax": "amin",
    "minimum": "maximum",
    "maximum": "minimum",
    "argmin": "argmax",
    "argmax": "argmin",
    "clamp_min": "clamp_max",
    "clamp_max": "clamp_min",
    "any": "all",
    "all": "any",
    "abs": "positive",
    "square": "abs",
    "mean": "sum",
    "median": "mean",
    "std": "var",
    "log10": "log2",
    "zeros": "ones",
    "ones": "zeros",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
}
_BUILTINS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_PATH = re.compile(r"(path|folder|root|source|destination|directory|parent)$|_(FILE|FOLDER)$|[\"']$", re.IGNORECASE)


def children(node: NodeOrLeaf) -> Sequence[NodeOrLeaf]:
    """Return the parts of a node; a leaf has none."""
    return getattr(node, "children", ())


def is_path_join(operator: NodeOrLeaf) -> bool:
    """Say whether `operator` is the "/" of pathlib, by the names and the strings beside it."""
    beside = (operator.get_previous_sibling(), operator.get_next_sibling())
    whole = operator.parent
    first = children(whole)[0] if whole is not None else None
    return any(part is not None and _PATH.search(part.get_code().strip()) for part in (*beside, first))


def _is_arithmetic(leaf: NodeOrLeaf) -> bool:
    parent = leaf.parent
    if leaf.type != "operator" or parent is None or parent.type not in _ARITHMETIC_NODES:
        return False
    return not (leaf.get_code().strip() == "/" and is_path_join(leaf))


def _is_plain(node: NodeOrLeaf) -> bool:
    """Say whether a node is a name or a chain of attributes."""
    if node.type == "name":
        return True
    parts = children(node)
    return node.type == "atom_expr" and all(
        part.type == "trailer" and children(part)[0].get_code() == "." for part in parts[1:]
    )


def function_of(node: NodeOrLeaf) -> Function | None:
    """Return the function that a node stands in; None at module and class level."""
    above = node.parent
    while above is not None and above.type not in {"funcdef", "classdef"}:
        above = above.parent
    return above if isinstance(above, Function) else None


class OwnOperator(Operator):
    """An operator that cosmic-ray does not have: `choices` gives the new texts of a node, which stays as it is."""

    def choices(self, node: NodeOrLeaf) -> list[str]:
        """Return the texts that may stand in the node's place."""
        raise NotImplementedError

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[Position]:
        for _ in self.choices(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        return parso.parse(node.get_first_leaf().prefix + self.choices(node)[index])

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return ()


class AugmentedAssignment(OwnOperator):
    """`x += y` becomes `x -= y`."""

    def choices(self, node: NodeOrLeaf) -> list[str]:
        other = _AUGMENTED.get(node.get_code().strip()) if node.type == "operator" else None
        return [other] if other else []


class Membership(OwnOperator):
    """`x in y` becomes `x not in y`, and the other way round."""

    def choices(self, node: NodeOrLeaf) -> list[str]:
        parent = node.parent
        if parent is None or parent.type != "comparison":
            return []
        other = {"in": "not in", "not in": "in"}.get(" ".join(node.get_code().split()))
        return [other] if other else []


class OffByOne(OwnOperator):
    """`x / self.quant_max` becomes `x / (self.quant_max + 1)`; so do the bounds of clip and clamp."""

    def choices(self, node: NodeOrLeaf) -> list[str]:
        return (
            [f"({node.get_code().strip()} + 1)"] if _is_plain(node) and (_is_operand(node) or _is_bound(node)) else []
        )


def _is_operand(node: NodeOrLeaf) -> bool:
    """Say whether a node is what follows "+", "-", "*", "/", "//" or "%"."""
    parent, operator = node.parent, node.get_previous_sibling()
    if parent is None or parent.type not in {"term", "arith_expr"} or operator is None:
        return False
    return operator.get_code().strip() in {"+", "-", "*", "/", "//", "%"} and _is_arithmetic(operator)


def _is_bound(node: NodeOrLeaf) -> bool:
    """Say whether a node is a bound of clip or clamp."""
    arguments = node.parent
    if arguments is None:
        return False
    trailer = arguments if arguments.type == "trailer" else arguments.parent
    if trailer is None or trailer.type != "trailer" or children(trailer)[0].get_code() != "(":
        return False
    called = trailer.get_previous_leaf()
    if called is None or called.get_code().strip() not in {"clip", "clamp", "clamp_"}:
        return False
    before = called.get_previous_leaf()
    owner = before.get_previous_leaf() if before is not None else None
    first_is_value = owner is not None and owner.get_code().strip() in {"np", "torch"}
    return not (first_is_value and arguments.type == "arglist" and children(arguments)[0] is node)


class FunctionReplacer(OwnOperator):
    """`np.round(x)` becomes `np.floor(x)`, `min(a, b)` becomes `max(a, b)`."""

    def choices(self, node: NodeOrLeaf) -> list[str]:
        following = node.get_next_leaf() if node.type == "name" else None
        if following is None or following.get_code() != "(":
            return []
        before, name = node.get_previous_leaf(), node.get_code().strip()
        if before is not None and before.get_code() == ".":
            return [_FUNCTIONS[name]] if name in _FUNCTIONS else []
        is_call = node.parent is not None and node.parent.type == "atom_expr"
        return [_BUILTINS[name]] if is_call and name in _BUILTINS else []


class ParameterSwap(OwnOperator):
    """A parameter becomes the function's next parameter of the same annotation: `held_out` becomes `fit`. Texts are left alone."""

    def choices(self, node: NodeOrLeaf) -> list[str]:
        if not isinstance(node, Name) or node.is_definition():
            return []
        parent, function = node.parent, function_of(node)
        if function is None or parent is None or parent.type in {"param", "tfpdef"}:
            return []
        if parent.type == "trailer" and children(parent)[0].get_code() == ".":
            return []
        if parent.type == "argument" and children(parent)[0] is node and children(parent)[1].get_code() == "=":
            return []
        kinds = {
            param.name.value: param.annotation.get_code().strip() for param in function.get_params() if param.annotation
        }
        kind = kinds.get(node.value)
        if kind is None or kind.startswith("str"):
            return []
        same = [name for name, other in kinds.items() if other == kind]
        return [same[(same.index(node.value) + 1) % len(same)]] if len(same) > 1 else []


class ReturnedValue(OwnOperator):
    """A returned value becomes None, an empty list or dict, one more, the contrary (bool), or its parts change places."""

    def choices(self, node: NodeOrLeaf) -> list[str]:
        if node.type != "return_stmt":
            return []
        value = children(node)[1]
        code, function = value.get_code().strip(), function_of(node)
        annotation = function.annotation if function is not None else None
        kind = annotation.get_code().strip() if annotation is not None else ""
        if code in {"None", "True", "False", "[]", "{}"}:
            return []
        if kind == "bool":
            return [] if value.type in {"comparison", "not_test"} else [f"return not ({code})"]
        if kind in {"int", "float"}:
            return [] if value.type == "number" else [f"return ({code}) + 1"]
        if value.type in {"testlist", "testlist_star_expr"} and kind != "str":
            first, comma, second, *rest = (part.get_code() for part in children(value))
            return [f"return {second.strip()}{comma} {first.strip()}{''.join(rest)}"]
        return ["return " + ("[]" if kind.startswith("list[") else "{}" if kind.startswith("dict[") else "None")]


class FilterNegated(OwnOperator):
    """`[x for x in y if z]` becomes `[x for x in y if not (z)]`."""

    def choices(self, node: NodeOrLeaf) -> list[str]:
        if node.type != "comp_if" or children(node)[1].type in {"comparison", "not_test"}:
            return []
        return [f"if not ({children(node)[1].get_code().strip()})"]


def _names() -> Iterator[str]:
    for kind, table in (("Binary", _BINARY), ("Comparison", _COMPARISON)):
        for old, news in table.items():
            yield from (f"Replace{kind}Operator_{old}_{new}" for new in news)
    yield from _OTHERS


def operators() -> dict[str, Operator]:
    """Return every operator by name: cosmic-ray's first, then this module's."""
    provider = OperatorProvider()
    own = (AugmentedAssignment, Membership, OffByOne, FunctionReplacer, ParameterSwap, ReturnedValue, FilterNegated)
    return dict(chain(((name, provider[name]()) for name in _names()), ((kind.__name__, kind()) for kind in own)))


def applies(name: str, node: NodeOrLeaf) -> bool:
    """Say whether an operator may look at a node: "**" that unpacks is no power, and a negated comparison has its own operator."""
    if name.startswith("ReplaceBinaryOperator"):
        return _is_arithmetic(node)
    if name == "AddNot":
        condition = children(node)[2 if node.type == "test" else 1]
        while condition.type in {"and_test", "or_test"}:  # cosmic-ray's "not" binds to the first part
            condition = children(condition)[0]
        return condition.type not in {"comparison", "not_test"}
    return True
