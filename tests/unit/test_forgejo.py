# SPDX-License-Identifier: Apache-2.0
"""The source `forgejo` as intake hosts it.

No Forgejo and no Gitea runs here, since neither can be had on the test machines: bodies are samples, the
headers and the signature are made as their source does it, and the API that is asked is a small fake of
the two paths that matter. Where it says "real push", its branches are those of a real git repository.
"""

import asyncio
import hashlib
import hmac
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientTimeout, web

from harness import ROOT
from unit.helpers import SAMPLES
from unit.hosting import Answer, Hosting, hosting
from zamu.errors import ConfigError
from zamu.journal.sqlite import Journal

SECRET = "123"
REPOSITORY = "house/ansible"
A, B, C, ZEROS = "a" * 40, "b" * 40, "c" * 40, "0" * 40
#: Payloads that other projects test with; they stay where they are, for their licence.
SHARED = ROOT.parent / "shared" / "samples"
WITH_SHARED = pytest.mark.skipif(not SHARED.is_dir(), reason="there is no ../shared/samples")


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_SECRET", SECRET)
    monkeypatch.setenv("FORGE_TOKEN", "the token")


@pytest.fixture(autouse=True)
def a_second_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it waits between two rounds of questions."""
    faster = SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 20))
    monkeypatch.setattr("zamu.intake.poll.asyncio", faster)


@asynccontextmanager
async def forgejo(directory: Path, journal: Journal, **arguments: Any) -> AsyncIterator[Hosting]:
    """The source with its webhook, hosted."""
    async with hosting(directory, journal) as house:
        await house.start(house.source("forgejo", secret="env:FORGE_SECRET", **arguments))
        yield house


def sample(name: str, **fields: Any) -> dict[str, Any]:
    return json.loads((SAMPLES / "forgejo" / f"{name}.json").read_text()) | fields


def push(before: str = A, after: str = B, branch: str = "main", **fields: Any) -> dict[str, Any]:
    return sample("push") | {"ref": f"refs/heads/{branch}", "before": before, "after": after} | fields


def written(body: object) -> bytes:
    """A body as Forgejo writes it: indented."""
    return body if isinstance(body, bytes) else json.dumps(body, indent=2).encode()


def headers(body: bytes, kind: str, umbrella: str | None = None, forge: str = "Forgejo") -> dict[str, str]:
    """What stands before a body; Gitea sends the same without Forgejo's own names."""
    forges = ("Forgejo", "Gitea", "Gogs") if forge == "Forgejo" else ("Gitea", "Gogs")
    right = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    found = {"X-Hub-Signature-256": f"sha256={right}", "X-GitHub-Event": umbrella or kind}
    for name in forges:
        found[f"X-{name}-Delivery"] = "6f1c6b0e-0f5e-4a3c-9d68-7a616d750001"
        found[f"X-{name}-Event"] = kind if umbrella is None else umbrella
        found[f"X-{name}-Event-Type"] = kind
        found[f"X-{name}-Signature"] = right
    return found


async def post(house: Hosting, body: object, kind: str = "push", **changed: Any) -> Answer:
    data = written(body)
    arguments = {name: changed.pop(name) for name in ("umbrella", "forge") if name in changed}
    sent = {"Content-Type": "application/json", **headers(data, kind, **arguments)}
    for name, value in changed.items():
        sent = {key: one for key, one in sent.items() if not key.endswith(name.replace("_", "-"))}
        sent |= value if isinstance(value, dict) else {}
    return await house.request("POST", "/forgejo", data=data, headers=sent)


def heard(house: Hosting) -> list[tuple[str, str, bool]]:
    return [
        (one["forgejo"]["event"], one["forgejo"]["sha"][:1], one["forgejo"]["caught_up"])
        for one in house.events
    ]


async def test_a_push_is_an_event_whose_keys_are_flat(tmp_path: Path, journal: Journal) -> None:
    async with forgejo(tmp_path, journal) as house:
        assert (await post(house, push())).status == 202
        [event] = house.events
        payload = event["forgejo"].pop("payload")
        assert payload == push()
        assert event["forgejo"] == {
            "event": "push",
            "action": "",
            "repository": "house/ansible",
            "ref": "refs/heads/main",
            "branch": "main",
            "tag": "",
            "sha": B,
            "sender": "op",
            "title": "Patch on Fridays",
            "url": f"https://git.example.net/house/ansible/compare/{A}...{B}",
            "merged": False,
            "caught_up": False,
        }
        assert set(event["meta"]) == {"uuid", "source", "received_at"}


