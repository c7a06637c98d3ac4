# SPDX-License-Identifier: Apache-2.0
"""Every role and every playbook keeps the house rules, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from zamu.policy import Guard

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))

# Playbooks after which there is nothing to verify, and why.
WITHOUT_VERIFY = {
    "collect_evidence": "it only looks",
    "notify": "it only tells, and the outbox sees to the delivery",
    "stop_demo_service": "what it removes cannot answer any more",
}
# What plays a role that has no scenario, and is no part of another role's.
WITHOUT_SCENARIO = {
    "demo_service": "it runs on this machine, which has no init: tests/roles/test_demo_service.py"
}
# Roles whose inputs need no more than the check that the argument specs make, and why.
WITHOUT_PREFLIGHT = {
    "notify": "its module checks its options and touches no host",
    "report_failure": "it fails for nothing, since the operator has to hear of it",
    "verify_message": "a key that no message has is what it finds",
}
# A play that lists anything but roles hides work from the roles' documentation and tests.
PLAY_KEYS = {
    "any_errors_fatal",
    "become",
    "become_user",
    "connection",
    "force_handlers",
    "gather_facts",
    "hosts",
    "max_fail_percentage",
    "module_defaults",
    "name",
    "roles",
    "serial",
    "vars",
}

each_role = pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
each_playbook = pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: path.stem)


class _Loader(yaml.SafeLoader):
    """Reads Ansible's own tags (!unsafe, !vault) as the plain values behind them."""


def _plain(loader: yaml.SafeLoader, _tag: str, node: yaml.Node) -> Any:
    match node:
        case yaml.MappingNode():
            return loader.construct_mapping(node, deep=True)
        case yaml.SequenceNode():
            return loader.construct_sequence(node, deep=True)
        case yaml.ScalarNode():
            return loader.construct_scalar(node)
        case _:
            raise AssertionError(f"{node.start_mark} holds something that YAML does not know")


_Loader.add_multi_constructor("!", _plain)


def read(path: Path) -> Any:
    """Give what the file holds, or None where there is no such file."""
    if not path.exists():
        return None
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)


def entry_points(role: Path) -> dict[str, Any]:
    specs = read(role / "meta" / "argument_specs.yml")
    assert specs, f"{role.name} has no meta/argument_specs.yml."
    found = specs["argument_specs"]
    assert isinstance(found, dict)
    return found


def options(role: Path) -> dict[str, dict[str, Any]]:
    """Give the options of all entry points of a role."""
    return {
        name: option
        for entry_point in entry_points(role).values()
        for name, option in (entry_point.get("options") or {}).items()
    }


def defaults(role: Path) -> dict[str, Any]:
    found = read(role / "defaults" / "main.yml") or {}
    assert isinstance(found, dict)
    return found


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Give every mapping in a document, however deep it is."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from mappings(item)


def variables_made(role: Path) -> Iterator[tuple[Path, str]]:
    """Give the names of the variables that a role makes for itself, with the file."""
    for path in sorted((role / "vars").glob("**/*.yml")):
        for name in read(path) or {}:
            yield path, name
    for folder in ("tasks", "handlers"):
        for path in sorted((role / folder).glob("**/*.yml")):
            for mapping in mappings(read(path)):
                if isinstance(register := mapping.get("register"), str):
                    yield path, register
                if isinstance(loop_var := mapping.get("loop_var"), str):
                    yield path, loop_var
                facts = mapping.get("ansible.builtin.set_fact")
                for name in facts if isinstance(facts, dict) else ():
                    if name != "cacheable":
                        yield path, name


def role_names(play: dict[str, Any]) -> list[str]:
    return [role if isinstance(role, str) else role["role"] for role in play["roles"]]


def test_there_are_roles_and_playbooks() -> None:
    assert ROLES
    assert PLAYBOOKS


