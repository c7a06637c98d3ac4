# SPDX-License-Identifier: Apache-2.0
"""The firewall's remedies: the real playbooks and modules against an API that remembers, and fails on demand."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from harness import free_port
from roles.opnsense import CONFIG, KEY, PRIVATE, ROUTES, SECRET, Firewall, make_certificates, serving
from zamu.state import State

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
BAD = "9.9.9.9"
#: A playbook takes three seconds of a processor, and a machine that is busy has few to give.
patient = pytest.mark.timeout(400)
FORBIDDEN = [KEY, SECRET, PRIVATE, base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()]


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collections path on which boma.zamu is this very tree."""
    path = tmp_path_factory.mktemp("collections")
    (path / "ansible_collections" / "boma").mkdir(parents=True)
    (path / "ansible_collections" / "boma" / "zamu").symlink_to(ROOT)
    return path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The authority's file and the server's."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


# --- the fake itself -----------------------------------------------------------------------------


def test_every_route_of_the_fake_stands_in_the_newest_description() -> None:
    package = importlib.util.find_spec("opnsense_openapi")
    assert package, "opnsense-openapi is not installed: run make setup."
    assert package.submodule_search_locations
    found = {
        tuple(map(int, re.findall(r"\d+", path.stem))): path
        for path in Path(package.submodule_search_locations[0]).glob("specs/opnsense-*.json")
    }
    paths = json.loads(found[max(found)].read_text())["paths"]
    described = {re.sub(r"/\{.*", "", path).removeprefix("/api/") for path in paths}
    assert set(ROUTES) <= described


# --- the playbooks -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remedy:
    """A playbook, what it needs, and what it changes."""

    playbook: str
    variables: dict[str, object]
    #: What breaks the firewall, so that there is something to do.
    breaks: Callable[[Firewall], object]
    mended: Callable[[Firewall], bool]
    #: The call that does it.
    command: str
    #: A target that does not exist, and what is said about it.
    nobody: dict[str, object]
    unknown: str


def _nothing(_firewall: Firewall) -> None:
    """Leave the firewall as it is."""


REMEDIES = [
    Remedy(
        "block_address",
        {"block_address_ip": BAD},
        _nothing,
        lambda firewall: BAD in firewall.table,
        "firewall/alias_util/add",
        {"block_address_alias": "nobody"},
        "There is no alias 'nobody' on https://",
    ),
    Remedy(
        "unblock_address",
        {"unblock_address_ip": BAD},
        lambda firewall: firewall.table.append(BAD),
        lambda firewall: BAD not in firewall.table,
        "firewall/alias_util/delete",
        {"unblock_address_alias": "nobody"},
        "There is no alias 'nobody' on https://",
    ),
    Remedy(
        "restart_unbound",
        {"restart_unbound_wait": 1},
        lambda firewall: firewall.services.update(unbound=False),
        lambda firewall: firewall.services["unbound"],
        "core/service/restart",
        {"restart_unbound_wait": 0},
        "Set restart_unbound_wait to more than 0",
    ),
    Remedy(
        "restart_firewall_service",
        {"restart_firewall_service_name": "openvpn/1", "restart_firewall_service_wait": 1},
        lambda firewall: firewall.services.update({"openvpn/1": False}),
        lambda firewall: firewall.services["openvpn/1"],
        "core/service/restart",
        {"restart_firewall_service_name": "nobody"},
        "There is no service 'nobody' on https://",
    ),
    Remedy(
        "reload_gateway",
        {"reload_gateway_name": "WAN_DHCP", "reload_gateway_wait": 1},
        lambda firewall: firewall.gateways.update(WAN_DHCP="down"),
        lambda firewall: firewall.gateways["WAN_DHCP"] == "none",
        "interfaces/overview/reloadInterface",
        {"reload_gateway_name": "NOBODY"},
        "There is no gateway 'NOBODY' on https://",
    ),
]

#: What the firewall does to the call, and what the operator reads.
DYING = {
    "hang": "gave no answer within 3 s",
    "reset": "broke the connection off before its answer was complete",
    "500": 'Backend <filter> & "configd" failed at line 7',
}
REFUSING = {
    "401": "does not take the API key",
    "403": "The API key's user may not use",
    "failed": "did not do it and says: Action not allowed & more.",
}


