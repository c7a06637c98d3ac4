# SPDX-License-Identifier: Apache-2.0
"""Event source: URLs and TCP ports that turn bad or good."""

import asyncio
import re
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from zamu.event import Event, now
from zamu.intake.memory import Memory
from zamu.intake.options import Interval, Options, options, seconds
from zamu.intake.probe import Answer, Question, asker, is_address
from zamu.intake.queue import put_all
from zamu.intake.shelter import reveal, trust
from zamu.intake.together import together
from zamu.secrets import VAULT_HEADER

DOCUMENTATION = r"""
short_description: Tell when a URL or a TCP port turns bad or good
description:
  - Asks each target at its interval, and makes an event under C(event.check) when its state has changed.
    What was good from the start is no event unless I(announce) is set. States are kept over restarts.
  - C(event.check.aspect) says what the state is of. C(answer) is the target, or the target by one of its
    paths. C(paths), where a check has paths, is all of them together, C(degraded) when some work and some
    do not. C(certificate) is how long the certificate is still valid.
  - Redirects are not followed; a check that expects one names its status. Only what stands here is asked.
options:
  checks:
    description:
      - The checks by name. Each has either C(url), http or https, or C(tcp), C(HOST:PORT).
      - C(host) is the inventory host of which its events speak; without it a rule can only tell.
      - C(interval), C(60s), is the time between two questions, and C(timeout), C(10s), what an answer may
        take.
      - C(expect) may have C(status), a list of what the answer's status may be, by default 200 to 299;
        C(body), a text that the answer's first MiB, or what a TCP server says first, has to contain; and
        C(certificate_days), for how many days the certificate has to be valid.
      - C(method) is C(GET), C(HEAD) or C(POST). C(headers) are sent with it; a value that is a secret is
        named as C(env:NAME) or C(file:/path), or vaulted in zamu.yml.
      - C(ca) is a file of certificates that are trusted instead of the system's. C(verify_tls) set to
        false trusts any.
      - C(source_address) is the address of this machine, or its network interface, from which is asked.
        C(paths) are several of them by name; each is asked for itself, and has its own state.
      - After C(bad_after) failures in a row, 3, a target is bad; after C(good_after) good answers in a row,
        1, it is good again.
    type: dict
    required: true
  concurrency:
    description: So many questions are asked at the same time, at most.
    type: int
    default: 20
  announce:
    description: Whether a target that is good when it is asked for the first time is an event, too.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: http_check
  http_check:
    checks:
      photos:
        url: https://photos.example.org/api/status
        host: docker1
        expect: {body: operational, certificate_days: 14}
      mail: {tcp: "mail.example.org:25", host: mail, expect: {body: "220 "}}
      askari:
        tcp: 100.64.0.7:22
        host: askari
        paths: {mesh: wt0, direct: 192.0.2.17}
"""

RETURN = r"""
check:
  description: A state that has changed.
  type: dict
  contains:
    name: {description: The check., type: str}
    target: {description: Its URL or C(HOST:PORT)., type: str}
    path: {description: "Of C(answer), by which path it was asked, or null.", type: str}
    aspect: {description: "C(answer), C(paths) or C(certificate).", type: str}
    state: {description: "C(good), C(bad), or of C(paths) C(degraded).", type: str}
    reason: {description: "What is wrong, or that all is well, as a sentence.", type: str}
    since: {description: "When this was seen for the first time, UTC.", type: str}
    failures: {description: How many answers in a row were bad., type: int}
    status: {description: "The HTTP status of the last answer, or null.", type: int}
    seconds: {description: How long the last answer took., type: float}
    certificate_days: {description: "For how many days the certificate is valid, or null.", type: int}
"""

_NAME = re.compile(r"[^/\x00-\x1f\x7f]{1,100}")
_INTERFACE = re.compile(r"[\w.:@-]{1,15}")


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:100]!r} is not a name of at most 100 characters, without a slash")
    return name


def _from(text: str) -> str:
    if not is_address(text) and not _INTERFACE.fullmatch(text):
        raise ValueError(f"{text!r} is neither an address nor a network interface")
    return text


type Name = Annotated[str, AfterValidator(_named)]
type From = Annotated[str, AfterValidator(_from)]


class Expect(Options):
    """What makes an answer a good one."""

    status: list[Annotated[int, Field(ge=100, le=599)]] = []
    body: str | None = Field(None, min_length=1, max_length=1_000)
    certificate_days: int | None = Field(None, ge=1, le=3_650)