EXPECTED: list[tuple[str, str, dict[str, Any]]] = [
    ("create-tag", "create", {"tag": "v1.0", "branch": "", "ref": "refs/tags/v1.0", "sha": B}),
    ("delete-branch", "delete", {"branch": "old", "tag": "", "sha": "", "title": "old"}),
    ("release", "release", {"action": "published", "tag": "v1.0", "title": "One", "branch": ""}),
    ("package", "package", {"action": "created", "title": "debian zamu-agent 1.2", "repository": ""}),
    (
        "action-run-failure",
        "action_run_failure",
        {"action": "failure", "repository": REPOSITORY, "branch": "main", "sha": B, "sender": "op"},
    ),
    (
        "workflow-run",
        "workflow_run",
        {"action": "completed", "branch": "main", "sha": B, "title": "Patch on Fridays"},
    ),
]


@pytest.mark.parametrize(("name", "kind", "expected"), EXPECTED)
async def test_each_kind_of_event_says_what_rules_need(
    tmp_path: Path, journal: Journal, name: str, kind: str, expected: dict[str, Any]
) -> None:
    async with forgejo(tmp_path, journal) as house:
        # For packages the umbrella type is an empty header.
        assert (
            await post(house, sample(name), kind, umbrella="" if kind == "package" else kind)
        ).status == 202
        [event] = house.events
        assert event["forgejo"]["event"] == kind
        assert {key: event["forgejo"][key] for key in expected} == expected
        assert event["forgejo"]["url"].startswith("https://git.example.net/")
        assert event["forgejo"]["payload"] == sample(name)


@WITH_SHARED
@pytest.mark.parametrize("forge", ["Forgejo", "Gitea"])
@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("HookPush", "push", {"branch": "main", "sha": "ef98532add3b2feb7a137426bba1248724367df5"}),
        ("HookPushBranch", "push", {"branch": "fdsafdsa", "sha": "28c3613ae62640216bea5e7dc71aa65356e4298b"}),
        ("HookPushMulti", "push", {"branch": "main", "sha": "29be01c073851cf0db0c6a466e396b725a670453"}),
        ("HookTag", "create", {"tag": "v1.0.0", "branch": "", "repository": "gordon/hello-world"}),
        ("HookRelease", "release", {"tag": "0.0.5", "action": "published", "title": "Version 0.0.5"}),
        ("HookPullRequest", "pull_request", {"action": "opened", "branch": "main", "merged": False}),
        (
            "HookPullRequestMerged",
            "pull_request",
            {"action": "closed", "merged": True, "sha": "f2440f050054df0f8ecabcace648f1683509064c"},
        ),
        ("HookPullRequestClosed", "pull_request", {"action": "closed", "merged": False}),
    ],
)
async def test_payloads_of_real_servers_are_read(
    tmp_path: Path, journal: Journal, forge: str, name: str, kind: str, expected: dict[str, Any]
) -> None:
    file = SHARED / (f"forgejo/{name}.json" if forge == "Forgejo" else f"gitea/woodpecker-{name}.json")
    async with forgejo(tmp_path, journal) as house:
        assert (await post(house, file.read_bytes(), kind, forge=forge)).status == 202
        [event] = house.events
        found = event["forgejo"]
        assert {key: found[key] for key in expected} == expected
        assert found["event"] == kind
        assert found["sender"]
        assert found["title"]
        assert "secret" not in found["payload"]


@WITH_SHARED
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("HookPullRequestLabelAdded", "pull_request_label"),
        ("HookPullRequestReopened", "pull_request"),
        ("HookPullRequestUpdated", "pull_request_sync"),
    ],
)
async def test_the_exact_type_tells_what_the_umbrella_does_not(
    tmp_path: Path, journal: Journal, name: str, kind: str
) -> None:
    body = (SHARED / "forgejo" / f"{name}.json").read_bytes()
    async with forgejo(tmp_path, journal) as house:
        assert (await post(house, body, kind, umbrella="pull_request")).status == 202
        assert house.events[0]["forgejo"]["event"] == kind


@WITH_SHARED
async def test_the_known_signature_of_a_known_body_is_right(tmp_path: Path, journal: Journal) -> None:
    body = (SHARED / "forgejo" / "HookPush.json").read_bytes()
    vector = "1c5c894ca6923b9983fc1baa825187a5837de391bb75457679a022ae0b5be447"
    assert headers(body, "push")["X-Forgejo-Signature"] == vector
    async with forgejo(tmp_path, journal) as house:
        given = {
            "X-Forgejo-Signature": vector,
            "X-Forgejo-Event-Type": "push",
            "Content-Type": "application/json",
        }
        assert (await house.request("POST", "/forgejo", data=body, headers=given)).status == 202


async def test_without_exact_types_the_umbrella_counts(tmp_path: Path, journal: Journal) -> None:
    async with forgejo(tmp_path, journal) as house:
        assert (await post(house, push(), Event_Type=None)).status == 202
        assert house.events[0]["forgejo"]["event"] == "push"


