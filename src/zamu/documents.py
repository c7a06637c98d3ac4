# SPDX-License-Identifier: Apache-2.0
"""Reads YAML that people write, within bounds, and says of what is wrong with it where it stands."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from zamu.event import printable

#: The names of all checks, as docs/reference/checks.md explains them.
type Check = Literal[
    "yaml",
    "schema",
    "ruleset-name",
    "hosts-missing",
    "source",
    "source-name",
    "source-argument",
    "filter",
    "filter-argument",
    "rule-name",
    "condition",
    "regex",
    "event-path",
    "throttle-missing",
    "throttle-condition",
    "throttle-group",
    "not-all-throttle",
    "cooldown-missing",
    "action",
    "gate",
    "ledger",
    "template",
    "playbook",
    "role",
    "role-name",
    "verify-missing",
    "inventory",
    "collections-path",
]
#: What rules can run with all the same, though they should not: the guard still bounds what they do, or
#: the check may know less than the house. It is told at the start, and refuses nothing there.
BEARABLE: frozenset[Check] = frozenset(
    {
        "throttle-missing",
        "cooldown-missing",
        "throttle-group",
        "event-path",
        "role",
        "role-name",
        "inventory",
        "collections-path",
    }
)
#: Bounds of one file: bytes, levels, and values, those that aliases repeat counted again.
MAX_BYTES, MAX_DEPTH, MAX_VALUES = 262_144, 50, 50_000


@dataclass(frozen=True, order=True)
class Finding:
    """Something wrong at a place of a file. `check` is the name of what found it; `message` says the mend."""

    file: str
    line: int
    check: Check
    message: str
    warning: bool = False

    def __str__(self) -> str:
        kind = f"warning: {self.check}" if self.warning else self.check
        return f"{self.file}:{self.line}: {kind}: {self.message}"


@dataclass(frozen=True)
class Document:
    """A file that could be read: its tree with marks, and what it says."""

    path: Path
    tree: yaml.Node | None
    data: Any

    def finding(
        self, check: Check, place: tuple[str | int, ...], message: str, *, warning: bool = False
    ) -> Finding:
        """A finding at a place: the keys and indexes that lead to it."""
        return found(self.path, line_of(self.tree, place), check, message, warning=warning)


def found(path: Path, line: int, check: Check, message: str, *, warning: bool = False) -> Finding:
    """A finding whose file is named as a person here would, and whose message is one line."""
    return Finding(shown(path), line, check, printable(message, 1_000), warning)


def shown(path: Path) -> str:
    """A path as a person in the working directory would write it."""
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return printable(path, 1_000)


def line_of(node: yaml.Node | None, place: tuple[Any, ...]) -> int:
    """The line on which a place of a file stands, or its parent: the keys and indexes that lead to it."""
    line = node.start_mark.line + 1 if node else 1
    for step in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(step)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = (node.value[step], node.value[step])
        else:
            found = None
        if found is None:
            break
        key, node = found
        line = key.start_mark.line + 1
    return line


def read(
    path: Path, kind: type["Loader"] | None = None, *, construct: bool = True, empty: Any = None
) -> Document | Finding:
    """Read one file, or say why it cannot be read.

    `kind` is the loader, if not this one. Without `construct` only the tree is made. `empty` is what a
    file means that holds nothing; without it, such a file is refused.
    """
    try:
        text = _text(path)
        loader = (kind or Loader)(text)
        try:
            tree = loader.get_single_node()
            if tree is None and empty is None:
                raise ValueError("the file is empty; write what belongs in it, or remove it")
            data = loader.construct_document(tree) if tree is not None and construct else empty
            return Document(path, tree, data)
        finally:
            loader.dispose()
    except OSError as error:
        line, words = 1, f"the file cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        words = "this is not UTF-8 text; write the file anew as UTF-8"
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        words = f"the character {error.character:#06x} may not stand in YAML; remove it"
    except (yaml.YAMLError, ValueError, TypeError) as error:  # TypeError: a tag on what it does not fit
        mark = getattr(error, "problem_mark", None)
        line, words = mark.line + 1 if mark else 1, str(getattr(error, "problem", None) or error)
    return found(path, line, "yaml", f"{words}.")


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise ValueError("this is not a file; name a file of YAML")
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"the file is larger than {MAX_BYTES} bytes; split it up")
    return raw.decode()


class Loader(yaml.SafeLoader):
    """Safe YAML without dates, secrets and keys that stand twice; no nesting or alias eats the memory."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One node, counted."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        before = self._values
        self._depth += 1
        if self._depth > MAX_DEPTH:
            _refuse(f"this is nested deeper than {MAX_DEPTH} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                _refuse("this alias stands inside of what it repeats", event.start_mark)
            self._values += self._sizes[id(node)]
        else:
            self._values += 1
            self._sizes[id(node)] = self._values - before
        if self._values > MAX_VALUES:
            _refuse(f"with this the file has more than {MAX_VALUES} values", event.start_mark)
        return node


def _refuse(problem: str, mark: Any) -> NoReturn:
    raise yaml.MarkedYAMLError(None, None, problem, mark)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue  # refused below
        if key.value in seen:
            _refuse(f"the key {key.value!r} stands here twice", key.start_mark)
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


def _text_of(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _no_secret(_: yaml.SafeLoader, node: yaml.Node) -> NoReturn:
    _refuse("a rulebook holds no !vault; secrets are arguments in `sources` of zamu.yml", node.start_mark)


# JSON has no dates: what looks like one is text.
Loader.add_constructor("tag:yaml.org,2002:timestamp", _text_of)
Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
Loader.add_constructor("!vault", _no_secret)
