"""The pages: English and Chinese say the same in the same order, links lead somewhere, samples are events, README's program runs."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
from harness import REPOSITORY, environment

from voice.output import events as contract

TWIN = ".zh-CN.md"
ENGLISH_ONLY = {
    "docs/SECURITY.md": "for whoever reviews it",
    "docs/mutation.md": "for whoever changes the code",
}
"""Pages of the root and of docs/ that deliberately have no Chinese twin; README.zh-CN.md says which of its links lead to English."""
NO_PAGES = {"CHANGELOG.md", "CONTRIBUTING.md"}
"""Of the root, for developers, in English; their links are checked as those of pages are."""
SWITCH = {"[简体中文]", "[English]"}
"""Text of the link from a page to its twin."""

_FENCE = re.compile(r"^(`{3,})(\w*)$")
_HEADING = re.compile(r"^(#{1,6}) (.+)$")
_ITEM = re.compile(r"^(\s*)(?:[-*]|\d+\.) ")
_ROW = re.compile(r"^\|(.*)\|$")
_RULE = re.compile(r"^[\s|:-]+$")
_CODE = re.compile(r"(`+)(.+?)\1")
_LINK = re.compile(r"(\[[^\]]*\])\(([^)\s]+)\)")
_WORD = re.compile(r"[A-Za-z_][\w./-]*\w")
_NUMBER = re.compile(r"\d(?:[\d,.]*\d)?")
_AMOUNT = re.compile(r"(\d(?:[\d,.]*\d)?) ?(M\b(?= parameters|,|\))|万|亿)?")
_UNITS = {"": 1, "M": 10**6, "万": 10**4, "亿": 10**8}


class Block(NamedTuple):
    """A fenced block."""

    language: str
    lines: tuple[str, ...]


class Link(NamedTuple):
    """A relative link, as it is written."""

    text: str
    target: str


@dataclass
class Section:
    """What stands between two headings."""

    title: str
    level: int
    prose: list[str] = field(default_factory=list)
    items: int = 0
    tables: list[list[list[str]]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All that is no fenced block."""
        cells = [cell for table in self.tables for row in table for cell in row]
        return "\n".join([self.title, *self.prose, *cells])

    @property
    def links(self) -> list[Link]:
        """The relative ones, without that to the twin."""
        found = [Link(*groups) for groups in _LINK.findall(_CODE.sub(lambda code: code[0] if "](" not in code[2] else "", self.text))]
        return [link for link in found if "://" not in link.target and link.text not in SWITCH]


@dataclass(frozen=True)
class Page:
    """A page, read."""

    path: Path
    sections: tuple[Section, ...]

    @property
    def slugs(self) -> list[str]:
        """What links to a heading are called, as GitHub makes them."""
        seen: dict[str, int] = {}
        slugs = []
        for section in self.sections:
            slug = _slug(section.title)
            count = seen[slug] = seen.get(slug, -1) + 1
            slugs.append(f"{slug}-{count}" if count else slug)
        return slugs


def _slug(title: str) -> str:
    plain = _LINK.sub(lambda link: link[1][1:-1], title).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)]


@functools.cache
def read(path: Path) -> Page:
    sections = [Section("", 0)]
    in_table = False
    lines = iter(path.read_text(encoding="utf-8").splitlines())
    for line in lines:
        section = sections[-1]
        row = _ROW.match(line)
        if fence := _FENCE.match(line):
            section.blocks.append(Block(fence[2], tuple(_until(lines, fence[1]))))
        elif heading := _HEADING.match(line):
            sections.append(Section(heading[2], len(heading[1])))
        elif row and not in_table:
            section.tables.append([_cells(row[1])])
        elif row and not _RULE.match(line):
            section.tables[-1].append(_cells(row[1]))
        elif not row:
            section.prose.append(line)
            section.items += bool(_ITEM.match(line))
        in_table = bool(row)
    return Page(path, tuple(sections))


def _until(lines: Iterator[str], fence: str) -> Iterator[str]:
    for line in lines:
        if line == fence:
            return
        yield line
    raise AssertionError("a fenced block does not end")


def name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
CHINESE = [path for path in PAGES if path.name.endswith(TWIN)]
ALL = [
    *PAGES,
    *(path for folder in ("deploy", "examples", "bench", "models", "tools") for path in (REPOSITORY / folder).glob("**/*.md")),
]
PAIRS = [pytest.param(read(path.with_name(path.name.replace(TWIN, ".md"))), read(path), id=name(path)) for path in CHINESE]
both = pytest.mark.parametrize(("english", "chinese"), PAIRS)


