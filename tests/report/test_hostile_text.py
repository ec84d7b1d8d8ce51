"""Text from outside is shown as text: every string of every record hostile, through every renderer.

Each page is compared with that of the same record with harmless strings: as many tags, cells and items, in the same order. What a
hostile name adds is text.
"""

from __future__ import annotations

import ast
import io
import re
import tomllib
import typing
import xml.etree.ElementTree
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import pytest
from markdown_it import MarkdownIt
from pydantic import BaseModel
from rich.console import Console, RenderableType
from sample_reports import sample_device, sample_report
from test_analysis_page import layer_of

from edgeconvnext.backends import load_target
from edgeconvnext.report.analysis_page import render_analysis_html
from edgeconvnext.report.analysis_terminal import render_analysis
from edgeconvnext.report.card import render_card
from edgeconvnext.report.changes_terminal import render_changes
from edgeconvnext.report.html import render_html
from edgeconvnext.report.placement_front import render_front_svg
from edgeconvnext.report.placement_terminal import render_search
from edgeconvnext.report.placement_toml import placement_toml
from edgeconvnext.report.roadmap_chart import render_roadmap_svg
from edgeconvnext.report.roadmap_page import as_csv, as_markdown, render_roadmap
from edgeconvnext.report.terminal import render_summary
from edgeconvnext.report.visible import visible
from edgeconvnext.schema.analysis import Analysis, Setting, Suspicion
from edgeconvnext.schema.placement import Measured, PlacementFound, Trial
from edgeconvnext.schema.report import (
    CompressionRecord,
    HeldOutLoss,
    Interval,
    NormVerdict,
    OutputRecord,
    PruningRecord,
    RecoveryRecord,
    Report,
    SizeRecord,
)
from edgeconvnext.schema.roadmap import Roadmap, RoadmapStep

PACKAGE = Path(__file__).resolve().parents[2] / "edgeconvnext"

HOSTILE = (
    "\x1b[31m\x9b2J</p></code></svg><script>alert(1)</script>]]><!--[/bold][link=file:///x]a[/]`*b*_c_ | ``` |~~~ # h\r\n"
    "\n# heading\n- item"
    "\u2028\u202e&amp; http://a.example <http://b.example> \x00\"' \\| $ {{ 7 * 7 }} \udcff ![i](http://c.example)"
)
HARMLESS = "plain"
RecordType = TypeVar("RecordType", bound=BaseModel)


def filled(record: RecordType, text: str) -> RecordType:
    """Return a record with every free text in it, keys included, replaced; numbers, choices and pictures stay."""
    changed = {
        name: _filled(getattr(record, name), field.annotation, text)
        for name, field in type(record).model_fields.items()
        if name not in ("thumbnail", "placed")
    }
    return record.model_copy(update=changed)


def _filled(value: Any, annotation: Any, text: str) -> Any:
    if isinstance(value, BaseModel):
        return filled(value, text)
    if isinstance(value, list):
        inner = get_args(annotation)[0] if get_args(annotation) else Any
        return [_filled(item, inner, text) for item in value]
    if isinstance(value, dict):
        return {f"{index}{text}": _filled(item, str, text) for index, item in enumerate(value.values())}
    if isinstance(value, str):
        choices = [part for part in (annotation, *get_args(annotation)) if get_origin(part) is Literal]
        return value if choices else text
    return value


def whole_report() -> Report:
    """A report with every section that there is."""
    loss = HeldOutLoss(points=0.1, expected_points=0.2, kl=0.01, agreement=99, agreement_low=98, agreement_high=100)
    norm = NormVerdict(norm="norm", method="frozen", verdict="replaced", why="small", error_alone=0.1, kl_alone=0.1)
    norm = norm.model_copy(update={"agreement_alone": 99.0, "agreement_low": 98.0, "agreement_high": 100.0})
    size = SizeRecord(size=(384, 512), images=9, sqnr_db=30, simulated_sqnr_db=31, fidelity_db=None)
    return sample_report().model_copy(
        update={
            "device": sample_device(),
            "sizes": [size],
            "not_measured": {"latency.power": "no meter"},
            "compression": CompressionRecord(
                images=9,
                held_out=3,
                judged_by="top-1",
                macs_before=10,
                macs_after=5,
                parameters_before=10,
                parameters_after=5,
                pruning=PruningRecord(asked_macs=0.5, widths={"stages.0.0": 4}, errors={"stages.0.0": 0.1}, loss=loss),
                norms=[norm, norm.model_copy(update={"verdict": "kept"})],
                recovery=RecoveryRecord(
                    epochs=1, images=9, minutes=1.0, losses=[0.1], before=loss, after=loss, kept=True
                ),
                loss=loss,
            ),
        }
    )


