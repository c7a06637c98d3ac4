# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import ROOT
from zamu.errors import RulebookError
from zamu.journal import Consumer
from zamu.rulebooks import Rulebooks, find_playbook, find_plugin, load

type Write = Callable[..., Rulebooks]


def ruleset(name: str, *sources: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": name, "hosts": "all", "sources": list(sources), "rules": [], **fields}


ALERTS = {"name": "alerts", "alertmanager": {"path": "/a"}}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rulebooks by file name, and load them."""

    def loaded(files: dict[str, Any], **overlays: dict[str, Any]) -> Rulebooks:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return load(tmp_path, overlays)

    return loaded


def test_a_source_that_is_named_twice_with_the_same_arguments_is_one_source_with_two_consumers(
    write: Write,
) -> None:
    found = write({"a.yml": [ruleset("A", ALERTS)], "b.yml": [ruleset("B", {**ALERTS, "name": "other"})]})
    [source] = found.sources
    assert (source.id, source.plugin, source.arguments) == ("alerts", "alertmanager", {"path": "/a"})
    assert found.consumers == [Consumer("A", "alerts", "alerts"), Consumer("B", "alerts", "other")]


@pytest.mark.parametrize(
    "other",
    [
        {"name": "alerts", "alertmanager": {"path": "/b"}},
        {"name": "alerts", "alertmanager": {"path": "/a"}, "filters": [{"eda.builtin.json_filter": {}}]},
        {"name": "alerts", "runs": {"path": "/a"}},
    ],
)
def test_with_other_arguments_filters_or_plugin_it_is_another_source(
    write: Write, other: dict[str, Any]
) -> None:
    found = write({"a.yml": [ruleset("A", ALERTS), ruleset("B", other)]})
    assert [source.id for source in found.sources] == ["alerts", "alerts of B"]
    assert found.consumers == [
        Consumer("A", "alerts", "alerts"),
        Consumer("B", "alerts of B", "alerts"),
    ]


def test_a_source_without_a_name_is_called_like_its_plugin(write: Write) -> None:
    found = write({"a.yml": [ruleset("A", {"alertmanager": None})]})
    assert (found.sources[0].id, found.sources[0].arguments) == ("alertmanager", {})


def test_rulebooks_are_read_in_the_order_of_their_names_and_in_directories_below(write: Write) -> None:
    found = write(
        {
            "b.yml": [ruleset("B", ALERTS)],
            "a/x.yml": [ruleset(" A ", ALERTS)],
            "c.yaml": [ruleset("C", ALERTS)],
            "c.yaml~": "- ignored",
            "notes.md": "- ignored",
        }
    )
    assert [one.name for one in found.rulesets] == ["A", "B", "C"]


def test_zamu_yml_adds_arguments_to_a_source_by_its_name(write: Write) -> None:
    found = write({"a.yml": [ruleset("A", ALERTS)]}, alerts={"path": "/x", "api_url": "http://x"})
    assert found.sources[0].arguments == {"path": "/x", "api_url": "http://x"}


def test_an_overlay_for_a_source_that_there_is_not_is_refused_with_its_name(write: Write) -> None:
    with pytest.raises(
        RulebookError,
        match=r"arguments for the source 'alertz', and no rulebook names such a source \(they name: alerts\)",
    ):
        write({"a.yml": [ruleset("A", ALERTS)]}, alertz={"path": "/x"})


def test_a_directory_without_rulebooks_is_refused_with_what_to_do(tmp_path: Path) -> None:
    for directory, where in ((tmp_path, r"\(\*\.yml or \*\.yaml\) in "), (tmp_path / "missing", "")):
        with pytest.raises(RulebookError, match=rf"There is no rulebook {where}{directory}\. Mend the name"):
            load(directory, {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- name: A\n  sources: [", r"a\.yml:2: "),
        ("- name: A\n  sources: [x]\n  name: B\n", r"a\.yml:3: yaml: the key 'name' stands here twice"),
        (
            "- name: !vault x\n",
            r"a\.yml:1: yaml: a rulebook holds no !vault; secrets are arguments in `sources`",
        ),
        ("- !!python/object/apply:os.system [id]\n", r"a\.yml:1: yaml: could not determine a constructor"),
        ("name: A", r"a\.yml:1: yaml: a rulebook is a list of rulesets"),
        ("[]", r"a\.yml:1: yaml: a rulebook is a list of rulesets"),
        ("", r"a\.yml:1: yaml: the file is empty"),
        ("- A", r"a\.yml:1: ruleset-name: this ruleset has no name"),
        ("- hosts: all", r"a\.yml:1: ruleset-name: this ruleset has no name"),
        ("- name: ' '", r"a\.yml:1: ruleset-name: this ruleset has no name"),
        ("- name: 5", r"a\.yml:1: ruleset-name: this ruleset has no name"),
        ("- name: A", r"a\.yml:1: source: ruleset 'A' has no list of sources"),
        ("- {name: A, sources: []}", r"a\.yml:1: source: ruleset 'A' has no list of sources"),
        ("- {name: A, sources: {}}", r"a\.yml:1: source: ruleset 'A' has no list of sources"),
        ("- {name: A, sources: [x]}", r"a\.yml:1: source: each source names exactly one plugin; found \[\]"),
        (
            "- {name: A, sources: [{name: x}]}",
            r"a\.yml:1: source: each source names exactly one plugin; found \[\]",
        ),
        ("- {name: A, sources: [{a: , b: }]}", r"names exactly one plugin; found \['a', 'b'\]"),
        (
            "- {name: A, sources: [{a: [x]}]}",
            r"a\.yml:1: source: the arguments of source 'a' are not a mapping",
        ),
    ],
)
def test_a_rulebook_that_cannot_be_read_is_refused_with_file_and_place(
    write: Write, content: str, words: str
) -> None:
    with pytest.raises(RulebookError, match=words):
        write({"a.yml": content})


def test_a_rulebook_that_is_not_text_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_bytes(b"\xff")
    with pytest.raises(RulebookError, match=r"a\.yml:1: yaml: this is not UTF-8 text"):
        load(tmp_path, {})


def test_two_rulesets_of_one_name_are_refused(write: Write) -> None:
    with pytest.raises(
        RulebookError, match=r"b\.yml:\d: ruleset-name: a ruleset named 'A' exists already in .*a\.yml"
    ):
        write({"a.yml": [ruleset("A", ALERTS)], "b.yml": [ruleset("A", ALERTS)]})


def test_two_sources_of_one_name_in_one_ruleset_are_refused(write: Write) -> None:
    with pytest.raises(RulebookError, match=r"a\.yml:\d: source-name: another source of 'A' is named 'runs'"):
        write({"a.yml": [ruleset("A", {"runs": {}}, {"name": "runs", "alertmanager": {}})]})


def test_one_source_under_two_names_in_one_ruleset_is_refused(write: Write) -> None:
    with pytest.raises(RulebookError, match=r"a\.yml:\d: source: 'A' would hear each event of 'again' twice"):
        write({"a.yml": [ruleset("A", ALERTS, {**ALERTS, "name": "again"})]})


def test_everything_that_is_wrong_is_told_at_once_and_in_order(write: Write) -> None:
    with pytest.raises(RulebookError) as refusal:
        write({"a.yml": "- name: 5\n- name: B\n", "b.yml": "", "c.yml": [ruleset("C", ALERTS)]})
    first, *lines = str(refusal.value).splitlines()
    assert first == "The rulebooks cannot be used as they stand."
    assert [line.rpartition("/")[2].split(": ")[:2] for line in lines] == [
        ["a.yml:1", "ruleset-name"],
        ["a.yml:2", "source"],
        ["b.yml:1", "yaml"],
    ]


def test_no_source_takes_the_name_that_another_was_given(write: Write) -> None:
    others = [
        {"name": name, "alertmanager": {"path": f"/{n}"}} for n, name in enumerate(["alerts of B", "alerts"])
    ]
    found = write({"a.yml": [ruleset("A", ALERTS, others[0]), ruleset("B", others[1])]})
    assert [source.id for source in found.sources] == ["alerts", "alerts of B", "alerts of B of B"]


def test_the_repositorys_own_rulebooks_can_be_read() -> None:
    found = load(ROOT / "rulebooks", {})
    assert {source.plugin for source in found.sources} == {"alertmanager", "runs"}
    assert len(found.consumers) >= 4


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A house with plugins of its own."""
    for name in ("mine", "runs"):
        (tmp_path / f"{name}.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("mine", "/mine.py"),
        ("boma.zamu.mine", "/mine.py"),
        ("alertmanager", "/event_sources/alertmanager.py"),
        ("boma.zamu.alertmanager", "/event_sources/alertmanager.py"),
        ("eda.builtin.range", "/ansible_rulebook/event_source/range.py"),
        (
            "amazon.aws.aws_sqs_queue",
            "/ansible_collections/amazon/aws/extensions/eda/plugins/event_source/aws_sqs_queue.py",
        ),
    ],
)
def test_a_source_is_found_by_its_name(own: Path, name: str, end: str) -> None:
    found = find_plugin(name, "event_source", own)
    assert found.is_file()
    assert str(found).endswith(end)


