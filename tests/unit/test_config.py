# SPDX-License-Identifier: Apache-2.0
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.vault import VaultLib, VaultSecret
from hypothesis import given
from hypothesis import strategies as st

from zamu.config import HOME, Config, Limits, load
from zamu.errors import ConfigError
from zamu.section import parse_duration

CLEAR = "hunter2-in-the-clear"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def to_file(text: str) -> Path:
        path = tmp_path / "zamu.yml"
        path.write_text(text)
        return path

    return to_file


type Write = Callable[[str], Path]


def refusal(path: Path) -> str:
    """The error's text; what was written in the clear is nowhere in it, not even in a traceback."""
    with pytest.raises(ConfigError) as error:
        load(path)
    assert CLEAR not in "".join(traceback.format_exception(error.value))
    return str(error.value)


def test_without_a_file_everything_has_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(None)
    assert config.rulebooks == HOME / "rulebooks"
    assert config.intake.address == ("127.0.0.1", 8470)
    assert config.intake.keep_events == timedelta(days=90)
    assert config.engine.max_runs == 8
    assert config.notify.channels == []
    assert config.sources == {}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}"])
def test_an_empty_file_is_the_defaults(write: Write, text: str) -> None:
    path = write(text)
    assert load(path) == Config(root=path.parent)


def test_zamu_yml_of_the_working_directory_is_found(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write("engine: {max_runs: 3}").parent)
    assert load(None).engine.max_runs == 3


def test_paths_are_relative_to_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("rulebooks: my/rules\ninventory: /etc/inventory\n")
    (path.parent / "playbooks").mkdir()
    monkeypatch.chdir("/")
    config = load(path)
    assert config.rulebooks == path.parent / "my" / "rules"
    assert config.inventory == Path("/etc/inventory")
    assert config.playbooks == path.parent / "playbooks"


def test_everything_can_be_said(write: Write) -> None:
    config = load(
        write(
            """
            intake: {listen: "[::1]:1", tls: {certificate: a.pem, key: b.pem}, keep_events: 3d}
            limits: {body: 2048, body_time: 3s}
            engine: {max_runs: 1, jvm_memory: 1g, run_timeout: 2h, settle: 1s}
            guard: {cooldown: 0s, actions: {mend: {cooldown: 1m, target: [unit]}}}
            notify: {channels: [{name: mail, url: "env:MAIL", urgencies: [urgent]}]}
            sources: {alertmanager: {path: /x}}
            """
        )
    )
    assert config.intake.address == ("::1", 1)
    assert config.guard.cooldown_of("mend") == timedelta(minutes=1)
    assert config.notify.channels[0].urgencies == ("urgent",)
    assert config.sources == {"alertmanager": {"path": "/x"}}


@pytest.mark.parametrize(
    ("text", "line", "place", "words"),
    [
        ("a: 1", 1, "a", "this key is unknown; allowed here: rulebooks, event_sources"),
        (
            "\nintake:\n  listn: x",
            3,
            "intake.listn",
            "this key is unknown; allowed here: listen, tls, keep_events",
        ),
        (
            "intake:\n  tls: {cert: x}",
            2,
            "intake.tls.cert",
            "this key is unknown; allowed here: certificate, key",
        ),
        (
            "notify:\n  channels:\n    - name: a\n      url: env:A\n      urgency: low",
            5,
            "notify.channels.0.urgency",
            "this key is unknown; allowed here: name, url, urgencies",
        ),
        (
            "guard:\n  actions:\n    my.play.book:\n      coldown: 1m",
            4,
            "guard.actions.my.play.book.coldown",
            "this key is unknown; allowed here: cooldown, budget, max_hosts, window, trust",
        ),
        ("root: /", 1, "root", "this key is unknown"),
        ("engine:\n  max_runs: many", 2, "engine.max_runs", "Input should be a valid integer"),
        ("engine:\n  max_runs: 0", 2, "engine.max_runs", "greater than or equal to 1"),
        ("engine:\n  max_runs: 101", 2, "engine.max_runs", "less than or equal to 100"),
        ("engine:\n\n  settle: soon", 3, "engine.settle", "'soon' is not a duration; write for example 90s"),
        ("engine:\n  settle: 10", 2, "engine.settle", "10 is not a duration; write for example 90s"),
        ("guard:", 1, "guard", "keys that are allowed here: cooldown, budget,"),
        ("engine: []", 1, "engine", "Input should be a valid dictionary"),
        ("intake:\n  listen: localhost", 2, "intake.listen", "String should match pattern"),
        ("notify:\n  channels: {}", 2, "notify.channels", "Input should be a valid list"),
        ("notify:\n  channels:\n    - url: env:A", 3, "notify.channels.0.name", "Field required"),
        (
            "notify:\n  channels:\n    - name: a\n      url: env:A\n      urgencies: [loud]",
            5,
            "notify.channels.0.urgencies.0",
            "Input should be 'low', 'normal' or 'urgent'",
        ),
        ("sources: {alertmanager: x}", 1, "sources.alertmanager", "Input should be a valid dictionary"),
        ("vault_password: " + CLEAR, 1, "vault_password", "String should match pattern"),
        (
            f"notify:\n  channels:\n    - name: a\n      url: mailto://a:{CLEAR}@b",
            4,
            "notify.channels.0.url",
            "a secret may not stand here in the clear; name it as env:NAME or file:/path",
        ),
        (
            "notify:\n  channels:\n    - name: a\n      url: [x]",
            4,
            "notify.channels.0.url",
            "a secret is named as",
        ),
    ],
)
def test_an_error_names_file_line_key_and_what_is_allowed(
    write: Write, text: str, line: int, place: str, words: str
) -> None:
    path = write(text)
    message = refusal(path)
    [told] = [one for one in message.splitlines() if one.startswith(f"{path}:{line}: {place}: ")]
    assert words in told


