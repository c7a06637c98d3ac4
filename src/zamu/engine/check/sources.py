# SPDX-License-Identifier: Apache-2.0
"""Whether sources and filters exist and take their arguments, and what their events look like."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from zamu.ansible import collection_paths
from zamu.config import HOME, Config
from zamu.documents import Check, Finding
from zamu.engine.check.templates import Path as EventPath
from zamu.errors import RulebookError
from zamu.rulebooks import COLLECTION, Rulebooks, Ruleset, collection_roots, find_plugin, malformed, plugin_of

type _Place = tuple[str | int, ...]
#: An event's keys, each with those below it, or None where any may follow.
type Keys = Mapping[str, Keys | None]

_META: Keys = {
    "uuid": {},
    "source": {"name": {}, "type": {}},
    "received_at": {},
    "hosts": None,
    "depth": {},
    "rule_engine": None,
}
#: Filters that leave an event as it is, but for its meta.
_PRESERVING = {"insert_hosts_to_meta", "insert_meta_info", "noop"}
#: How alike two names are that are meant to be one.
_ALIKE = 0.75


@dataclass(frozen=True)
class Shape:
    """What events of a ruleset look like. Without `complete` there may be other keys at the top."""

    keys: Keys
    complete: bool

    def unknown(self, path: EventPath) -> tuple[str, str | None] | None:
        """Of a path after `event`, what no event has, and the one key that may be meant by it.

        None when an event may have it.
        """
        keys: Keys | None = self.keys
        for index, step in enumerate(path):
            if keys is None or isinstance(step, int):
                return None
            if step not in keys:
                if index == 0 and not self.complete:
                    return None
                meant = alike(step, keys)
                before = ".".join(map(str, ("event", *path[:index])))
                return f"{before}.{step}", f"{before}.{meant}" if meant else None
            keys = keys[step]
        return None


def alike(word: str, known: Any) -> str | None:
    """The known word that `word` most likely misspells."""
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=_ALIKE)), None)


def same_source_names(rulebooks: Rulebooks) -> Iterator[Finding]:
    """Sources that differ and yet have one name, in several rulesets."""
    for ruleset in rulebooks.rulesets:
        for index, consumer in enumerate(ruleset.consumers):
            if consumer.source != consumer.name and any(one.id == consumer.name for one in rulebooks.sources):
                words = (
                    f"a source with other arguments is named {consumer.name!r}, too; this one becomes "
                    f"{consumer.source!r}. Name them apart."
                )
                yield ruleset.finding("source-name", ("sources", index), words, warning=True)


def examine_sources(config: Config, ruleset: Ruleset) -> Iterator[Finding]:
    """Unknown sources and filters, and arguments that they do not take."""
    for index, entry in _entries(ruleset):
        plugin = plugin_of(entry)
        place: _Place = ("sources", index, plugin)
        overlay = config.sources.get(entry.get("name") or plugin, {})
        options = yield from _find(config, ruleset, place, "event_source")
        yield from _arguments(ruleset, place, "source", options, entry[plugin] or {}, overlay)
        for number, one in enumerate(entry.get("filters") or []):
            ((name, arguments),) = one.items()
            place = ("sources", index, "filters", number, name)
            options = yield from _find(config, ruleset, place, "event_filter")
            yield from _arguments(ruleset, place, "filter", options, arguments or {}, {})


def _entries(ruleset: Ruleset) -> list[tuple[int, dict[str, Any]]]:
    """The sources of a ruleset; those that could not be read were found already."""
    return [(index, one) for index, one in enumerate(ruleset.data["sources"]) if not malformed(one)]


def _find(config: Config, ruleset: Ruleset, place: _Place, kind: str) -> Any:
    """The documented options of the plugin that a place names; None when they are not known."""
    try:
        about = _about(config, str(place[-1]), kind)
    except RulebookError as error:
        check: Check = "source" if kind == "event_source" else "filter"
        yield ruleset.finding(check, place, f"{error} Mend the name, or add the plugin.")
        return None
    documentation = about.get("DOCUMENTATION")
    options = documentation.get("options", {}) if isinstance(documentation, dict) else None
    return options if isinstance(options, dict) else None


def _arguments(
    ruleset: Ruleset,
    place: _Place,
    kind: str,
    options: dict[str, Any] | None,
    arguments: dict[str, Any],
    overlay: dict[str, Any],
) -> Iterator[Finding]:
    if options is None:
        return
    check: Check = "source-argument" if kind == "source" else "filter-argument"
    plugin = place[-1]
    about = {name: one if isinstance(one, dict) else {} for name, one in options.items()}
    known = {*about, *(alias for one in about.values() for alias in one.get("aliases") or [])}
    for name in [*arguments, *overlay]:
        if name not in known:
            origin = "" if name in arguments else ", from `sources` in zamu.yml,"
            takes = ", ".join(sorted(known)) or "nothing"
            words = f"the {kind} {plugin!r} takes no {name!r}{origin}; it takes {takes}."
            yield ruleset.finding(check, (*place, name), words)
    for name, one in about.items():
        spellings = {name, *(one.get("aliases") or [])}
        if one.get("required") and not spellings & {*arguments, *overlay}:
            yield ruleset.finding(check, place, f"the {kind} {plugin!r} needs the argument {name!r}; add it.")


def shape_of(config: Config, ruleset: Ruleset, posted: frozenset[str]) -> Shape:
    """What the events of a ruleset look like, from its sources' RETURN. `posted`: keys that rules post."""
    keys: dict[str, Keys | None] = {"meta": _META, **dict.fromkeys(posted)}
    complete = len(_entries(ruleset)) == len(ruleset.data["sources"])
    for _, entry in _entries(ruleset):
        filters = [name.rpartition(".")[2] for one in entry.get("filters") or [] for name in one]
        reshaped = not set(filters) <= _PRESERVING
        returned = None if reshaped else _returned(config, plugin_of(entry))
        complete = complete and returned is not None
        keys |= returned or {}
    return Shape(keys, complete)


