"""The pictures of the documentation, and the tool that takes them (tools/terminal_pictures.py)."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest
from harness import REPOSITORY

from voice.commands.main import COMMANDS

DIRECTORY = REPOSITORY / "docs" / "pictures"
PICTURES = sorted(DIRECTORY.glob("*.svg"))
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
REFERENCE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
CELL = 8.4


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("terminal_pictures", REPOSITORY / "tools" / "terminal_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def texts(svg: str) -> list[ET.Element]:
    return [element for element in ET.fromstring(svg).iter() if element.tag.endswith("}text")]


def references(page: Path) -> Iterator[tuple[str, Path]]:
    """Alternative text and file of each picture on a page."""
    for alternative, target in REFERENCE.findall(page.read_text(encoding="utf-8")):
        yield alternative, (page.parent / target).resolve()


# --- the documentation --------------------------------------------------------------------------------------------------


def test_there_are_those_of_the_table(tool: ModuleType) -> None:
    assert sorted(path.stem for path in PICTURES) == sorted(picture.name for picture in tool.PICTURES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_refers_to_pictures_that_exist_and_describes_them(page: Path) -> None:
    for alternative, path in references(page):
        assert path.is_file(), path
        assert alternative.strip(), path


def test_both_languages_show_every_picture_in_the_same_order() -> None:
    english, chinese = ([path for _, path in references(REPOSITORY / "docs" / name)] for name in ("commands.md", "commands.zh-CN.md"))
    assert english == chinese
    assert sorted(english) == sorted([*PICTURES, DIRECTORY / "report.png"])


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_a_readme_shows_the_service_listening_and_a_report(name: str) -> None:
    assert [path for _, path in references(REPOSITORY / name)] == [DIRECTORY / "listen.svg", DIRECTORY / "report.png"]


# --- the pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_small_loads_nothing_and_names_no_folder_of_the_machine_it_was_made_on(path: Path) -> None:
    svg = path.read_text(encoding="utf-8")
    assert len(svg.encode()) < 60_000
    shown = "".join("".join(element.itertext()) for element in texts(svg))
    assert not re.search(r"/(work|tmp|root|build)\b", re.sub(r"\s", "", shown))
    for element in ET.fromstring(svg).iter():
        assert element.tag.rpartition("}")[2] in ("svg", "title", "style", "rect", "g", "circle", "text"), "it holds text and boxes only"
        assert not [name for name in element.attrib if "href" in name or name.startswith("on")]
    assert not re.search(r"url\(|@import|@font-face", svg)


def test_the_picture_of_the_help_names_every_command() -> None:
    """After a change of the commands: python tools/terminal_pictures.py CHECKOUT help."""
    shown = "\n".join("".join(element.itertext()) for element in texts((DIRECTORY / "help.svg").read_text(encoding="utf-8")))
    assert {name for name in COMMANDS if re.search(rf"^{name}\b", shown, re.MULTILINE)} == set(COMMANDS)


def test_the_picture_of_listen_has_finals_a_stable_text_and_a_dim_tail() -> None:
    shown = texts((DIRECTORY / "listen.svg").read_text(encoding="utf-8"))
    bold = [element for element in shown if element.get("class") == "w b"]
    last = [element for element in shown if element.get("y") == shown[-1].get("y")]
    assert sum(len(element.text or "") > 3 for element in bold) >= 2
    assert [element.get("class") for element in last[-2:]] == ["w", "w d"]
    assert (last[0].text or "").startswith("▮▮▮"), "somebody speaks"


# --- the tool -----------------------------------------------------------------------------------------------------------


def test_wide_characters_take_two_cells_each_and_what_follows_stands_behind_them(tool: ModuleType) -> None:
    chinese, latin = texts(tool.picture_of("打开ok\r\n".encode(), 20, 3))
    first, second = map(float, (chinese.get("x") or "").split())
    assert second - first == pytest.approx(2 * CELL)
    assert 0 <= first < CELL
    assert float(latin.get("x") or "") == pytest.approx(4 * CELL)
    assert float(latin.get("textLength") or "") == pytest.approx(2 * CELL)


def test_a_wide_character_that_does_not_fit_goes_to_the_next_line(tool: ModuleType) -> None:
    latin, chinese = texts(tool.picture_of("abcd打".encode(), 5, 3))
    assert float(chinese.get("y") or "") > float(latin.get("y") or "")
    assert float(chinese.get("x") or "") < CELL


def test_a_rewritten_line_shows_what_came_last(tool: ModuleType) -> None:
    (text,) = texts(tool.picture_of("你好\r\x1b[2K再见".encode(), 20, 3))
    assert text.text == "再见"


def test_dim_text_is_dim_until_it_ends_and_a_colour_is_no_attribute(tool: ModuleType) -> None:
    data = b"\x1b[2mtail\x1b[0m \x1b[2;31mred\x1b[22m x\x1b[0m \x1b[38;2;22;2;5mrgb\x1b[0m"
    shown = {element.text: element for element in texts(tool.picture_of(data, 40, 3))}
    assert {name: element.get("class") for name, element in shown.items()} == {"tail": "d", "red": "d", "x": None, "rgb": None}
    assert shown["rgb"].get("fill") == "#160205"
    assert shown["red"].get("fill") == shown["x"].get("fill")


def test_the_columns_of_a_table_keep_their_places(tool: ModuleType) -> None:
    left, right = texts(tool.picture_of(b"asr     recognition & more", 40, 3))
    assert (left.text, right.text) == ("asr", "recognition & more")
    assert float(right.get("x") or "") == pytest.approx(8 * CELL)


def test_bars_are_as_wide_as_their_cells(tool: ModuleType) -> None:
    (bar,) = texts(tool.picture_of("▮▮▮▯".encode(), 40, 3))
    assert float(bar.get("textLength") or "") == pytest.approx(4 * CELL)
    assert bar.get("lengthAdjust") == "spacingAndGlyphs"


def test_blank_lines_at_the_end_are_left_out(tool: ModuleType) -> None:
    heights = [float(ET.fromstring(tool.picture_of(b"a\r\nb", 10, rows)).get("height") or "") for rows in (2, 30)]
    assert heights[0] == heights[1]