def test_a_houses_own_source_comes_before_ours(own: Path) -> None:
    assert find_plugin("runs", "event_source", own) == own / "runs.py"


def test_a_filter_is_found_by_its_name(tmp_path: Path) -> None:
    found = find_plugin("eda.builtin.json_filter", "event_filter", tmp_path)
    assert str(found).endswith("/ansible_rulebook/event_filter/json_filter.py")


@pytest.mark.parametrize(
    "name",
    ["nobody", "boma.zamu.nobody", "eda.builtin.nobody", "ansible.eda.nobody", "a.b", "no.such.plugin", ""],
)
def test_a_source_that_there_is_not_is_refused_and_ours_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        RulebookError, match=rf"There is no event source '{name}'\. .*own are aide, alertmanager, .*runs"
    ):
        find_plugin(name, "event_source", tmp_path)


def test_a_playbook_of_ours_has_one_name_however_it_is_named() -> None:
    expected = ("boma.zamu.restart_unit", ROOT / "playbooks" / "restart_unit.yml")
    for name in ("boma.zamu.restart_unit", "restart_unit", "restart_unit.yml", str(expected[1])):
        assert find_playbook(name, ROOT / "playbooks") == expected


def test_a_playbook_of_the_house_is_found_below_its_directory(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for path in (tmp_path / "mend.yml", tmp_path / "sub" / "mend.yml"):
        path.write_text("")
    assert find_playbook("mend", tmp_path) == ("mend", tmp_path / "mend.yml")
    assert find_playbook("sub/mend.yml", tmp_path) == ("sub.mend", tmp_path / "sub" / "mend.yml")


@pytest.mark.parametrize(
    "name",
    ["nobody", "boma.zamu.nobody", "nobody.yml", "no.such.playbook", "../nobody", "", "/etc", "{% x %}"],
)
def test_a_playbook_that_there_is_not_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RulebookError, match="There is no playbook .* does not exist"):
        find_playbook(name, tmp_path)


def test_a_playbook_that_an_event_could_choose_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RulebookError, match="is a template: name one playbook"):
        find_playbook("{{ event.alert.labels.playbook }}", tmp_path)
