# SPDX-License-Identifier: Apache-2.0
"""Whether the playbooks that rules name hold plays, find their roles, and verify what they did."""

import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from zamu import documents
from zamu.ansible import ansible_settings, collection_paths
from zamu.config import HOME, Config
from zamu.documents import Check, Document, Finding, shown
from zamu.rulebooks import COLLECTION, collection_roots

_FULL = 3  # parts of namespace.collection.role
_VERIFY = "verify_"
_DEFAULT_ROLES = "~/.ansible/roles:/usr/share/ansible/roles:/etc/ansible/roles"
_INCLUDES = frozenset(
    f"{prefix}{name}" for name in ("include_role", "import_role") for prefix in ("", "ansible.builtin.")
)
_IMPORTS = frozenset({"import_playbook", "ansible.builtin.import_playbook"})
_LISTS, _ROLE, _NAME = frozenset({"roles", "dependencies"}), frozenset({"role"}), frozenset({"name"})
#: What makes a directory a role.
_PARTS = frozenset({"tasks", "handlers", "defaults", "vars", "files", "templates", "meta", "library"})


class Playbooks:
    """Looks at each playbook once; `findings` gathers what is wrong with them."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._seen: dict[Path, bool] = {}
        self.findings: list[Finding] = []

    def verifies(self, name: str, path: Path) -> bool:
        """Look at a playbook; returns whether a verify_ role is in it, or None of it could be read."""
        if path not in self._seen:
            self._seen[path] = True  # until known: a playbook may import itself
            self._seen[path] = self._examine(name, path)
        return self._seen[path]

    def _examine(self, name: str, path: Path) -> bool:
        document = documents.read(path, construct=False)
        if isinstance(document, Finding):
            self.findings.append(document)
            return True
        plays = document.tree.value if isinstance(document.tree, yaml.SequenceNode) else []
        if not any(isinstance(play, yaml.MappingNode) for play in plays):
            words = "this playbook holds no play; begin one with `- name:` and `hosts:`."
            self._add(document, None, "playbook", words)
            return True
        verifies = False
        for play in plays:
            for imported in _values(play, _IMPORTS):
                verifies |= self._import(document, imported)
            collections = [one.value for one in _values(play, frozenset({"collections"}))]
            for role in _roles(play):
                verifies |= self._role(document, name, role, collections)
        return verifies

    def _import(self, document: Document, imported: yaml.ScalarNode) -> bool:
        name: str = imported.value
        path = document.path.parent / name
        if "{{" in name or name.count(".") == _FULL - 1:
            return True  # not known here
        if path.is_file():
            return self.verifies(name, path.resolve())
        self._add(document, imported, "playbook", f"there is no playbook {name!r} to import; mend the path.")
        return True

    def _role(self, document: Document, playbook: str, role: yaml.ScalarNode, collections: list[str]) -> bool:
        name: str = role.value
        short = name.rpartition(".")[2]
        if "{{" in name:
            return True  # not known here
        found = self._resolve(document.path.parent, name, collections)
        if found is None:
            beside = shown(document.path.parent / "roles")
            words = f"there is no role {name!r}; mend the name, or put the role into {beside}."
            self._add(document, role, "role", words)
        elif not any((found / part).exists() for part in _PARTS):
            words = (
                f"the role {name!r} would be {shown(found)}, which is none, so nothing would be done, "
                "and called successful; name roles apart from playbooks and other files."
            )
            self._add(document, role, "role-name", words)
        elif short in (playbook, document.path.stem) and not document.path.is_relative_to(HOME):
            words = (
                f"role {short!r} is named like its playbook, which Ansible may take for it; name them apart."
            )
            self._add(document, role, "role-name", words, warning=True)
        return short.startswith(_VERIFY) or (found is not None and self._verified_inside(found, {found}))

    def _verified_inside(self, role: Path, seen: set[Path]) -> bool:
        """Whether a role brings a verify_ role in by itself."""
        for file in [*role.glob("tasks/**/*.yml"), *role.glob("meta/main.yml")]:
            document = documents.read(file, construct=False)
            inside = [] if isinstance(document, Finding) else _roles(document.tree)
            for one in inside:
                if one.value.rpartition(".")[2].startswith(_VERIFY):
                    return True
                found = self._resolve(role.parent, one.value, [])
                if found and found not in seen and self._verified_inside(found, seen | {found}):
                    return True
        return False

    def _resolve(self, beside: Path, name: str, collections: list[str]) -> Path | None:
        """The path that Ansible takes for a role, in its own order."""
        parts = name.split(".")
        wanted = [name] if len(parts) == _FULL else [f"{one}.{name}" for one in collections]
        places = [place for one in wanted for place in self._in_collections(*one.split(".")[:_FULL])]
        settings = ansible_settings(self._config.ansible_config)
        named = settings.get("defaults", "roles_path", fallback=_DEFAULT_ROLES)
        searched = os.environ.get("ANSIBLE_ROLES_PATH", named).split(os.pathsep)
        roots = [self._config.ansible_config.parent / Path(one).expanduser() for one in searched if one]
        places += [beside / "roles" / name, *(root / name for root in roots), beside / name]
        return next((place for place in places if os.path.exists(place)), None)

    def _in_collections(self, namespace: str, collection: str = "", role: str = "") -> Iterator[Path]:
        if f"{namespace}.{collection}" == COLLECTION:
            yield HOME / "roles" / role
        for root in collection_roots(collection_paths(self._config)):
            yield root / namespace / collection / "roles" / role

    def _add(
        self, document: Document, at: yaml.Node | None, check: Check, words: str, *, warning: bool = False
    ) -> None:
        line = at.start_mark.line + 1 if at else 1
        self.findings.append(documents.found(document.path, line, check, words, warning=warning))


def _values(node: yaml.Node, keys: frozenset[str]) -> Iterator[yaml.ScalarNode]:
    """The text, or texts, below some keys of a mapping."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        if key.value in keys:
            for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(one, yaml.ScalarNode):
                    yield one


def _roles(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Every role that a play, a task file or a role's meta names, at any depth."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _roles(child)
    if not isinstance(node, yaml.MappingNode):
        return
    yield from _values(node, _LISTS)
    for key, value in node.value:
        if key.value in _INCLUDES:
            yield from _values(value, _NAME)
        elif key.value in _LISTS and isinstance(value, yaml.SequenceNode):
            for entry in value.value:
                yield from list(_values(entry, _ROLE)) or list(_values(entry, _NAME))
        elif key.value != "vars":
            yield from _roles(value)
