"""YAML in which no key of a mapping is given twice: PyYAML takes the last one in silence, DVC refuses the file."""

from typing import Any

import yaml


class StrictLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` that notes keys given twice. A key that overrides one merged by `<<` is given once.

    Attributes
    ----------
    twice : what is wrong with each such key, with both lines.
    """

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.twice: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[Any, yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                merge = key.tag == "tag:yaml.org,2002:merge"
                name = key.tag if merge else self.construct_object(key)
                if name in first:
                    self.twice.append(f"key {key.value!r} is on line {line(first[name])} and again on line {line(key)}")
                first[name] = key
        return node


def line(node: yaml.Node) -> int:
    """The line that a node begins on, from 1."""
    return node.start_mark.line + 1


def compose(text: str) -> tuple[Any, yaml.Node | None, list[str]]:
    """A text's value, its node (mappings with what `<<` merged, merged keys first), and its keys given twice.

    Raises what PyYAML raises: `YAMLError`, `ValueError` (a date that is none), `RecursionError` (nested too deeply).
    """
    loader = StrictLoader(text)
    try:
        node = loader.get_single_node()
        return (loader.construct_document(node) if node else None), node, loader.twice
    finally:
        loader.dispose()


def load(text: str) -> Any:
    """A text's value. Raises `yaml.YAMLError` for a key given twice, and as `compose` does."""
    value, _, twice = compose(text)
    if twice:
        raise yaml.YAMLError("; ".join(twice))
    return value
