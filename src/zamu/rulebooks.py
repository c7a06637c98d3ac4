# SPDX-License-Identifier: Apache-2.0
"""Reads the rulebooks: which rulesets there are, which sources they name, and who hears whom.

A source that is named twice with the same arguments and filters runs once, and each ruleset that
names it is a consumer of it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zamu.config import HOME
from zamu.errors import RulebookError
from zamu.journal import Consumer

#: Our collection; its plugins, playbooks and roles are found in this repository.
COLLECTION = "boma.zamu"

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
    """One ruleset as it stands in its file."""

    name: str
    rulebook: Path
    data: dict[str, Any]
    consumers: list[Consumer]


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
    """Read all `*.yml` below `directory`. `overlays` adds arguments to sources by their name.

    Raises RulebookError that names the file, and the ruleset where it can.
    """
    files = sorted(directory.glob("**/*.yml"))
    if not files:
        raise RulebookError(
            f"There is no rulebook (*.yml) in {directory}. Start zamu where your rulebooks/ is, "
            "or name the directory as `rulebooks` in zamu.yml."
        )
    found: dict[str, Source] = {}
    rulesets: list[Ruleset] = []
    for file in files:
        for data in _parse(file):
            if any(other.name == data["name"] for other in rulesets):
                raise RulebookError(f"{file}: a ruleset named {data['name']!r} exists already.")
            consumers = [
                _subscribe(file, data["name"], source, overlays, found) for source in data["sources"]
            ]
            names = [consumer.name for consumer in consumers]
            if len(set(names)) < len(names):
                raise RulebookError(
                    f"{file}: ruleset {data['name']!r} has two sources of one name; name them apart."
                )
            if len({consumer.source for consumer in consumers}) < len(consumers):
                raise RulebookError(
                    f"{file}: ruleset {data['name']!r} names one source twice, so it would hear each "
                    "event twice; name it once."
                )
            rulesets.append(Ruleset(data["name"], file, data, consumers))
    unused = sorted(set(overlays) - {consumer.name for one in rulesets for consumer in one.consumers})
    if unused:
        raise RulebookError(
            f"zamu.yml has arguments for the source {unused[0]!r}, and no rulebook in {directory} "
            "names such a source."
        )
    return Rulebooks(rulesets, list(found.values()))


def _parse(file: Path) -> list[dict[str, Any]]:
    try:
        data = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise RulebookError(f"{file} cannot be read: {error}.") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise RulebookError(f"{file}:{line}: {getattr(error, 'problem', error)}.") from error
    if not isinstance(data, list):
        raise RulebookError(f"{file}: a rulebook is a list of rulesets.")
    for ruleset in data:
        name = ruleset.get("name") if isinstance(ruleset, dict) else None
        if not isinstance(name, str) or not name.strip():
            raise RulebookError(f"{file}: a ruleset has no name.")
        ruleset["name"] = name.strip()
        if not isinstance(ruleset.get("sources"), list) or not ruleset["sources"]:
            raise RulebookError(f"{file}: ruleset {ruleset['name']!r} has no list of sources.")
    return data


def _subscribe(
    file: Path,
    ruleset: str,
    entry: Any,
    overlays: dict[str, dict[str, Any]],
    found: dict[str, Source],
) -> Consumer:
    """Find or add the hosted source for one entry of `sources`."""
    where = f"{file}: ruleset {ruleset!r}"
    plugins = [key for key in entry if key not in _NOT_PLUGINS] if isinstance(entry, dict) else []
    if len(plugins) != 1:
        raise RulebookError(f"{where}: each source names exactly one plugin, found {plugins}.")
    plugin = plugins[0]
    arguments = entry[plugin] or {}
    if not isinstance(arguments, dict):
        raise RulebookError(f"{where}: the arguments of source {plugin!r} are not a mapping.")
    name = str(entry.get("name") or plugin)
    arguments = {**arguments, **overlays.get(name, {})}
    filters = entry.get("filters") or []
    same = json.dumps([plugin, arguments, filters], sort_keys=True, default=str)
    for source in found.values():
        if json.dumps([source.plugin, source.arguments, source.filters], sort_keys=True, default=str) == same:
            return Consumer(ruleset, source.id, name)
    identifier = name if name not in found else f"{name} of {ruleset}"
    found[identifier] = Source(identifier, plugin, arguments, filters, file)
    return Consumer(ruleset, identifier, name)


def find_plugin(name: str, kind: str, directory: Path) -> Path:
    """The file of a source or filter (`kind`: `event_source` or `event_filter`) by its name.

    Looks in `directory` first, then in this repository, in ansible-rulebook's own plugins and in
    the collections that are installed as Python packages. Raises RulebookError.
    """
    short = name.removeprefix(f"{COLLECTION}.")
    own = [directory / f"{short}.py", HOME / f"{kind}s" / f"{short}.py"]
    candidates = own if "." not in short else []
    if name.startswith("eda.builtin."):
        candidates = [_package("ansible_rulebook") / kind / f"{name.rpartition('.')[2]}.py"]
    elif name.count(".") == 2:  # noqa: PLR2004 - namespace.collection.plugin
        namespace, collection, plugin = name.split(".")
        base = _package("ansible_collections") / namespace / collection
        candidates += [
            base / "extensions" / "eda" / "plugins" / kind / f"{plugin}.py",
            base / "plugins" / kind / f"{plugin}.py",
        ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(path.stem for path in (HOME / f"{kind}s").glob("[a-z]*.py"))
    raise RulebookError(
        f"There is no {kind.replace('_', ' ')} {name!r}. Looked for "
        f"{', '.join(map(str, candidates)) or 'nothing'}; zamu's own are {', '.join(known)}."
    )


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
    if not path.is_file():
        raise RulebookError(f"There is no playbook {name!r}: {path} does not exist.")
    return playbook_name(path, directory) or name, path.resolve()


def playbook_name(path: Path, directory: Path) -> str | None:
    """The one name of a playbook's file, however a rule or a person spelled it; None elsewhere."""
    for base, prefix in ((HOME / "playbooks", f"{COLLECTION}."), (directory.resolve(), "")):
        if path.resolve().is_relative_to(base):
            return prefix + ".".join(path.resolve().relative_to(base).with_suffix("").parts)
    return None