async def test_hooks_of_type_gitea_send_short_names(tmp_path: Path, journal: Journal) -> None:
    async with forgejo(tmp_path, journal) as house:
        await post(house, sample("delete-branch", ref="old"), "delete", forge="Gitea")
        await post(house, sample("create-tag", ref="v1.0"), "create", forge="Gitea")
        assert [event["forgejo"]["ref"] for event in house.events] == ["refs/heads/old", "refs/tags/v1.0"]


@pytest.mark.parametrize(
    ("pretty", "inner", "branch", "tag"),
    [
        ("main", "no JSON", "main", ""),
        ("v1.0", json.dumps({"ref": "refs/tags/v1.0"}), "", "v1.0"),
        ("#3", json.dumps({"action": "opened"}), "", ""),
        ("", "", "", ""),
        ("main", json.dumps({"ref": 3}), "main", ""),
        ("main", "[" * 10_000, "main", ""),
        ("main", None, "main", ""),
    ],
)
async def test_the_branch_of_a_run(
    tmp_path: Path, journal: Journal, pretty: str, inner: str | None, branch: str, tag: str
) -> None:
    body = sample("action-run-failure")
    body["run"] |= {"prettyref": pretty, "event_payload": inner}
    async with forgejo(tmp_path, journal) as house:
        assert (await post(house, body, "action_run_failure")).status == 202
        found = house.events[0]["forgejo"]
        assert (found["branch"], found["tag"]) == (branch, tag)


async def test_the_test_of_a_hook_is_an_event_on_which_no_rule_for_pushes_acts(
    tmp_path: Path, journal: Journal
) -> None:
    async with forgejo(tmp_path, journal, events=["release"], branches=["other"]) as house:
        assert (await post(house, push(before=B, after=B))).status == 202
        assert [event["forgejo"]["event"] for event in house.events] == ["test"]


@pytest.mark.parametrize(
    "changed",
    [
        {"Signature": {"X-Forgejo-Signature": "", "X-Hub-Signature-256": "sha256="}},
        {"Signature": {"X-Forgejo-Signature": "", "X-Gitea-Signature": "", "X-Gogs-Signature": ""}},
        {"Signature": {}},
        {"Signature": {"X-Forgejo-Signature": hmac.new(b"", written(push()), hashlib.sha256).hexdigest()}},
        {"Signature": {"X-Forgejo-Signature": hmac.new(b"123", b"{}", hashlib.sha256).hexdigest()}},
        {
            "Signature": {
                "X-Forgejo-Signature": "sha256="
                + hmac.new(b"123", written(push()), hashlib.sha256).hexdigest()
            }
        },
        {"Forgejo_Signature": {"X-Forgejo-Signature": ""}},
    ],
)
async def test_without_the_right_signature_it_is_401(
    tmp_path: Path, journal: Journal, changed: dict[str, Any]
) -> None:
    async with forgejo(tmp_path, journal) as house:
        answer = await post(house, push(), **changed)
        assert (answer.status, house.events) == (401, [])
        assert SECRET not in answer.text


async def test_the_same_message_again_is_answered_202_and_not_stored_whatever_its_unsigned_headers_say(
    tmp_path: Path, journal: Journal
) -> None:
    async with forgejo(tmp_path, journal) as house:
        for changed in (
            {},
            {"Forgejo_Delivery": {"X-Forgejo-Delivery": "00000000-0000-4000-8000-000000000000"}},
            {"umbrella": "other"},
        ):
            assert (await post(house, push(), **changed)).status == 202
        # A replay as something else is no new event, either.
        assert (await post(house, push(), "release")).status == 202
        assert len(house.entries) == 1


async def test_two_pushes_that_differ_in_nothing_but_time_are_two_events(
    tmp_path: Path, journal: Journal
) -> None:
    async with forgejo(tmp_path, journal) as house:
        for moment in ("2026-11-22T20:00:00Z", "2026-11-22T20:00:01Z"):
            repository = push()["repository"] | {"updated_at": moment}
            assert (await post(house, push(repository=repository))).status == 202
        assert len(house.events) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "The body is not an object."),
        ("text", "The body is not an object."),
        (None, "The body is not an object."),
    ],
)
async def test_a_body_that_is_no_object_is_422(
    tmp_path: Path, journal: Journal, body: object, words: str
) -> None:
    async with forgejo(tmp_path, journal) as house:
        answer = await post(house, body)
        assert (answer.status, answer.error, house.events) == (422, words, [])