@dataclass
class Result:
    """What a run of a playbook said."""

    output: str
    #: By host: tasks that changed something, and the message of the one that failed.
    changed: dict[str, int]
    failed: dict[str, str]


@dataclass
class House:
    """Firewalls in an inventory, and playbooks run against them."""

    directory: Path
    collections: Path
    authority: Path
    firewalls: dict[str, Firewall] = field(default_factory=dict)
    hosts: dict[str, dict[str, object]] = field(default_factory=dict)

    def play(self, playbook: str, *options: str, **variables: object) -> Result:
        """Run a playbook as an operator would; its output, log and record must hold no secret."""
        inventory = self.directory / "hosts.yml"
        common = {
            "opnsense_key": KEY,
            "opnsense_secret": SECRET,
            "opnsense_ca": str(self.authority),
            **variables,
        }
        hosts: dict[str, dict[str, object]] = {
            name: {"opnsense_url": one.url} for name, one in self.firewalls.items()
        }
        for name, more in self.hosts.items():
            hosts[name] = hosts.get(name, {}) | more
        inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": common}}))
        state = State(self.directory / "state")
        state.bells.mkdir(parents=True, exist_ok=True)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "ZAMU_"))
        } | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_LOG_PATH": str(self.directory / "ansible.log"),
            "ANSIBLE_NOCOLOR": "1",
            "ZAMU_STATE": str(state.root),
        }
        words = ["-i", str(inventory), "--forks=10", *options, f"boma.zamu.{playbook}"]
        done = subprocess.run(
            [str(BIN / "ansible-playbook"), *words],
            env=environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        assert state.ledger.exists()
        self.must_hold_no_secret(output)
        recap = dict(re.findall(r"^(\w+) +: ok=\d+ +changed=(\d+)", done.stdout, re.MULTILINE))
        assert recap, output
        failures = {}
        for found in re.finditer(r"^fatal: \[(\w+)[^\]]*\]: FAILED! => ", done.stdout, re.MULTILINE):
            failures[found[1]] = json.JSONDecoder().raw_decode(done.stdout[found.end() :])[0]["msg"]
        assert (done.returncode == 0) == (not failures), output
        return Result(output, {name: int(count) for name, count in recap.items()}, failures)

    def must_hold_no_secret(self, output: str) -> None:
        log = self.directory / "ansible.log"
        texts = {"the output": output, "the log": log.read_text() if log.exists() else ""}
        for path in (self.directory / "state").rglob("*"):
            if path.is_file():
                texts[str(path)] = path.read_bytes().decode("latin-1")
        for name, text in texts.items():
            for secret in FORBIDDEN:
                assert secret not in text, f"{name} holds a secret:\n{text}"


@pytest.fixture
def house(
    tmp_path: Path, collections: Path, certificates: tuple[Path, Path]
) -> Iterator[Callable[..., House]]:
    """Build a house with the named firewalls, which are served until the test is over."""
    with ExitStack() as stack:

        def build(**firewalls: Firewall) -> House:
            for one in firewalls.values():
                stack.enter_context(serving(one, certificates[1]))
            return House(tmp_path, collections, certificates[0], dict(firewalls))

        yield build


def dying(remedy: Remedy, build: Callable[..., House]) -> House:
    """A firewall that is well, those that die in the middle, one without the target, and one that is off."""
    firewalls = {name: Firewall() for name in ("lango", "nobody", *(f"fault_{fault}" for fault in DYING))}
    for firewall in firewalls.values():
        remedy.breaks(firewall)
    for fault in DYING:
        firewalls[f"fault_{fault}"].faults[remedy.command] = fault
    built = build(**firewalls)
    built.hosts = {
        "nobody": remedy.nobody,
        "fault_hang": {"opnsense_timeout": 3},
        "off": {"opnsense_url": f"https://127.0.0.1:{free_port()}"},
    }
    return built


@patient
@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda remedy: remedy.playbook)
def test_a_remedy_does_it_once_says_why_not_and_changes_nothing_in_check_mode(
    remedy: Remedy, house: Callable[..., House]
) -> None:
    built = dying(remedy, house)
    lango = built.firewalls["lango"]

    rehearsed = built.play(remedy.playbook, "--check", "--diff", "--limit=lango", **remedy.variables)
    assert not rehearsed.failed
    assert rehearsed.changed == {"lango": 1}
    assert lango.told == []
    if "block" in remedy.playbook:
        assert f"{'-' if 'un' in remedy.playbook else '+'}{BAD}\n" in rehearsed.output
        assert "198.51.100.0" not in rehearsed.output

    done = built.play(remedy.playbook, "-vvv", **remedy.variables)
    assert remedy.mended(lango), done.output
    assert len(lango.told) == 1
    assert done.changed["lango"] == 1
    expected = {
        "nobody": remedy.unknown,
        "off": "cannot be reached",
        **{f"fault_{fault}": said for fault, said in DYING.items()},
    }
    assert set(done.failed) == set(expected), done.output
    for name, said in expected.items():
        assert said in done.failed[name], name
        assert "\n" not in done.failed[name], name
        if name in built.firewalls:
            # What may have been done is not sent again.
            asked = built.firewalls[name].asked.count(remedy.command)
            assert asked == (0 if name == "nobody" else 1), name
            assert name == "nobody" or not remedy.mended(built.firewalls[name])

    again = built.play(remedy.playbook, "--diff", "--limit=lango", **remedy.variables)
    assert not again.failed
    assert again.changed == {"lango": 0}
    assert len(lango.told) == 1


