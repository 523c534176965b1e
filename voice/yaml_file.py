"""Foundation: a YAML file that a user or a model directory gives -> ``dict``, read without trust.

Bounded in size, nesting, nodes and digits before any value is built, so that no file takes more than a fraction of a second or some
megabytes of memory. Plain values only: null, booleans, numbers, text, lists, mappings; a date is text. No state, any thread. Raises
``FileInvalid`` and ``OSError``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from voice.errors import describe
from voice.text_file import FileInvalid, read_text

MAX_BYTES = 256_000
MAX_DEPTH = 32
"""Levels of lists and mappings; config/default.yaml has three."""
MAX_NODES = 20_000
"""Values, lists and mappings, each counted as often as aliases repeat it. 20,000 take 0.4 s."""
MAX_NUMBER_CHARACTERS = 100

_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty for an empty file.

    Raises:
        FileInvalid: it is not a regular file, not YAML, not a mapping from text, or beyond a bound.
        OSError: it is missing or cannot be read.
    """
    text = read_text(path, MAX_BYTES)
    try:
        content = yaml.load(text, _BoundedLoader)  # noqa: S506 -- a SafeLoader
    except FileInvalid:
        raise
    except (yaml.YAMLError, ValueError, LookupError) as error:  # the last two for tags that do not fit: `!!int ""`, `!!bool x`
        if tab := _line_with_a_tab(text):
            raise FileInvalid(f"is not YAML: line {tab} is indented with a tab; use spaces") from error
        raise FileInvalid(f"is not YAML ({describe(error)})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise FileInvalid(f"holds {type(content).__name__}, not a mapping")
    strange = [key for key in content if not isinstance(key, str)]
    if strange:
        raise FileInvalid(f"has the key {strange[0]!r}, which is not text")
    return content


class _BoundedLoader(yaml.SafeLoader):
    """Measures each node when it is composed. An alias is the node it names, so what it repeats is counted, not built."""

    yaml_implicit_resolvers = {  # noqa: RUF012 -- PyYAML's own form
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {tag: build for tag, build in yaml.SafeLoader.yaml_constructors.items() if tag != _TIMESTAMP}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._deepest = self._num_nodes = 0
        self._whole: dict[int, tuple[int, int]] = {}
        """Id of a composed node -> its nodes and levels, aliases expanded."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the next node.

        Raises:
            FileInvalid: the node exceeds a bound, or is an alias of a node that holds it.
        """
        line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)
        nodes_before, deepest_before = self._num_nodes, self._deepest
        self._depth += 1
        self._count(1, 1, line)
        node = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self._whole:
                raise FileInvalid(f"holds a value that contains itself (line {line})")
            self._count(*self._whole[id(node)], line)
        else:
            self._whole[id(node)] = self._num_nodes - nodes_before, self._deepest - self._depth + 1
        self._depth -= 1
        self._deepest = max(deepest_before, self._deepest)
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > MAX_NUMBER_CHARACTERS:
            raise FileInvalid(f"holds a number of {len(node.value):,} characters (line {line})")
        return node

    def _count(self, num_nodes: int, num_levels: int, line: int) -> None:
        """Add nodes at the current depth and the levels that they reach."""
        self._num_nodes += num_nodes
        self._deepest = self._depth + num_levels - 1
        if self._num_nodes > MAX_NODES:
            raise FileInvalid(f"holds more than {MAX_NODES:,} values (line {line})")
        if self._deepest > MAX_DEPTH:
            raise FileInvalid(f"is nested deeper than {MAX_DEPTH} levels (line {line})")


def _line_with_a_tab(text: str) -> int:
    """Number of the first line with a tab in its indentation; 0 where there is none."""
    lines = enumerate(text.splitlines(), 1)
    return next((number for number, line in lines if "\t" in line[: len(line) - len(line.lstrip())]), 0)