@pytest.mark.parametrize("kind", ["", "nonsense", "push\u00e9", "x" * 5_000])
async def test_an_event_that_nobody_knows_is_422_and_names_the_header(
    tmp_path: Path, journal: Journal, kind: str
) -> None:
    async with forgejo(tmp_path, journal) as house:
        answer = await post(house, push(), kind)
        assert answer.status == 422
        assert answer.error.startswith("X-Forgejo-Event-Type: ")
        assert len(answer.error) < 200
        assert house.events == []


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("push", {}, "push: before: this is no text of 1 to 2000 characters"),
        ("push", push(after=3), "push: after: this is no text of 1 to 2000 characters"),
        ("push", push(ref="x" * 3_000), "push: ref: this is no text of 1 to 2000 characters"),
        ("push", push(repository=None), "push: repository.full_name: this is missing"),
        (
            "create",
            sample("create-tag", ref_type="commit"),
            "create: ref_type: this is neither branch nor tag",
        ),
        ("create", sample("create-tag", sha=""), "create: sha: this is no text of 1 to 2000 characters"),
        ("release", sample("release", release=[]), "release: release.tag_name: this is no text"),
        (
            "release",
            sample("release", release={"tag_name": "v1", "id": "3"}),
            "release: release.id: this is no number",
        ),
        ("release", push(), "release: release.tag_name: this is no text"),
        ("pull_request", {"action": "opened"}, "pull_request: pull_request.base.ref: this is no text"),
        ("package", {"action": "created"}, "package: package.type: this is no text"),
        ("action_run_success", sample("action-run-failure"), "action_run_success: action: this is another"),
        (
            "action_run_failure",
            {"action": "failure"},
            "action_run_failure: run.repository.full_name: this is no text",
        ),
        ("workflow_job", sample("workflow-run"), "workflow_job: workflow_job: this is no object"),
    ],
)
async def test_an_authentic_body_that_cannot_be_read_is_kept_as_a_dead_letter_once(
    tmp_path: Path, journal: Journal, kind: str, body: dict[str, Any], reason: str
) -> None:
    async with forgejo(tmp_path, journal) as house:
        assert [(await post(house, body, kind)).status for _ in range(2)] == [202, 202]
        [dead] = house.entries
        assert dead.state == "dead"
        assert str(dead.reason).startswith(reason)


async def test_the_secret_that_older_versions_repeat_is_kept_nowhere(
    tmp_path: Path, journal: Journal
) -> None:
    async with forgejo(tmp_path, journal) as house:
        await post(house, push(secret="l26Un7G7HXog"))
        await post(house, {"secret": "l26Un7G7HXog", "n": 1})
        assert len(house.entries) == 2
        assert "l26Un7G7HXog" not in json.dumps([entry.event for entry in house.entries])


async def test_a_huge_push_loses_its_largest_fields_and_says_which(tmp_path: Path, journal: Journal) -> None:
    commits = [push()["head_commit"] | {"modified": [f"file{n}" for n in range(200)]} for _ in range(30)]
    async with forgejo(tmp_path, journal) as house:
        assert (await post(house, push(commits=commits))).status == 202
        found = house.events[0]["forgejo"]
        assert found["cut"] == ["commits"]
        assert "commits" not in found["payload"]
        assert found["payload"]["head_commit"] == push()["head_commit"]
        assert (found["branch"], found["sha"], found["title"]) == ("main", B, "Patch on Fridays")
        assert len(json.dumps(found["payload"])) <= 65_536


async def test_a_long_list_of_commits_stays_where_it_fits(tmp_path: Path, journal: Journal) -> None:
    commits = [push()["head_commit"]] * 15
    async with forgejo(tmp_path, journal) as house:
        await post(house, push(commits=commits, total_commits=40))
        found = house.events[0]["forgejo"]
        assert found["payload"]["commits"] == commits
        assert "cut" not in found


@pytest.mark.parametrize(
    "text",
    [
        "{{ lookup('pipe', 'id') }}",
        "'; DROP TABLE events; --",
        "\u001b[2J\u0000",
        "../../etc",
        "$(id)",
        "\ud800",
    ],
)
async def test_hostile_text_stays_text(tmp_path: Path, journal: Journal, text: str) -> None:
    body = push(branch=text, before=text, meta={"hosts": ["h1"], "uuid": "forged"})
    body["head_commit"] = {"message": text, "url": text}
    body["repository"] |= {"full_name": text}
    body["sender"] = {"login": text}
    async with forgejo(tmp_path, journal) as house:
        assert (await post(house, body)).status == 202
        [event] = house.events
        text = text.replace("\ud800", "\ufffd")
        found = event["forgejo"]
        assert (found["branch"], found["repository"], found["sender"]) == (text, text, text)
        assert event["meta"]["uuid"] != "forged"
        assert "hosts" not in event["meta"]


