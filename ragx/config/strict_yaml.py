"""A strict YAML loader that knows where every value stands.

PyYAML alone takes `1e-5` for text, `no` for False, 12:30 for 750 and the last of two equal keys. Here scalars follow
YAML 1.2; equal keys, aliases and tags are errors; size and depth have limits.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from ragx.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 50

Key = tuple[str | int, ...]
Places = dict[Key, str]
"""Where each key stands: `file:line:column`, or the `--set` that brought it."""


def read_yaml(path: Path) -> tuple[dict[str, Any], Places]:
    """The tree of a file and the places of its keys.

    Raises:
        ConfigError: no such file, or not the YAML this loader takes; with line and column.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes; this cannot be a configuration")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; write one with: ragx init, or name one with -c FILE") from None
    except NotADirectoryError:
        raise ConfigError(f"{path}: no such file; a part of this path is no folder") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the YAML file in it with -c FILE") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})") from None
    places: Places = {}
    tree = _parse(text, str(path), places)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}:1:1: expected `key: value` lines, found {type(tree).__name__}")
    return tree, places


def set_value(tree: dict[str, Any], places: Places, override: str) -> None:
    """Apply one `section.key=value` override.

    Raises:
        ConfigError: it is not of that form, or runs through a value.
    """
    dotted, separator, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set {override}: expected section.key=value, e.g. --set finetune.epochs=2")
    name = f"--set {override}"
    target: Any = tree
    for depth, key in enumerate(keys[:-1], start=1):
        if key not in target:
            target[key] = {}
            places[tuple(keys[:depth])] = name
        target = target[key]
        if not isinstance(target, dict):
            raise ConfigError(f"{name}: {key} is a value, not a section")
    target[keys[-1]] = _parse(text, name, {}, tuple(keys))
    places[tuple(keys)] = name


def dump_yaml(values: dict[str, Any]) -> str:
    """YAML text that `read_yaml` reads back to equal values."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


class _Dumper(yaml.SafeDumper):
    """Quotes text that this module's loader would take for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(_scalar(text), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _problem(what: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=mark)


class _Composer(yaml.SafeLoader):
    """Composes nodes without aliases and within a depth limit."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _problem("aliases are not allowed", event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _problem(f"nested deeper than {MAX_DEPTH}", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _parse(text: str, name: str, places: Places, at: Key = ()) -> Any:
    try:
        loader = _Composer(text)
        node = loader.get_single_node()
        return None if node is None else _build(node, name, places, at)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError(f"{place}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from None


def _build(node: yaml.Node, name: str, places: Places, at: Key) -> Any:
    places.setdefault(at, f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in mapping:
                raise _problem(f"key {key!r} stands here twice", key_node.start_mark)
            places[(*at, key)] = f"{name}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
            mapping[key] = _build(value_node, name, places, (*at, key))
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, name, places, (*at, number)) for number, item in enumerate(node.value)]
    if node.tag.startswith("!") or "python/" in node.tag:
        raise _problem(f"tag {node.tag} is not allowed", node.start_mark)
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    return _scalar(node.value) if plain else node.value


def _scalar(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if re.fullmatch(r"[-+]?\d{1,300}", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", text):
        return float(text)
    return text
