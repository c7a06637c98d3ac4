# SPDX-License-Identifier: Apache-2.0
"""The section `guard` of zamu.yml as the gate reads it. Its words mean what `zamu.policy` says of them."""

from datetime import timedelta

import msgspec

from zamu.inventory import Inventory
from zamu.ledger import Intent


class Budget(msgspec.Struct, frozen=True):
    """At most so many runs within a span."""

    runs: int
    within: timedelta


class Breaker(msgspec.Struct, frozen=True):
    """So many failures in a row stop an action for a time."""

    failures: int
    closes_after: timedelta


class Policy(msgspec.Struct, frozen=True):
    """What may be said of an action. What `says` does not name it leaves to the policy before."""

    cooldown: timedelta | None = None
    budget: Budget | None = None
    max_hosts: int | None = None
    window: str | None = None
    trust: str | None = None
    dry_run: bool | None = None
    breaker: Breaker | None = None
    while_blind: bool | None = None
    control_node: bool | None = None
    says: frozenset[str] = frozenset()

    def but(self, other: "Policy") -> "Policy":
        """This policy with what another one says."""
        return msgspec.structs.replace(self, **{name: getattr(other, name) for name in other.says & _SAYABLE})


_SAYABLE = frozenset(Policy.__struct_fields__) - {"says"}


class Action(Policy, frozen=True):
    """What is said of one playbook."""

    target: list[str] = []


class Match(msgspec.Struct, frozen=True):
    """To what a policy belongs: each list that is not empty has to name it."""

    actions: list[str] = []
    groups: list[str] = []
    severities: list[str] = []
    rules: list[str] = []

    def matches(self, intent: Intent, inventory: Inventory) -> bool:
        """Whether it is meant; one of its hosts in one of the groups is enough."""
        return (
            (not self.actions or intent.playbook in self.actions)
            and (not self.groups or not inventory.members(self.groups).isdisjoint(intent.hosts))
            and (not self.severities or intent.severity in self.severities)
            and (not self.rules or intent.rule in self.rules)
        )


class MatchedPolicy(Policy, frozen=True, kw_only=True):
    """A policy for what it matches."""

    match: Match


class Group(msgspec.Struct, frozen=True):
    """What holds for the hosts of a group together; `healthy` is in percent."""

    concurrency: int | None
    healthy: int | None


class Window(msgspec.Struct, frozen=True):
    """When something may be done."""

    cron: str | None
    dates: list[str]
    duration: timedelta
    timezone: str


class Heartbeat(msgspec.Struct, frozen=True):
    """How long the heartbeat may be missing."""

    within: timedelta


class Storm(msgspec.Struct, frozen=True):
    """How many actions within a span are a storm, and when it is over."""

    actions: int
    within: timedelta
    calm: timedelta


class Alertmanager(msgspec.Struct, frozen=True):
    """Where to ask what fires."""

    url: str
    token: str | None
    ca: str | None


class Guard(Policy, frozen=True, kw_only=True):
    """All of it. `actions` has what is built in, too."""

    actions: dict[str, Action]
    policies: list[MatchedPolicy]
    groups: dict[str, Group]
    windows: dict[str, Window]
    never_touch: list[str]
    control_nodes: list[str] | None
    heartbeat: Heartbeat | None
    storm: Storm
    alertmanager: Alertmanager | None

    def target_of(self, playbook: str) -> list[str]:
        """The variables that, beside the hosts, say what a playbook acts upon."""
        return self.actions[playbook].target if playbook in self.actions else []

    def policy_for(self, intent: Intent, inventory: Inventory) -> Policy:
        """What holds for `intent`: the defaults, what its action says, then each policy that matches."""
        matching = [one for one in self.policies if one.match.matches(intent, inventory)]
        found: Policy = self
        for one in [self.actions.get(intent.playbook, Policy()), *matching]:
            found = found.but(one)
        return found