async def test_only_the_events_that_are_wanted_are_stored(tmp_path: Path, journal: Journal) -> None:
    async with forgejo(tmp_path, journal, events=["push", "release"]) as house:
        for name, kind in (
            ("push", "push"),
            ("release", "release"),
            ("create-tag", "create"),
            ("package", "package"),
        ):
            assert (await post(house, sample(name), kind)).status == 202
        assert [event["forgejo"]["event"] for event in house.events] == ["push", "release"]


async def test_only_the_branches_that_are_wanted_are_stored_and_tags_are_none(
    tmp_path: Path, journal: Journal
) -> None:
    async with forgejo(tmp_path, journal, branches=["main", "release/*"]) as house:
        for ref in ("heads/main", "heads/release/1.0", "heads/mainline", "heads/x", "heads/Main", "tags/v1"):
            assert (await post(house, push() | {"ref": f"refs/{ref}"})).status == 202
        for name, kind in (("create-tag", "create"), ("delete-branch", "delete"), ("package", "package")):
            assert (await post(house, sample(name), kind)).status == 202
        assert [event["forgejo"]["ref"] for event in house.events] == [
            *("refs/heads/main", "refs/heads/release/1.0", "refs/tags/v1", "refs/tags/v1.0", "")
        ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "forgejo: secret: Field required"),
        ({"secret": "clear-text"}, "forgejo: secret: a secret may not stand here in the clear"),
        ({"secret": "env:NOT_SET_IN_THIS_TEST"}, "NOT_SET_IN_THIS_TEST is not set"),
        ({"secret": "env:FORGE_SECRET", "token": "env:X"}, "forgejo: token: "),
        (
            {"secret": "env:FORGE_SECRET", "events": ["pushes"]},
            "forgejo: events.0: there is no event 'pushes'",
        ),
        ({"secret": "env:FORGE_SECRET", "events": "push"}, "forgejo: events: "),
        ({"secret": "env:FORGE_SECRET", "api_url": "https://git"}, "api_url and repositories go together"),
        ({"secret": "env:FORGE_SECRET", "repositories": ["a/b"]}, "api_url and repositories go together"),
        ({"secret": "env:FORGE_SECRET", "repositories": ["a"]}, "forgejo: repositories.0: "),
        ({"secret": "env:FORGE_SECRET", "repositories": ["a/b/c"]}, "forgejo: repositories.0: "),
        ({"secret": "env:FORGE_SECRET", "api_url": "git"}, "forgejo: api_url: "),
        ({"secret": "env:FORGE_SECRET", "api_token": "env:X"}, "api_token: it is for api_url"),
        ({"secret": "env:FORGE_SECRET", "catch_up": "often"}, "forgejo: catch_up: 'often' is not a duration"),
        ({"secret": "env:FORGE_SECRET", "catch_up": "0s"}, "forgejo: catch_up: '0s' is too short"),
        (
            {
                "secret": "env:FORGE_SECRET",
                "api_url": "http://127.0.0.1:1",
                "repositories": ["a/b"],
                "api_token": "env:NOT_SET_IN_THIS_TEST",
            },
            "forgejo: api_token: ",
        ),
        ({"secret": "env:FORGE_SECRET", "path": "x"}, "forgejo: path: "),
        ({"secret": "env:FORGE_SECRET", "port": "many"}, "forgejo: port: "),
    ],
)
async def test_wrong_arguments_end_the_source_and_name_the_option(
    tmp_path: Path, journal: Journal, arguments: dict[str, Any], words: str
) -> None:
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("forgejo", **arguments))
        with pytest.raises(ConfigError) as refusal:
            await task
        assert words in str(refusal.value)
        assert str(refusal.value).startswith("forgejo: ")
        assert "clear-text" not in str(refusal.value)