def sections(english: Page, chinese: Page) -> Iterator[tuple[Section, Section]]:
    return zip(english.sections, chinese.sections, strict=True)


def tables(english: Page, chinese: Page) -> Iterator[tuple[list[list[str]], list[list[str]]]]:
    for one, other in sections(english, chinese):
        yield from zip(one.tables, other.tables, strict=True)


# --- both languages -----------------------------------------------------------------------------------------------------


def test_every_page_has_a_twin_or_is_known_to_have_none() -> None:
    alone = {name(path) for path in PAGES} - {name(path) for path in CHINESE}
    alone -= {name(path).replace(TWIN, ".md") for path in CHINESE}
    assert alone == ENGLISH_ONLY.keys() | NO_PAGES


@both
def test_the_headings_are_the_same(english: Page, chinese: Page) -> None:
    assert [(section.level, "`" in section.title) for section in chinese.sections] == [
        (section.level, "`" in section.title) for section in english.sections
    ]


@both
def test_each_page_begins_with_a_link_to_its_twin(english: Page, chinese: Page) -> None:
    for page, text, twin in ((english, "[简体中文]", chinese), (chinese, "[English]", english)):
        assert f"{text}({twin.path.name})" in page.sections[1].prose[:2]


def without_comments(block: Block) -> list[str]:
    """Of commands and programs; a comment begins with a number sign after a blank, or at the start of a line."""
    return [re.sub(r"(^|\s+)# .*$", "", line) for line in block.lines]


@both
def test_commands_programs_and_samples_are_identical(english: Page, chinese: Page) -> None:
    for one, other in sections(english, chinese):
        assert [block.language for block in other.blocks] == [block.language for block in one.blocks], one.title
        for left, right in zip(one.blocks, other.blocks, strict=True):
            if left.language in ("sh", "python", "js", "ini"):
                assert without_comments(right) == without_comments(left)
            elif left.language:
                assert right == left


@both
def test_drawings_and_outputs_have_the_same_lines_and_names(english: Page, chinese: Page) -> None:
    """Blocks without a language: their words may be translated, their names may not."""
    for one, other in sections(english, chinese):
        for left, right in zip(one.blocks, other.blocks, strict=True):
            if not left.language:
                assert len(right.lines) == len(left.lines), one.title
                for in_english, in_chinese in zip(left.lines, right.lines, strict=True):
                    assert set(_WORD.findall(in_chinese)) <= set(_WORD.findall(in_english))


@both
def test_the_lists_are_as_long(english: Page, chinese: Page) -> None:
    assert [section.items for section in chinese.sections] == [section.items for section in english.sections]


@both
def test_the_tables_have_the_same_shape(english: Page, chinese: Page) -> None:
    for one, other in sections(english, chinese):
        assert [[len(row) for row in table] for table in other.tables] == [[len(row) for row in table] for table in one.tables], one.title


@both
def test_a_table_is_rectangular(english: Page, chinese: Page) -> None:
    for page in (english, chinese):
        for section in page.sections:
            assert all(len({len(row) for row in table}) == 1 for table in section.tables), section.title


def codes(text: str) -> list[str]:
    return sorted(code[1] for code in _CODE.findall(text))


def in_words(cell: str) -> str:
    """What is left of a cell without code, numbers, units and punctuation: the same in both languages where there is nothing."""
    return re.sub(r"[\W\d_]|\b(ms|MB|GB|GiB|MiB|kHz|Hz|dB)\b", "", _CODE.sub("", cell))


@both
def test_cells_of_code_and_numbers_are_the_same(english: Page, chinese: Page) -> None:
    for one, other in tables(english, chinese):
        pairs = [pair for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True)]
        for in_english, in_chinese in pairs:
            if not in_words(in_english):
                assert (codes(in_chinese), _NUMBER.findall(in_chinese)) == (codes(in_english), _NUMBER.findall(in_english))


@both
def test_each_row_names_the_same_code(english: Page, chinese: Page) -> None:
    for one, other in tables(english, chinese):
        for in_english, in_chinese in zip(one, other, strict=True):
            assert codes(" ".join(in_chinese).replace(TWIN, ".md")) == codes(" ".join(in_english)), in_english


