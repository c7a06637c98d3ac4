# SPDX-License-Identifier: Apache-2.0
"""The house that is attacked: a running zamu with careless rules, the real ones, and a mailbox.

Its rule and its playbook do what careless ones do: they copy and join an event's fields into
variables, and print, compare, quote and write them. A canary is what each attack would touch.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import psutil
import yaml
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from harness import ROOT, Zamu, alert, free_port, group, wait_until
from security.table import EXTRAS, TEXTS, UNITS
from zamu.journal import Entry
from zamu.journal.sqlite import Journal
from zamu.ledger import Message, Run
from zamu.ledger.sqlite import Ledger

PLAYBOOK: list[dict[str, Any]] = [
    {
        "name": "Careless things are done with the fields of an event",
        "hosts": "all",
        "gather_facts": False,
        "pre_tasks": [
            {"name": "Print", "ansible.builtin.debug": {"msg": "{{ single }} {{ joined }} {{ nested }}"}},
            {"name": "Compare", "ansible.builtin.debug": {"msg": "same"}, "when": "joined == single"},
            {
                "name": "Quote and write the field as it came",
                "ansible.builtin.raw": (
                    "printf %s {{ ansible_eda.event.alert.annotations.first | quote }}"
                    " > OUT/{{ ansible_eda.event.alert.labels.number }}; printf %s {{ joined | string | quote }}"
                ),
                "changed_when": False,
            },
        ],
        "roles": [{"role": "verify_nothing"}],
    },
]

_FIRST, _SECOND = "{{ event.alert.annotations.first }}", "{{ event.alert.annotations.second }}"
RULES: list[dict[str, Any]] = [
    {
        "name": "Hostile alerts",
        "hosts": "all",
        "sources": [{"name": "alertmanager", "alertmanager": {}}],
        "rules": [
            {
                "name": "Do careless things",
                "condition": 'event.alert.labels.alertname == "Hostile"',
                "throttle": {
                    "once_within": "1 millisecond",
                    "group_by_attributes": ["event.alert.fingerprint"],
                },
                "action": {
                    "run_playbook": {
                        "name": "careless.yml",
                        "extra_vars": {
                            "single": _FIRST,
                            "joined": _FIRST + _SECOND,
                            "nested": {"list": [_FIRST, {"deep": _FIRST + _SECOND}]},
                        },
                    }
                },
            },
        ],
    }
]

#: In place of systemd's: writes down what it is asked, and knows no unit.
_SYSTEMCTL = """#!/bin/sh
printf '%s\\n' "$*" >> {asked}
printf 'LoadState=not-found\\nActiveState=inactive\\nSubState=dead\\nNames=\\n'
"""


class Mailbox:
    """What the operator was told, as the mails that arrived, and to whom each went."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], bytes]] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        self.mails.append(([str(to) for to in envelope.rcpt_tos], envelope.content))
        return "250 OK"

    def found(self, word: str) -> list[tuple[list[str], EmailMessage]]:
        """The mails that have a word in subject or text, each with those that it went to."""
        parsed: list[tuple[list[str], EmailMessage]] = [
            (to, message_from_bytes(raw, policy=policy.default)) for to, raw in self.mails
        ]
        return [(to, mail) for to, mail in parsed if word in f"{mail['Subject']}\n{_text(mail)}"]


def _text(mail: EmailMessage) -> str:
    body = mail.get_body(("plain", "html"))
    return str(body.get_content()) if body else ""


