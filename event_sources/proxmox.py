# SPDX-License-Identifier: Apache-2.0
"""Event source: what Proxmox VE tells of backups, replication, fencing and updates, and how its tasks end."""

import asyncio
import hashlib
import json
import logging
import re
import ssl
from datetime import UTC, datetime
from functools import partial
from itertools import batched
from typing import Any, Literal
from urllib.parse import quote

import aiohttp
import msgspec
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from zamu.errors import ConfigError
from zamu.event import Event, derive_uuid, printable, timestamp, unreadable
from zamu.intake.api import json_of
from zamu.intake.memory import Memory
from zamu.intake.options import Interval, options, problem, seconds
from zamu.intake.poll import poll
from zamu.intake.queue import put_all
from zamu.intake.shelter import reveal, trust
from zamu.intake.together import together
from zamu.intake.webhook import Listen, Message, Unreadable, serve, validated

DOCUMENTATION = r"""
short_description: Hear backups, replication, fencing, updates and tasks of Proxmox VE
description:
  - Takes what the notification target Webhook of Proxmox VE 8.3 and newer sends with the template in
    C(docs/sources/proxmox.md). Each notification becomes one event under C(event.proxmox).
  - With I(api_url) and I(api_token) it also asks Proxmox VE's API how tasks ended. Each task that failed
    becomes one event, and each task of the types in I(tasks) in any case. The first time it only notes
    what has ended before.
  - The API token needs the privilege Sys.Audit on C(/nodes). Without it Proxmox VE would show it only its
    own tasks and say nothing; zamu asks for that, and says it.
  - C(meta.hosts) is the node. The guests are in C(vmids), as far as it is certain which ones are meant.
extends_documentation_fragment: [boma.zamu.listen, boma.zamu.listen.senders]
options:
  path: {default: /proxmox}
  api_url:
    description: The address of one node or of the cluster, for example C(https://pve1.example.net:8006).
    type: str
  api_token:
    description: The API token C(USER@REALM!TOKENID=UUID), named like I(token).
    type: str
  ca:
    description:
      - The file with the CA that signed the certificate of I(api_url), for example a copy of
        C(/etc/pve/pve-root-ca.pem). Without it the system's CAs count.
    type: str
  verify:
    description: Whether the certificate of I(api_url) is checked; else who is between may read the token.
    type: bool
    default: true
  tasks:
    description:
      - Types of tasks that become events when they end well, too, for example C(qmrestore) or C(qmigrate).
        Failed ones always do.
    type: list
    elements: str
    default: [vzdump]
  ignore_tasks:
    description: Types of tasks that never become events. Consoles fail whenever somebody closes a window.
    type: list
    elements: str
    default: [vncproxy, vncshell, termproxy, spiceproxy, spiceshell]
  every:
    description: How often to ask.
    type: str
    default: 60s
"""

EXAMPLES = r"""
- name: proxmox
  proxmox:
    api_url: https://pve1.example.net:8006
    api_token: file:/etc/zamu/pve-token
    ca: /etc/zamu/pve-root-ca.pem
    tasks: [vzdump, qmrestore, vzrestore]
"""

RETURN = r"""
proxmox:
  description: A notification, or the end of a task.
  type: dict
  contains:
    origin: {description: "C(webhook) or C(task).", type: str}
    type:
      description:
        - "C(vzdump), C(replication), C(fencing), C(package-updates), C(system-mail) or C(unknown); of a
          task its type, for example C(vzdump) or C(qmrestore)."
      type: str
    severity: {description: "C(info), C(notice), C(warning), C(error) or C(unknown).", type: str}
    status:
      description: "C(ok), C(warnings) or C(failed), for tasks, backups and replication; else null."
      type: str
    title: {description: What happened in a few words., type: str}
    message: {description: "The text, at most 8,000 characters; of a task what it ended with.", type: str}
    node: {description: The node; null where none is named., type: str}
    job_id: {description: The backup or replication job; null where none is named., type: str}
    vmids: {description: The guests that it was about; empty where that is not certain., type: list}
    upid: {description: Of a task; else null., type: str}
    time: {description: "When it was told, or the task ended, UTC.", type: str}
    started_at: {description: "When the task began, UTC; else null.", type: str}
    ended_at: {description: "When the task ended, UTC; else null.", type: str}
"""