def _returned(config: Config, plugin: str) -> Keys | None:
    try:
        return _keys(_about(config, plugin, "event_source")["RETURN"])
    except (RulebookError, ValueError, KeyError, TypeError, AttributeError):  # it documents none
        return None


def _keys(returned: dict[str, Any]) -> Keys:
    """The keys that a RETURN documents; a mapping without `contains` may hold any."""
    return {
        name: _keys(one["contains"])
        if "contains" in one
        else None
        if one["type"] in ("dict", "list", "raw")
        else {}
        for name, one in returned.items()
    }


def _about(config: Config, plugin: str, kind: str) -> dict[str, Any]:
    """What a plugin says of itself, DOCUMENTATION and RETURN, without running it. Raises RulebookError."""
    directory = config.event_sources if kind == "event_source" else config.event_filters
    collections = collection_paths(config)
    return documented(find_plugin(plugin, kind, directory, collections), collections)


def documented(path: Path, collections: Sequence[Path] = ()) -> dict[str, Any]:
    """The YAML constants of a plugin's file; without what cannot be read of it, or of its fragments."""
    said: dict[str, Any] = {}
    try:
        for name, text in _texts(ast.parse(path.read_bytes()).body).items():
            if name in ("DOCUMENTATION", "RETURN"):
                said[name] = deepcopy(_parsed(text))
    except (OSError, SyntaxError, ValueError, yaml.YAMLError):
        pass  # the source's host says so when it loads it
    about = said.get("DOCUMENTATION")
    if isinstance(about, dict) and "extends_documentation_fragment" in about:
        from ansible.utils.plugin_docs import add_fragments

        try:
            add_fragments(about, str(path.absolute()), _Fragments(collections))
        except Exception:  # whatever is wrong with it: its options are not known then
            del said["DOCUMENTATION"]
    return said


@lru_cache(64)  # each ruleset asks again about its sources
def _parsed(text: str) -> Any:
    return yaml.safe_load(text)


class _Fragments:
    """Ansible's `fragment_loader`, for collections, without running what it finds."""

    def __init__(self, collections: Sequence[Path]) -> None:
        self._roots = collection_roots(collections)

    def get(self, name: str) -> Any:
        """The texts of a fragment as attributes; None when there is none of this full name."""
        collection, _, short = name.rpartition(".")
        own = collection == COLLECTION
        for home in [HOME] if own else [root.joinpath(*collection.split(".")) for root in self._roots]:
            with suppress(OSError, SyntaxError, ValueError):
                body = ast.parse((home / "plugins" / "doc_fragments" / f"{short}.py").read_bytes()).body
                (found,) = (one for one in body if isinstance(one, ast.ClassDef))
                return SimpleNamespace(ansible_name=name, **_texts(found.body))
        return None


def _texts(body: list[ast.stmt]) -> dict[str, str]:
    """The texts that are assigned to names."""
    return {
        ast.unparse(node.targets[0]): node.value.value
        for node in body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }
