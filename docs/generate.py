# SPDX-License-Identifier: Apache-2.0
"""Writes the parts of docs/ that come from the code, between their markers, and the sources' schemas.

`.venv/bin/python docs/generate.py` brings them up to date; with `--check` it says what is out of date, and
ends with 1.
"""

import argparse
import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from zamu import config, policy
from zamu.engine.check.sources import documented
from zamu.secrets import Secret

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
SCHEMAS = ROOT / "event_sources" / "schemas"

#: What the keys of a policy mean, wherever it stands.
POLICY = {
    "cooldown": "how long a playbook waits before it acts on the same target again",
    "budget": "how often it may act on the same target within a time, as `3 in 1h`",
    "max_hosts": "on how many hosts it may act at once; more are unexpected, and denied",
    "window": "only while this one of `guard.windows` is open",
    "trust": "`observe`: denied, and it is said what would have been done; `propose`: the operator is asked; "
    "`auto`: done",
    "dry_run": "it runs with `--check --diff`, and says what it would have done",
    "breaker.failures": "so many failures of the playbook in a row, wherever, open its circuit breaker",
    "breaker.closes_after": "how long after the last of them it is tried again",
    "while_blind": "it is done though the heartbeat is missing",
    "control_node": "it is done on the control node, too",
}


#: What each key means; type, default and bounds come from the models.
MEANINGS = {
    "rulebooks": "the directory of the rulebooks; all `*.yml` and `*.yaml` below it are read",
    "event_sources": "the directory of your own source plugins; zamu's own are found without it",
    "event_filters": "likewise for event filters",
    "playbooks": "the directory of your own playbooks, for rules that name one by a plain name",
    "inventory": "the directory of the inventory; a single file is refused, because Ansible would then miss "
    "`group_vars`",
    "ansible_config": "the `ansible.cfg` for playbooks, if it exists",
    "vault_password": "where the password of vaulted values in this file comes from: `file:/path`, or "
    "`program:/path` for a program that prints it",
    "intake.listen": "address and port of the web server; with another address than this machine's own, "
    "set `intake.tls`",
    "intake.tls.certificate": "the certificate with its chain, PEM",
    "intake.tls.key": "its key, PEM",
    "intake.keep_events": "how long an event is kept at least; one that is not acknowledged stays longer",
    "intake.keep_identities": "how long it is remembered that an event was here, so that it is not "
    "taken twice",
    "limits.source_memory": "how much memory the process of a foreign source may use, in MiB",
    "limits.connections": "connections at once",
    "limits.idle": "how long a connection may go without bringing the whole head of a request",
    "limits.headers": "lines of the head of a request",
    "limits.header_size": "bytes of one line of it",
    "limits.body": "bytes of a body",
    "limits.bodies": "bytes of all bodies that are being taken at the same time",
    "limits.body_time": "how long a body may take to arrive",
    "limits.linger": "how long what follows a refusal is still read",
    "limits.depth": "levels of JSON in each other",
    "limits.values": "values in one JSON",
    "limits.events": "alerts in one message",
    "limits.rate": "messages a second, of one source",
    "limits.burst": "messages that one source may send at once beyond the rate",
    "limits.waiting": "events that wait for the disk",
    "engine.max_runs": "how many playbooks may run at the same time",
    "engine.jvm_memory": "how much memory the rules engine's Java may take for its heap",
    "engine.delivery_timeout": "how long the engine may give no answer to an event before it is "
    "started again",
    "engine.settle": "how long an event's acknowledgement waits after the engine's answer, so that the "
    "engine's store has written it",
    "engine.drain": "how long actions that are under way may take, when zamu is asked to end "
    "or a rulebook was changed",
    "engine.run_timeout": "how long a playbook may run before it is ended and has failed",
    "engine.max_depth": "how many runs may follow each other, each set off by the end of the one before; "
    "`boma.zamu.notify` is always allowed",
    "engine.max_attempts": "how often a playbook is begun that is killed each time",
    "engine.keep_runs": "how long the ledger keeps a run that ended, with its tasks and its log; at least as "
    "long as `intake.keep_events`",
    **{f"guard.{name}": words for name, words in POLICY.items()},
    "guard.actions.NAME": "the same keys for one playbook, by the name that `zamu runs` shows",
    "guard.actions.NAME.target": "variables that, beside the hosts, say what is acted upon: two "
    "different units on one host are two targets",
    "guard.policies[]": "the same keys for what `match` means; of several that match, the last that says "
    "something holds",
    "guard.policies[].match.actions": "playbooks, by the name that `zamu runs` shows",
    "guard.policies[].match.groups": "groups or hosts; one of the hosts in one of them is enough",
    "guard.policies[].match.severities": "what the label `severity` of all alerts says that the rule matched",
    "guard.policies[].match.rules": "rules, by their names",
    "guard.groups.NAME.concurrency": "how many hosts of an inventory group are acted upon at a time",
    "guard.groups.NAME.healthy": "the percentage of a group that has to be left well; not well are hosts of "
    "which a critical alert fires, and those that are acted upon; needs `guard.alertmanager`",
    "guard.windows.NAME.cron": "when a window opens: minute, hour, day, month, weekday; this or `dates`",
    "guard.windows.NAME.dates": "the days and times at which it opens, as in `2026-12-24 18:00`",
    "guard.windows.NAME.duration": "how long it stays open",
    "guard.windows.NAME.timezone": "the time zone of `cron` and `dates`",
    "guard.never_touch": "hosts and groups on which nothing is ever done",
    "guard.control_nodes": "hosts and groups on which only that is done which `control_node` lets; without "
    "it these are the hosts that Ansible reaches by `ansible_connection: local`",
    "guard.heartbeat.alertname": "an alert that fires all the time; `repeat_interval` of its route has to be "
    "shorter than `within`",
    "guard.heartbeat.within": "how long it may be missing before zamu takes itself for blind",
    "guard.storm.actions": "so many actions that are wanted within `guard.storm.within` are a storm: all is "
    "put off",
    "guard.storm.within": "see `guard.storm.actions`",
    "guard.storm.calm": "for how long nothing new may be wanted before a storm is over; not shorter than "
    "`guard.storm.within`",
    "guard.alertmanager.url": "where Alertmanager is asked what fires, before what was put off goes on",
    "guard.alertmanager.token": "a bearer token for it",
    "guard.alertmanager.ca": "a file of certificates by which it is known, instead of the system's",
    "notify.channels[].name": "what the record calls the channel",
    "notify.channels[].url": "an Apprise URL; it often holds a token, so it stands here as a secret only",
    "notify.channels[].urgencies": "the urgencies that the channel is for",
    "alarms.engine_down": "how long the engine may not be ready",
    "alarms.lag": "how old the oldest event may become that the rules have not had",
    "alarms.put_off": "how long an action may be put off without a clock that says for how long",
    "alarms.dead_letters": "how long no new dead letter may come before this alarm is over",
    "alarms.source_failing": "how long a source may fail",
    "alarms.silent": "for sources, by their name: how long each may bring no new event; none "
    "is watched by itself",
    "alarms.heap_percent": "how full the memory of the engine's Java may be after its last "
    "collection of garbage; "
    "at 90 the engine refuses events",
    "alarms.disk_percent": "how much of the state directory's disk has to be free",
    "alarms.disk_bytes": "the same in bytes; the alarm comes when one of the two is not kept",
    "alarms.settle": "how long a trouble has to be gone before that is told; short ones in "
    "between count as one. "
    "The troubles without a time of their own have to last so long, too",
    "sources": "arguments that are added to the sources of that name, whichever rulebook names them",
}
#: Defaults that depend on other keys, and those of keys that stand for several.
DEFAULTS = {
    "guard.actions.NAME": "what is built in, else as above",
    "guard.actions.NAME.target": "what is built in, else the hosts alone",
    "guard.policies[]": "nothing",
    "guard.policies[].match": "required",
}
HEADINGS = {
    "": "Top level",
    "intake": "intake: the web server and the journal behind it",
    "limits": "limits: all that bounds what comes from outside",
    "engine": "engine: ansible-rulebook and the playbooks",
    "guard": "guard: what may be done, and how often",
    "notify": "notify: the ways to the operator",
    "alarms": "alarms: when zamu tells that something is wrong with itself",
}


def configuration() -> str:
    """A table for each section of zamu.yml, and the guard's built-in policies."""
    rows: dict[str, list[str]] = {section: [] for section in HEADINGS}
    for key, field in keys(config.Config):
        default = "required" if field.is_required() else DEFAULTS.get(key, f"`{_default(field)}`")
        section = key.partition(".")[0] if "." in key else ""
        rows[section].append(f"| `{key}` | {_kind(field)} | {default} | {MEANINGS[key]} |")
    parts = []
    for section, heading in HEADINGS.items():
        parts += [f"### {heading}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        parts += [*rows[section], ""]
    parts += ["### What the guard knows without being told", ""]
    parts += ["| playbook | cooldown | target | others |", "|---|---|---|---|"]
    for name, action in config.Guard.built_in.items():
        target = ", ".join(f"`{one}`" for one in action.target) or "the hosts"
        more = {n: getattr(action, n) for n in sorted(action.model_fields_set - {"cooldown", "target"})}
        others = ", ".join(f"`{n}: {str(value).lower()}`" for n, value in more.items()) or "as above"
        parts.append(f"| `{name}` | `{_show(action.cooldown)}` | {target} | {others} |")
    return "\n".join(parts)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that may stand in zamu.yml, with its field; sections are walked into."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if key == "root":
            continue
        inner, place = _inner(field.annotation)
        if inner is None or inner is policy.Budget:  # which is written as a text
            yield key, field
        elif issubclass(inner, policy.Policy) and prefix:
            # The keys of a policy are told once, and here only what there is beside them.
            yield f"{key}{place}", field
            own = {n: f for n, f in inner.model_fields.items() if n not in policy.Policy.model_fields}
            yield from keys(
                create_model(inner.__name__, **{n: (f.annotation, f) for n, f in own.items()}),
                f"{key}{place}.",
            )
        else:
            yield from keys(inner, f"{key}{place}.")


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    place = {list: "[]", dict: ".NAME"}.get(origin, "") if origin else ""
    annotation = next(
        (one for one in arguments if origin in (Union, UnionType) and one is not NoneType), annotation
    )
    for one in (annotation, *arguments):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one, place
    return None, ""


def _kind(field: FieldInfo) -> str:
    bounds: dict[str, Any] = {}
    for one in field.metadata:
        bounds |= {name: getattr(one, name) for name in ("ge", "le") if hasattr(one, name)}
    kind = _name(field.annotation)
    return f"{kind}, {bounds['ge']} to {bounds['le']}" if "ge" in bounds and "le" in bounds else kind


_NAMES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    bool: "`true` or `false`",
    Path: "path",
    timedelta: "duration",
    Secret: "secret",
    policy.Budget: "text",
}