class Check(Options):
    """One target, and how it is asked."""

    url: str | None = Field(None, pattern=r"^https?://[^\s/@]+(/\S*)?$", max_length=2_000)
    tcp: str | None = Field(None, pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s/]+):\d{1,5}$", max_length=300)
    host: str | None = None
    interval: Interval = "60s"
    timeout: Interval = "10s"
    expect: Expect = Expect()
    method: Literal["GET", "HEAD", "POST"] = "GET"
    headers: dict[str, str] = {}
    verify_tls: bool = True
    ca: Path | None = None
    source_address: From | None = None
    paths: dict[Name, From] = {}
    bad_after: int = Field(3, ge=1, le=100)
    good_after: int = Field(1, ge=1, le=100)

    @model_validator(mode="after")
    def _consistent(self) -> "Check":
        if (self.url is None) == (self.tcp is None):
            raise ValueError("name either url or tcp")
        if self.paths and self.source_address:
            raise ValueError("name either source_address or paths")
        if self.tcp and not 0 < int(self.tcp.rpartition(":")[2]) < 65_536:  # noqa: PLR2004
            raise ValueError("tcp: the port is not between 1 and 65535")
        https = bool(self.url and self.url.startswith("https:") and self.verify_tls)
        if self.expect.certificate_days and not https:
            raise ValueError("certificate_days needs a URL with https, and verify_tls")
        return self

    @property
    def target(self) -> str:
        """What is asked."""
        return str(self.url or self.tcp)


class Arguments(Options):
    """The source's arguments; see DOCUMENTATION."""

    checks: dict[Name, Check] = Field(min_length=1, max_length=2_000)
    concurrency: int = Field(20, ge=1, le=1_000)
    announce: bool = False


@dataclass
class _State:
    """A state as it was decided last, and the answers in a row that would change it."""

    key: str
    state: str | None = None
    turning: str | None = None
    count: int = 0
    since: str = ""

    def judge(self, found: str, after: int) -> bool:
        """Count an answer; whether the state has changed, `after` so many in a row."""
        if found == self.state:
            self.turning = None
            return False
        if found != self.turning:
            self.turning, self.count, self.since = found, 0, now()
        self.count += 1
        if self.count < after:
            return False
        self.state, self.turning = found, None
        return True


@dataclass
class _Path:
    """One way to ask a target, or the only one."""

    name: str | None
    question: Question
    known: _State
    failures: int = 0


@dataclass
class _Target:
    """A check with its paths, and the states that all of them have together."""

    name: str
    check: Check
    paths: list[_Path]
    together: _State
    certificate: _State