def backbone_report() -> Report:
    outputs = [
        OutputRecord(name=name, shape=(40, 8, 8), sqnr_db=30, simulated_sqnr_db=31, fidelity_db=40) for name in "ab"
    ]
    return whole_report().model_copy(update={"outputs": outputs})


def board_report() -> Report:
    return whole_report().model_copy(update={"exporter": "tensorrt", "accuracy": sample_report().accuracy})


def analysis() -> Analysis:
    setting = Setting(
        model="net",
        target="onnx",
        exporter="onnx",
        wide_activations=True,
        affine_activations=True,
        prepares_hidden="none",
        prepares_depthwise=False,
        effort="default",
        calibrator="auto",
        smoothing="auto",
        calibration_set="photos",
        fit_images=80,
        held_out_images=40,
        sensitivity_images=40,
    )
    suspicion = Suspicion(kind="rare-values", layer="head", sentence="head input: try --max-drop.")
    layers = [layer_of(name, 1e-5, 3e-5) for name in ("stages.0.0.pwconv1", "head")]
    return Analysis(setting=setting, kl=5.1e-4, agreement=98.0, layers=layers, suspicions=[suspicion] * 2)


def placement() -> PlacementFound:
    measured = Measured(
        speedup=Interval(value=1.2, low=1.1, high=1.3), ms=1, fp32_ms=2, sqnr_db=30, kl=0.1, agreement=99, size_bytes=9
    )
    trials = [
        Trial(move="float head", layers=["head"], measured=measured, against=measured, taken=taken)
        for taken in (True, False)
    ]
    return PlacementFound(
        model="net",
        target="onnx",
        runtime="onnxruntime",
        device="a board",
        threads=1,
        input_size=(32, 32),
        start=measured,
        best=measured,
        trials=trials,
        float_layers={"head": "it is faster"},
        untried=1,
        taken_over=1,
        placed=load_target("onnx"),
    )


def roadmap() -> Roadmap:
    step = RoadmapStep(
        name="ResNet-50",
        change="nothing",
        macs=10**9,
        params=10**6,
        published_gflops=4.1,
        published_top1=76.1,
        resolution=64,
        macs_at_resolution=10**8,
        weights="random",
        latency_fp32_ms=9.0,
        latency_int8_ms=4.0,
        speedup=Interval(value=2.25, low=2.2, high=2.3),
        not_measured={"top1_fp32": "no labels"},
    )
    return Roadmap(
        target="onnx",
        runtime="onnxruntime",
        resolution=64,
        effort="quick",
        threads=1,
        calibration_set="digits",
        calibration_images=9,
        environment={"cpu": "a processor"},
        notes=["a note"],
        steps=[step, step.model_copy(update={"name": "last"})],
    )


SHOWN = visible(HOSTILE)


def raw_characters(text: str) -> set[str]:
    """Control, format and separator characters other than line breaks."""
    return {character for character in text if not character.isprintable() and character not in "\n\u00a0"}


def test_the_text_is_hostile_and_is_shown_whole() -> None:
    assert SHOWN.isprintable() and SHOWN.startswith("\\x1b[31m\\x9b2J</p>") and "\\r\\n\\n# heading" in SHOWN


def test_every_text_of_a_record_is_replaced() -> None:
    for record in (whole_report(), analysis(), placement(), roadmap()):
        texts = list(_texts(filled(record, HOSTILE).model_dump(exclude={"placed"})))
        assert texts.count(HOSTILE) > 5
        known = {text for text in texts if HOSTILE not in text and not text.startswith("data:image")}
        choices = {choice for model in _models(type(record)) for choice in _choices(model)}
        assert known <= choices, known - choices


