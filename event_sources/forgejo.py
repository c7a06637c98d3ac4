# SPDX-License-Identifier: Apache-2.0
"""Event source: what Forgejo and Gitea post to a webhook, and what an API tells of what was missed."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Any, NamedTuple

import aiohttp
from pydantic import AfterValidator, Field, model_validator

from zamu.event import Event, derive_uuid, parse_json, printable, unreadable
from zamu.intake.api import json_of
from zamu.intake.heads import Known, Move, head
from zamu.intake.memory import Memory
from zamu.intake.options import Interval, Options, options, seconds
from zamu.intake.poll import poll
from zamu.intake.queue import put_all
from zamu.intake.shelter import reveal, source_name
from zamu.intake.together import together
from zamu.intake.webhook import Listen, Message, Signature, Unreadable, as_object, serve

DOCUMENTATION = r"""
short_description: Receive pushes, releases, pull requests, runs and packages from Forgejo and Gitea
description:
  - Listens for the webhooks of Forgejo and Gitea (type C(forgejo) or C(gitea), content type
    C(application/json)). They are signed with the hook's I(secret); there is no token.
  - Each message becomes one event under C(event.forgejo). What rules need stands flat in it; the message
    itself is in C(payload).
  - The same message sent again is the same event, whatever its delivery id is.
  - The button that tests a hook sends a push that moves nothing; it becomes the event C(test).
  - Forgejo and Gitea never send a message again. With I(api_url) the branches and releases of
    I(repositories) are asked for at the start and every I(catch_up), and what was missed becomes an event
    with C(caught_up). The first answer is only remembered.
