# SPDX-License-Identifier: Apache-2.0
"""Reads the rulebooks: which rulesets there are, which sources they name, and who hears whom.

A source that is named twice with the same arguments and filters runs once, and each ruleset that
names it is a consumer of it.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from zamu import documents
from zamu.config import HOME
from zamu.documents import BEARABLE, Check, Document, Finding, shown
from zamu.errors import RulebookError
from zamu.journal import Consumer

#: Our collection; its plugins, playbooks and roles are found in this repository.
COLLECTION = "boma.zamu"

#: What the names of rulebooks end with, below a directory.
SUFFIXES = (".yml", ".yaml")
_NOT_PLUGINS = {"name", "filters"}


@dataclass(frozen=True)
class Source:
    """A source that intake hosts. `id` is its name in the journal."""

    id: str
    plugin: str
    arguments: dict[str, Any]
    filters: list[dict[str, Any]]
    rulebook: Path


@dataclass(frozen=True)
class Ruleset:
    """One ruleset as it stands in its file, where it is number `place`."""

    name: str
    document: Document = field(compare=False, repr=False)
    place: int
    data: dict[str, Any]
    consumers: list[Consumer]

    @property
    def rulebook(self) -> Path:
        """The file."""
        return self.document.path

    def finding(
        self, check: Check, place: tuple[str | int, ...], message: str, *, warning: bool = False
    ) -> Finding:
        """A finding at a place of this ruleset."""
        return self.document.finding(check, (self.place, *place), message, warning=warning)


@dataclass(frozen=True)
class Rulebooks:
    """All rulesets and the sources that they need."""

    rulesets: list[Ruleset]
    sources: list[Source]

    @property
    def consumers(self) -> list[Consumer]:
        """Every subscription of every ruleset."""
        return [consumer for ruleset in self.rulesets for consumer in ruleset.consumers]


def load(directory: Path, overlays: dict[str, dict[str, Any]]) -> Rulebooks:
    """Read all rulebooks below `directory`. `overlays` adds arguments to sources by their name.

    Raises RulebookError with a line for each thing that is wrong.
    """
    rulebooks, findings = read([directory], overlays)
    refuse(findings)
    refuse_unused(overlays, rulebooks)
    return rulebooks


def refuse(findings: Iterable[Finding]) -> None:
    """Raises RulebookError with all findings that rules cannot be run with."""
    errors = [str(one) for one in findings if not one.warning and one.check not in BEARABLE]
    if errors:
        raise RulebookError("\n".join(["The rulebooks cannot be used as they stand.", *errors]))


def refuse_unused(overlays: dict[str, dict[str, Any]], rulebooks: Rulebooks) -> None:
    """Raises RulebookError when zamu.yml has arguments for a source that no rulebook names."""
    names = {consumer.name for consumer in rulebooks.consumers}
    for name in sorted(set(overlays) - names):
        raise RulebookError(
            f"zamu.yml has arguments for the source {name!r}, and no rulebook names such a source "
            f"(they name: {', '.join(sorted(names))})."
        )


def read(paths: Iterable[Path], overlays: dict[str, dict[str, Any]]) -> tuple[Rulebooks, list[Finding]]:
    """Read rulebooks, and all that lie below directories; what cannot be used is left out, and found.

    Raises RulebookError when there is nothing to read.
    """
    reader = _Reader(overlays)
    for file in dict.fromkeys(file for path in paths for file in _files(path)):
        reader.read(file)
    return Rulebooks(reader.rulesets, list(reader.sources.values())), reader.findings


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = [file for file in sorted(path.glob("**/*")) if file.suffix in SUFFIXES and not file.is_dir()]
    else:
        files = [path] if os.path.lexists(path) else []
    if not files:
        what = "rulebook (*.yml or *.yaml) in" if path.is_dir() else "rulebook"
        raise RulebookError(
            f"There is no {what} {path}. Mend the name, start zamu where your rulebooks/ is, or name the "
            "directory as `rulebooks` in zamu.yml."
        )
    return files


class _Reader:
    """Gathers rulesets and sources over several files, and what is wrong with them."""

    def __init__(self, overlays: dict[str, dict[str, Any]]) -> None:
        self._overlays = overlays
        self.rulesets: list[Ruleset] = []
        self.sources: dict[str, Source] = {}
        self.findings: list[Finding] = []

    def read(self, file: Path) -> None:
        document = documents.read(file)
        if isinstance(document, Finding):
            self.findings.append(document)
        elif not isinstance(document.data, list) or not document.data:
            words = "a rulebook is a list of rulesets; begin each with `- name:`."
            self.findings.append(document.finding("yaml", (), words))
        else:
            for place, data in enumerate(document.data):
                self._ruleset(document, place, data)

    def _ruleset(self, document: Document, place: int, data: Any) -> None:
        def wrong(check: Check, where: tuple[str | int, ...], message: str) -> None:
            self.findings.append(document.finding(check, (place, *where), message))

        name = data.get("name") if isinstance(data, dict) else None
        if not isinstance(name, str) or not name.strip():
            return wrong("ruleset-name", (), "this ruleset has no name; give it a sentence as `name`.")
        data["name"] = name.strip()
        earlier = next((one for one in self.rulesets if one.name == data["name"]), None)
        if earlier is not None:
            where = shown(earlier.rulebook)
            words = f"a ruleset named {data['name']!r} exists already in {where}; name them apart."
            return wrong("ruleset-name", ("name",), words)
        if not isinstance(data.get("sources"), list) or not data["sources"]:
            words = f"ruleset {data['name']!r} has no list of sources; name what it listens to."
            return wrong("source", ("sources",), words)
        ruleset = Ruleset(data["name"], document, place, data, [])
        for index, entry in enumerate(data["sources"]):
            self._source(ruleset, index, entry)
        self.rulesets.append(ruleset)
        return None

    def _source(self, ruleset: Ruleset, index: int, entry: Any) -> None:
        """Subscribe the ruleset to the hosted source of one entry of `sources`, found or added."""
        fault = malformed(entry) or self._subscribe(ruleset, entry)
        if fault is not None:
            self.findings.append(ruleset.finding(fault[0], ("sources", index), fault[1]))

    def _subscribe(self, ruleset: Ruleset, entry: dict[str, Any]) -> tuple[Check, str] | None:
        plugin = plugin_of(entry)
        name = entry.get("name") or plugin
        if any(consumer.name == name for consumer in ruleset.consumers):
            return "source-name", f"another source of {ruleset.name!r} is named {name!r}; name them apart."
        arguments = {**(entry[plugin] or {}), **self._overlays.get(name, {})}
        filters = entry.get("filters") or []
        same = _digest(plugin, arguments, filters)
        hosted = next(
            (one for one in self.sources.values() if _digest(one.plugin, one.arguments, one.filters) == same),
            None,
        )
        if hosted is None:
            identifier = name
            while identifier in self.sources:
                identifier = f"{identifier} of {ruleset.name}"
            hosted = Source(identifier, plugin, arguments, filters, ruleset.rulebook)
            self.sources[identifier] = hosted
        elif any(consumer.source == hosted.id for consumer in ruleset.consumers):
            return "source", f"{ruleset.name!r} would hear each event of {name!r} twice; name it once."
        ruleset.consumers.append(Consumer(ruleset.name, hosted.id, name))
        return None


def malformed(entry: Any) -> tuple[Check, str] | None:
    """What is wrong with the form of an entry of `sources`: a check's name and a sentence."""
    plugins = [key for key in entry if key not in _NOT_PLUGINS] if isinstance(entry, dict) else []
    if len(plugins) != 1 or not isinstance(plugins[0], str):
        return "source", f"each source names exactly one plugin; found {plugins}."
    if not isinstance(entry[plugins[0]] or {}, dict):
        return "source", f"the arguments of source {plugins[0]!r} are not a mapping; name each one."
    if not isinstance(entry.get("name", ""), str):
        return "source-name", f"the name {entry['name']!r} is not a text; write one in quotes."
    if not _are_filters(entry.get("filters") or []):
        return "filter", "`filters` is a list in which each entry names one filter and its arguments."
    return None


