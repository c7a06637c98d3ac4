# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zamu.errors import ConfigError
from zamu.inventory import Inventory, build, load

HOSTS: dict[str, dict[str, Any]] = {
    "web1": {"ansible_host": "192.0.2.31"},
    "db.example.net": {"ansible_host": "2001:db8::1"},
    "PVE1": {},
    "fw": {"ansible_host": "firewall.example.net"},
    "mail.a.example": {},
    "mail.b.example": {},
    "192.0.2.77": {},
    "templated": {"ansible_host": "{{ inventory_hostname }}.example.net"},
    "numbered": {"ansible_host": 7},
    "twin1": {"ansible_host": "192.0.2.9"},
    "twin2": {"ansible_host": "192.0.2.9"},
}


@pytest.fixture(scope="module")
def inventory() -> Inventory:
    return build(HOSTS)


@pytest.mark.parametrize(
    ("spoken", "host"),
    [
        ("web1", "web1"),
        (" web1 ", "web1"),
        ("WEB1", "web1"),
        ("web1.", "web1"),
        ("web1:9100", "web1"),
        ("web1.example.net", "web1"),
        ("web1.example.net.", "web1"),
        ("Web1.Example.Net:9100", "web1"),
        ("192.0.2.31", "web1"),
        ("192.0.2.31:9100", "web1"),
        ("pve1", "PVE1"),
        ("PVE1:9100", "PVE1"),
        ("db.example.net", "db.example.net"),
        ("db", "db.example.net"),
        ("db:5432", "db.example.net"),
        ("2001:db8::1", "db.example.net"),
        ("2001:DB8:0:0:0:0:0:1", "db.example.net"),
        ("2001:0db8:0000:0000:0000:0000:0000:0001", "db.example.net"),
        ("[2001:db8::1]", "db.example.net"),
        ("[2001:db8::1]:9100", "db.example.net"),
        ("[2001:DB8::0:1]:9100", "db.example.net"),
        ("fw", "fw"),
        ("firewall.example.net", "fw"),
        ("firewall", "fw"),
        ("fw.example.net:443", "fw"),
        ("mail.a.example", "mail.a.example"),
        ("mail.b.example:25", "mail.b.example"),
        ("192.0.2.77", "192.0.2.77"),
        ("templated", "templated"),
        ("numbered", "numbered"),
        ("twin1", "twin1"),
    ],
)
def test_a_host_is_found_by_whatever_the_world_calls_it(inventory: Inventory, spoken: str, host: str) -> None:
    assert inventory.resolve(spoken) == host


@pytest.mark.parametrize(
    "spoken",
    [
        "",
        " ",
        ".",
        ":",
        ":9100",
        "[]",
        "[",
        "[]:9100",
        "all",
        "ungrouped",
        "localhost",
        "*",
        "web*",
        "~.*",
        "~web1",
        "@/etc/passwd",
        "@web1",
        "web1:fw",
        "web1:!fw",
        "!web1",
        "&web1",
        "web1,fw",
        "web[1:2]",
        "web1 fw",
        "web1\nfw",
        "web1;id",
        "{{ x }}",
        "http://web1/",
        "web1:port",
        "2001:db8::1:9100",
        "2001:db8::2",
        "192.0.2.3",
        "192",
        "192.0.2",
        "web",
        "web11",
        "mail",  # two hosts
        "mail.c.example",
        "db.example.org",  # another domain than the host's own
        "firewall.example.org",
        "192.0.2.9",  # two hosts
        "templated.example.net.{{",
        "\u0435xample",
        "\0",
    ],
)
def test_what_names_no_host_or_more_than_one_is_nobody(inventory: Inventory, spoken: str) -> None:
    assert inventory.resolve(spoken) is None


@given(st.text(st.characters()) | st.text("web1.:[]0a,!*~@ "))
def test_whatever_is_said_the_answer_is_a_host_of_the_inventory_or_nobody(spoken: str) -> None:
    assert build(HOSTS).resolve(spoken) in {*HOSTS, None}