@patient
def test_a_block_says_until_when_and_refuses_what_must_not_be_blocked(house: Callable[..., House]) -> None:
    names = ["lango", "own", "never", "private", "network", "shared", "endless", "other", "disabled"]
    built = house(**{name: Firewall() for name in names})
    built.firewalls["shared"].alias["type"] = "host"
    built.firewalls["endless"].alias["expire"] = ""
    built.firewalls["other"].alias["expire"] = "86400"
    built.firewalls["disabled"].alias["enabled"] = "0"
    built.hosts = {
        "own": {"block_address_ip": "2a00:1450:4001::25", "ansible_host": "2A00:1450:4001:0::25"},
        "never": {"block_address_ip": "1.1.1.77", "block_address_never": ["1.1.1.0/24"]},
        "private": {"block_address_ip": "192.168.1.5"},
        "network": {"block_address_ip": "9.9.9.0/24"},
    }
    # One address can be written in many ways; the firewall takes only lower case.
    done = built.play("block_address", block_address_ip="2A00:1450:4001::AB")
    assert re.search(
        r"2a00:1450:4001::ab is blocked at lango, until \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ at the latest",
        done.output,
    )
    assert built.firewalls["lango"].told == ["firewall/alias_util/add/zamu_blocked/2a00:1450:4001::ab"]
    expected = {
        "own": "2a00:1450:4001::25 is not blocked, because it is an address of an own host.",
        "never": "1.1.1.77 is not blocked, because 1.1.1.0/24 must never be blocked.",
        "private": "192.168.1.5 is not blocked, because it is not a global unicast address",
        "network": "'9.9.9.0/24' is no IP address",
        "shared": "is of type 'host'",
        "endless": "has no expiry, so a block would not end by itself: set its Expire to 3600 seconds",
        "other": "ends after 86400 s and not after 3600 s: ask for 86400",
        "disabled": "is disabled, so it blocks nobody",
    }
    assert set(done.failed) == set(expected), done.output
    for name, said in expected.items():
        assert said in done.failed[name], done.failed[name]
        assert built.firewalls[name].told == []


@patient
def test_a_protected_service_is_refused_and_a_forced_restart_is_one(house: Callable[..., House]) -> None:
    built = house(lango=Firewall(), guarded=Firewall())
    built.hosts = {"guarded": {"restart_firewall_service_name": "webgui"}}
    done = built.play(
        "restart_firewall_service",
        restart_firewall_service_name="unbound",
        restart_firewall_service_force=True,
    )
    assert done.changed == {"lango": 1, "guarded": 0}
    assert built.firewalls["lango"].told == ["core/service/restart/unbound"]
    assert "webgui on guarded is protected and is not restarted" in done.failed["guarded"]
    assert built.firewalls["guarded"].asked == []


