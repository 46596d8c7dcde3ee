"""Read YAML that somebody else wrote: nothing in it is run, and no few lines become a million."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

_MOST_BYTES = 1_000_000
_MOST_ENTRIES = 100_000
_MOST_LEVELS = 50
_PLAIN_TAGS = frozenset(str(tag) for tag in yaml.SafeLoader.yaml_constructors if tag is not None)


class YamlError(ValueError):
    """A file that is not plain YAML; the message says where and why, less the file's name."""


def compose_file(path: Path) -> Node | None:
    """Read a YAML file as nodes, which know their lines; None for an empty one.

    Raises:
        OSError: it cannot be read.
        YamlError: it is not UTF-8, not YAML, holds a key twice or an object of Python, or grows
            without measure.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise YamlError(f"longer than {_MOST_BYTES:,} bytes: this is no configuration")
    try:
        root: Node | None = yaml.compose(_decoded(content), Loader=yaml.SafeLoader)
        if root is not None:
            _count(root, {})
            for node, level in _all_nodes(root):
                if level > _MOST_LEVELS:
                    raise YamlError(
                        f"line {line_of(node)}: nested deeper than {_MOST_LEVELS} levels"
                    )
                _check_tag(node)
                if isinstance(node, MappingNode):
                    _check_keys(node)
    except yaml.MarkedYAMLError as error:
        raise YamlError(_words(error)) from error
    except yaml.YAMLError as error:  # a character that YAML does not know
        raise YamlError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise YamlError("nested too deep to be read") from error
    return root


def read_file(path: Path) -> object:
    """Read a YAML file as plain values; None for an empty one.

    Raises:
        OSError: it cannot be read.
        YamlError: as `compose_file`.
    """
    root = compose_file(path)
    if root is None:
        return None
    try:
        return yaml.SafeLoader("").construct_document(root)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise YamlError(" ".join(str(error).split())) from error


def line_of(node: Node) -> int:
    """Return the line on which a node begins, counted from 1."""
    return int(node.start_mark.line) + 1


def _decoded(content: bytes) -> str:
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlError(
            f"line {line}: not UTF-8 (byte 0x{content[error.start]:02x}): save the file as UTF-8"
        ) from error


def _words(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    problem = error.problem or error.context or "not YAML"
    hint = ": indent with spaces, not tabs" if "'\\t'" in problem else ""
    return f"{place}{problem}{hint}"


def _children(node: Node) -> Iterator[Node]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, SequenceNode):
        yield from node.value


def _count(node: Node, known: dict[int, int]) -> int:
    """Return how many entries a node has once all its aliases are written out."""
    if id(node) not in known:
        known[id(node)] = _MOST_ENTRIES  # whoever meets it again in here is inside itself
        known[id(node)] = 1 + sum(_count(child, known) for child in _children(node))
    if known[id(node)] > _MOST_ENTRIES:
        raise YamlError(
            f"line {line_of(node)}: with its aliases (*name) written out, this has more than "
            f"{_MOST_ENTRIES:,} entries"
        )
    return known[id(node)]


def _all_nodes(root: Node) -> Iterator[tuple[Node, int]]:
    """Yield every node once, with the number of nodes around it."""
    seen: set[int] = set()
    waiting = [(root, 0)]
    while waiting:
        node, level = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node, level
            waiting.extend((child, level + 1) for child in _children(node))


def _check_tag(node: Node) -> None:
    if node.tag not in _PLAIN_TAGS:
        shown = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise YamlError(
            f"line {line_of(node)}: the tag {shown} asks for an object: give plain values"
        )


def _check_keys(node: MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            raise YamlError(
                f"line {line_of(key)}: a list or mapping cannot be the name of a setting"
            )
        if key.value == "<<":
            continue
        if key.value in lines:
            raise YamlError(
                f"line {line_of(key)}: {key.value} is set on line {lines[key.value]} too"
            )
        lines[key.value] = line_of(key)
