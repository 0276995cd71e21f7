"""Changes of a YAML file's text: entries go into it and out of it, and every other byte stays as it was.

A YAML library that writes a file anew lays it out its own way; here only the places of its nodes are read.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml


def insert(text: str, section: str | Sequence[str], entries: dict[str, Any]) -> str:
    """`text` with `entries` after the others of a section, or of the one at a path of keys.

    A section at the top is made at the end if it isn't there.

    Raises `yaml.YAMLError` for a text that is not YAML. Raises `ValueError` for a section that is no mapping or that
    other places of the text share.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    *above, name = [section] if isinstance(section, str) else section
    mapping = _mapping(text)
    for key in above:
        pair = _pair(mapping, key)
        if pair is None or not isinstance(pair[1], yaml.MappingNode):
            raise ValueError(f"{key} is no mapping")
        mapping = pair[1]
    place = _pair(mapping, name)
    if place is None and above:
        raise ValueError(f"there is no {name}")
    if place is None:
        return _with_lines(text, len(text), {name: entries}, 0, newline)
    key, value = place
    if value.start_mark.index < key.end_mark.index or (not value.value and text[value.start_mark.index :][:1] == "&"):
        raise ValueError(f"{section} is shared with other places by YAML's & and *")
    if isinstance(value, yaml.ScalarNode) and value.tag.endswith(":null"):
        return _with_lines(text, _line_end(text, _stop(key, value)), entries, key.start_mark.column + 2, newline)
    if not isinstance(value, yaml.MappingNode):
        raise ValueError(f"{name} is no mapping")
    if not value.flow_style:
        column = value.value[0][0].start_mark.column
        return _with_lines(text, _below(text, key, value), entries, column, newline)
    if value.value:
        written = _yaml(entries, flow=True)
        end = value.end_mark.index - 1
        comma = "" if text[:end].rstrip().endswith(",") else ", "
        return f"{text[:end]}{comma}{written.strip()[1:-1]}{text[end:]}"
    # `{}` goes, with the space before it; a comment after it stays.
    text = text[: value.start_mark.index].rstrip(" ") + text[value.end_mark.index :]
    return _with_lines(text, _line_end(text, key.end_mark.index), entries, key.start_mark.column + 2, newline)


def respell(text: str, spelling: Callable[[tuple[str, ...], bool, str], str | None]) -> str:
    """`text` with some of its keys and plain values written otherwise.

    `spelling` gets the path of keys to each, whether it is a key, and its text. It gives the new text, or None to keep
    the old one. A value that aliases repeat is asked for once, where it is written.
    """
    found: dict[int, tuple[int, str]] = {}

    def visit(node: yaml.Node, path: tuple[str, ...], seen: frozenset[int]) -> None:
        if id(node) in seen:
            return
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    note(key, path, True)
                    visit(value, (*path, key.value), seen | {id(node)})
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                visit(item, path, seen | {id(node)})
        elif isinstance(node, yaml.ScalarNode):
            note(node, path, False)

    def note(node: yaml.ScalarNode, path: tuple[str, ...], is_key: bool) -> None:
        spelt = spelling(path, is_key, node.value)
        if spelt is not None:
            written = _yaml({spelt: None} if is_key else {"x": spelt}, flow=True).strip()[1:-1]
            new = written.rpartition(":")[0] if is_key else written.partition(": ")[2]
            found.setdefault(node.start_mark.index, (node.end_mark.index, new))

    visit(_mapping(text), (), frozenset())
    for start, (end, new) in sorted(found.items(), reverse=True):
        text = text[:start] + new + text[end:]
    return text


def find(text: str, path: Sequence[str]) -> int:
    """Where the key at a path of keys stands; -1 where there is none."""
    mapping: Any = _mapping(text)
    key = None
    for name in path:
        place = _pair(mapping, name) if isinstance(mapping, yaml.MappingNode) else None
        if place is None:
            return -1
        key, mapping = place
    return key.start_mark.index if key else -1


def cut(text: str, path: Sequence[str]) -> str:
    """`text` without the entry at a path of keys; an emptied mapping is `{}`. Nothing happens where there is none."""
    *sections, name = path
    mapping: Any = _mapping(text)
    key = None
    for section in sections:
        place = _pair(mapping, section)
        if place is None or not isinstance(place[1], yaml.MappingNode):
            return text
        key, mapping = place
    place = _pair(mapping, name)
    if place is None:
        return text
    number = mapping.value.index(place)
    if mapping.flow_style:
        if number + 1 < len(mapping.value):
            start, end = place[0].start_mark.index, mapping.value[number + 1][0].start_mark.index
        else:
            end = mapping.end_mark.index - 1
            start = text.rindex(",", 0, place[0].start_mark.index) if number else place[0].start_mark.index
        return text[:start] + text[end:]
    start = place[0].start_mark.index - place[0].start_mark.column
    text = text[:start] + text[_below(text, *place) :]
    if len(mapping.value) > 1:
        return text
    if key is None:
        return text + "{}\n"
    end = _written(text, key.end_mark.index)
    return f"{text[:end]} {{}}{text[end:]}"


class _Dumper(yaml.SafeDumper):
    """Writes out what is there twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(entries: dict[str, Any], *, flow: bool) -> str:
    options = {"width": 2**16, "sort_keys": False, "allow_unicode": True}
    return yaml.dump(entries, Dumper=_Dumper, default_flow_style=flow, **options)


def _mapping(text: str) -> yaml.MappingNode:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        raise ValueError("the file is no mapping")
    return node


def _pair(mapping: yaml.MappingNode, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    return next((pair for pair in mapping.value if pair[0].value == name), None)


def _with_lines(text: str, at: int, entries: dict[str, Any], column: int, newline: str) -> str:
    """`text` with the lines of `entries` from `column` on at a line's start."""
    lines = "".join(f"{' ' * column}{line}{newline}" for line in _yaml(entries, flow=False).splitlines())
    before = text[:at] if not at or text[at - 1] == "\n" else text[:at] + newline
    return before + lines + text[at:]


def _below(text: str, key: yaml.Node, value: yaml.Node) -> int:
    """Where the line after an entry starts: the comments right below that stand deeper than its key belong to it."""
    at = _line_end(text, _stop(key, value))
    while at < len(text):
        end = _line_end(text, at)
        line = text[at:end].lstrip(" ")
        if not line.startswith("#") or end - at - len(line) <= key.start_mark.column:
            return at
        at = end
    return at


def _stop(key: yaml.Node, value: yaml.Node) -> int:
    """Where the last character of an entry stands."""
    return max([key.end_mark.index, *_stops(value, key.end_mark.index)])


def _stops(node: yaml.Node, after: int) -> Iterator[int]:
    """Ends of all that is written of a node after a place: the node of an alias is where its anchor is."""
    if node.start_mark.index < after:
        return
    yield node.start_mark.index
    if isinstance(node, yaml.ScalarNode):
        # A block scalar ends where the next token starts.
        yield node.end_mark.index - (node.style in ("|", ">"))
    elif node.flow_style:
        yield node.end_mark.index
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _stops(item, node.start_mark.index)
    else:
        for key, value in node.value:
            yield key.end_mark.index
            yield from _stops(value, key.end_mark.index)


def _written(text: str, at: int) -> int:
    """Where a line from a place on has nothing more than a comment."""
    line = text[at : _line_end(text, at)]
    return at + len(re.sub(r"\s*( #.*)?$", "", line.rstrip("\r\n")))


def _line_end(text: str, at: int) -> int:
    """Where the line after that of a place starts."""
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1