@patient
def test_the_copy_of_the_configuration_is_its_owners_and_never_shown(house: Callable[..., House]) -> None:
    command = "core/backup/download"
    dying = {f"fault_{fault}": Firewall(faults={command: fault}) for fault in DYING}
    built = house(lango=Firewall(), half=Firewall(config=CONFIG[:-14].encode()), **dying)
    built.hosts = {"fault_hang": {"opnsense_timeout": 3}, "nobody": {"opnsense_url": "https://127.0.0.1:1"}}
    copies = built.directory / "copies"
    copies.mkdir()
    (copies / "half.xml").write_text("the copy from before")
    variables = {"backup_config_directory": str(copies)}

    rehearsed = built.play("backup_config", "--check", "--diff", "--limit=lango", **variables)
    assert rehearsed.changed == {"lango": 1}
    assert [one.name for one in copies.iterdir()] == ["half.xml"]

    done = built.play("backup_config", "-vvv", "--diff", **variables)
    assert done.changed["lango"] == 1
    assert (copies / "lango.xml").read_text() == CONFIG
    assert (copies / "lango.xml").stat().st_mode & 0o777 == 0o600
    expected = {f"fault_{fault}": said for fault, said in DYING.items()} | {
        "half": f"gave {len(CONFIG) - 14} bytes that are no whole configuration, so nothing was written",
        "nobody": "cannot be reached",
    }
    assert set(done.failed) == set(expected), done.output
    for name, said in expected.items():
        assert said in done.failed[name], name
    assert sorted(one.name for one in copies.iterdir()) == ["half.xml", "lango.xml"]
    assert (copies / "half.xml").read_text() == "the copy from before"

    again = built.play("backup_config", "--limit=lango", **variables)
    assert again.changed == {"lango": 0}


# --- the modules ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Modules:
    """The modules of this tree, in this process."""

    api: Any
    entry: Any
    service: Any
    gateway: Any
    backup: Any


@pytest.fixture
def modules(collections: Path, monkeypatch: pytest.MonkeyPatch) -> Modules:
    monkeypatch.syspath_prepend(str(collections))
    plugins = "ansible_collections.boma.zamu.plugins"
    return Modules(
        importlib.import_module(f"{plugins}.module_utils.opnsense"),
        *(
            importlib.import_module(f"{plugins}.modules.opnsense_{name}")
            for name in ("alias_entry", "service", "gateway", "backup")
        ),
    )


@pytest.fixture
def firewall(certificates: tuple[Path, Path]) -> Iterator[Firewall]:
    with serving(Firewall(), certificates[1]) as served:
        yield served


def api_of(modules: Modules, firewall: Firewall, certificates: tuple[Path, Path], **options: object) -> Any:
    return modules.api.Api(
        {
            "url": firewall.url,
            "key": KEY,
            "secret": SECRET,
            "ca": str(certificates[0]),
            "validate_certs": True,
            "timeout": 30,
            **options,
        }
    )