def test_every_error_is_told_at_once_a_line_each(write: Write) -> None:
    lines = refusal(write("a: 1\nengine: {max_runs: 0}\nb: 2\n")).splitlines()
    assert [line.split(":")[1] for line in lines] == ["2", "1", "3"]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: [", 1, "expected"),
        ("intake:\n  listen: a\n listen: b", 3, "expected"),
        ("intake: {}\nengine: {}\nintake: {}", 3, "the key 'intake' stands here twice"),
        ("limits:\n  body: 1\n  body: 2", 3, "the key 'body' stands here twice"),
        ("a: \x01", 1, "may not stand in YAML"),
        ("a: !unknown x", 1, "could not determine a constructor for the tag '!unknown'"),
        ("a: !!python/object/apply:os.system [id]", 1, "could not determine a constructor"),
        ("notify: !vault plain", 1, "!vault holds no vaulted text"),
        ("notify: !vault {a: b}", 1, "expected a scalar node"),
        ("a: 1\n---\nb: 2", 2, "another document"),
        ("- a", 1, "the file holds no keys"),
        ("text", 1, "the file holds no keys"),
        ("a: !!int x", 1, "invalid literal"),
        ("engine: {}\n? [a, b]\n: c", 2, "unhashable"),
        ("a: *b", 1, "undefined alias"),
    ],
)
def test_what_is_no_good_yaml_is_refused_with_its_line(
    write: Write, text: str, line: int, words: str
) -> None:
    path = write(text)
    message = refusal(path)
    assert message.startswith(f"{path}:{line}: ")
    assert words in message


def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path) -> None:
    assert f"{tmp_path}/missing.yml:1: the file cannot be read: No such" in refusal(tmp_path / "missing.yml")
    assert f"{tmp_path}:1: this is not a file" in refusal(tmp_path)
    (tmp_path / "latin1.yml").write_bytes(b"a: \xe9")
    assert "latin1.yml:1: this is not UTF-8 text" in refusal(tmp_path / "latin1.yml")


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("90s", 90), ("10m", 600), ("2h", 7200), ("7d", 604_800)]
)
def test_a_duration_is_a_number_with_its_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@given(st.text())
def test_no_text_breaks_the_reading_of_durations(text: str) -> None:
    try:
        found = parse_duration(text)
    except ValueError:
        return
    assert found >= timedelta(0)


@pytest.mark.parametrize("text", ["999999999d", "36501d"])
def test_a_duration_longer_than_a_century_is_refused_because_no_clock_goes_back_that_far(text: str) -> None:
    with pytest.raises(ValueError, match="too long"):
        parse_duration(text)