def _name(annotation: Any) -> str:
    annotation = getattr(annotation, "__value__", annotation)
    plain = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    if plain in _NAMES:
        return _NAMES[plain]
    origin, arguments = get_origin(plain), get_args(plain)
    if origin in (Union, UnionType):
        return " or ".join(_name(one) for one in arguments if one is not NoneType)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin in (list, tuple):
        return f"list of {_name(arguments[0])}"
    if origin is dict or (isinstance(plain, type) and issubclass(plain, BaseModel)):
        return "mapping"
    raise TypeError(f"docs/generate.py does not know the type {annotation!r}; teach it.")


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return str(value).lower() if isinstance(value, bool) else _show(value)


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, timedelta):
        seconds = int(value.total_seconds())
        units = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
        return next(f"{seconds // size}{unit}" for unit, size in units if seconds % size == 0)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_show, value))}]"
    return str(value)


def sources() -> str:
    """A row for each event source, with its page."""
    rows = ["| source | what it hears | its options as JSON schema |", "|---|---|---|"]
    for file in source_files():
        about = documented(file)["DOCUMENTATION"]
        page, schema = f"../sources/{file.stem}.md", f"../../event_sources/schemas/{file.stem}.json"
        rows.append(f"| [`{file.stem}`]({page}) | {_text(about['short_description'])} | [schema]({schema}) |")
    return "\n".join(rows)


