# SPDX-License-Identifier: Apache-2.0

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible._internal._datatag._tags import TrustedAsTemplate
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from hypothesis import example, given
from hypothesis import strategies as st

from zamu.event import clean_text
from zamu.gate import inert

NASTY = [
    *(
        "yes",
        "no",
        "on",
        "off",
        "true",
        "True",
        "null",
        "~",
        "",
        " ",
        "1",
        "-1",
        "1.5",
        "1e3",
        "0x1f",
        "0o17",
    ),
    *("1_000", "190:20:30", ".inf", ".nan", "2020-01-01", "2020-01-01T00:00:00Z", "<<", "=", "-", "?", ":"),
    *(
        "{{ 7 * 7 }}",
        "{% raw %}x{% endraw %}",
        "{# x #}",
        "#jinja2: variable_start_string: '[['\n[[ 7 * 7 ]]",
    ),
    *("{{ lookup('pipe', 'id') }}", "{", "{{", "}}", "{{ '{{' }} 1 }}", "!unsafe x", "!vault x", "&a", "*a"),
    *(
        "$ANSIBLE_VAULT;1.1;AES256\n3132",
        "🎉",
        "\ud83c\udf89",
        "\ud83c",
        "\0",
        "\x1b[2J",
        "\x7f",
        "\x85",
        "\xa0",
    ),
    *(
        "\u2028",
        "\u2029",
        "\ufeff",
        "\ufffe",
        "\ufffd",
        "a\nb",
        "a\r\nb",
        "\r",
        "\t",
        " x ",
        "'",
        '"',
        "\\",
        "\\0",
    ),
    *(
        "# comment",
        "a: b",
        "a #b",
        "- a",
        "---",
        "...",
        "%YAML 1.1",
        "@x",
        "`x`",
        "|",
        ">",
        "x" * 300,
        " " * 200,
    ),
]
TEXT = st.sampled_from(NASTY) | st.text(st.characters()) | st.builds("{{{{ {} }}}}".format, st.text())
LEAF = TEXT | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=15)
VARIABLES = st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,10}", fullmatch=True), VALUE, max_size=4)


def through_ansible(directory: Path, variables: dict[str, Any]) -> Any:
    """What ansible-playbook has of `-e @file` (ansible.utils.vars.load_extra_vars)."""
    path = directory / "variables.yml"
    path.write_text(inert.write(variables), encoding="utf-8")
    return DataLoader().load_from_file(str(path), cache="none", trusted_as_template=True)


def cleaned(value: Any) -> Any:
    """The value as it has to arrive: surrogates joined, else the same."""
    if isinstance(value, dict):
        return {clean_text(key): cleaned(child) for key, child in value.items()}
    if isinstance(value, list):
        return [cleaned(child) for child in value]
    return clean_text(value) if isinstance(value, str) else value


def texts(value: Any) -> Iterator[str]:
    """Every string in a value, keys too."""
    if isinstance(value, str):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(child)
    if isinstance(value, dict):
        for key in value:
            yield from texts(key)


def check_inert(found: Any) -> None:
    """No string of what Ansible read is a template: untrusted, or templating does not change it."""
    templar = Templar(DataLoader())
    for text in texts(found):
        if TrustedAsTemplate.is_tagged_on(text):
            assert not {"{{", "{%", "{#", "#jinja2:"} & {text[i : i + 2] for i in range(len(text))}
            assert templar.template(text) == text


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down (Ansible's tagged text counts as text)."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    kinds = [next(k for k in (bool, int, float, str, type(None)) if isinstance(it, k)) for it in (one, other)]
    return kinds[0] is kinds[1] and one == other


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inert")


@given(VARIABLES)
@example({"a": {text: text for text in NASTY}})
@example({"a": [text for text in NASTY]})
def test_every_value_reaches_ansible_as_the_same_text_and_never_as_a_template(
    directory: Path, variables: dict[str, Any]
) -> None:
    variables = cleaned(variables)
    found = through_ansible(directory, variables)
    assert same(found, variables), (found, variables)
    check_inert(found)


@given(VARIABLES)
def test_what_the_engine_wrote_is_read_as_it_meant_it(variables: dict[str, Any]) -> None:
    assert inert.read(yaml.safe_dump(cleaned(variables))) == cleaned(variables)


@pytest.mark.parametrize("text", NASTY)
def test_a_text_that_means_something_to_yaml_or_jinja_stays_text(directory: Path, text: str) -> None:
    [found] = through_ansible(directory, {"a": [clean_text(text)]})["a"]
    assert isinstance(found, str)
    assert found == clean_text(text)
    check_inert(found)


def test_this_test_would_notice_a_template(directory: Path) -> None:
    path = directory / "live.yml"
    path.write_text('a: "{{ 7 * 7 }}"\n')
    live = DataLoader().load_from_file(str(path), cache="none", trusted_as_template=True)
    assert TrustedAsTemplate.is_tagged_on(live["a"])
    with pytest.raises(AssertionError):
        check_inert(live)


def test_surrogate_pairs_of_java_become_one_character_in_values_and_keys() -> None:
    text = r'{"a": {"\ud83c\udf89": ["\ud83c\udf89"]}}'
    assert inert.read(text) == {"a": {"🎉": ["🎉"]}}


def test_lone_surrogates_do_not_stop_the_file_from_being_written(directory: Path) -> None:
    variables = inert.read(r'{"a": "x\ud83c", "\ud800": 1}')
    assert through_ansible(directory, variables) == {"a": "x\ufffd", "\ufffd": 1}


def test_equal_values_are_written_twice_and_not_as_references() -> None:
    shared = {"b": ["c"]}
    assert "&" not in inert.write({"a": shared, "d": shared})


@pytest.mark.parametrize(
    "text",
    [
        "- a",
        "a",
        "",
        "a: [",
        "a: !!python/object/apply:os.system [id]",
        "a: !!python/name:os.system",
        "a: !unsafe x",
        "a: !vault x",
        "a: 2020-13-45",
        "? [a]\n: b",
        "a: 1\n---\nb: 2",
    ],
)
def test_what_is_not_plain_data_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        inert.read(text)


@pytest.mark.parametrize(
    "text", ["a: 2020-01-01", "a: [2020-01-01T00:00:00Z]", "a: {b: !!binary eA==}", "a: !!set {b}"]
)
def test_what_json_cannot_hold_is_refused_because_the_ledger_could_not(text: str) -> None:
    with pytest.raises(ValueError, match=r"a (date|datetime|bytes|set) is no plain value here; quote it"):
        inert.read(text)