def _texts(value: Any) -> typing.Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            # names of fields are ours; keys of free tables begin with a number here
            yield from [key] if key[:1].isdigit() else []
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _models(model: type[BaseModel]) -> set[type[BaseModel]]:
    found, left = set(), [model]
    while left:
        one = left.pop()
        if isinstance(one, type) and issubclass(one, BaseModel) and one not in found:
            found.add(one)
            left += [field.annotation for field in one.model_fields.values() if field.annotation is not None]
        else:
            left += [part for part in get_args(one) if get_args(part) or isinstance(part, type)]
    return found


def _choices(model: type[BaseModel]) -> set[str]:
    found: set[str] = set()
    for field in model.model_fields.values():
        for part in (field.annotation, *get_args(field.annotation)):
            if get_origin(part) is Literal:
                found |= {str(choice) for choice in get_args(part)}
    return found


# ------------------------------------------------------------------------------------------------------------ Terminal


def printed(renderable: RenderableType) -> str:
    file = io.StringIO()
    Console(file=file, width=20_000, highlight=False).print(renderable)
    return file.getvalue()


@pytest.mark.parametrize(
    ("render", "record"),
    [
        (render_summary, whole_report),
        (render_summary, backbone_report),
        (render_analysis, analysis),
        (render_search, placement),
        (render_roadmap, roadmap),
        (lambda report: render_changes(report.compression), whole_report),
    ],
)
def test_a_terminal_gets_no_control_character_and_no_markup(
    render: Callable[[Any], RenderableType], record: Callable[[], BaseModel]
) -> None:
    text = printed(render(filled(record(), HOSTILE)))
    plain = printed(render(filled(record(), HARMLESS)))
    assert not raw_characters(text)
    assert text.count("\n") == plain.count("\n"), "no line is forged"
    # A sentence may begin with it.
    assert text.replace(SHOWN, HARMLESS).split() == plain.replace(HARMLESS.capitalize(), HARMLESS).split(), "all of it"


def test_a_wrong_tag_in_a_name_does_not_end_the_merge() -> None:
    """It ended in a MarkupError after the results had been merged."""
    report = whole_report()
    for output in (report.model_copy(update={"outputs": backbone_report().outputs}), report):
        assert printed(render_summary(filled(output, "[/bold]"))).count("[/bold]") > 20


# ---------------------------------------------------------------------------------------------------------------- Pages