def test_the_guards_policy_is_found_by_playbook(write: Write) -> None:
    guard = load(
        write(
            "guard: {cooldown: 1h, actions: {boma.zamu.restart_unit: {target: [x]}, "
            "mine: {cooldown: 2m, breaker: {failures: 2}}}}"
        )
    ).guard
    cooldowns = {"mine": 120, "boma.zamu.restart_unit": 600, "boma.zamu.restart_demo_service": 10, "x": 3600}
    assert {name: guard.cooldown_of(name) for name in cooldowns} == {
        name: timedelta(seconds=seconds) for name, seconds in cooldowns.items()
    }
    told = guard.as_told()["actions"]
    assert told["boma.zamu.restart_unit"]["target"] == ["x"]
    assert told["boma.zamu.restart_unit"]["cooldown"] == timedelta(minutes=10)
    breaker = {"failures": 2, "closes_after": timedelta(hours=1)}
    said = {"cooldown": timedelta(minutes=2), "breaker": breaker}
    assert told["mine"] == {**said, "says": ["breaker", "cooldown"]}


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("budget: many", "guard.budget", "'many' is not a budget; write for example 3 in 1h"),
        ("trust: ", "guard.trust", "nothing is said here; say what it is to be, or leave the key out."),
        ("policies: [{match: {}, dry_run: }]", "guard.policies.0.dry_run", "nothing is said here"),
        ("budget: 3", "guard.budget", "3 is not a budget; write for example 3 in 1h"),
        ("budget: 3 in 0s", "guard.budget.within", "greater than 0s."),
        ("budget: 0 in 1h", "guard.budget.runs", "greater than or equal to 1"),
        ("budget: 3 in soon", "guard.budget.within", "'soon' is not a duration"),
        ("trust: blindly", "guard.trust", "'observe', 'propose' or 'auto'"),
        ("storm: {calm: 30s}", "guard.storm", "the storm would begin again as soon as it is over"),
        ("window: night", "guard", "there is no window 'night' in guard.windows"),
        ("actions: {mend: {window: night}}", "guard", "there is no window 'night' in guard.windows"),
        ("policies: [{cooldown: 1m}]", "guard.policies.0.match", "Field required"),
        ("policies: [{match: {host: [a]}}]", "guard.policies.0.match.host", "allowed here: actions, groups"),
        ("windows: {n: {cron: x, duration: 1h}}", "guard.windows.n", "has not the five fields"),
        ("windows: {n: {duration: 1h}}", "guard.windows.n", "either by cron or on dates"),
        (
            "windows: {n: {dates: [2026-02-30 18:00], duration: 1h}}",
            "guard.windows.n",
            "for example 2026-12-24",
        ),
        (
            "windows: {n: {cron: '0 2 * * *', duration: 1h, timezone: Mars}}",
            "guard.windows.n",
            "no time zone",
        ),
        ("windows: {n: {cron: '0 2 * * *', duration: 0s}}", "guard.windows.n.duration", "greater than 0s."),
        (
            "windows: {n: {dates: [0001-01-01 00:00], duration: 1h, timezone: Europe/Berlin}}",
            "guard.windows.n",
            "for example 2026-12-24",
        ),
        ("heartbeat: {within: 0s}", "guard.heartbeat.within", "greater than 0s."),
        ("storm: {within: 0s}", "guard.storm.within", "greater than 0s."),
        ("storm: off", "guard.storm", "keys that are allowed here: actions, within, calm."),
        ("breaker: 3", "guard.breaker", "keys that are allowed here: failures, closes_after."),
        ("groups: {dns: }", "guard.groups.dns", "keys that are allowed here: concurrency, healthy."),
        ("never_touch: backup1", "guard.never_touch", "a valid list; write for example [one, two]."),
        ("groups: {dns: {healthy: 50}}", "guard", "groups.dns.healthy needs guard.alertmanager"),
        ("groups: {dns: {concurrency: 0}}", "guard.groups.dns.concurrency", "greater than or equal to 1"),
        ("alertmanager: {url: am.example.net}", "guard.alertmanager.url", "pattern"),
    ],
)
def test_a_guard_that_cannot_be_meant_is_refused(write: Write, text: str, place: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(write(f"guard: {{{text}}}"))
    assert f"zamu.yml:1: {place}: " in str(refused.value)
    assert words in str(refused.value)


def test_a_token_that_cannot_be_had_is_told_with_its_key(write: Write) -> None:
    guard = load(write("guard: {alertmanager: {url: 'http://am', token: file:/nowhere/token}}")).guard
    with pytest.raises(ConfigError, match=r"^guard.alertmanager.token: The secret in file /nowhere/token"):
        guard.as_told()


def test_runs_are_kept_at_least_as_long_as_events(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"engine.keep_runs is shorter than intake.keep_events"):
        load(write("engine: {keep_runs: 1d}"))


def test_the_configuration_cannot_be_changed_after_it_was_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Limits().body = 2048  # type: ignore[misc]


SECRET = "mailto://user:s3cr3t-of-the-channel@example.net"


def vaulted(text: str, password: str) -> str:
    """A configuration with one vaulted channel URL, and without `vault_password`."""
    encrypted = VaultLib().encrypt(text, secret=VaultSecret(password.encode())).decode()
    indented = encrypted.replace("\n", "\n        ")
    return f"notify:\n  channels:\n    - name: mail\n      url: !vault |\n        {indented}\n"


def program(directory: Path, code: str) -> Path:
    path = directory / "password.sh"
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)
    return path


