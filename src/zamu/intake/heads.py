# SPDX-License-Identifier: Apache-2.0
"""What is known of a repository's branches and releases: tells what was missed from what was heard.

A forge that sends each push once is asked for its heads now and then. What it answers and what it sent
may speak of the same push, in either order, and what it sent may come late or again by hand.
"""

import re
from dataclasses import dataclass
from typing import Any, TypedDict, cast

#: What is kept of one branch's heads and of one repository's messages, the latest.
_HEADS, _BODIES = 50, 500
#: Releases that are remembered of one repository, the newest.
RELEASES = 1_000


class Branch(TypedDict):
    """One branch. A head is a commit's hash, or empty while the branch does not exist."""

    told: dict[str, int]
    """Since the last answer, how often messages told that it came to a head, less how often it left it."""
    caught: list[str]
    """Heads that were caught up, so that their own messages say nothing new."""
    moves: int
    """How often it moved."""


class _Noted(TypedDict):
    branches: dict[str, Branch]
    releases: list[int]
    caught: list[int]
    heard: list[str]
    dropped: list[str]


@dataclass(frozen=True)
class Move:
    """A branch went from one head to another. `before` is None where it is not said."""

    branch: str
    before: str | None
    after: str


def head(commit: str) -> str:
    """A commit's hash as a head: that of zeros alone stands for no commit."""
    return "" if re.fullmatch("0+", commit) else commit


class Known:
    """One repository. `noted` is what is kept of it; a forge that was never asked has none.

    Messages may overtake each other, so that the last one need not speak of where a branch is. But each
    names the head that was left, too: a head that messages came to more often than they left it is one
    that was told.
    """

    def __init__(self, noted: Any) -> None:
        self.noted: _Noted | None = cast(_Noted, noted) if isinstance(noted, dict) else None

    def begin(self, heads: dict[str, str], releases: list[int]) -> None:
        """The first answer is only remembered: nobody knows since when."""
        branches = {name: Branch(told={one: 1}, caught=[], moves=0) for name, one in heads.items()}
        known = sorted(releases)[-RELEASES:]
        self.noted = _Noted(branches=branches, releases=known, caught=[], heard=[], dropped=[])

    def heard(self, move: Move, body: str) -> None:
        """A message told this move, and it is stored; `body` is the message's hash."""
        if self.noted is None or body in self.noted["heard"]:
            return
        self.noted["heard"] = [*self.noted["heard"], body][-_BODIES:]
        branch = self._branch(move.branch)
        _count(branch, move.before, -1)
        _count(branch, move.after, 1)
        branch["moves"] += 1

    def is_told(self, move: Move, body: str) -> bool:
        """Whether a message's move was caught up before the message came; it stays so for this message.

        A branch that really goes to such a head again is told by the next answer.
        """
        if self.noted is None:
            return False
        if body in self.noted["dropped"]:
            return True
        branch = self.noted["branches"].get(move.branch)
        if branch is None or body in self.noted["heard"] or move.after not in branch["caught"]:
            return False
        if move.before is None and branch["told"].get(move.after, 0) <= 0:
            return False  # it is deleted again
        self.noted["dropped"] = [*self.noted["dropped"], body][-_BODIES:]
        return True

    def missed(self, heads: dict[str, str]) -> list[Move]:
        """The moves from what was told to what the forge says now."""
        if self.noted is None:
            return []
        known = self.noted["branches"]
        now = heads | dict.fromkeys(known.keys() - heads.keys(), "")
        nothing = Branch(told={"": 1}, caught=[], moves=0)
        return [
            Move(name, _now(known.get(name, nothing)), one)
            for name, one in now.items()
            if known.get(name, nothing)["told"].get(one, 0) <= 0
        ]

    def moves(self, name: str) -> int:
        """How often a branch moved: the same move can be missed twice."""
        branch = self.noted["branches"].get(name) if self.noted else None
        return branch["moves"] if branch else 0

    def answered(self, moves: list[Move], heads: dict[str, str]) -> bool:
        """The forge said where the branches are, and what it told is stored. Returns whether it is news."""
        if self.noted is None:
            return False
        before = str(self.noted["branches"])
        known = self.noted["branches"]
        for name in [name for name, one in known.items() if name not in heads and one["told"] == {"": 1}]:
            del known[name]  # gone since the last answer
        for move in moves:
            branch = self._branch(move.branch)
            branch["caught"] = [*branch["caught"], move.after][-_HEADS:]
            branch["moves"] += 1
        for name, branch in known.items():
            branch["told"] = {heads.get(name, ""): 1}
        return str(known) != before

    def new_releases(self, releases: list[int]) -> list[int]:
        """Those that are not known. An old one that moved up in a cut list is not new."""
        known = self.noted["releases"] if self.noted else []
        oldest = known[0] if len(known) >= RELEASES else 0
        return [one for one in releases if one > oldest and one not in set(known)]

    def release_heard(self, release: int, *, caught: bool = False) -> None:
        """A release is stored; `caught` says that a forge's answer told it."""
        if self.noted is None:
            return
        self.noted["releases"] = sorted({*self.noted["releases"], release})[-RELEASES:]
        if caught:
            self.noted["caught"] = [*self.noted["caught"], release][-_BODIES:]

    def is_release_told(self, release: int) -> bool:
        """Whether a release was caught up before its message came."""
        return self.noted is not None and release in self.noted["caught"]

    def _branch(self, name: str) -> Branch:
        assert self.noted is not None
        return self.noted["branches"].setdefault(name, Branch(told={"": 1}, caught=[], moves=0))


def _now(branch: Branch) -> str:
    """Where a branch is, as far as it was told: the latest head that it did not leave."""
    return next((one for one in reversed(branch["told"]) if branch["told"][one] > 0), "")


def _count(branch: Branch, one: str | None, by: int) -> None:
    """Count a head; the one that is counted last stands last."""
    if one is None:
        return
    told = branch["told"]
    told[one] = told.pop(one, 0) + by
    while len(told) > _HEADS:
        del told[next(iter(told))]