log = logging.getLogger("zamu.proxmox")

_MOST_TEXT = 8_000
_CUT = "\n[zamu left out the rest]"
_API_TIMEOUT, _API_LIMIT = 30, 20_000_000
#: Tasks in one answer, and of one node at once.
_PAGE, _MOST_TASKS = 500, 50_000
#: A task may be listed a little later than another one that began after it.
_OVERLAP = 600
#: A task that runs longer than this is not waited for.
_LONGEST_TASK = 7 * 86_400
_LATEST = 253_402_300_799  # the last second that has a date
_API_TOKEN = re.compile(r"[^\s@!=]+@[^\s@!=]+![^\s@!=]+=[^\s=]+")
#: The head of the table in the text of a backup's notification, and one of its rows.
_TABLE = re.compile(r"^VMID +Name +Status +Time +Size +Filename *$", re.MULTILINE)
_ROW = re.compile(r"([1-9][0-9]{2,8}) ")
#: Types of notifications that are about an outcome, which their severity says.
_OUTCOMES = {"vzdump", "replication"}


class Arguments(Listen):
    """The source's arguments; see DOCUMENTATION."""

    path: str = "/proxmox"
    api_url: str | None = Field(None, pattern=r"^https?://[^\s/?#]+/?$")
    api_token: str | None = Field(None, validate_default=True)
    ca: str | None = None
    verify: bool = True
    tasks: list[str] = ["vzdump"]
    ignore_tasks: list[str] = ["vncproxy", "vncshell", "termproxy", "spiceproxy", "spiceshell"]
    every: Interval = "60s"

    @field_validator("api_token")
    @classmethod
    def _together(cls, token: str | None, given: ValidationInfo) -> str | None:
        if (token is None) != (given.data.get("api_url") is None):
            raise ValueError("api_url and api_token belong together; set both or none")
        return token


class Notification(BaseModel):
    """The body that the documented template makes."""

    title: str
    message: str
    severity: Literal["info", "notice", "warning", "error", "unknown"]
    timestamp: int = Field(ge=0, le=_LATEST)
    fields: dict[str, str]


class Task(BaseModel):
    """What is read of a task in a node's list; `endtime` is there when it has ended."""

    upid: str = Field(min_length=1, max_length=1_000)
    node: str
    type: str
    id: str | None = None
    starttime: int = Field(ge=0, le=_LATEST)
    endtime: int | None = Field(None, ge=0, le=_LATEST)
    status: str | None = None

    @property
    def outcome(self) -> str:
        """How it ended, in our words."""
        said = self.status or ""
        return "ok" if said == "OK" else "warnings" if said.startswith("WARNINGS") else "failed"


class _Seen(msgspec.Struct):
    """How far a node's tasks are known: those that began before `since` are, and those in `ended`."""

    since: int
    ended: set[str]


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Serve the webhook, and ask the API if it is named, until cancelled."""
    given = options("proxmox", Arguments, args)

    async def take(message: Message) -> None:
        await queue.put(_notified(message.payload))

    others = []
    if given.api_url is not None:
        watch = _Watch(queue, given)
        others.append(poll(f"Proxmox VE at {given.api_url}", seconds(given.every), watch.ask))
    await together(serve(given, take), *others)


def _notified(payload: Any) -> Event:
    """The event of a notification. Raises Unreadable, naming the field."""
    try:
        told = validated(Notification, payload)
    except Unreadable as error:
        raise Unreadable(f"{str(error)[:-1]}; use the template in docs/sources/proxmox.md.") from None
    kind = told.fields.get("type") or "unknown"
    node = told.fields.get("hostname") or None
    status = None
    if kind in _OUTCOMES:
        status = {"error": "failed", "warning": "warnings"}.get(told.severity, "ok")
    digest = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
    return {
        "proxmox": {
            "origin": "webhook",
            "type": kind,
            "severity": told.severity,
            "status": status,
            "title": _bounded(told.title),
            "message": _bounded(told.message),
            "node": node,
            "job_id": told.fields.get("job-id"),
            "vmids": _table(told.message) if kind == "vzdump" else [],
            "upid": None,
            "time": _moment(told.timestamp),
            "started_at": None,
            "ended_at": None,
        },
        "meta": {
            "hosts": [node] if node else [],
            "uuid": derive_uuid("proxmox", kind, node or "", str(told.timestamp), digest),
        },
    }


def _bounded(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - len(_CUT)] + _CUT


def _moment(second: int) -> str:
    return timestamp(datetime.fromtimestamp(second, UTC))


def _table(text: str) -> list[int]:
    """The guests in the table of a backup's text; none where the text has not exactly one such table."""
    heads = list(_TABLE.finditer(text))
    found: list[int] = []
    if len(heads) != 1:
        return found
    for line in text[heads[0].end() :].lstrip("\n").split("\n"):
        row = _ROW.match(line)
        if row is None:
            # The table ends with an empty line or with what was used in all.
            return found if not line.strip() or line.startswith("Total ") else []
        found.append(int(row[1]))
    return found