def url(config: Config) -> str:
    return config.notify.channels[0].url.reveal()


def test_a_vaulted_value_is_decrypted_with_a_password_from_a_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("the password\n")
    config = load(write(vaulted(SECRET, "the password") + f"vault_password: file:{tmp_path}/password\n"))
    assert url(config) == SECRET


def test_a_vaulted_value_is_decrypted_with_a_password_from_a_program(write: Write, tmp_path: Path) -> None:
    path = program(tmp_path, "echo the password")
    config = load(write(vaulted(SECRET, "the password") + f"vault_password: program:{path}\n"))
    assert url(config) == SECRET


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("vault_password: file:{directory}/wrong", "cannot be decrypted with this vault password"),
        ("vault_password: file:{directory}/missing", "/missing cannot be read"),
        ("vault_password: file:{directory}/empty", "/empty is empty"),
        ("vault_password: program:{directory}/missing", "/missing gave no vault password"),
        ("vault_password: program:{directory}/password.sh", "password.sh gave no vault password"),
        ("", "`vault_password` is not set in zamu.yml"),
    ],
)
def test_without_the_right_password_the_error_says_what_is_wrong(
    write: Write, tmp_path: Path, source: str, words: str
) -> None:
    (tmp_path / "wrong").write_text(CLEAR)
    (tmp_path / "empty").write_text("\n")
    program(tmp_path, f"echo {CLEAR}; echo {CLEAR} >&2; exit 1")
    config = load(write(vaulted(SECRET, "the password") + source.format(directory=tmp_path)))
    with pytest.raises(ConfigError) as error:
        url(config)
    shown = "".join(traceback.format_exception(error.value))
    assert words in str(error.value)
    assert CLEAR not in shown
    assert SECRET not in shown


def test_vaulted_text_that_was_damaged_is_a_clear_error(write: Write, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("the password")
    text = vaulted(SECRET, "the password").replace("AES256", "AES256\n        zzzz", 1)
    config = load(write(text + f"vault_password: file:{tmp_path}/password\n"))
    with pytest.raises(ConfigError, match="cannot be decrypted"):
        url(config)


def test_secrets_are_shown_by_nothing_that_prints_the_configuration(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANNEL", SECRET)
    (tmp_path / "password").write_text("the password")
    text = vaulted(SECRET, "the password") + "    - {name: other, url: 'env:CHANNEL'}\n"
    config = load(write(text + f"vault_password: file:{tmp_path}/password\n"))
    assert [channel.url.reveal() for channel in config.notify.channels] == [SECRET, SECRET]
    shown: list[Any] = [config, config.notify, config.notify.channels[0].url, config.model_dump()]
    for one in shown:
        for text in (repr(one), str(one), f"{one}"):
            assert "s3cr3t" not in text
            assert "the password" not in text
            assert "ANSIBLE_VAULT" not in text


def test_what_a_house_does_not_have_is_taken_from_zamu_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rulebooks").mkdir()
    config = load(None)
    assert config.rulebooks == tmp_path / "rulebooks"
    assert config.inventory == HOME / "inventory" / "demo"
    assert config.event_sources == HOME / "event_sources"


def test_what_is_named_has_to_be_there(write: Write) -> None:
    path = write("rulebooks: mine\n")
    assert load(path).rulebooks == path.parent / "mine"