class Forge:
    """The two paths of the API that are asked, with pages, and what goes wrong with them."""

    def __init__(self) -> None:
        self.branches: Callable[[], dict[str, str]] = dict
        self.releases: list[dict[str, Any]] = []
        self.status = 200
        self.garbage: bytes | None = None
        self.page = 50
        self.slow = asyncio.Event()
        self.slow.set()
        self.asked: list[web.BaseRequest] = []
        self.no_releases = False
        self.without_pages = False

    async def __aenter__(self) -> "Forge":
        self._runner = web.ServerRunner(web.Server(self._reply))
        await self._runner.setup()
        await self.listen(0)
        return self

    async def listen(self, port: int) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", port)
        await self._site.start()
        self.port = int(self._runner.addresses[0][1])

    async def __aexit__(self, *_: object) -> None:
        self.slow.set()
        await self._runner.cleanup()

    async def goes(self) -> None:
        await self._site.stop()

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "api_url": f"http://127.0.0.1:{self.port}",
            "api_token": "env:FORGE_TOKEN",
            "repositories": [REPOSITORY],
            "catch_up": "1s",
        }

    async def _reply(self, request: web.BaseRequest) -> web.StreamResponse:
        listed = self._listed(request.path.removeprefix(f"/api/v1/repos/{REPOSITORY}/"))
        self.asked.append(request)
        await self.slow.wait()
        if self.garbage is not None:
            return web.Response(body=self.garbage)
        if self.status != 200:
            return web.Response(status=self.status, text="{}")
        if listed is None:
            return web.Response(status=404, text="{}")
        page, limit = int(request.query["page"]), min(int(request.query["limit"]), self.page)
        shown = listed if self.without_pages else listed[(page - 1) * limit : page * limit]
        count = {} if self.without_pages else {"X-Total-Count": str(len(listed))}
        return web.json_response(shown, headers=count)

    def _listed(self, what: str) -> list[dict[str, Any]] | None:
        if what == "branches":
            commit = push()["head_commit"]
            return [
                {
                    "name": name,
                    "commit": commit | {"id": one, "message": f"About {one[:7]}"},
                    "protected": False,
                }
                for name, one in self.branches().items()
            ]
        return self.releases if what == "releases" and not self.no_releases else None

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Answers wait, so that messages come before them."""
        self.slow.clear()
        yield
        self.slow.set()

    async def is_asked(self, times: int = 1) -> None:
        """Wait for so many more whole rounds."""
        seen = len(self.asked)

        def rounds() -> int:
            first = [one for one in self.asked[seen:] if one.query["page"] == "1"]
            return sum(one.path.endswith("/branches") for one in first)

        async with asyncio.timeout(60):
            while rounds() <= times:
                await asyncio.sleep(0.01)


def release(number: int, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = sample("release")["release"] | {"id": number, "tag_name": f"v{number}", **fields}
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_first_start_only_remembers(tmp_path: Path, journal: Journal) -> None:
    async with Forge() as forge:
        forge.branches, forge.releases = lambda: {"main": A, "x": B}, [release(1)]
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await forge.is_asked(2)
            assert house.events == []
        assert {one.headers["Authorization"] for one in forge.asked} == {"token the token"}
        assert {one.path for one in forge.asked} == {
            f"/api/v1/repos/{REPOSITORY}/{name}" for name in ("branches", "releases")
        }


async def test_what_happened_while_we_were_away_is_caught_up_once(tmp_path: Path, journal: Journal) -> None:
    async with Forge() as forge:
        forge.branches, forge.releases = lambda: {"main": A, "old": A}, [release(1)]
        async with forgejo(tmp_path, journal, **forge.arguments):
            await forge.is_asked()
        forge.branches = lambda: {"main": B, "new": C}
        forge.releases = [release(3, draft=True), release(2), release(1)]
        for _ in range(2):
            async with forgejo(tmp_path, journal, **forge.arguments) as house:
                await forge.is_asked(2)
                events = house.events
        found = [event["forgejo"] for event in events]
        assert [(one["event"], one["branch"], one["tag"], one["sha"]) for one in found] == [
            ("push", "main", "", B),
            ("push", "new", "", C),
            ("delete", "old", "", ""),
            ("release", "", "v2", ""),
        ]
        assert all(one["caught_up"] for one in found)
        pushed, made, _, published = (one["payload"] for one in found)
        assert (pushed["before"], pushed["after"], pushed["ref"]) == (A, B, "refs/heads/main")
        assert pushed["commits"] == [pushed["head_commit"]]
        assert made["before"] == ZEROS
        assert (published["action"], published["release"]["id"]) == ("published", 2)
        assert found[0]["title"] == f"About {B[:7]}"
        assert {one["repository"] for one in found} == {REPOSITORY}


async def test_what_was_heard_is_not_caught_up(tmp_path: Path, journal: Journal) -> None:
    async with Forge() as forge:
        forge.branches, forge.releases = lambda: {"main": A, "old": A}, [release(1)]
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await forge.is_asked()
            async with forge.held():
                forge.branches, forge.releases = lambda: {"main": B, "new": C}, [release(3), release(1)]
                await post(house, push(A, B))
                await post(house, push(ZEROS, C, "new"))
                await post(house, sample("delete-branch"), "delete")
                await post(house, sample("release"), "release")  # number 3
            await forge.is_asked(2)
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await forge.is_asked()
            assert [caught for _, _, caught in heard(house)] == [False] * 4


async def test_a_message_that_comes_after_its_push_was_caught_up_is_no_second_event(
    tmp_path: Path, journal: Journal
) -> None:
    async with Forge() as forge:
        forge.branches, forge.releases = lambda: {"main": A, "old": A}, []
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await forge.is_asked()
            forge.branches, forge.releases = lambda: {"main": B}, [release(3)]
            await until(lambda: len(house.events) == 3)
            for body, kind in (
                (push(A, B), "push"),
                (sample("delete-branch"), "delete"),
                (sample("release"), "release"),
            ):
                assert [(await post(house, body, kind)).status for _ in range(2)] == [202, 202]
            await forge.is_asked(2)
            assert heard(house) == [("push", "b", True), ("delete", "", True), ("release", "", True)]
            # The next push is heard as ever.
            async with forge.held():
                forge.branches = lambda: {"main": C}
                assert (await post(house, push(B, C))).status == 202
            await forge.is_asked(2)
            assert heard(house)[3:] == [("push", "c", False)]


async def test_what_is_heard_while_the_forge_is_asked_is_newer_than_its_answer(
    tmp_path: Path, journal: Journal
) -> None:
    async with Forge() as forge:
        forge.branches = lambda: {"main": A}
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await forge.is_asked()
            forge.slow.clear()
            seen = len(forge.asked)
            await until(lambda: len(forge.asked) > seen)
            forge.branches = lambda: {"main": B}
            await post(house, push(A, B))  # the answer that is on its way still says A
            forge.slow.set()
            await forge.is_asked(2)
            assert heard(house) == [("push", "b", False)]


async def test_filters_count_for_what_is_caught_up_too(tmp_path: Path, journal: Journal) -> None:
    async with Forge() as forge:
        forge.branches = lambda: {"main": A, "x": A}
        arguments = forge.arguments | {"events": ["push"], "branches": ["main"]}
        async with forgejo(tmp_path, journal, **arguments) as house:
            await forge.is_asked()
            forge.branches, forge.releases = lambda: {"main": B, "y": B}, [release(1)]
            await forge.is_asked(2)
            assert heard(house) == [("push", "b", True)]


async def test_a_kill_between_storing_and_remembering_makes_no_second_event(
    tmp_path: Path, journal: Journal
) -> None:
    async with Forge() as forge:
        forge.branches = lambda: {"main": A}
        async with forgejo(tmp_path, journal, **forge.arguments):
            await forge.is_asked()
        [memory] = (tmp_path / "sources").iterdir()
        before = memory.read_bytes()
        forge.branches = lambda: {"main": B}
        for _ in range(2):
            async with forgejo(tmp_path, journal, **forge.arguments) as house:
                await forge.is_asked()
                assert heard(house) == [("push", "b", True)]
            memory.write_bytes(before)


async def test_the_same_move_missed_twice_is_two_events(tmp_path: Path, journal: Journal) -> None:
    async with Forge() as forge:
        forge.branches = lambda: {"main": A}
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await forge.is_asked()
            for number in range(1, 5):
                now = (A, B)[number % 2]
                forge.branches = lambda now=now: {"main": now}  # type: ignore[misc]
                await until(lambda number=number: len(house.events) == number)  # type: ignore[misc]
            assert [sha for _, sha, _ in heard(house)] == ["b", "a", "b", "a"]


async def test_many_branches_come_in_pages(tmp_path: Path, journal: Journal) -> None:
    names = [f"branch{number}" for number in range(120)]
    async with Forge() as forge:
        forge.page = 30  # a server may allow less than what is asked for
        forge.branches = lambda: dict.fromkeys(names, A)
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await forge.is_asked()
            forge.branches = lambda: dict.fromkeys(names, A) | {"branch119": B}
            await until(lambda: bool(house.events))
            await forge.is_asked()
            assert [event["forgejo"]["branch"] for event in house.events] == ["branch119"]


async def test_a_version_without_pages_is_understood(tmp_path: Path, journal: Journal) -> None:
    async with Forge() as forge:
        forge.without_pages, forge.branches = True, lambda: {"main": A}
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await forge.is_asked()
            forge.branches = lambda: {"main": B}
            await until(lambda: heard(house) == [("push", "b", True)])


async def test_a_repository_without_releases_is_followed(tmp_path: Path, journal: Journal) -> None:
    async with Forge() as forge:
        forge.no_releases, forge.branches = True, lambda: {"main": A}
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await forge.is_asked()
            forge.branches = lambda: {"main": B}
            await until(lambda: heard(house) == [("push", "b", True)])


async def test_that_all_branches_are_gone_is_not_believed(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with Forge() as forge:
        forge.branches = lambda: {"main": A, "x": A}
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await forge.is_asked()
            forge.branches = dict
            await until(lambda: "no branch any more" in caplog.text)
            forge.branches = lambda: {"main": A, "x": A}
            await until(lambda: "answers again" in caplog.text)
            assert house.events == []


@pytest.mark.parametrize(
    "answer", [b"no JSON", b"{}", b"[1]", b'[{"name": 3}]', b'[{"name": "main"}]', b"", b"[" * 500]
)
async def test_garbage_is_an_outage_that_is_said_once_and_ends(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    caplog.set_level("INFO")
    async with Forge() as forge:
        forge.garbage, forge.branches = answer, lambda: {"main": A}
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await until(lambda: len(forge.asked) >= 2)
            assert (await post(house, push())).status == 202  # the webhook hears on
            forge.garbage = None
            await until(lambda: "answers again" in caplog.text)
            assert caplog.text.count("does not answer, and is asked again") == 1
            assert heard(house) == [("push", "b", False)]


@pytest.mark.parametrize("status", [401, 403, 404, 500, 302])
async def test_a_refusal_is_an_outage_that_names_what_was_asked(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    async with Forge() as forge:
        forge.status = status
        async with forgejo(tmp_path, journal, **forge.arguments):
            await until(lambda: f"{REPOSITORY}/branches answers {status}" in caplog.text)
        assert "the token" not in caplog.text


async def test_a_forge_that_is_absent_goes_and_comes_back_is_waited_for(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with Forge() as forge:
        await forge.goes()
        forge.branches = lambda: {"main": A}
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await until(lambda: caplog.text.count("does not answer") == 1)
            await forge.listen(forge.port)
            await until(lambda: caplog.text.count("answers again") == 1)
            await forge.goes()
            await until(lambda: caplog.text.count("does not answer") == 2)
            forge.branches = lambda: {"main": B}
            await forge.listen(forge.port)
            await until(lambda: caplog.text.count("answers again") == 2)
            assert heard(house) == [("push", "b", True)]


async def test_a_forge_that_does_not_get_on_with_its_answer_holds_up_no_message(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    async with Forge() as forge:
        forge.branches = lambda: {"main": A}
        forge.slow.clear()
        waits = 20  # seconds for an answer
        short = lambda total: ClientTimeout(total=0.5 if total == waits else total)  # noqa: E731
        monkeypatch.setattr("aiohttp.ClientTimeout", short)
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            assert (await post(house, push())).status == 202
            await until(lambda: f"{REPOSITORY}: TimeoutError" in caplog.text)
            forge.slow.set()
            await until(lambda: "answers again" in caplog.text)
            assert caplog.text.count("does not answer, and is asked again") == 1
            assert heard(house) == [("push", "b", False)]


async def test_one_repository_that_is_not_there_does_not_keep_the_others(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    async with Forge() as forge:
        forge.branches = lambda: {"main": A}
        arguments = forge.arguments | {"repositories": ["house/nowhere", REPOSITORY]}
        async with forgejo(tmp_path, journal, **arguments) as house:
            await forge.is_asked(3)
            forge.branches = lambda: {"main": B}
            await until(lambda: heard(house) == [("push", "b", True)])
            assert "house/nowhere" in caplog.text


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Op", "-c", "user.email=op@example.net", "-c", "init.defaultBranch=main"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


async def test_real_pushes_are_caught_up_with_the_commits_that_git_has(
    tmp_path: Path, journal: Journal
) -> None:
    served, work = tmp_path / "served.git", tmp_path / "work"
    served.mkdir()
    git(served, "init", "--bare")
    git(tmp_path, "clone", str(served), str(work))

    def pushed(branch: str, *options: str) -> str:
        git(work, "commit", "--allow-empty", "-m", f"On {branch}", *options)
        git(work, "push", "--force", "origin", f"HEAD:refs/heads/{branch}")
        return git(work, "rev-parse", "HEAD")

    def branches() -> dict[str, str]:
        lines = git(served, "for-each-ref", "refs/heads", "--format=%(refname:short) %(objectname)")
        return dict(line.split(" ") for line in lines.splitlines())

    async with Forge() as forge:
        first = pushed("main")
        forge.branches = branches
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await forge.is_asked()
            async with forge.held():
                second = pushed("main")
                assert (await post(house, push(first, second))).status == 202
            await forge.is_asked()
        third, fourth = pushed("main"), pushed("feature")  # missed
        async with forgejo(tmp_path, journal, **forge.arguments) as house:
            await until(lambda: len(house.events) == 3)
            forced = pushed("main", "--amend", "-m", "Rewritten")  # missed, and no descendant
            git(work, "push", "origin", "--delete", "feature")
            await until(lambda: len(house.events) == 5)
            await forge.is_asked()
            found = [
                (one["forgejo"]["event"], one["forgejo"]["branch"], one["forgejo"]["sha"])
                for one in house.events
            ]
            assert found[0] == ("push", "main", second)
            assert sorted(found[1:3]) == sorted([("push", "main", third), ("push", "feature", fourth)])
            assert sorted(found[3:]) == sorted([("push", "main", forced), ("delete", "feature", "")])