BLOCK = {
    "alias": "zamu_blocked",
    "address": BAD,
    "state": "present",
    "duration": 3600,
    "never": [],
    "own_hosts": [],
    "private": False,
}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("192.168.1.5", "not a global unicast"),
        ("203.0.113.7", "not a global unicast"),
        ("127.0.0.1", "not a global unicast"),
        ("0.0.0.0", "not a global unicast"),
        ("255.255.255.255", "not a global unicast"),
        ("224.0.1.1", "not a global unicast"),
        ("fe80::1", "not a global unicast"),
        ("fd00::1", "not a global unicast"),
        ("ff0e::1", "not a global unicast"),
        ("64:ff9b::909:909", "not a global unicast"),
        ("2002:909:909::1", "not a global unicast"),
        ("::ffff:192.168.1.5", "not a global unicast"),
        ("::ffff:1.1.1.1", "is an address of an own host"),
        ("1.1.1.1", "is an address of an own host"),
        ("8.8.8.8", "8.8.0.0/16 must never be blocked"),
        ("2A00:1450:4001:0::1", "2a00:1450:4001::/48 must never be blocked"),
        ("fe80::1%eth0", "has a zone"),
        ("9.9.9.0/24", "is no IP address"),
        ("bad.example.net", "is no IP address"),
        ("009.9.9.9", "is no IP address"),
        ("", "is no IP address"),
    ],
)
def test_an_address_that_must_not_be_blocked_is_refused(
    address: str, said: str, modules: Modules, firewall: Firewall, certificates: tuple[Path, Path]
) -> None:
    wanted = BLOCK | {
        "address": address,
        "never": ["8.8.0.0/16", "2a00:1450:4001::/48"],
        "own_hosts": ["1.1.1.1", "picha"],
    }
    with pytest.raises(modules.api.OpnsenseError, match=re.escape(said)):
        modules.entry.entry(api_of(modules, firewall, certificates), wanted, False)
    assert firewall.asked == []


def test_a_broken_entry_of_what_is_never_blocked_is_named(
    modules: Modules, firewall: Firewall, certificates: tuple[Path, Path]
) -> None:
    with pytest.raises(modules.api.OpnsenseError, match=r"never holds '10\.0\.0\.x', which is no address"):
        modules.entry.entry(api_of(modules, firewall, certificates), BLOCK | {"never": ["10.0.0.x"]}, False)


def test_both_ends_of_the_way_to_the_firewall_are_own_addresses(
    modules: Modules, firewall: Firewall, certificates: tuple[Path, Path]
) -> None:
    assert set(api_of(modules, firewall, certificates).own_addresses()) == {"127.0.0.1"}
    with pytest.raises(
        modules.api.OpnsenseError, match=r"127\.0\.0\.1 is not blocked, because it is an address"
    ):
        modules.entry.entry(
            api_of(modules, firewall, certificates), BLOCK | {"address": "127.0.0.1", "private": True}, False
        )


@pytest.mark.parametrize("fault", REFUSING)
@pytest.mark.parametrize(
    "command", ["firewall/alias_util/add", "core/service/restart", "interfaces/overview/reloadInterface"]
)
def test_a_refusal_is_told_with_its_mend(
    command: str, fault: str, modules: Modules, firewall: Firewall, certificates: tuple[Path, Path]
) -> None:
    firewall.services["unbound"] = False
    firewall.gateways["WAN_DHCP"] = "down"
    firewall.faults = {command: fault}
    api = api_of(modules, firewall, certificates)
    acts: dict[str, Callable[[], object]] = {
        "firewall": lambda: modules.entry.entry(api, BLOCK, False),
        "core": lambda: modules.service.service(
            api, {"name": "unbound", "state": "running", "wait": 0}, False
        ),
        "interfaces": lambda: modules.gateway.gateway(
            api, {"name": "WAN_DHCP", "interface": "wan", "wait": 0}, False
        ),
    }
    with pytest.raises(modules.api.OpnsenseError, match=re.escape(REFUSING[fault])) as told:
        acts[command.split("/", maxsplit=1)[0]]()
    assert not any(secret in str(told.value) for secret in FORBIDDEN)
    assert firewall.asked.count(command) == 1
    assert BAD not in firewall.table


def test_what_is_wrong_with_the_connection_is_told_with_its_mend(
    modules: Modules, firewall: Firewall, certificates: tuple[Path, Path], tmp_path: Path
) -> None:
    def ask(**options: object) -> str:
        with pytest.raises(modules.api.OpnsenseError) as told:
            api_of(modules, firewall, certificates, **options).get("core", "service", "search")
        assert not any(secret in str(told.value) for secret in FORBIDDEN)
        return str(told.value)

    assert "is not trusted" in ask(ca=None)
    assert "set ca to the file of the authority that signed it" in ask(ca=None)
    assert ask(ca=str(tmp_path / "none.pem")).startswith("There is no file")
    assert "There is no API key for https://127.0.0.1" in ask(key="")
    assert "There is no API key for https://127.0.0.1" in ask(secret=None)
    assert "does not take the API key" in ask(secret="another")
    assert "cannot be reached" in ask(url=f"https://127.0.0.1:{free_port()}")
    assert "cannot be reached" in ask(url="https://firewall.invalid")
    assert "set it to 1 or more seconds" in ask(timeout=0)
    assert firewall.asked == ["core/service/search"]
    assert api_of(modules, firewall, certificates, ca=None, validate_certs=False).rows(
        "core", "service", "search"
    )


