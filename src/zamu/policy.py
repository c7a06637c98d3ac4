# SPDX-License-Identifier: Apache-2.0
"""The section `guard` of zamu.yml: what the gate asks before an action."""

import re
from collections.abc import Collection, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from zamu.cron import calendar, zone
from zamu.errors import ConfigError
from zamu.section import Duration, SecretReference, Section

#: Of what would mean never, or always, when it took no time.
_NONE = timedelta()


class Budget(Section):
    """At most so many runs of an action on a target within a span; written as `3 in 1h`."""

    runs: int = Field(ge=1, le=10_000)
    within: Duration = Field(gt=_NONE)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if isinstance(value, dict | cls):
            return value
        match = re.fullmatch(r"(\d{1,5}) in (\S+)", str(value))
        if match is None:
            raise ValueError(f"{value!r} is not a budget; write for example 3 in 1h")
        return {"runs": int(match[1]), "within": match[2]}

    def __str__(self) -> str:
        seconds = int(self.within.total_seconds())
        units = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
        return f"{self.runs} in " + next(f"{seconds // n}{u}" for u, n in units if seconds % n == 0)


class Breaker(Section):
    """So many failures in a row stop an action, until a time has passed or the operator closes it."""

    failures: int = Field(3, ge=1, le=100)
    closes_after: Duration = timedelta(hours=1)


class Policy(Section):
    """What the guard asks before an action; what is left out is as the policies before it say.

    Null takes away what they say.
    """

    cooldown: Duration | None = None
    budget: Budget | None = None
    max_hosts: int | None = Field(None, ge=1, description="more hosts at once are unexpected")
    window: str | None = Field(None, description="one of guard.windows")
    trust: Literal["observe", "propose", "auto"] | None = None
    dry_run: bool | None = None
    breaker: Breaker | None = None
    while_blind: bool | None = Field(None, description="though the heartbeat is missing")
    control_node: bool | None = Field(None, description="on the host that zamu lives on, too")

    @field_validator("trust", "dry_run", "while_blind", "control_node", mode="before")
    @classmethod
    def _said(cls, value: object) -> object:
        if value is None:  # what was left empty by mistake must not let more be done
            raise ValueError("nothing is said here; say what it is to be, or leave the key out")
        return value

    def said(self) -> dict[str, Any]:
        """The keys that it names."""
        return self.model_dump(include=self.model_fields_set)


class Action(Policy):
    """What the guard knows about one playbook."""

    target: list[str] = Field(
        default_factory=list,
        description="variables that, beside the hosts, say what is acted upon",
    )


class Match(Section):
    """To what a policy belongs: each list that is given has to name it."""

    actions: list[str] = Field(default_factory=list)
    groups: list[str] = Field(default_factory=list)
    severities: list[str] = Field(default_factory=list)
    rules: list[str] = Field(default_factory=list)


class MatchedPolicy(Policy):
    """A policy for what it matches."""

    match: Match


class Group(Section):
    """What holds for the hosts of an inventory group together."""

    concurrency: int | None = Field(None, ge=1, description="hosts that are acted upon at a time")
    healthy: int | None = Field(None, ge=1, le=100, description="percent of them that have to be left well")


class Window(Section):
    """When something may be done: for `duration` from each tick of a cron expression, or from dates on."""

    cron: str | None = None
    dates: list[str] = Field(default_factory=list, max_length=1_000)
    duration: Duration = Field(gt=_NONE)
    timezone: str = "UTC"

    @model_validator(mode="after")
    def _readable(self) -> "Window":
        if (self.cron is None) == (not self.dates):
            raise ValueError("a window opens either by cron or on dates; write one of the two")
        calendar(self.cron, self.dates, zone(self.timezone))
        return self


class Heartbeat(Section):
    """An alert that fires all the time, as Alertmanager's Watchdog; without it zamu is blind."""

    alertname: str = "Watchdog"
    within: Duration = Field(timedelta(minutes=15), gt=_NONE)


class Storm(Section):
    """So many actions wanted within a span are a storm; it is over when none was wanted for `calm`."""

    actions: int = Field(30, ge=2, le=100_000)
    within: Duration = Field(timedelta(minutes=1), gt=_NONE)
    calm: Duration = timedelta(minutes=5)

    @model_validator(mode="after")
    def _ends(self) -> "Storm":
        if self.calm < self.within:  # what was wanted in the storm would begin the next
            raise ValueError("calm is shorter than within: the storm would begin again as soon as it is over")
        return self


class Alertmanager(Section):
    """Where it is asked whether an alert still fires, and who is unwell."""

    url: str = Field(pattern=r"^https?://")
    token: SecretReference | None = None
    ca: Path | None = None


