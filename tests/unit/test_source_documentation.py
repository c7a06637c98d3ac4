# SPDX-License-Identifier: Apache-2.0
"""What DOCUMENTATION and EXAMPLES of a source say is what the source takes."""

import asyncio
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from harness import ROOT
from unit.hosting import hosting
from zamu.engine.check.sources import documented
from zamu.errors import ConfigError
from zamu.journal.sqlite import Journal
from zamu.rulebooks import find_plugin

SOURCES = sorted((ROOT / "event_sources").glob("[a-z]*.py"))
EVERY_SOURCE = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
TYPES = {str: "str", int: "int", bool: "bool", float: "float", list: "list", dict: "dict"}


def documentation(path: Path) -> dict[str, Any]:
    """With the fragments that it extends."""
    found: dict[str, Any] = documented(path)["DOCUMENTATION"]
    return found


def kind(annotation: Any) -> str:
    """The documented type of a field: of `X | None` that of X, of `list[X]` list."""
    annotation = getattr(annotation, "__value__", annotation)  # of a named type
    inner = [one for one in getattr(annotation, "__args__", ()) if one is not type(None)]
    origin = getattr(annotation, "__origin__", None)
    if origin in (list, dict):
        return TYPES[origin]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "dict"
    if origin is Literal:
        return TYPES[type(inner[0])]
    return TYPES.get(annotation) or kind(inner[0])


def default(field: Any) -> object:
    value = field.get_default(call_default_factory=True)
    return None if value is PydanticUndefined else value


def test_there_are_sources() -> None:
    assert {path.stem for path in SOURCES} >= {
        *("aide", "alertmanager", "auditd", "clock", "fail2ban", "forgejo", "http_check", "journald", "mqtt"),
        *("proxmox", "runs", "suricata", "uptime_kuma", "webhook"),
    }


@EVERY_SOURCE
def test_the_documentation_has_what_ansible_doc_wants(path: Path) -> None:
    found = documentation(path)
    assert isinstance(found["short_description"], str)
    assert isinstance(found["description"], list)
    for name, option in found.get("options", {}).items():
        assert option["description"], name
        assert option["type"] in TYPES.values(), name
        assert option["type"] != "list" or option["elements"], name


@EVERY_SOURCE
def test_the_options_and_defaults_are_those_that_the_source_takes(path: Path) -> None:
    options = documentation(path).get("options", {})
    plugin = runpy.run_path(str(path))
    model: type[BaseModel] = plugin["Arguments"]
    assert set(model.model_fields) == set(options)
    own = yaml.safe_load(plugin["DOCUMENTATION"]).get("options", {})
    assert [name for name in model.model_fields if name in own] == list(own)
    for name, field in model.model_fields.items():
        assert options[name].get("default") == default(field), name
        assert options[name]["type"] == kind(field.annotation), name
        assert options[name].get("required", False) == field.is_required(), name


def refuse(path: Path, arguments: dict[str, Any]) -> str:
    main = runpy.run_path(str(path))["main"]
    with pytest.raises(ConfigError) as refusal:
        asyncio.run(main(asyncio.Queue(), arguments))
    return str(refusal.value)


@EVERY_SOURCE
def test_an_unknown_option_is_refused_by_name_with_the_options_that_there_are(path: Path) -> None:
    words = refuse(path, {"no_such_option": 1})
    assert words.startswith(f"{path.stem}: ")
    assert "no_such_option" in words
    for option in documentation(path).get("options", {}):
        assert option in words


@EVERY_SOURCE
def test_the_examples_can_be_read_and_use_only_options_that_there_are(path: Path) -> None:
    examples = yaml.safe_load(runpy.run_path(str(path))["EXAMPLES"])
    options = documentation(path).get("options", {})
    assert examples
    for example in examples:
        assert set(example) == {"name", path.stem}
        assert set(example[path.stem] or {}) <= set(options)
        assert find_plugin(path.stem, "event_source", Path("/nonexistent")) == path