@pytest.mark.parametrize("state", ["present", "absent"])
def test_done_is_not_believed(
    state: str, modules: Modules, firewall: Firewall, certificates: tuple[Path, Path]
) -> None:
    firewall.table = [] if state == "present" else [BAD]
    firewall.faults = {"firewall/alias_util/add": "done", "firewall/alias_util/delete": "done"}
    with pytest.raises(
        modules.api.OpnsenseError, match="says that it is done, but 9.9.9.9 is (not|still) in alias"
    ):
        modules.entry.entry(api_of(modules, firewall, certificates), BLOCK | {"state": state}, False)


def test_what_was_done_and_not_answered_is_found_by_the_next_run(
    modules: Modules, firewall: Firewall, certificates: tuple[Path, Path]
) -> None:
    firewall.faults = {"firewall/alias_util/add": "reset-done"}
    api = api_of(modules, firewall, certificates)
    with pytest.raises(modules.api.OpnsenseError, match="it was not sent again"):
        modules.entry.entry(api, BLOCK, False)
    assert firewall.told == [f"firewall/alias_util/add/zamu_blocked/{BAD}"]
    assert modules.entry.entry(api, BLOCK, False)["changed"] is False
    assert len(firewall.told) == 1


def test_a_list_that_is_not_whole_is_not_judged(
    modules: Modules, firewall: Firewall, certificates: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = {"total": 10001, "rowCount": 9999, "current": 1, "rows": [{"ip": "198.51.100.9"}]}
    monkeypatch.setitem(ROUTES, "firewall/alias_util/list", (False, lambda *_words: cut))
    with pytest.raises(modules.api.OpnsenseError, match="gave 1 of 10001 rows"):
        modules.entry.entry(api_of(modules, firewall, certificates), BLOCK, False)
    assert firewall.told == []


@pytest.mark.parametrize("answer", [b"<html>Login</html>", b"", b"[]", b'{"rows": 3}', b'{"rows": [1]}'])
def test_answers_that_are_no_firewalls_are_told(
    answer: bytes,
    modules: Modules,
    firewall: Firewall,
    certificates: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ROUTES, "core/service/search", (False, lambda *_words: answer))
    with pytest.raises(modules.api.OpnsenseError, match="check that url is an OPNsense's"):
        modules.service.is_running(api_of(modules, firewall, certificates), "unbound")


def test_a_warning_with_status_200_is_an_error(
    modules: Modules, firewall: Firewall, certificates: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    warning = {"errorMessage": "Table &lt;full&gt;", "errorTitle": "x", "errorLevel": "warning"}
    monkeypatch.setitem(ROUTES, "firewall/alias_util/add", (True, lambda *_words: warning))
    with pytest.raises(modules.api.OpnsenseError, match="says: Table <full>"):
        modules.entry.entry(api_of(modules, firewall, certificates), BLOCK, False)


def test_a_command_that_is_not_posted_is_no_success(
    modules: Modules, firewall: Firewall, certificates: tuple[Path, Path]
) -> None:
    """The fake keeps the API's worst trap: 200, and nothing was done."""
    answer = api_of(modules, firewall, certificates).get("core", "service", "restart", "unbound")
    assert answer == {"status": "failed", "result": "failed"}
    assert firewall.told == []


def test_a_service_and_a_gateway_that_stay_down_are_told(
    modules: Modules, firewall: Firewall, certificates: tuple[Path, Path]
) -> None:
    firewall.services["unbound"] = False
    firewall.gateways["WAN_DHCP"] = "down"
    firewall.faults = {"core/service/restart": "stays", "interfaces/overview/reloadInterface": "stays"}
    api = api_of(modules, firewall, certificates)
    with pytest.raises(modules.api.OpnsenseError, match="was restarted and is not running 0 s later"):
        modules.service.service(api, {"name": "unbound", "state": "running", "wait": 0}, False)
    wanted = {"name": "WAN_DHCP", "interface": "wan", "wait": 0}
    with pytest.raises(modules.api.OpnsenseError, match="was reloaded, and gateway 'WAN_DHCP' is down"):
        modules.gateway.gateway(api, wanted, False)
    assert firewall.told == ["core/service/restart/unbound", "interfaces/overview/reloadInterface/wan"]


def test_a_gateway_is_left_alone_where_a_person_decided_or_the_interface_is_wrong(
    modules: Modules, firewall: Firewall, certificates: tuple[Path, Path]
) -> None:
    api = api_of(modules, firewall, certificates)
    with pytest.raises(modules.api.OpnsenseError, match="was marked as down by a person"):
        modules.gateway.gateway(api, {"name": "LTE", "interface": "wan", "wait": 0}, False)
    firewall.gateways["WAN_DHCP"] = "down"
    with pytest.raises(modules.api.OpnsenseError, match="no interface 'opt9' on .*: name one of lan, wan"):
        modules.gateway.gateway(api, {"name": "WAN_DHCP", "interface": "opt9", "wait": 0}, False)
    firewall.gateways["WAN_DHCP"] = "delay+loss"
    wanted = {"name": "WAN_DHCP", "interface": "wan", "wait": 0}
    assert modules.gateway.gateway(api, wanted, False) == {"changed": False, "status": "delay+loss"}
    assert firewall.told == []


def test_a_copy_that_others_can_read_is_closed_and_a_directory_is_not_made(
    modules: Modules, firewall: Firewall, certificates: tuple[Path, Path], tmp_path: Path
) -> None:
    api = api_of(modules, firewall, certificates)
    copy = tmp_path / "lango.xml"
    copy.write_text(CONFIG)
    copy.chmod(0o644)
    assert modules.backup.backup(api, copy, True)["changed"]
    assert copy.stat().st_mode & 0o777 == 0o644
    assert modules.backup.backup(api, copy, False)["changed"]
    assert copy.stat().st_mode & 0o777 == 0o600
    assert not modules.backup.backup(api, copy, False)["changed"]
    with pytest.raises(modules.api.OpnsenseError, match="There is no directory"):
        modules.backup.backup(api, tmp_path / "none" / "lango.xml", False)
    firewall.faults["core/backup/download"] = "empty"
    with pytest.raises(modules.api.OpnsenseError, match="gave 0 bytes that are no whole configuration"):
        modules.backup.backup(api, copy, False)
    assert copy.read_text() == CONFIG


def test_a_copy_that_is_too_big_is_refused(
    modules: Modules,
    firewall: Firewall,
    certificates: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(modules.backup, "CONFIG_LIMIT", 20)
    with pytest.raises(modules.api.OpnsenseError, match="answered with more than 20 bytes"):
        modules.backup.backup(api_of(modules, firewall, certificates), tmp_path / "lango.xml", False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://192.0.2.1",
        "https://",
        "192.0.2.1",
        "https://u:p@192.0.2.1",
        "https://a/b",
        "https://a:99999",
    ],
)
def test_an_address_that_is_not_the_firewalls_is_named(
    url: str, modules: Modules, firewall: Firewall, certificates: tuple[Path, Path]
) -> None:
    with pytest.raises(modules.api.OpnsenseError, match="url is not set, or is more than an address"):
        api_of(modules, firewall, certificates, url=url)


def test_an_answer_that_never_ends_is_cut_off(
    modules: Modules, firewall: Firewall, certificates: tuple[Path, Path]
) -> None:
    class Dripping:
        headers: ClassVar[dict[str, str]] = {}

        def read1(self, _size: int) -> bytes:
            return b" "

    api = api_of(modules, firewall, certificates, timeout=1)
    with pytest.raises(TimeoutError):
        api._read(("a",), Dripping(), 10**9)
    with pytest.raises(modules.api.OpnsenseError, match="more than 1000 bytes"):
        api._read(("a",), Dripping(), 1000)