class House(Zamu):
    """One zamu for the whole table, so that a case is cheap."""

    def __init__(self, directory: Path) -> None:
        self.canary = directory / "canary"
        self.out = directory / "out"
        self.asked = directory / "asked-of-systemctl"
        self.mailbox = Mailbox()
        self._mail = Controller(self.mailbox, hostname="127.0.0.1", port=free_port())
        self.out.mkdir()
        tools = directory / "tools"
        tools.mkdir()
        (tools / "systemctl").write_text(_SYSTEMCTL.format(asked=self.asked))
        (tools / "systemctl").chmod(0o755)
        url = f"mailto://127.0.0.1:{self._mail.port}?from=zamu@example.net&to=you@example.net"
        local = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        }
        # One thing at a time is done on a host, so most cases have one of their own.
        own = [f"text{number}" for number in range(len(TEXTS) + len(EXTRAS))]
        own += [f"unit{number}" for number in range(len(UNITS))]
        patient = {"match": {"actions": ["boma.zamu.restart_unit"]}, "breaker": {"failures": 100}}
        super().__init__(
            directory / "zamu",
            hosts=dict.fromkeys(["web1", "web2", *own], local),
            rulebooks={"hostile.yml": RULES},
            config={
                "engine": {"settle": "1s"},
                "guard": {"actions": {"careless": {"cooldown": "0s"}}, "policies": [patient]},
                "limits": {"idle": "2s", "body_time": "2s", "linger": "1s", "connections": 200},
                "notify": {"channels": [{"name": "mail", "url": "env:MAIL_URL"}]},
            },
            environment={"MAIL_URL": url, "PATH": f"{tools}:{os.environ['PATH']}"},
        )
        shutil.copy(ROOT / "rulebooks" / "remediation.yml", self.directory / "rulebooks")
        text = yaml.safe_dump(PLAYBOOK, sort_keys=False).replace("OUT", str(self.out))
        (self.directory / "playbooks" / "careless.yml").write_text(text)
        tasks = self.directory / "playbooks" / "roles" / "verify_nothing" / "tasks"
        tasks.mkdir(parents=True)
        look = [{"name": "Look", "ansible.builtin.debug": {"msg": "fine"}}]
        (tasks / "main.yml").write_text(yaml.safe_dump(look))
        self.healthy: list[str] = []

    @contextmanager
    def standing(self) -> Iterator["House"]:
        """Start it, and end all of it afterwards."""
        self._mail.start()
        try:
            with self:
                self.start("run")
                self.wait_ready()
                self.bearer = self.token
                self.processes = self.engine_and_intake()
                yield self
        finally:
            self._mail.stop()

    def engine_and_intake(self) -> set[psutil.Process]:
        """The processes that must outlive every case."""
        found = {self.process("--persistence-id"), self.process("zamu", "intake")}
        assert None not in found
        return {process for process in found if process is not None}

    @property
    def entries(self) -> list[Entry]:
        with closing(Journal(self.state / "journal.db")) as journal:
            return journal.entries()

    def alerts(self, alertname: str) -> dict[str, Entry]:
        """The stored alerts of a name, by their fingerprint."""
        told = [(entry, entry.event["alert"]) for entry in self.entries if "alert" in entry.event]
        return {
            found["fingerprint"]: entry
            for entry, found in told
            if found.get("labels", {}).get("alertname") == alertname
        }

    def runs_by_event(self) -> dict[str, list[Run]]:
        """All runs by the uuid of their event."""
        with closing(Ledger(self.state / "ledger.db")) as ledger:
            runs = ledger.runs()
        found: dict[str, list[Run]] = {}
        for run in runs:
            for event in run.intent.events:
                found.setdefault(event, []).append(run)
        return found

    def told(self) -> list[Message]:
        """What the operator was told, as it was handed to the channels."""
        with closing(Ledger(self.state / "ledger.db")) as ledger:
            return [letter.message for letter in ledger.letters()]

    def done_for(self, entries: Iterable[Entry], within: float) -> None:
        """Wait until each of these events has set off a run, and it has ended."""
        uuids = {entry.event["meta"]["uuid"] for entry in entries}

        def done() -> bool:
            runs = self.runs_by_event()
            return all(uuid in runs and all(run.ended for run in runs[uuid]) for uuid in uuids)

        wait_until(done, within, self.story)

    def all_delivered(self, within: float) -> None:
        """Wait until the engine has taken every event."""
        wait_until(lambda: all(entry.state != "pending" for entry in self.entries), within, self.story)

    def is_well(self) -> None:
        """Fail unless both parts live on, and a healthy alert is taken at once."""
        name = f"healthy-{len(self.healthy)}"
        status, answer = self.post(group(alert("Healthy", fingerprint=name, instance="web1")))
        assert status == 202, f"{answer}\n{self.story()}"
        self.healthy.append(name)
        assert self.health()[0] == 200, self.story()
        assert all(process.is_running() for process in self.processes), self.story()
        assert not self.canary.exists()