@given(
    st.dictionaries(st.from_regex(r"[a-c]{1,2}(\.[a-c]{1,2}){0,2}", fullmatch=True), st.just({}), max_size=6)
)
def test_every_host_is_found_by_its_own_name_whatever_the_others_are_called(
    hosts: dict[str, dict[str, Any]],
) -> None:
    inventory = build(hosts)
    assert {host: inventory.resolve(host) for host in hosts} == {host: host for host in hosts}


def test_an_address_that_another_host_has_as_its_name_is_that_host() -> None:
    inventory = build({"a": {"ansible_host": "192.0.2.1"}, "192.0.2.1": {}})
    assert inventory.resolve("192.0.2.1") == "192.0.2.1"


HOSTS_FILE = """\
web:
  hosts:
    web1:
    web2:
      ansible_host: 192.0.2.2
db:
  hosts:
    db1:
  children:
    replicas:
      hosts:
        db2:
both:
  hosts:
    web:
    lonely:
"""
DYNAMIC = """\
#!/bin/sh
echo '{"cloud": {"hosts": ["vm1", "vm2"]}, "_meta": {"hostvars": {"vm1": {"ansible_host": "192.0.2.50"}}}}'
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real inventory: a file, group variables, and a program."""
    path = tmp_path_factory.mktemp("inventory")
    (path / "hosts.yml").write_text(HOSTS_FILE)
    (path / "group_vars").mkdir()
    (path / "group_vars" / "replicas.yml").write_text("ansible_host: 192.0.2.22\n")
    (path / "cloud").write_text(DYNAMIC)
    (path / "cloud").chmod(0o755)
    return path


@pytest.fixture(scope="module")
def loaded(directory: Path) -> Inventory:
    return load(directory)


def test_hosts_of_files_groups_and_programs_are_all_there(loaded: Inventory) -> None:
    assert loaded.hosts == {"web1", "web2", "db1", "db2", "lonely", "vm1", "vm2"}


@pytest.mark.parametrize(
    ("spoken", "host"),
    [("192.0.2.2", "web2"), ("192.0.2.22", "db2"), ("192.0.2.50:22", "vm1"), ("vm2", "vm2")],
)
def test_variables_of_hosts_groups_and_programs_count(loaded: Inventory, spoken: str, host: str) -> None:
    assert loaded.resolve(spoken) == host


@pytest.mark.parametrize("group", ["web", "db", "replicas", "both", "cloud", "all", "ungrouped", "_meta"])
def test_a_group_is_never_a_host_even_if_a_host_is_called_like_it(loaded: Inventory, group: str) -> None:
    assert loaded.resolve(group) is None


def test_a_file_is_refused_and_the_directory_asked_for(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"hosts\.yml is a file\. Name its directory instead"):
        load(directory / "hosts.yml")


def test_a_directory_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="The inventory directory .*/missing does not exist"):
        load(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "content"),
    [("hosts.yml", "all: ["), ("hosts.yml", "all: {hosts: [a]}"), ("broken", "#!/bin/sh\nexit 3\n")],
)
def test_an_inventory_that_cannot_be_read_is_an_error_and_not_an_empty_inventory(
    tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / "good.yml").write_text(json.dumps({"all": {"hosts": {"web1": {}}}}))
    (tmp_path / name).write_text(content)
    (tmp_path / name).chmod(0o755 if name == "broken" else 0o644)
    with pytest.raises(ConfigError, match=rf"The inventory {tmp_path} cannot be read: .*{name}"):
        load(tmp_path)


def test_an_inventory_without_hosts_is_empty(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("all: {hosts: {}}")
    assert load(tmp_path).hosts == frozenset()


def test_a_host_without_a_network_is_known_by_both_names_of_its_connection() -> None:
    ways = ("local", "ansible.builtin.local", "ssh", None)
    found = build({f"{way}": {"ansible_connection": way} for way in ways})
    assert found.local == {"local", "ansible.builtin.local"}