def plugin_of(entry: dict[str, Any]) -> str:
    """The plugin that a well-formed entry of `sources` names."""
    return str(next(key for key in entry if key not in _NOT_PLUGINS))


def _are_filters(filters: Any) -> bool:
    return isinstance(filters, list) and all(
        isinstance(one, dict)
        and len(one) == 1
        and all(isinstance(name, str) and isinstance(said, dict | None) for name, said in one.items())
        for one in filters
    )


def _digest(plugin: str, arguments: dict[str, Any], filters: list[dict[str, Any]]) -> str:
    return str(yaml.safe_dump([plugin, arguments, filters]))


def find_plugin(name: str, kind: str, directory: Path, collections: Sequence[Path] = ()) -> Path:
    """The file of a source or filter (`kind`: `event_source` or `event_filter`) by its name.

    Looks in `directory` first, then in this repository, in ansible-rulebook's own plugins and in
    collections: those below `collections`, and those that are installed as Python packages. Raises
    RulebookError.
    """
    short = name.removeprefix(f"{COLLECTION}.")
    own = [directory / f"{short}.py", HOME / f"{kind}s" / f"{short}.py"]
    candidates = own if "." not in short else []
    if name.startswith("eda.builtin."):
        candidates = [_package("ansible_rulebook") / kind / f"{name.rpartition('.')[2]}.py"]
    elif name.count(".") == 2:  # noqa: PLR2004 - namespace.collection.plugin
        namespace, collection, plugin = name.split(".")
        for place in collection_roots(collections):
            base = place / namespace / collection
            candidates += [
                base / "extensions" / "eda" / "plugins" / kind / f"{plugin}.py",
                base / "plugins" / kind / f"{plugin}.py",
            ]
        if name.startswith("ansible.eda."):  # what that collection has handed over to the engine
            candidates.append(_package("ansible_rulebook") / kind / f"{plugin}.py")
    for candidate in candidates:
        if os.path.isfile(candidate):  # False even for a name that no file can have
            return candidate
    known = sorted(path.stem for path in (HOME / f"{kind}s").glob("[a-z]*.py"))
    looked = ", ".join(map(str, dict.fromkeys(candidates))) or "nothing"
    raise RulebookError(
        f"There is no {kind.replace('_', ' ')} {name!r}. Looked for {looked}; zamu's own are "
        f"{', '.join(known) or 'none'}."
    )