@both
def test_each_section_names_the_same_code(english: Page, chinese: Page) -> None:
    """A setting, a key or a flag that one language mentions and the other does not is a fact that one of them lacks."""
    for one, other in sections(english, chinese):
        assert set(codes(other.text.replace(TWIN, ".md"))) == set(codes(one.text)), one.title


def amounts(text: str) -> set[str]:
    """The numbers outside of code and of the targets of links; 2.2 亿 and 220 M are the same."""
    plain = _LINK.sub(r"\1", _CODE.sub("", text))
    return {_amount(digits.replace(",", ""), unit) for digits, unit in _AMOUNT.findall(plain)}


def _amount(digits: str, unit: str) -> str:
    return f"{float(digits) * _UNITS[unit]:.0f}" if unit else digits


@both
def test_each_section_has_the_same_numbers(english: Page, chinese: Page) -> None:
    for one, other in sections(english, chinese):
        assert amounts(other.text) == amounts(one.text), one.title


# --- links --------------------------------------------------------------------------------------------------------------


def resolve(page: Page, link: Link) -> tuple[Path, int]:
    """The file or folder, and the number of the heading; 0 without one."""
    target, _, anchor = link.target.partition("#")
    path = (page.path.parent / target).resolve() if target else page.path
    assert path.is_relative_to(REPOSITORY), f"{name(page.path)}: {link.target} leads out of the repository"
    assert path.exists(), f"{name(page.path)}: {link.target} leads nowhere"
    if not anchor:
        return path, 0
    slugs = read(path).slugs
    assert anchor in slugs, f"{name(page.path)}: {link.target}: there is no such heading"
    return path, slugs.index(anchor)


@pytest.mark.parametrize("path", ALL, ids=name)
def test_every_link_leads_somewhere(path: Path) -> None:
    page = read(path)
    for section in page.sections:
        for link in section.links:
            resolve(page, link)


@both
def test_both_have_the_same_links_each_within_its_language(english: Page, chinese: Page) -> None:
    for one, other in sections(english, chinese):
        in_chinese = {resolve(chinese, link) for link in other.links}
        assert in_chinese == {(_twin(path), heading) for path, heading in (resolve(english, link) for link in one.links)}, one.title


def _twin(path: Path) -> Path:
    twin = path.with_name(path.name.replace(".md", TWIN))
    return twin if path.name.endswith(".md") and twin.exists() else path


# --- the samples are events ---------------------------------------------------------------------------------------------


def samples(page: Page) -> list[dict[str, Any]]:
    lines = [line for section in page.sections for block in section.blocks if block.language == "json" for line in block.lines]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("path", [path for path in PAGES if samples(read(path))], ids=name)
def test_every_sample_is_an_event_with_the_keys_of_today(path: Path) -> None:
    schema = json.loads((REPOSITORY / "config" / "events.schema.json").read_text(encoding="utf-8"))
    kinds = [each["properties"] for each in schema["$defs"].values() if "type" in each["properties"]]
    keys = {kind["type"]["const"]: list(kind) for kind in kinds}
    for event in samples(read(path)):
        jsonschema.validate(event, schema)
        assert list(event) == [key for key in keys[event["type"]] if key in event], "the schema requires those that no setting switches on"


def test_there_is_a_sample_of_every_event_and_every_state() -> None:
    shown = samples(read(REPOSITORY / "docs" / "events.md"))
    schema = contract.schema()
    kinds = {each["properties"]["type"]["const"] for each in schema["$defs"].values() if "type" in each["properties"]}
    states = set(schema["$defs"]["StatusEvent"]["properties"]["state"]["enum"])
    assert {event["type"] for event in shown} == kinds
    assert {event["state"] for event in shown if event["type"] == "core.status_event"} == states


# --- README's program ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_program_in_readme_prints_what_readme_says() -> None:
    page = read(REPOSITORY / "README.md")
    (section,) = (section for section in page.sections if any(block.language == "python" for block in section.blocks))
    (program,) = (block for block in section.blocks if block.language == "python")
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(program.lines)],
        cwd=REPOSITORY,
        env=environment(PYTHONUTF8="1"),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    assert result.stdout
    said = "\n".join(section.prose)
    assert all(f"`{line}`" in said for line in result.stdout.splitlines()), result.stdout