class _Heard:
    """Knows of which keys something was told: only of these it is news that all is well.

    What is not news to the journal is a repetition to it. So after a restart everything is told again,
    but what was good from the start. A key is noted before its first event: noted and not told does no
    harm, and told and not noted would hide that all is well again.
    """

    def __init__(self, targets: list[_Target], *, announce: bool) -> None:
        self._announce = announce
        self._keys = {path.known.key for target in targets for path in target.paths}
        self._keys |= {key for one in targets for key in (one.together.key, one.certificate.key)}
        self._memory = Memory()
        self._known: set[str] = set()
        self._noted: set[str] = set()
        self._one_writes = asyncio.Lock()

    async def read(self) -> None:
        """Remember."""
        noted: set[str] | None = await asyncio.to_thread(self._memory.read, set[str])
        self._known = self._keys & (noted or set())

    async def news(self, changes: list[tuple[_State, Event]]) -> list[Event]:
        """The events that are to be put."""
        news = [
            (state.key, event)
            for state, event in changes
            if state.state != "good" or self._announce or state.key in self._known
        ]
        keys = {key for key, _ in news}
        self._known |= keys
        async with self._one_writes:
            if not keys <= self._noted:  # by who waited before, with all that came meanwhile
                known = set(self._known)
                await self._memory.note(sorted(known))
                self._noted = known
        return [event for _, event in news]


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Ask all targets until cancelled."""
    given = options("http_check", Arguments, args)
    targets = await asyncio.to_thread(_targets, given.checks)
    heard = _Heard(targets, announce=given.announce)
    await heard.read()
    room = asyncio.Semaphore(given.concurrency)
    await together(*(_watch(queue, heard, room, one, path) for one in targets for path in one.paths))


def _targets(checks: dict[str, Check]) -> list[_Target]:
    """Everything that the questions need. Raises ConfigError."""
    contexts: dict[tuple[Path | None, bool], ssl.SSLContext] = {}  # each takes time and memory
    found = []
    for name, check in checks.items():
        trust = check.ca, check.verify_tls
        if check.ca or (check.url or "").startswith("https:"):
            contexts[trust] = contexts.get(trust) or _context(name, check)
        found.append(_target(name, check, contexts.get(trust)))
    return found


def _target(name: str, check: Check, context: ssl.SSLContext | None) -> _Target:
    headers = {header: _header(name, header, value) for header, value in check.headers.items()}
    host, _, port = (check.tcp or ":0").rpartition(":")
    paths: list[tuple[str | None, str | None]] = [*check.paths.items()] or [(None, check.source_address)]
    made = [
        _Path(
            path,
            Question(
                url=check.url,
                tcp=(host.strip("[]"), int(port)),
                method=check.method,
                headers=tuple(headers.items()),
                statuses=check.expect.status or Question.statuses,
                text=check.expect.body,
                timeout=seconds(check.timeout),
                source=source,
                context=context,
            ),
            _State(name if path is None else f"{name}/{path}"),
        )
        for path, source in paths
    ]
    return _Target(name, check, made, _State(name), _State(f"{name}//certificate"))


def _context(name: str, check: Check) -> ssl.SSLContext:
    context = trust(f"checks.{name}.ca", check.ca)
    if not check.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _header(name: str, header: str, value: str) -> str:
    if not value.startswith(("env:", "file:", VAULT_HEADER)):
        return value
    return reveal(f"checks.{name}.headers.{header}", value)


async def _watch(
    queue: asyncio.Queue[Event], heard: _Heard, room: asyncio.Semaphore, target: _Target, path: _Path
) -> None:
    """Ask by one path, for ever."""
    interval = seconds(target.check.interval)
    async with asker(path.question) as one:
        while True:
            begin = time.monotonic()
            async with room:
                answer = await one.ask()
            events = await heard.news(_judge(target, path, answer))
            if events:
                await put_all(queue, events)
            await asyncio.sleep(max(0.0, interval - (time.monotonic() - begin)))


def _judge(target: _Target, path: _Path, answer: Answer) -> list[tuple[_State, Event]]:
    """The states that an answer has changed."""
    check = target.check
    path.failures = path.failures + 1 if answer.reason else 0
    found: list[tuple[_State, Event]] = []

    def changed(aspect: str, state: _State, reason: str) -> None:
        found.append((state, _event(target, path, answer, aspect, state, reason)))

    if path.known.judge(*(("bad", check.bad_after) if answer.reason else ("good", check.good_after))):
        changed("answer", path.known, answer.reason or "It answers as expected.")
        by_path = {str(one.name): one.known.state for one in target.paths}
        states = set(by_path.values())
        together = by_path[str(path.name)] if len(states) == 1 else "degraded"
        if check.paths and None not in states and target.together.judge(str(together), 1):
            changed("paths", target.together, _of_paths(by_path))
    least, days = check.expect.certificate_days, answer.certificate_days
    if least is not None and days is not None:
        bad = days < least
        ends = "has expired" if days < 0 else f"is valid for {days} days"
        if target.certificate.judge(*(("bad", check.bad_after) if bad else ("good", check.good_after))):
            changed("certificate", target.certificate, f"The certificate {ends}; {least} are expected.")
    return found


def _of_paths(by_path: dict[str, str | None]) -> str:
    bad = ", ".join(name for name, state in by_path.items() if state == "bad")
    if not bad:
        return "All paths work."
    return f"These of {len(by_path)} paths do not work: {bad}."


def _event(target: _Target, path: _Path, answer: Answer, aspect: str, state: _State, reason: str) -> Event:
    return {
        "check": {
            "name": target.name,
            "target": target.check.target,
            "path": path.name if aspect == "answer" else None,
            "aspect": aspect,
            "state": state.state,
            "reason": reason,
            "since": state.since,
            "failures": path.failures,
            "status": answer.status,
            "seconds": answer.seconds,
            "certificate_days": answer.certificate_days,
        },
        "meta": {
            "hosts": [target.check.host] if target.check.host else [],
            "identity": {"key": state.key, "state": state.state},
        },
    }