@each_role
def test_a_role_has_the_files_that_a_reader_expects(role: Path) -> None:
    for name in ("README.md", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml"):
        assert (role / name).is_file(), f"{role.name} has no {name}."


@each_role
def test_the_defaults_are_the_ones_of_the_argument_specs(role: Path) -> None:
    specified = {name: o["default"] for name, o in options(role).items() if "default" in o}
    assert defaults(role) == specified


@each_role
def test_an_option_without_default_is_listed_as_a_comment(role: Path) -> None:
    path = role / "defaults" / "main.yml"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for name, option in options(role).items():
        if "default" not in option:
            assert re.search(rf"^#\s*{name}:", text, re.MULTILINE), (
                f"{name} has no default, so {path} should list it as a comment."
            )


@each_role
def test_an_option_is_either_required_or_has_a_default(role: Path) -> None:
    for name, option in options(role).items():
        assert not (option.get("required") and "default" in option), (
            f"{name} is required, so its default is never used."
        )


@each_role
def test_everything_in_the_argument_specs_is_described(role: Path) -> None:
    for name, entry_point in entry_points(role).items():
        assert entry_point.get("short_description"), f"{role.name}, {name}: no short_description."
    for name, option in options(role).items():
        assert option.get("description"), f"{name} has no description."
        assert option.get("type"), f"{name} has no type."


@each_role
def test_the_readme_names_every_option(role: Path) -> None:
    text = (role / "README.md").read_text(encoding="utf-8")
    missing = [name for name in options(role) if f"`{name}`" not in text]
    assert not missing, f"{role.name}/README.md does not name {missing}."


@each_role
def test_public_variables_begin_with_the_name_of_the_role(role: Path) -> None:
    for name in (*options(role), *defaults(role)):
        assert name.startswith(f"{role.name}_"), name


@each_role
def test_internal_variables_begin_with_two_underscores_and_the_name_of_the_role(
    role: Path,
) -> None:
    for path, name in variables_made(role):
        assert name.startswith(f"__{role.name}_"), f"{path}: {name}"


@each_role
def test_a_role_checks_its_inputs_first(role: Path) -> None:
    if role.name in WITHOUT_PREFLIGHT:
        return
    tasks = read(role / "tasks" / "main.yml")
    preflight = [
        value if isinstance(value, str) else value.get("file")
        for key, value in tasks[0].items()
        if key in {"ansible.builtin.import_tasks", "ansible.builtin.include_tasks"}
    ]
    assert preflight == ["preflight.yml"], f"The first task of {role.name} is not its preflight."


@each_role
def test_a_template_says_that_it_is_managed(role: Path) -> None:
    for path in sorted((role / "templates").glob("**/*.j2")):
        text = path.read_text(encoding="utf-8")
        assert re.search(r"{{\s*ansible_managed\s*\|\s*(ansible\.builtin\.)?comment", text), path


@each_playbook
def test_a_playbook_is_named_by_a_verb_and_a_noun(playbook: Path) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)+|notify", playbook.stem)


@each_playbook
def test_a_playbook_holds_only_roles_with_full_names(playbook: Path) -> None:
    for play in read(playbook):
        assert set(play) <= PLAY_KEYS, f"{playbook.name} holds {sorted(set(play) - PLAY_KEYS)}."
        assert play["roles"], f"{playbook.name} has a play without roles."
        for name in role_names(play):
            namespace, collection, role = name.split(".")
            assert (namespace, collection) == ("boma", "zamu")
            assert (ROOT / "roles" / role).is_dir(), f"{playbook.name}: there is no role {name}."


@each_playbook
def test_a_play_is_named_as_its_outcome(playbook: Path) -> None:
    for play in read(playbook):
        assert re.match(r"[A-Z]", play.get("name", "")), f"{playbook.name} has an unnamed play."


@each_playbook
def test_an_acting_playbook_verifies_last(playbook: Path) -> None:
    if playbook.stem in WITHOUT_VERIFY:
        return
    last = role_names(read(playbook)[-1])[-1]
    assert last.startswith("boma.zamu.verify_"), (
        f"{playbook.name} ends with {last}. An acting playbook ends with a verify_* role; "
        "if there is nothing to verify, say why in WITHOUT_VERIFY."
    )


@each_playbook
def test_what_acts_has_a_molecule_scenario(playbook: Path) -> None:
    for name in (name for play in read(playbook) for name in role_names(play)):
        role = name.rpartition(".")[2]
        if not role.startswith("verify_") and role not in WITHOUT_SCENARIO:
            scenario = ROOT / "roles" / role / "molecule" / "default"
            for file in ("molecule.yml", "converge.yml", "unchanged.yml", "verify.yml"):
                assert (scenario / file).is_file(), f"{role} has no {file} of a scenario `default`."


def test_every_exception_from_verifying_is_still_needed() -> None:
    verified = {
        playbook.stem
        for playbook in PLAYBOOKS
        if role_names(read(playbook)[-1])[-1].startswith("boma.zamu.verify_")
    }
    assert not verified & set(WITHOUT_VERIFY)


@pytest.mark.parametrize("name", sorted(Guard.built_in))
def test_what_the_guard_knows_of_a_playbook_is_so(name: str) -> None:
    first = role_names(read(ROOT / "playbooks" / f"{name.rpartition('.')[2]}.yml")[0])[0]
    specs = read(ROOT / "roles" / first.rpartition(".")[2] / "meta" / "argument_specs.yml")
    assert set(Guard.built_in[name].target) <= set(specs["argument_specs"]["main"]["options"])