def collection_roots(paths: Iterable[Path]) -> list[Path]:
    """The directories of namespaces: below collection paths, and as they are installed as Python packages."""
    return [*(path / "ansible_collections" for path in paths), _package("ansible_collections")]


def is_own_source(path: Path, directory: Path) -> bool:
    """Whether a source is the house's or zamu's own, and not from a collection or from the engine."""
    return path.parent in (directory, HOME / "event_sources")


def _package(name: str) -> Path:
    from importlib.util import find_spec

    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise RulebookError(f"The Python package {name} is not installed.")
    return Path(spec.submodule_search_locations[0])


def find_playbook(name: str, directory: Path) -> tuple[str, Path]:
    """A playbook's name as the ledger and the guard use it, and its file. Raises RulebookError.

    `boma.zamu.restart_unit` is found in this repository; a plain name, or a path, below `directory`.
    """
    if "{{" in name:
        raise RulebookError(f"The playbook {name!r} is a template: name one playbook.")
    if name.startswith(f"{COLLECTION}."):
        path = HOME / "playbooks" / f"{name.removeprefix(COLLECTION + '.')}.yml"
    elif name.count(".") == 2 and "/" not in name:  # noqa: PLR2004 - namespace.collection.playbook
        namespace, collection, playbook = name.split(".")
        path = _package("ansible_collections") / namespace / collection / "playbooks" / f"{playbook}.yml"
    else:
        path = directory / name if Path(name).suffix else directory / f"{name}.yml"
    if not os.path.isfile(path):
        raise RulebookError(f"There is no playbook {name!r}: {path} does not exist.")
    return playbook_name(path, directory) or name, path.resolve()


def playbook_name(path: Path, directory: Path) -> str | None:
    """The one name of a playbook's file, however a rule or a person spelled it; None elsewhere."""
    for base, prefix in ((HOME / "playbooks", f"{COLLECTION}."), (directory.resolve(), "")):
        if path.resolve().is_relative_to(base):
            return prefix + ".".join(path.resolve().relative_to(base).with_suffix("").parts)
    return None