class Guard(Policy):
    """Policy of the gate. `actions` adds to what is built in; each of `policies` that matches to that."""

    cooldown: Duration | None = timedelta(minutes=5)
    budget: Budget | None = Budget.model_construct(runs=6, within=timedelta(hours=1))
    max_hosts: int | None = Field(5, ge=1)
    trust: Literal["observe", "propose", "auto"] | None = "auto"
    dry_run: bool | None = False
    breaker: Breaker | None = Breaker.model_construct()
    actions: dict[str, Action] = Field(default_factory=dict)
    policies: list[MatchedPolicy] = Field(default_factory=list)
    groups: dict[str, Group] = Field(default_factory=dict)
    windows: dict[str, Window] = Field(default_factory=dict)
    never_touch: list[str] = Field(default_factory=list, description="hosts and groups")
    control_nodes: list[str] | None = Field(
        None, description="default: the hosts that Ansible reaches without a network"
    )
    heartbeat: Heartbeat | None = None
    storm: Storm = Storm.model_construct()
    alertmanager: Alertmanager | None = None

    built_in: ClassVar[dict[str, Action]] = {
        "boma.zamu.restart_unit": Action(cooldown="10m", target=["restart_unit_name"]),
        "boma.zamu.restart_container": Action(cooldown="10m", target=["restart_container_name"]),
        "boma.zamu.restart_stack": Action(cooldown="10m", target=["restart_stack_name"]),
        "boma.zamu.pull_and_restart": Action(cooldown="1h", target=["pull_and_restart_name"]),
        "boma.zamu.reboot_host": Action(cooldown="1h", budget="2 in 1d"),
        "boma.zamu.free_disk": Action(cooldown="1h", target=["free_disk_path"]),
        "boma.zamu.renew_certificate": Action(cooldown="1h", target=["renew_certificate_name"]),
        "boma.zamu.rerun_backup_job": Action(cooldown="1h", target=["rerun_backup_job_name"]),
        "boma.zamu.rerun_backup": Action(cooldown="1h", target=["rerun_backup_guest"]),
        "boma.zamu.reset_guest": Action(cooldown="30m", budget="3 in 1d"),
        "boma.zamu.restart_firewall_service": Action(
            cooldown="10m", target=["restart_firewall_service_name"]
        ),
        "boma.zamu.reload_gateway": Action(cooldown="10m", target=["reload_gateway_name"]),
        "boma.zamu.block_address": Action(cooldown="0s", budget="600 in 1h", target=["block_address_ip"]),
        "boma.zamu.unblock_address": Action(cooldown="0s", budget="600 in 1h", target=["unblock_address_ip"]),
        # It changes nothing, and tells what each of several remedies on one host could not mend.
        "boma.zamu.report_failure": Action(
            cooldown="0s",
            budget="60 in 1h",
            target=["report_failure_title"],
            window=None,
            trust="auto",
            while_blind=True,
            control_node=True,
        ),
        "boma.zamu.restart_demo_service": Action(cooldown="10s", budget="20 in 1h", control_node=True),
    }

    @model_validator(mode="after")
    def _consistent(self) -> "Guard":
        for policy in (self, *self.actions.values(), *self.policies):
            if policy.window is not None and policy.window not in self.windows:
                raise ValueError(f"there is no window {policy.window!r} in guard.windows")
        if self.alertmanager is None:
            for name, group in self.groups.items():
                if group.healthy is not None:
                    raise ValueError(
                        f"groups.{name}.healthy needs guard.alertmanager, which knows who is well"
                    )
        return self

    def cooldown_of(self, playbook: str) -> timedelta | None:
        """The cooldown of an action where no policy says otherwise."""
        for said in (self.actions.get(playbook), self.built_in.get(playbook)):
            if said is not None and "cooldown" in said.model_fields_set:
                return said.cooldown
        return self.cooldown

    def strangers(self, places: Collection[str], wanted: Iterable[tuple[str, str, str]]) -> list[str]:
        """What it names and nobody knows, so that it guards nothing.

        `places` are the inventory's hosts and groups, `wanted` what rules want: ruleset, rule and playbook.
        """
        _, rules, playbooks = (set(said) for said in zip(("",) * 3, *wanted, strict=True))
        matches = [one.match for one in self.policies]
        groups = [*self.never_touch, *(self.control_nodes or []), *self.groups]
        groups += [name for match in matches for name in match.groups]
        actions = [*self.actions, *(name for match in matches for name in match.actions)]
        unknown = {
            "host or group": set(groups).difference(places),
            "action": set(actions) - playbooks - self.built_in.keys(),
            "rule": {name for match in matches for name in match.rules} - rules,
        }
        return [f"the {kind} {name}" for kind, names in unknown.items() for name in sorted(names)]

    def as_told(self) -> dict[str, Any]:
        """All of it for the gate: with what is built in, and with the secret revealed. Raises ConfigError."""
        told = self.model_dump()
        built_in, own = (
            {name: one.said() for name, one in many.items()} for many in (self.built_in, self.actions)
        )
        actions = {name: built_in.get(name, {}) | own.get(name, {}) for name in {*built_in, *own}}
        told["actions"] = {name: {**said, "says": sorted(said)} for name, said in actions.items()}
        told["policies"] = [{**one.said(), "says": sorted(one.model_fields_set)} for one in self.policies]
        if self.alertmanager is not None:
            token, ca = self.alertmanager.token, self.alertmanager.ca
            try:
                told["alertmanager"] |= {"token": token and token.reveal(), "ca": ca and str(ca)}
            except ConfigError as error:
                raise ConfigError(f"guard.alertmanager.token: {error}") from error
        return told