def _ended(task: Task) -> Event:
    """The event of a task that has ended."""
    assert task.endtime is not None
    said, status = task.status or "no status", task.outcome
    about = f" {task.id}" if task.id else ""
    # Numbers of other types are those of disks, jobs or something else.
    guest = task.type.startswith(("qm", "vz")) and (task.id or "").isascii() and (task.id or "").isdigit()
    return {
        "proxmox": {
            "origin": "task",
            "type": task.type,
            "severity": {"ok": "info", "warnings": "warning", "failed": "error"}[status],
            "status": status,
            "title": _bounded(f"{task.type}{about} on {task.node}: {status}"),
            "message": _bounded(said),
            "node": task.node,
            "job_id": None,
            "vmids": [int(task.id)] if task.id and guest and len(task.id) < 10 else [],  # noqa: PLR2004
            "upid": task.upid,
            "time": _moment(task.endtime),
            "started_at": _moment(task.starttime),
            "ended_at": _moment(task.endtime),
        },
        "meta": {"hosts": [task.node], "uuid": derive_uuid("proxmox", "task", task.upid)},
    }


class _Watch:
    """Asks the nodes for the tasks that have ended, and remembers which are known."""

    def __init__(self, queue: asyncio.Queue[Event], given: Arguments) -> None:
        assert given.api_url is not None
        assert given.api_token is not None
        token = reveal("api_token", given.api_token)
        if _API_TOKEN.fullmatch(token) is None:
            raise ConfigError("proxmox: api_token: this is not a token as USER@REALM!TOKENID=UUID.")
        self._queue = queue
        self._given = given
        self._url = given.api_url.rstrip("/") + "/api2/json"
        self._session = partial(
            aiohttp.ClientSession,
            headers={"Authorization": f"PVEAPIToken={token}"},
            timeout=aiohttp.ClientTimeout(total=_API_TIMEOUT),
        )
        self._context: ssl.SSLContext | bool = given.verify and trust("ca", given.ca)
        if not given.verify:
            log.warning(
                "proxmox: verify is off: who is between zamu and %s may read the token.", given.api_url
            )
        self._memory = Memory()
        self._known: dict[str, _Seen] = self._memory.read(dict[str, _Seen]) or {}
        self._silent: set[str] = set()

    async def ask(self) -> None:
        """Put what has ended since the last time. Raises what aiohttp does, and ValueError."""
        failures: dict[str, Exception] = {}
        async with self._session() as session:
            nodes = [str(one.get("node")) for one in _rows(await self._get(session, "/nodes"))]
            for node in nodes:
                try:
                    tasks = await self._tasks(session, node)
                except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                    failures[node] = error
                else:
                    await self._put(node, tasks)
        if len(failures) == len(nodes):
            raise next(iter(failures.values()), ValueError("it lists no node"))
        self._say(failures)

    def _say(self, failures: dict[str, Exception]) -> None:
        """A node that is off does not keep the others from being heard; it is named once."""
        for node in failures.keys() - self._silent:
            reason = printable(failures[node]) or type(failures[node]).__name__
            log.warning("proxmox: the tasks of %s cannot be heard: %s", printable(node), reason)
        for node in self._silent - failures.keys():
            log.info("proxmox: the tasks of %s are heard again.", printable(node))
        self._silent = set(failures)

    async def _tasks(self, session: aiohttp.ClientSession, node: str) -> list[dict[str, Any]]:
        """The tasks of a node that run, or may be new."""
        path = f"/nodes/{quote(node, safe='')}"
        if not _may_audit(await self._get(session, f"/access/permissions?path={path}")):
            raise ValueError(
                f"the API token lacks the privilege Sys.Audit on {path}, and sees only its own tasks"
            )
        query = f"{path}/tasks?source=all&limit={_PAGE}"
        if (seen := self._known.get(node)) is not None:
            query += f"&since={seen.since}"
        found: list[dict[str, Any]] = []
        while len(found) < _MOST_TASKS:
            rows = _rows(await self._get(session, f"{query}&start={len(found)}"))
            found += rows
            if len(rows) < _PAGE:
                return found
        log.warning("proxmox: %s lists more than %d tasks; the oldest are not heard.", node, _MOST_TASKS)
        return found

    async def _put(self, node: str, rows: list[dict[str, Any]]) -> None:
        """Put what has ended and is not known, and note it when it is stored."""
        seen = self._known.get(node)
        tasks: dict[str, Task] = {}
        events: list[Event] = []
        for row in rows:
            try:
                task = Task.model_validate(row)
                tasks[task.upid] = task
            except ValidationError as error:
                identity = derive_uuid("proxmox", json.dumps(row, sort_keys=True))
                if seen is not None:
                    events.append(unreadable(row, f"task: {problem(error, 'row')}", identity))
        ended = {upid: task for upid, task in tasks.items() if task.endtime is not None}
        if seen is not None:
            fresh = [
                task
                for upid, task in ended.items()
                if upid not in seen.ended and task.starttime >= seen.since and self._wanted(task)
            ]
            events += [_ended(task) for task in sorted(fresh, key=lambda task: task.endtime or 0)]
        for some in batched(events, _PAGE):
            await put_all(self._queue, [*some])
        await self._note(node, seen, tasks, set(ended))

    async def _note(self, node: str, seen: _Seen | None, tasks: dict[str, Task], ended: set[str]) -> None:
        """Go on from the oldest task that runs, or from the newest of all."""
        before = seen.since if seen else 0
        newest = max((task.starttime for task in tasks.values()), default=before)
        ignored = self._given.ignore_tasks
        running = [one.starttime for one in tasks.values() if one.endtime is None and one.type not in ignored]
        since = max(min([newest, *running]) - _OVERLAP, newest - _LONGEST_TASK, before)
        now = _Seen(since, {upid for upid in ended if tasks[upid].starttime >= since})
        if self._known.get(node) != now:
            self._known[node] = now
            await self._memory.note(self._known)

    def _wanted(self, task: Task) -> bool:
        if task.type in self._given.ignore_tasks:
            return False
        return task.outcome == "failed" or task.type in self._given.tasks

    async def _get(self, session: aiohttp.ClientSession, path: str) -> Any:
        short = path.partition("?")[0]
        async with session.get(self._url + path, allow_redirects=False, ssl=self._context) as answer:
            if answer.status != 200:  # noqa: PLR2004
                raise ValueError(f"{short}: {answer.status} {answer.reason}")
            try:
                return (await json_of(answer, _API_LIMIT))["data"]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{short}: the answer is not one of Proxmox VE's API ({error})") from None


def _rows(data: Any) -> list[dict[str, Any]]:
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise ValueError("the answer is not a list of objects")
    return data


def _may_audit(rights: Any) -> bool:
    """Whether the rights on `/nodes`, or on what is above, have what shows the tasks of all."""
    held = rights.values() if isinstance(rights, dict) else ()
    return any(isinstance(one, dict) and one.get("Sys.Audit") for one in held)