extends_documentation_fragment: boma.zamu.listen
options:
  path: {default: /forgejo}
  secret:
    description: The hook's secret, named as C(env:NAME) or C(file:/path); in zamu.yml it may be vaulted.
    type: str
    required: true
  events:
    description:
      - The events that are wanted, by their exact type, for example C(push) or C(action_run_failure). The
        others are accepted and dropped. Without it all that are known are taken.
    type: list
    elements: str
    default: []
  branches:
    description:
      - The branches that are wanted, by name or pattern, for example C(release/*). It counts for events
        that have a branch; a tag is no branch.
    type: list
    elements: str
    default: []
  api_url:
    description: The forge's own address, for example C(https://git.example.net).
    type: str
  api_token:
    description: An API token that may read the repositories, named as I(secret) is.
    type: str
  repositories:
    description: The repositories that are asked for, each as C(owner/name).
    type: list
    elements: str
    default: []
  catch_up:
    description: How often they are asked for after the start.
    type: str
    default: 1h
"""

EXAMPLES = r"""
- name: forgejo
  forgejo:
    secret: file:/etc/zamu/forgejo-secret
    events: [push, delete, release, action_run_failure]
    branches: [main]
    api_url: https://git.example.net
    api_token: file:/etc/zamu/forgejo-token
    repositories: [house/ansible]
"""

RETURN = r"""
forgejo:
  description: What happened. All texts are always there, and empty where the event has none.
  type: dict
  contains:
    event: {description: "Its exact type, for example C(push) or C(pull_request_sync).", type: str}
    action: {description: "What happened to it: C(published), C(closed), C(failure), ...", type: str}
    repository: {description: "As C(owner/name).", type: str}
    ref: {description: "In full, for example C(refs/heads/main).", type: str}
    branch: {description: "The branch; of a pull request the one that it goes into.", type: str}
    tag: {description: The tag., type: str}
    sha: {description: The commit; empty when a branch or tag is deleted., type: str}
    sender: {description: Who did it., type: str}
    title: {description: "The commit's first line, or the title of the pull request or run.", type: str}
    url: {description: Where to look at it., type: str}
    merged: {description: Whether the pull request is merged., type: bool}
    caught_up: {description: Whether the API told it because the message never came., type: bool}
    payload: {description: The message as it came., type: dict}
    cut: {description: "Which of its fields were left out, when it was larger than 64 KiB.", type: list}
"""

log = logging.getLogger("zamu.forgejo")

_TYPES = """
push create delete release package fork wiki repository status workflow_job workflow_run
action_run_failure action_run_recover action_run_success
pull_request pull_request_assign pull_request_label pull_request_milestone pull_request_sync
pull_request_review_request pull_request_review_approved pull_request_review_rejected
pull_request_review_comment pull_request_approved pull_request_rejected pull_request_comment
issues issue_assign issue_label issue_milestone issue_comment
"""
#: Exact types, and those by which older versions that send no exact type call a review.
KNOWN = frozenset(_TYPES.split())

_PAYLOAD_LIMIT = 65_536
_TEXT_LIMIT, _TITLE_LIMIT = 2_000, 200
_API_TIMEOUT, _API_LIMIT = 20, 10_000_000
_PAGE, _PAGES = 50, 40
_OK, _NOT_FOUND = 200, 404
_TRIES = 5


def _known(event: str) -> str:
    if event not in KNOWN:
        raise ValueError(f"there is no event {printable(event)!r}; there are {', '.join(sorted(KNOWN))}")
    return event


class Arguments(Options):
    """The source's arguments; see DOCUMENTATION."""

    path: str = Field("/forgejo", pattern="^/")
    secret: str
    host: str = "127.0.0.1"
    port: int = Field(8470, ge=0, le=65535)
    events: list[Annotated[str, AfterValidator(_known)]] = []
    branches: list[str] = []
    api_url: str | None = Field(None, pattern=r"^https?://[^\s]+$")
    api_token: str | None = None
    repositories: list[Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]] = Field([], max_length=100)
    catch_up: Interval = "1h"

    @model_validator(mode="after")
    def _consistent(self) -> "Arguments":
        if bool(self.api_url) != bool(self.repositories):
            raise ValueError("api_url and repositories go together: set both, or neither")
        if self.api_token and not self.api_url:
            raise ValueError("api_token: it is for api_url, which is not set")
        return self

    def wants(self, found: dict[str, Any]) -> bool:
        """Whether an event passes the filters. A test of the hook always does."""
        if found["event"] == "test":
            return True
        if self.events and found["event"] not in self.events:
            return False
        branch = found["branch"]
        return not (branch and self.branches) or any(fnmatchcase(branch, one) for one in self.branches)


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Serve the webhook, and ask for what was missed, until cancelled."""
    given = options("forgejo", Arguments, args)
    followed = {name.lower(): _Followed(name, queue, given) for name in given.repositories}

    async def take(message: Message) -> None:
        body = hashlib.sha256(message.body).hexdigest()
        event = _event(message, derive_uuid("forgejo", source_name.get(), body))
        found = event.get("forgejo")
        if found is None:
            await queue.put(event)
        elif given.wants(found):
            one = followed.get(found["repository"].lower())
            if one is None or not await one.take(event, message.payload, body):
                await queue.put(event)

    listen = Listen(path=given.path, host=given.host, port=given.port)
    signature = Signature("X-Forgejo-Signature", given.secret, also=("X-Gitea-Signature", "X-Gogs-Signature"))
    others = []
    if given.api_url is not None:
        api = f"{given.api_url.rstrip('/')}/api/v1/repos"
        others.append(_catch_up(given, api, list(followed.values())))
    await together(serve(listen, take, signature=signature), *others)


def _event(message: Message, uuid: str) -> Event:
    """The event that a message becomes. Raises Unreadable for what could never be read."""
    kind = _kind(message)
    # Older versions repeat the hook's secret in the body.
    payload = {key: value for key, value in as_object(message.payload).items() if key != "secret"}
    try:
        found = _read(kind, payload)
    except ValueError as error:
        # The type is not signed: a replay as something else is no dead letter, either.
        dead = unreadable(payload, f"{kind}: {error}", uuid)
        return {**dead, "meta": {**dead["meta"], "uuid": uuid}}
    return {"forgejo": found, "meta": {"uuid": uuid}}


def _kind(message: Message) -> str:
    """The exact type. The header X-Forgejo-Event is empty for some types, so it only stands in."""
    headers = [f"X-{forge}-Event{exact}" for exact in ("-Type", "") for forge in ("Forgejo", "Gitea", "Gogs")]
    kind = next((message.headers[one] for one in headers if message.headers.get(one)), None)
    if kind is None:
        raise Unreadable("X-Forgejo-Event-Type: there is no such header; is this a hook of Forgejo or Gitea?")
    if kind not in KNOWN:
        raise Unreadable(f"X-Forgejo-Event-Type: {json.dumps(kind[:40])} is not an event that is known.")
    return kind


def _read(kind: str, payload: dict[str, Any], *, caught_up: bool = False) -> dict[str, Any]:
    """What rules read of a payload. Raises ValueError that names the field."""
    found: dict[str, Any] = {
        "event": kind,
        "action": _text(payload, "action"),
        "repository": _text(payload, "repository.full_name"),
        "ref": "",
        "branch": "",
        "tag": "",
        "sha": "",
        "sender": _text(payload, "sender.login") or _text(payload, "sender.username"),
        "title": "",
        "url": _text(payload, "repository.html_url"),
        "merged": False,
        "caught_up": caught_up,
    }
    found |= _READERS.get(kind.partition("_")[0], _other)(kind, payload)
    if not found["repository"] and kind != "package":
        raise ValueError("repository.full_name: this is missing")
    found["branch"] = _after("refs/heads/", found["ref"])
    found["tag"] = _after("refs/tags/", found["ref"])
    found["title"] = found["title"].partition("\n")[0][:_TITLE_LIMIT]
    cut = _cut(payload)
    if cut:
        found["cut"] = cut
    return found | {"payload": {key: value for key, value in payload.items() if key not in cut}}


def _text(payload: Any, path: str, *, needed: bool = False) -> str:
    """The text at a dotted path, empty where there is none. Raises ValueError when it is needed."""
    value = payload
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, str) and len(value) <= _TEXT_LIMIT and (value or not needed):
        return value
    if needed:
        raise ValueError(f"{path}: this is no text of 1 to {_TEXT_LIMIT} characters")
    return value[:_TITLE_LIMIT] if isinstance(value, str) and path.endswith(_LONG) else ""


#: Texts of which a beginning says enough.
_LONG = ("title", "name", "message")


def _after(prefix: str, ref: str) -> str:
    return ref.removeprefix(prefix) if ref.startswith(prefix) else ""


def _cut(payload: dict[str, Any]) -> list[str]:
    """The largest fields of a payload, as many as have to go."""
    sizes = {key: len(json.dumps(value)) + len(key) for key, value in payload.items()}
    cut: list[str] = []
    for key in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if sum(sizes.values()) <= _PAYLOAD_LIMIT:
            break
        del sizes[key]
        cut.append(key)
    return cut


def _push(_: str, payload: dict[str, Any]) -> dict[str, Any]:
    before, after = (_text(payload, name, needed=True) for name in ("before", "after"))
    commits = payload.get("commits")
    first = commits[0] if isinstance(commits, list) and commits else None
    found = {
        "ref": _text(payload, "ref", needed=True),
        "sha": head(after),
        "title": _text(payload, "head_commit.message") or _text(first, "message"),
        "url": _text(payload, "compare_url") or _text(payload, "head_commit.url"),
    }
    return found | ({"event": "test"} if before == after else {})


def _ref(kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    """A branch or tag that is made or deleted. Hooks of type `gitea` send the short name."""
    name, of = _text(payload, "ref", needed=True), _text(payload, "ref_type", needed=True)
    prefix = {"branch": "refs/heads/", "tag": "refs/tags/"}.get(of)
    if prefix is None:
        raise ValueError("ref_type: this is neither branch nor tag")
    sha = _text(payload, "sha", needed=kind == "create")
    return {"ref": prefix + name.removeprefix(prefix), "sha": sha, "title": name.removeprefix(prefix)}


def _release(_: str, payload: dict[str, Any]) -> dict[str, Any]:
    tag = _text(payload, "release.tag_name", needed=True)
    _text(payload, "action", needed=True)
    if not isinstance(payload["release"].get("id"), int):
        raise ValueError("release.id: this is no number")
    return {
        "ref": f"refs/tags/{tag}",
        "title": _text(payload, "release.name") or tag,
        "url": _text(payload, "release.html_url"),
    }


def _pull_request(_: str, payload: dict[str, Any]) -> dict[str, Any]:
    _text(payload, "action", needed=True)
    base = _text(payload, "pull_request.base.ref", needed=True)
    merged = payload["pull_request"].get("merged") is True
    commit = _text(payload, "pull_request.merge_commit_sha") if merged else ""
    return {
        "ref": f"refs/heads/{base}",
        "sha": commit or _text(payload, "pull_request.head.sha"),
        "title": _text(payload, "pull_request.title"),
        "url": _text(payload, "pull_request.html_url"),
        "merged": merged,
    }


def _package(_: str, payload: dict[str, Any]) -> dict[str, Any]:
    parts = [_text(payload, f"package.{name}", needed=True) for name in ("type", "name", "version")]
    return {"title": " ".join(parts), "url": _text(payload, "package.html_url")}


def _action_run(kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    # The header is not signed, the action is.
    if f"action_run_{payload.get('action')}" != kind:
        raise ValueError("action: this is another than the type says")
    pretty = _text(payload, "run.prettyref")
    ref = _trigger_ref(payload) or ("" if pretty.startswith("#") or not pretty else f"refs/heads/{pretty}")
    return {
        "repository": _text(payload, "run.repository.full_name", needed=True),
        "ref": ref,
        "sha": _text(payload, "run.commit_sha"),
        "sender": _text(payload, "run.trigger_user.login"),
        "title": _text(payload, "run.title"),
        "url": _text(payload, "run.html_url"),
    }


def _trigger_ref(payload: dict[str, Any]) -> str:
    """The full ref of what set off a run, which stands in JSON in a text."""
    inner = payload["run"].get("event_payload") if isinstance(payload.get("run"), dict) else None
    try:
        ref = _text(parse_json(inner.encode()), "ref") if isinstance(inner, str) else ""
    except ValueError:
        return ""
    return ref if ref.startswith(("refs/heads/", "refs/tags/")) else ""


def _workflow(kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    _text(payload, "action", needed=True)
    if not isinstance(payload.get(kind), dict):
        raise ValueError(f"{kind}: this is no object")
    branch = _text(payload, f"{kind}.head_branch")
    return {
        "ref": f"refs/heads/{branch}" if branch else "",
        "sha": _text(payload, f"{kind}.head_sha"),
        "title": _text(payload, f"{kind}.display_title") or _text(payload, f"{kind}.name"),
        "url": _text(payload, f"{kind}.html_url"),
    }


def _other(_: str, payload: dict[str, Any]) -> dict[str, Any]:
    url = _text(payload, "comment.html_url") or _text(payload, "issue.html_url")
    return {"title": _text(payload, "issue.title"), **({"url": url} if url else {})}


#: By the first word of the type.
_READERS = {
    "push": _push,
    "create": _ref,
    "delete": _ref,
    "release": _release,
    "pull": _pull_request,
    "package": _package,
    "action": _action_run,
    "workflow": _workflow,
}


class _Answer(NamedTuple):
    """What the API says of one repository: branches by name, and releases that are published."""

    branches: dict[str, dict[str, Any]]
    releases: dict[int, dict[str, Any]]

    @property
    def heads(self) -> dict[str, str]:
        return {name: _text(branch, "commit.id", needed=True) for name, branch in self.branches.items()}


class _Followed:
    """A repository whose branches and releases are followed, by messages and by asking."""

    def __init__(self, name: str, queue: Any, given: Arguments) -> None:
        self.name = name
        self._queue = queue
        self._given = given
        self._memory = Memory(name.lower())
        self._known = Known(self._memory.read())
        self._lock = asyncio.Lock()
        self._heard = 0

    async def take(self, event: Event, payload: dict[str, Any], body: str) -> bool:
        """Store a message's event unless it was caught up before; False where it does not concern us."""
        found, known = event["forgejo"], self._known
        move, release = _move(found, payload), _released(found, payload)
        if move is None and release is None:
            return False
        async with self._lock:
            self._heard += 1
            told = known.is_told(move, body) if move else known.is_release_told(release or 0)
            if told:
                log.info("%s: what came now was caught up before.", printable(self.name))
            else:
                await self._queue.put(event)
                if move:
                    known.heard(move, body)
                else:
                    known.release_heard(release or 0)
            await self._note()
        return True

    async def catch_up(self, ask: Callable[[], Awaitable[_Answer]]) -> None:
        """Ask, and store what was missed. What is heard meanwhile is newer than the answer."""
        for _ in range(_TRIES):
            heard = self._heard
            answer = await ask()
            async with self._lock:
                if heard == self._heard:
                    await self._compare(answer)
                    return

    async def _compare(self, answer: _Answer) -> None:
        heads, known = answer.heads, self._known
        if known.noted is None:
            known.begin(heads, list(answer.releases))
            await self._note()
            return
        moves = known.missed(heads)
        if moves and not heads:
            raise ValueError("it has no branch any more, which is not believed")
        releases = known.new_releases(list(answer.releases))
        events = [self._missed_move(move, answer) for move in moves]
        events += [self._missed_release(answer.releases[one]) for one in releases]
        wanted = [event for event in events if self._given.wants(event["forgejo"])]
        if wanted:
            log.warning("%s: %d events were missed, and are caught up.", printable(self.name), len(wanted))
            await put_all(self._queue, wanted)
        news = known.answered(moves, heads)
        for release in releases:
            known.release_heard(release, caught=True)
        if news or releases:
            await self._note()

    async def _note(self) -> None:
        if self._known.noted is not None:
            await self._memory.note(self._known.noted)

    def _missed_move(self, move: Move, answer: _Answer) -> Event:
        ref = f"refs/heads/{move.branch}"
        before, after = move.before or "", move.after
        said: dict[str, Any]
        kind, said = "delete", {"ref": ref, "ref_type": "branch"}
        if after:
            commit = answer.branches[move.branch]["commit"]
            kind, said = "push", {"ref": ref, "before": before or "0" * len(after), "after": after}
            said |= {"commits": [commit], "head_commit": commit}
        moves = str(self._known.moves(move.branch))
        return self._missed(kind, said, move.branch, before, after, moves)

    def _missed_release(self, release: dict[str, Any]) -> Event:
        said = {"action": "published", "release": release}
        return self._missed("release", said, str(release["id"]))

    def _missed(self, kind: str, said: dict[str, Any], *parts: str) -> Event:
        """The event of something that `parts` tell from all else of this repository."""
        owner, _, name = self.name.partition("/")
        repository = {"name": name, "full_name": self.name, "owner": {"login": owner}}
        found = _read(kind, {**said, "repository": repository}, caught_up=True)
        uuid = derive_uuid("forgejo", source_name.get(), "caught up", self.name.lower(), kind, *parts)
        return {"forgejo": found, "meta": {"uuid": uuid}}


def _move(found: dict[str, Any], payload: dict[str, Any]) -> Move | None:
    """What an event says of a branch's head. The push that follows a `create` says it, too."""
    if not found["branch"] or found["event"] not in ("push", "delete"):
        return None
    if found["event"] == "delete":
        return Move(found["branch"], None, "")
    return Move(found["branch"], head(payload["before"]), found["sha"])


def _released(found: dict[str, Any], payload: dict[str, Any]) -> int | None:
    if found["event"] != "release" or found["action"] != "published":
        return None
    return int(payload["release"]["id"])


async def _catch_up(given: Arguments, api: str, followed: list[_Followed]) -> None:
    """Ask for what was missed, now and then every `catch_up`."""
    token = reveal("api_token", given.api_token) if given.api_token else None
    headers = {"Authorization": f"token {token}"} if token else {}

    async def ask_all() -> None:
        timeout = aiohttp.ClientTimeout(total=_API_TIMEOUT)
        problems = []
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            for one in followed:
                try:
                    await one.catch_up(partial(_ask, session, f"{api}/{one.name}"))
                except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                    problems.append(f"{one.name}: {str(error) or type(error).__name__}")
        if problems:  # after the others were asked
            raise OSError(problems[0])

    await poll(f"Forgejo at {given.api_url}", seconds(given.catch_up), ask_all)


async def _ask(session: aiohttp.ClientSession, url: str) -> _Answer:
    branches = await _listed(session, f"{url}/branches", "name")
    # A repository may have its releases switched off.
    releases = await _listed(session, f"{url}/releases", "id", optional=True)
    return _Answer(branches, {key: one for key, one in releases.items() if one.get("draft") is not True})


async def _listed(
    session: aiohttp.ClientSession, url: str, key: str, *, optional: bool = False
) -> dict[Any, dict[str, Any]]:
    """All of a list that comes in pages, by a field that tells them apart. Raises ValueError."""
    found: dict[Any, dict[str, Any]] = {}
    total = ""
    for page in range(1, _PAGES + 1):
        query = {"page": str(page), "limit": str(_PAGE)}
        async with session.get(url, params=query, allow_redirects=False) as answer:
            if answer.status == _NOT_FOUND and optional:
                return {}
            if answer.status != _OK:
                raise ValueError(f"{url} answers {answer.status}")
            listed = await json_of(answer, _API_LIMIT)
            total = answer.headers.get("X-Total-Count", "")[:9]
        new = _by_key(listed, key)
        # Versions without pages answer all of it each time.
        if not new.keys() - found.keys():
            break
        found |= new
        if total.isdecimal() and len(found) >= int(total):
            break
    else:
        raise ValueError(f"{url}: there are more than {_PAGES * _PAGE}, and no more are asked for")
    if total.isdecimal() and len(found) < int(total):
        raise ValueError(f"{url}: the list changed while it was read")
    return found


def _by_key(listed: Any, key: str) -> dict[Any, dict[str, Any]]:
    kind = str if key == "name" else int
    if not isinstance(listed, list):
        raise ValueError("the answer is not a list")
    if not all(isinstance(one, dict) and isinstance(one.get(key), kind) for one in listed):
        raise ValueError(f"an entry of the answer has no {key}")
    return {one[key]: one for one in listed}