class Structure(HTMLParser):
    """Tags with the names of their attributes in their order, and the text between them.

    Left out are a path's places to wrap, and code: a suspicion's sentence sets as code what stands between backticks.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.texts: list[str] = []
        self.attributes: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("wbr", "code"):
            self.tags.append((tag, [name for name, _ in attrs]))
        self.attributes += [value for _, value in attrs if value]

    def handle_endtag(self, tag: str) -> None:
        if tag != "code":
            self.tags.append(f"/{tag}")

    def handle_comment(self, data: str) -> None:
        self.tags.append(f"comment {data}")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize(
    ("render", "record"),
    [
        (render_html, whole_report),
        (render_html, backbone_report),
        (render_html, board_report),
        (render_analysis_html, analysis),
    ],
)
def test_a_page_gets_no_tag_and_no_control_character(
    render: Callable[[Any], str], record: Callable[[], BaseModel]
) -> None:
    page, plain = render(filled(record(), HOSTILE)), render(filled(record(), HARMLESS))
    assert not raw_characters(page)
    structure, expected = Structure(page), Structure(plain)
    assert structure.tags == expected.tags
    assert "script" not in {tag[0] for tag in structure.tags} and "<script" not in page
    assert "".join(structure.texts).count("<script>alert(1)</script>") > 10, "all of it is shown"
    assert not any(tag.startswith("comment") for tag in structure.tags if isinstance(tag, str))


@pytest.mark.parametrize(("render", "record"), [(render_front_svg, placement), (render_roadmap_svg, roadmap)])
def test_a_plot_gets_no_element_and_no_control_character(
    render: Callable[[Any], str], record: Callable[[], BaseModel]
) -> None:
    plot, plain = (render(filled(record(), text)) for text in (HOSTILE, HARMLESS))
    assert not raw_characters(plot)
    found, expected = (list(xml.etree.ElementTree.fromstring(text).iter()) for text in (plot, plain))
    assert [(one.tag, one.attrib.keys()) for one in found] == [(one.tag, one.attrib.keys()) for one in expected]
    assert any(SHOWN in (one.text or "") for one in found)


# ------------------------------------------------------------------------------------------------------------- Markdown

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def structure_of(markdown: str) -> list[tuple[str, str]]:
    """Tokens of a text with the content of code blocks; what is text counts as such, however it is escaped."""
    found: list[tuple[str, str]] = []
    for token in MARKDOWN.parse(markdown):
        found.append((token.type, token.info))
        for child in token.children or []:
            kind = "text" if child.type in ("text", "text_special") else child.type
            if kind != "text" or not found or found[-1][0] != "text":
                found.append((kind, ""))
    return found


@pytest.mark.parametrize(
    ("render", "record"),
    [
        (render_card, whole_report),
        (render_card, backbone_report),
        (render_card, board_report),
        (lambda found: as_markdown(found, "roadmap"), roadmap),
    ],
)
def test_a_card_renders_to_the_text(render: Callable[[Any], str], record: Callable[[], BaseModel]) -> None:
    card, plain = render(filled(record(), HOSTILE)), render(filled(record(), HARMLESS))
    assert not raw_characters(card)
    assert structure_of(card) == structure_of(plain)
    shown = unescape(re.sub(r"<[^>]*>", "", MARKDOWN.render(card)))
    assert shown.count(SHOWN) >= plain.count(HARMLESS) / 2 > 1


@pytest.mark.parametrize("record", [whole_report, backbone_report, board_report])
def test_the_code_of_a_card_stays_code(record: Callable[[], Report]) -> None:
    hostile = filled(record(), HOSTILE).model_copy(update={"exporter": record().exporter})  # whose card has code
    blocks = [token for token in MARKDOWN.parse(render_card(hostile)) if token.type == "fence"]
    assert blocks
    for block in blocks:
        ast.parse(block.content)
        assert "alert(1)" not in re.sub(r"'(\\.|[^'\\])*'|\"(\\.|[^\"\\])*\"", "", block.content), "in quotes only"


# ---------------------------------------------------------------------------------------------------------- Other files


def test_a_target_file_holds_the_text_in_strings_and_comments_only() -> None:
    written, plain = (placement_toml(filled(placement(), text)) for text in (HOSTILE, HARMLESS))
    assert not raw_characters(written)
    assert tomllib.loads(written).keys() == tomllib.loads(plain).keys()


def test_a_table_has_a_line_for_each_step() -> None:
    import csv

    rows = list(csv.reader(io.StringIO(as_csv(filled(roadmap(), HOSTILE)), newline="")))
    assert len(rows) == 3 and len({len(row) for row in rows}) == 1


# -------------------------------------------------------------------------------------------------------------- Sources


def test_nothing_else_escapes() -> None:
    """One function for each place, in escape.py: a second one would be forgotten when the first is mended."""
    others = {
        ("html", "escape"),
        ("rich.markup", "escape"),
        ("markupsafe", "escape"),
        ("markupsafe", "escape_silent"),
        ("xml.sax.saxutils", "escape"),
        ("xml.sax.saxutils", "quoteattr"),
        ("cgi", "escape"),
    }
    modules = {module for module, _ in others} - {"markupsafe"}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PACKAGE / "escape.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    assert (node.module, alias.name) not in others, f"{path} escapes by itself"
                    assert f"{node.module}.{alias.name}" not in modules, f"{path} escapes by itself"
            elif isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & modules, f"{path} escapes by itself"


def test_no_template_takes_a_text_for_html() -> None:
    for path in sorted((PACKAGE / "report" / "templates").glob("*.jinja")):
        assert not re.search(r"\|\s*(safe|e|escape|forceescape)\b|autoescape", path.read_text(encoding="utf-8")), path


def test_every_row_of_a_table_is_text_and_not_markup() -> None:
    """Rich reads a plain string as markup: where a record's text goes into a cell, it is a Text."""
    for path in sorted((PACKAGE / "report").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_row":
                bare = [one for one in node.args if isinstance(one, ast.Attribute)]
                assert not bare or ast.unparse(bare[0]) in ("text.measured",), f"{path}:{node.lineno}"