@EVERY_SOURCE
def test_the_schema_holds_the_documented_options_and_takes_the_examples(path: Path) -> None:
    schema = json.loads((path.parent / "schemas" / f"{path.stem}.json").read_text())
    options = documentation(path).get("options", {})
    assert set(schema["properties"]) == set(options)
    assert list(schema["properties"]) == list(runpy.run_path(str(path))["Arguments"].model_fields)
    assert schema.get("required", []) == [name for name, one in options.items() if one.get("required")]
    assert schema["additionalProperties"] is False
    for name, option in options.items():
        assert schema["properties"][name].get("default") == option.get("default"), name
    check = Draft202012Validator(schema)
    check.check_schema(schema)
    for example in yaml.safe_load(runpy.run_path(str(path))["EXAMPLES"]):
        check.validate(example[path.stem] or {})
    assert not check.is_valid({"no_such_option": 1})


def test_options_of_fragments_are_those_that_ansible_itself_adds(tmp_path: Path) -> None:
    """Ansible runs the fragments of a collection that it finds; zamu reads them."""
    link = tmp_path / "ansible_collections" / "boma" / "zamu"
    link.parent.mkdir(parents=True)
    link.symlink_to(ROOT)
    code = """if True:
        import json, sys, yaml
        from ansible.plugins.loader import fragment_loader, init_plugin_loader
        from ansible.utils.plugin_docs import add_fragments
        init_plugin_loader([sys.argv[1]])
        found = json.load(sys.stdin)
        for about in found.values():
            add_fragments(about, "/source.py", fragment_loader)
        print(json.dumps(found))
    """
    written = {path.stem: yaml.safe_load(runpy.run_path(str(path))["DOCUMENTATION"]) for path in SOURCES}
    assert any("extends_documentation_fragment" in one for one in written.values())
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        input=json.dumps(written),
        capture_output=True,
        check=True,
        text=True,
    )
    assert json.loads(done.stdout) == {path.stem: documentation(path) for path in SOURCES}


def test_a_foreign_sources_fragments_are_read_too_and_broken_ones_leave_its_options_unknown(
    tmp_path: Path,
) -> None:
    foreign = find_plugin("vmware.vmware.vcenter_event_manager", "event_source", tmp_path)
    assert {"interval", "hostname", "validate_certs"} <= set(documentation(foreign)["options"])
    for name in ("nobody.knows.it", "vmware.vmware.base_options.nothing", "files", "5"):
        broken = tmp_path / "broken.py"
        broken.write_text(f"DOCUMENTATION = 'extends_documentation_fragment: {name}'\nRETURN = 'a: {{}}'\n")
        assert documented(broken) == {"RETURN": {"a": {}}}


async def test_the_source_that_the_how_to_writes_works(tmp_path: Path, journal: Journal) -> None:
    page = (ROOT / "docs" / "howto" / "write-a-source.md").read_text()
    source = tmp_path / "sources" / "checks.py"
    source.parent.mkdir()
    source.write_text(re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)[0])
    assert set(documentation(source)["options"]) == set(runpy.run_path(str(source))["Arguments"].model_fields)
    async with hosting(tmp_path, journal, {"demo": {}}) as house:
        house.config = house.config.model_copy(update={"event_sources": source.parent})
        await house.start(house.source("checks"))
        headers = {"Authorization": f"Bearer {house.token('checks')}"}
        check = {"name": "drop box", "host": "demo", "ok": False}
        for _ in range(2):
            assert (await house.request("POST", "/checks", json=check, headers=headers)).status == 202
        wrong = check | {"ok": "perhaps"}
        refused = await house.request("POST", "/checks", json=wrong, headers=headers)
        assert (refused.status, refused.error.partition(":")[0]) == (422, "ok")
        [event] = house.events
        assert (event["check"], event["meta"]["hosts"]) == (check, ["demo"])