def schema(file: Path) -> str:
    """The JSON schema of a source's arguments, from the model that checks them."""
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    found |= plugin(file)["Arguments"].model_json_schema()
    return json.dumps(found | {"title": file.stem}, indent=2) + "\n"


@cache
def plugin(file: Path) -> dict[str, Any]:
    """What a source's file defines."""
    return runpy.run_path(str(file))


def source_files() -> list[Path]:
    """The event sources of this repository."""
    return sorted((ROOT / "event_sources").glob("[a-z]*.py"))


def options(file: Path) -> str:
    """What a source's DOCUMENTATION and EXAMPLES say."""
    about = documented(file)["DOCUMENTATION"]
    parts = ["## Options", ""]
    if about.get("options"):
        parts += ["| option | type | default | meaning |", "|---|---|---|---|"]
    for name in plugin(file)["Arguments"].model_fields:
        option = about["options"][name]
        default = "required" if option.get("required") else f"`{_show(option.get('default'))}`"
        kind = f"list of {option['elements']}" if option["type"] == "list" else option["type"]
        meaning = " ".join(_text(one) for one in _sentences(option["description"]))
        parts.append(f"| `{name}` | {kind} | {default} | {meaning.replace('|', chr(92) + '|')} |")
    parts += ["", "```yaml", plugin(file)["EXAMPLES"].strip(), "```", "", "## In its own words", ""]
    parts += [f"- {_text(sentence)}" for sentence in _sentences(about["description"])]
    return "\n".join(parts)


def _sentences(text: str | list[str]) -> list[str]:
    return text if isinstance(text, list) else [text]


def _text(words: str) -> str:
    """Ansible's markup as Markdown's."""
    return re.sub(r"\b[CIEVOB]\(([^()]*(?:\([^()]*\))?[^()]*)\)", r"`\1`", " ".join(words.split()))


#: What is generated: the file, the name in its markers, and by what.
PARTS: list[tuple[Path, str, Callable[[], str]]] = [
    (REFERENCE / "configuration.md", "configuration", configuration),
    (REFERENCE / "sources.md", "sources", sources),
    *(
        (ROOT / "docs" / "sources" / f"{file.stem}.md", f"source {file.stem}", partial(options, file))
        for file in source_files()
    ),
]


def main() -> int:
    """Write or check all parts."""
    parser = argparse.ArgumentParser(description="The generated parts of docs/reference/.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something would change")
    check = parser.parse_args().check
    for key in sorted({key for key, _ in keys(config.Config)} ^ set(MEANINGS)):
        print(f"docs/generate.py: {key} is a key without meaning, or a meaning without key.")
        return 1
    stale = []
    for file, name, make in PARTS:
        begin, end = f"<!-- BEGIN GENERATED: {name} -->", f"<!-- END GENERATED: {name} -->"
        before = file.read_text()
        head, _, rest = before.partition(begin)
        _, found, tail = rest.partition(end)
        if not found:
            raise LookupError(f"{file} does not hold {begin} and {end}.")
        after = f"{head}{begin}\n<!-- by docs/generate.py; do not edit -->\n\n{make()}\n\n{end}{tail}"
        if after != before:
            stale.append(file)
            if not check:
                file.write_text(after)
    for source in source_files():
        file, text = SCHEMAS / f"{source.stem}.json", schema(source)
        if not file.exists() or file.read_text() != text:
            stale.append(file)
            if not check:
                file.write_text(text)
    for file in stale:
        did = "is out of date; run docs/generate.py" if check else "was brought up to date"
        print(f"{file.relative_to(ROOT)} {did}.")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
