# SPDX-License-Identifier: Apache-2.0
"""Foreign sources: real ones of others, and ones that do whatever a process can do to another."""

import asyncio
import json
import logging
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from tenacity import wait_none

from harness import Zamu, free_port, wait_until
from unit.hosting import WITHIN, Hosting, hosting
from unit.test_host import until
from zamu import keep
from zamu.config import Config, Limits
from zamu.errors import ConfigError, InvalidEvent, JournalError, RulebookError
from zamu.intake import foreign
from zamu.intake import host as host_module
from zamu.intake.meta import check_meta
from zamu.journal import Outcome
from zamu.journal.sqlite import Journal
from zamu.rulebooks import Source, find_plugin

IMPORTS = "import asyncio, os, sys, time\nfrom pathlib import Path\n"
FOR_EVER = "    await asyncio.Event().wait()\n"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed sources are started again at once."""
    monkeypatch.setattr(keep, "wait_exponential_jitter", lambda **_: wait_none())
    monkeypatch.setattr(host_module, "keep_running", partial(keep.keep_running, well=0.2))


@pytest.fixture(autouse=True)
def _collections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", str(tmp_path / "collections"))


def write(house: Hosting, code: str, name: str = "theirs", **arguments: Any) -> Source:
    """A source of a collection `acme.things`."""
    path = plugin(house.directory / "collections", "event_source", name)
    path.write_text(IMPORTS + code)
    return house.source(f"acme.things.{name}", **arguments)


def plugin(collections: Path, kind: str, name: str) -> Path:
    path = collections / "ansible_collections/acme/things/extensions/eda/plugins" / kind / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def putting(*events: str) -> str:
    """The code of a source that puts the events, each an expression, and then waits."""
    lines = "".join(f"    await queue.put({one})\n" for one in events)
    return f"async def main(queue, args):\n{lines}{FOR_EVER}"


def reasons(house: Hosting, source: Source) -> set[str]:
    return {reason for name, reason in house.said if name == source.id and reason}


@asynccontextmanager
async def beside_a_good_one(directory: Path, journal: Journal) -> AsyncIterator[Hosting]:
    """Hosts whatever the test does; a good foreign source and the loop itself must not suffer."""
    slowest = 0.0

    async def watch() -> None:
        nonlocal slowest
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(0.01)
            slowest = max(slowest, loop.time() - began)

    beat = "    while True:\n        await queue.put({'beat': 1})\n        await asyncio.sleep(0.05)\n"
    async with hosting(directory, journal) as house:
        good = await house.start(write(house, f"async def main(queue, args):\n{beat}", "good"))
        watcher = asyncio.create_task(watch())

        def beats() -> int:
            return sum("beat" in event for event in house.events)

        await until(lambda: beats() > 0)
        yield house
        before = beats()
        await until(lambda: beats() > before + 2)
        assert not good.done()
        assert not reasons(house, house.source("acme.things.good"))
        watcher.cancel()
        assert slowest < 1  # seconds; the machine may be busy with other work


def children() -> list[psutil.Process]:
    """The processes of foreign sources that this process started."""
    found = psutil.Process().children(recursive=True)
    return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]


# --- sources of others, as they are ---------------------------------------------------------------


async def test_generic_of_ansible_rulebook(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        payload = [{"a": 1}, {"b": {"c": [1.5, None, "ä\ud83c\udf89"]}}]
        await house.start(house.source("eda.builtin.generic", payload=payload, create_index="n"))
        await until(lambda: len(house.events) >= 2)
        assert house.events[0]["a"] == 1
        assert house.events[1]["b"] == {"c": [1.5, None, "ä🎉"]}
        assert house.events[1]["meta"]["source"]["type"] == "eda.builtin.generic"


async def test_webhook_of_ansible_rulebook_with_a_token_that_is_not_in_the_clear(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_TOKEN", "geheim-1")
    port = free_port()
    async with hosting(tmp_path, journal, {"web1": {}}) as house:
        source = house.source("eda.builtin.webhook", host="127.0.0.1", port=port, token="env:THEIR_TOKEN")
        await house.start(source)

        async def post(token: str) -> int:
            try:
                async with house.session.post(
                    f"http://127.0.0.1:{port}/x", json={"a": 1}, headers={"Authorization": f"Bearer {token}"}
                ) as answer:
                    return answer.status
            except OSError:
                return 0

        async with asyncio.timeout(WITHIN):
            while not (status := await post("geheim-1")):
                await asyncio.sleep(0.05)
        assert status == 200
        assert house.events[0]["payload"] == {"a": 1}
        assert house.events[0]["meta"]["endpoint"] == "x"
        assert await post("wrong") == 401
        assert len(house.events) == 1


async def test_a_source_of_a_collection_in_the_ansible_package(tmp_path: Path, journal: Journal) -> None:
    port = free_port()
    async with hosting(tmp_path, journal) as house:
        await house.start(house.source("cyberark.pas.syslog", host="127.0.0.1", port=port))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            async with asyncio.timeout(WITHIN):
                while not house.events:
                    sender.sendto(b'<5>1 x {"RawMessage": "{{ 1 }}"}', ("127.0.0.1", port))
                    await asyncio.sleep(0.1)
        assert house.events[0]["cyberark"] == {"RawMessage": "{{ 1 }}"}


async def test_a_source_whose_library_is_missing_says_so(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        source = house.source("amazon.aws.aws_sqs_queue", region="x", name="y")
        await house.start(source)
        await until(lambda: reasons(house, source))
        (reason,) = reasons(house, source)
        assert reason.startswith("ModuleNotFoundError: No module named 'botocore' (it has put no event yet")


async def test_wrong_arguments_are_told_with_the_names_of_those_that_were_given(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    async with hosting(tmp_path, journal) as house:
        source = house.source("eda.builtin.webhook", token="geheim-2", hots="x")
        await house.start(source)
        await until(lambda: reasons(house, source))
        assert reasons(house, source) == {
            "ValueError: Missing required argument: port (it has put no event yet; its arguments in "
            "rulebook.yml and zamu.yml: token, hots)"
        }
        assert "geheim-2" not in caplog.text


async def test_a_database_that_is_out_of_reach_is_tried_again(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        dsn = f"host=127.0.0.1 port={free_port()} user=x password=geheim-3 connect_timeout=1"
        source = house.source("eda.builtin.pg_listener", dsn=dsn, channels=["c"], password="geheim-3")
        await house.start(source)
        await until(lambda: house.said)
        assert all("geheim-3" not in str(reason) for _, reason in house.said)


# --- a process of its own --------------------------------------------------------------------------


async def test_it_has_a_process_a_session_and_an_environment_of_its_own(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NTFY_TOKEN", "ANSIBLE_VAULT_PASSWORD_FILE", "AWS_SECRET_ACCESS_KEY", "XPATH", "PATHS"):
        monkeypatch.setenv(name, "geheim")
    monkeypatch.setenv("https_proxy", "http://proxy.example.net")
    facts = (
        "{'pid': os.getpid(), 'session': os.getsid(0), 'environment': dict(os.environ),"
        " 'command': Path('/proc/self/cmdline').read_text(), 'modules': sorted(sys.modules),"
        " 'nice': os.nice(0), 'files': len(os.listdir('/proc/self/fd'))}"
    )
    async with hosting(tmp_path, journal) as house:
        await house.start(write(house, putting(facts), password="geheim"))
        await until(lambda: house.events)
        event = house.events[0]
        assert event["pid"] != os.getpid()
        assert event["session"] == event["pid"]
        assert event["nice"] == os.nice(0) + 5
        assert "geheim" not in str(event["environment"]) + event["command"]
        assert {"PATH", "HOME", "https_proxy"} <= set(event["environment"])
        heavy = {"aiohttp", "pydantic", "drools", "ansible", "psutil", "yaml", "sqlite3"}
        assert not heavy & set(event["modules"])
        # Nothing of ours is open there: stdin, stdout, stderr, the socket, what asyncio needs, the listing.
        assert event["files"] <= 9


async def test_two_of_them_have_two(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        await house.start(write(house, putting("{'pid': os.getpid()}"), "one"))
        await house.start(write(house, putting("{'pid': os.getpid()}"), "two"))
        await until(lambda: len(house.events) == 2)
        assert len({event["pid"] for event in house.events}) == 2
        assert len(children()) == 2
    await until(lambda: not children())


async def test_its_filters_run_there_too_in_their_order(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        path = plugin(tmp_path / "collections", "event_filter", "split")
        path.write_text(
            "import os\n"
            "def main(event, key):\n"
            "    return [{'item': one, 'ppid': os.getppid(), 'keys': sorted(event)} for one in event[key]]\n"
        )
        filters: list[dict[str, Any]] = [
            {"eda.builtin.json_filter": {"exclude_keys": ["secret"]}},
            {"ansible.eda.noop": None},
            {"acme.things.split": {"key": "many"}},
        ]
        source = write(house, putting("{'many': [{'a': 1}, {'b': 3}], 'secret': 2}", "{'many': []}"))
        await house.start(replace(source, filters=filters))
        await until(lambda: len(house.events) == 2)
        assert [event["item"] for event in house.events] == [{"a": 1}, {"b": 3}]
        assert {event["ppid"] for event in house.events} == {os.getpid()}
        assert all("secret" not in event["keys"] and "many" in event["keys"] for event in house.events)


async def test_a_filter_that_fails_fails_its_source(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        plugin(tmp_path / "collections", "event_filter", "bad").write_text("def main(event):\n    1 / 0\n")
        source = replace(write(house, putting("{}")), filters=[{"acme.things.bad": None}])
        await house.start(source)
        await until(lambda: reasons(house, source))
        assert "ZeroDivisionError" in reasons(house, source).pop()


async def test_one_that_there_is_not_is_refused_at_once(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("acme.things.nobody"))
        with pytest.raises(RulebookError, match="There is no event source 'acme.things.nobody'"):
            await task


# --- secrets -------------------------------------------------------------------------------------


async def test_secrets_among_the_arguments_are_revealed_to_it_and_to_no_log(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("ONE", "geheim-one")
    (tmp_path / "two").write_text("geheim-two\n")
    given = {
        "access": {"keys": ["env:ONE", f"file:{tmp_path}/two"]},
        "password": "geheim-three",
        "url": "file:///no/secret",
        "text": "environment: env:ONE",
        "port": 5,
    }
    code = (
        "async def main(queue, args):\n    await queue.put({'args': args})\n"
        "    print(args, flush=True)\n    raise ValueError(str(args))\n"
    )
    async with hosting(tmp_path, journal) as house:
        source = write(house, code, **given)
        await house.start(source)
        await until(lambda: reasons(house, source))
        found = house.events[0]["args"]
        assert found["access"] == {"keys": ["geheim-one", "geheim-two"]}
        assert {**found, "access": given["access"]} == given
        said = caplog.text + str(house.said)
        assert "file:///no/secret" in said
        assert "geheim" not in said


async def test_a_secret_that_is_missing_is_refused_at_the_start_and_waited_for_later(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONE", raising=False)
    async with hosting(tmp_path, journal) as house:
        source = write(house, "async def main(queue, args):\n    await queue.put(args)\n", key="env:ONE")
        task = await house.start(source)
        with pytest.raises(ConfigError, match=r"The source acme\.things\.theirs: .* ONE is not set"):
            await task
        monkeypatch.setenv("ONE", "x")
        task = await house.start(source)
        await until(lambda: house.events)
        monkeypatch.delenv("ONE")
        await until(lambda: any("ONE is not set" in one for one in reasons(house, source)))
        monkeypatch.setenv("ONE", "y")
        await until(lambda: any(event["key"] == "y" for event in house.events))
        assert not task.done()


# --- put -----------------------------------------------------------------------------------------


class Moody(Journal):
    """A journal that can be out of order, and that can be held up."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.broken = False
        self.sizes: list[int] = []

    def append(self, batch: Any) -> list[Outcome]:
        if self.broken:
            raise JournalError("out of order")
        self.sizes.append(len(batch))
        return super().append(batch)


@pytest.fixture
def moody(tmp_path: Path) -> Any:
    found = Moody(tmp_path / "moody.db")
    yield found
    found.close()


async def test_put_returns_when_the_event_is_stored(tmp_path: Path, moody: Moody) -> None:
    code = """
async def main(queue, args):
    try:
        await queue.put({"n": 1})
    except Exception as error:
        Path(args["flag"]).write_text(f"{type(error).__module__}.{type(error).__name__}: {error}")
        while Path(args["flag"]).exists():
            await asyncio.sleep(0.01)
    await queue.put({"n": 2})
    Path(args["flag"]).write_text("stored")
    await asyncio.Event().wait()
"""
    flag = tmp_path / "flag"
    moody.broken = True
    async with hosting(tmp_path, moody) as house:
        await house.start(write(house, code, flag=str(flag)))
        await until(lambda: flag.exists() and flag.read_text())
        assert flag.read_text() == "zamu.errors.JournalError: out of order"
        assert house.events == []
        moody.broken = False
        flag.unlink()
        await until(lambda: flag.exists() and flag.read_text())
        assert [event["n"] for event in house.events] == [2]


async def test_a_source_outlives_a_journal_that_is_out_of_order(tmp_path: Path, moody: Moody) -> None:
    moody.broken = True
    async with hosting(tmp_path, moody) as house:
        source = write(house, putting("{'a': 1}"))
        await house.start(source)
        await until(lambda: any("JournalError: out of order" in one for one in reasons(house, source)))
        moody.broken = False
        await until(lambda: house.events)


async def test_a_flood_is_held_back_and_stored_in_its_order(tmp_path: Path, moody: Moody) -> None:
    count = 3_000
    code = f"""
async def main(queue, args):
    await asyncio.gather(*(queue.put({{"n": n}}) for n in range({count})))
    await queue.put({{"n": {count}}})
    await asyncio.Event().wait()
"""
    async with hosting(tmp_path, moody) as house:
        await house.start(write(house, code))
        await until(lambda: sum(moody.sizes) == count + 1)
        assert [event["n"] for event in house.events] == list(range(count + 1))
        assert max(moody.sizes) <= foreign._WINDOW


async def test_large_events_do_not_wait_together(tmp_path: Path, moody: Moody) -> None:
    """What intake holds of one child is bounded in bytes, too."""
    code = """
async def main(queue, args):
    await asyncio.gather(*(queue.put({"blob": "x" * 400_000, "n": n}) for n in range(12)))
    await asyncio.Event().wait()
"""
    async with hosting(tmp_path, moody) as house:
        await house.start(write(house, code))
        await until(lambda: sum(moody.sizes) == 12)
        assert max(moody.sizes) <= 2


async def test_put_nowait_from_a_thread_and_several_events_at_once(tmp_path: Path, journal: Journal) -> None:
    code = """
import threading
async def main(queue, args):
    loop = asyncio.get_running_loop()
    def work():
        for n in range(5):
            loop.call_soon_threadsafe(queue.put_nowait, {"n": n})
        asyncio.run_coroutine_threadsafe(queue.put([{"n": 5}, {"n": 6}]), loop).result()
    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.Event().wait()
"""
    async with hosting(tmp_path, journal) as house:
        await house.start(write(house, code))
        await until(lambda: len(house.events) == 7)
        assert [event["n"] for event in house.events] == list(range(7))


async def test_put_nowait_is_bounded_and_finished_before_the_end(tmp_path: Path, journal: Journal) -> None:
    code = """
async def main(queue, args):
    taken = 0
    try:
        while True:
            queue.put_nowait({"n": taken})
            taken += 1
    except asyncio.QueueFull:
        pass
    marker = Path(args["marker"])
    if marker.exists():
        await asyncio.Event().wait()
    marker.write_text(str(taken))
"""
    async with hosting(tmp_path, journal) as house:
        marker = tmp_path / "marker"
        source = write(house, code, marker=str(marker))
        await house.start(source)
        await until(lambda: reasons(house, source))
        assert marker.read_text() == "1000"
        assert len(house.events) >= 1000
        assert reasons(house, source) == {"It returned, though it should run for ever."}


async def test_an_event_that_nobody_waited_for_fails_its_source_when_it_is_refused(
    tmp_path: Path, moody: Moody
) -> None:
    moody.broken = True
    async with hosting(tmp_path, moody) as house:
        source = write(house, f"async def main(queue, args):\n    queue.put_nowait({{'a': 1}})\n{FOR_EVER}")
        await house.start(source)
        await until(lambda: reasons(house, source))
        assert "JournalError: out of order" in reasons(house, source).pop()


# --- what JSON has no word for ----------------------------------------------------------------------

SAYABLE = {
    "datetime.datetime(2026, 11, 22, 20, 0, tzinfo=datetime.UTC)": "2026-11-22T20:00:00+00:00",
    "datetime.date(2026, 11, 22)": "2026-11-22",
    "datetime.timedelta(minutes=1.5)": 90.0,
    "b'text \\xff'": "text \\xff",
    "bytearray(b'x')": "x",
    "{1}": [1],
    "(1, (2,))": [1, [2]],
    "collections.deque([1])": [1],
    "types.MappingProxyType({'a': {1: 2}})": {"a": {"1": 2}},
    "decimal.Decimal('1.50')": "1.50",
    "uuid.UUID(int=7)": "00000000-0000-0000-0000-000000000007",
    "pathlib.PurePosixPath('/x')": "/x",
    "http.HTTPStatus.OK": 200,
    "signal.Signals.SIGTERM": 15,
    "'\\ud83c\\udf89 \\ud800'": "🎉 \ufffd",
    "'a\\nb\\0'": "a\nb\0",
    "10 ** 30": 10**30,
}


async def test_what_json_has_no_word_for_is_said_so_that_rules_can_compare_it(
    tmp_path: Path, journal: Journal
) -> None:
    imports = "import collections, datetime, decimal, http, pathlib, signal, types, uuid\n"
    async with hosting(tmp_path, journal) as house:
        await house.start(write(house, imports + putting(*(f"{{'v': {one}}}" for one in SAYABLE))))
        await until(lambda: len(house.events) == len(SAYABLE))
        assert [event["v"] for event in house.events] == list(SAYABLE.values())


UNSAYABLE = {
    "{'v': object()}": "a object is not JSON",
    "{'v': float('nan')}": "Out of range float values are not JSON compliant",
    "{'v': float('-inf')}": "Out of range float values are not JSON compliant",
    "{(1, 2): 3}": "keys must be str",
    "loop": "Circular reference",
    "deep": "nested",
    "rather_deep": "nested deeper than",
    "{'v': [0] * 250_000}": "more than",
    "'just text'": "a str is no event",
    "None": "a NoneType is no event",
    "7": "a int is no event",
    "{'v': Rude()}": "a Rude is not JSON",
    "{'v': 'x' * 10_000_000}": "it is larger than 1048576 bytes",
    "{'v': 10 ** 5000}": "Exceeds the limit",
    "{'meta': 'x'}": "event.meta: Input should be",
    "{'meta': {'unreadable': 'x'}}": "says meta.unreadable, which is for own sources",
    "{'meta': 7}": "event.meta: Input should be",
    "{'meta': ['unreadable']}": "event.meta: Input should be",
    "{'meta': {'uuid': 7}}": "event.meta.uuid: Input should be a valid string",
    "{'meta': {'identity': 'x'}}": "event.meta.identity: Input should be",
    "{'meta': {'depth': -1}}": "event.meta.depth: Input should be greater than or equal to 0",
}


async def test_what_cannot_be_said_is_a_dead_letter_and_the_source_goes_on(
    tmp_path: Path, journal: Journal
) -> None:
    code = """
class Rude:
    def __repr__(self):
        raise RuntimeError("no")

def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return {"v": value}

loop = {}
loop["v"] = loop
deep, rather_deep = nested(100_000), nested(200)
"""
    async with hosting(tmp_path, journal) as house:
        source = write(house, code + putting(*UNSAYABLE, "{'last': 1}"))
        await house.start(source)
        await until(lambda: house.events and "last" in house.events[-1])
        assert not reasons(house, source)
        *dead, last = house.entries
        assert last.state != "dead"
        for entry, (put, reason) in zip(dead, UNSAYABLE.items(), strict=True):
            assert entry.state == "dead", put
            assert entry.reason is not None
            assert reason in entry.reason, put
            assert len(json.dumps(entry.event)) < 100_000
        assert house.events[list(UNSAYABLE).index("'just text'")]["unreadable"] == "'just text'"


# --- sources that misbehave ----------------------------------------------------------------------

SOCKET = "__import__('socket').socket(fileno=os.dup(int(sys.argv[1])))"
MISBEHAVIOUR = {
    "exits": ("    os._exit(3)\n", "its process ended with 3"),
    "exits well": ("    os._exit(0)\n", "its process ended with 0"),
    "leaves": ("    sys.exit(4)\n", "its process ended with 4"),
    "segfaults": ("    import ctypes\n    ctypes.string_at(0)\n", "its process ended with -11 (SIGSEGV)"),
    "is killed": ("    os.kill(os.getpid(), 9)\n", "its process ended with -9 (SIGKILL)"),
    "aborts": ("    os.abort()\n", "its process ended with -6 (SIGABRT)"),
    "returns": ("    return\n", "It returned, though it should run for ever."),
    "raises": ("    raise KeyError('topic')\n", "KeyError: 'topic'"),
    "raises nothing to read": ("    raise Exception\n", "Exception: "),
    "raises a page": ("    raise ValueError('x' * 10_000_000)\n", "ValueError: xxx"),
    "forges a line": ("    raise ValueError('a\\n12:00 zamu INFO: all is well')\n", "a\ufffd12:00"),
    "takes all memory": (
        "    hoard = []\n    while True:\n        hoard.append(bytearray(10_000_000))\n",
        "MemoryError",
    ),
    "talks nonsense": (f"    {SOCKET}.sendall(b'nonsense\\n')\n{FOR_EVER}", "what is no message"),
    "talks binary": (f"    {SOCKET}.sendall(os.urandom(50_000) + b'\\n')\n{FOR_EVER}", "what is no message"),
    "numbers hugely": (
        f"    {SOCKET}.sendall(b'put ' + b'9' * 10_000 + b' {{}}\\n')\n{FOR_EVER}",
        "what is no message",
    ),
    "never ends a line": (
        f"    talk = {SOCKET}\n    talk.setblocking(True)\n    talk.sendall(b'put 1 ' + b'x' * 5_000_000)\n",
        "what is no message",
    ),
    "fails in nonsense": (f"    {SOCKET}.sendall(b'failed nonsense\\n')\n{FOR_EVER}", "what is no message"),
    "hangs up": (
        f"    {SOCKET}.shutdown(2)\n    time.sleep(1000)\n",
        "it closed its connection to intake",
    ),
    "closes all": ("    os.closerange(0, 100)\n    time.sleep(1000)\n", "it closed its connection to intake"),
    "is no coroutine": ("    pass\nmain = 7\n", "TypeError: the plugin has no `async def main(queue, args)`"),
}


@pytest.mark.parametrize("kind", MISBEHAVIOUR)
async def test_one_that_misbehaves_is_told_and_started_again_and_harms_nobody(
    tmp_path: Path, journal: Journal, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "_GRACE", 0.2)
    code, reason = MISBEHAVIOUR[kind]
    async with beside_a_good_one(tmp_path, journal) as house:
        house.config = house.config.model_copy(update={"limits": Limits(source_memory=100)})
        source = write(house, f"async def main(queue, args):\n{code}")
        await house.start(source)
        await until(lambda: sum(name == source.id for name, _ in house.said) >= 2)
        found = reasons(house, source)
        assert all(reason in one and len(one) <= 200 for one in found), found
    await until(lambda: not children())


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('at import')", "RuntimeError: at import"),
        ("this is no Python", "SyntaxError: "),
        ("import os; os._exit(9)", "its process ended with 9"),
        ("", "the plugin has no `async def main(queue, args)`"),
    ],
)
async def test_one_that_cannot_be_loaded_is_told_and_harms_nobody(
    tmp_path: Path, journal: Journal, code: str, reason: str
) -> None:
    async with beside_a_good_one(tmp_path, journal) as house:
        source = write(house, code)
        task = await house.start(source)
        await until(lambda: reasons(house, source))
        assert reason in reasons(house, source).pop()
        assert not task.done()


@pytest.mark.parametrize("code", ["time.sleep(1000)", "while True: pass"])
async def test_one_that_blocks_for_ever_harms_nobody_and_is_ended(
    tmp_path: Path, journal: Journal, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "_GRACE", 0.5)
    async with beside_a_good_one(tmp_path, journal) as house:
        await house.start(
            write(house, f"async def main(queue, args):\n    await queue.put({{'n': 1}})\n    {code}\n")
        )
        await until(lambda: any("n" in event for event in house.events))
        assert len(children()) == 2
    assert children() == []


async def test_one_that_blocks_in_its_filter_or_while_it_is_loaded_is_ended(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "_GRACE", 0.5)
    async with beside_a_good_one(tmp_path, journal) as house:
        path = plugin(tmp_path / "collections", "event_filter", "stuck")
        path.write_text("def main(event):\n    while True: pass\n")
        await house.start(replace(write(house, putting("{}"), "a"), filters=[{"acme.things.stuck": None}]))
        await house.start(write(house, "time.sleep(1000)\n", "b"))
        await until(lambda: len(children()) == 3)
    assert children() == []


async def test_one_that_never_reads_its_answers_is_ended(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "_UNREAD", 0.5)
    code = f"""
async def main(queue, args):
    talk = {SOCKET}
    talk.setblocking(True)
    while True:
        talk.sendall(b"put " + b"9" * 600 + b' {{"n": 1}}\\n')
"""
    async with beside_a_good_one(tmp_path, journal) as house:
        source = write(house, code)
        await house.start(source)
        await until(lambda: reasons(house, source))
        assert reasons(house, source) == {"it has read no answer for 0.5 s"}


async def test_endless_output_is_cut_and_holds_up_nobody_else(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    code = """
async def main(queue, args):
    print("\\x1b[2J first\\r", "y" * 5_000)
    await queue.put({"n": 1})
    while True:
        sys.stdout.write("a line\\n" * 10_000)
        sys.stderr.write("x" * 1_000_000)
"""
    async with beside_a_good_one(tmp_path, journal) as house:
        await house.start(write(house, code))
        await until(lambda: "prints too much" in caplog.text)
        await until(lambda: any("n" in event for event in house.events))
        lines = [one.getMessage() for one in caplog.records if "theirs: " in one.getMessage()]
        assert lines[0].startswith("acme.things.theirs: \ufffd[2J first\ufffd yyy")
        assert all(line.isprintable() and len(line) < 1_100 for line in lines)
        assert len(lines) <= foreign._LINES
        assert caplog.text.count("prints too much") == 1


async def test_what_it_prints_and_logs_and_its_last_words_are_in_our_log(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    code = """
import logging
async def main(queue, args):
    print("printed")
    logging.getLogger("x").warning("logged")
    logging.getLogger("x").info("not worth it")
    sys.stderr.write("its last words")
    os._exit(1)
"""
    async with hosting(tmp_path, journal) as house:
        source = write(house, code)
        await house.start(source)
        await until(lambda: reasons(house, source))
        lines = [one.getMessage() for one in caplog.records if "theirs: " in one.getMessage()]
        assert lines[:3] == [
            f"acme.things.theirs: {said}" for said in ("printed", "WARNING: logged", "its last words")
        ]


async def test_what_it_starts_itself_dies_with_it(tmp_path: Path, journal: Journal) -> None:
    code = """
import subprocess
async def main(queue, args):
    sleeper = subprocess.Popen(["sleep", "1000"])
    if not os.fork():
        time.sleep(1000)
    await queue.put({"sleeper": sleeper.pid})
    os._exit(1)
"""
    async with beside_a_good_one(tmp_path, journal) as house:
        source = write(house, code)
        await house.start(source)
        await until(lambda: reasons(house, source))
        first = next(event["sleeper"] for event in house.events if "sleeper" in event)
        await until(lambda: not psutil.pid_exists(first))


async def test_it_leaves_no_core_file_and_goes_first_when_memory_is_short(
    tmp_path: Path, journal: Journal
) -> None:
    facts = (
        "{'core': __import__('resource').getrlimit(4), 'data': __import__('resource').getrlimit(2),"
        " 'score': int(Path('/proc/self/oom_score_adj').read_text())}"
    )
    async with hosting(tmp_path, journal) as house:
        await house.start(write(house, putting(facts)))
        await until(lambda: house.events)
        event = house.events[0]
        assert event["core"] == [0, 0]
        assert event["data"] == [512 * 1024**2] * 2
        assert event["score"] > int(Path("/proc/self/oom_score_adj").read_text())


# --- the end -------------------------------------------------------------------------------------


async def test_a_source_can_clean_up_when_intake_stops(tmp_path: Path, journal: Journal) -> None:
    code = f"""
async def main(queue, args):
    try:
        await queue.put({{"n": 1}})
    {FOR_EVER}
    finally:
        await asyncio.sleep(0.1)
        Path(args["flag"]).touch()
"""
    flag = tmp_path / "flag"
    async with hosting(tmp_path, journal) as house:
        await house.start(write(house, code, flag=str(flag)))
        await until(lambda: house.events)
    assert flag.exists()
    assert children() == []


def test_when_intake_is_killed_even_one_that_blocks_dies(tmp_path: Path) -> None:
    path = plugin(tmp_path / "collections", "event_source", "stuck")
    path.write_text(
        "import time\nasync def main(queue, args):\n    await queue.put({'n': 1})\n    time.sleep(1000)\n"
    )
    rulebook = [
        {
            "name": "Theirs",
            "hosts": "all",
            "sources": [{"name": "theirs", "acme.things.stuck": {"secret": "geheim"}}],
            "rules": [{"name": "R", "condition": "event.n == 1", "action": {"debug": None}}],
        }
    ]
    environment = {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "collections")}
    with Zamu(tmp_path / "house", rulebooks={"r.yml": rulebook}, environment=environment) as zamu:
        zamu.start("intake")
        zamu.wait_listening()
        wait_until(zamu.events, 30, zamu.story)
        (child,) = [one for one in zamu.children("intake") if "zamu.intake.child" in one.cmdline()]
        zamu.kill_part("intake")
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10, zamu.story)
        zamu.start("intake")
        wait_until(lambda: len(zamu.events()) == 2, 30, zamu.story)
        assert "geheim" not in (tmp_path / "house" / "intake.log").read_text()


# --- meta ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"meta": None},
        {"meta": {}},
        {"a": 1, "meta": {"uuid": "u" * 200, "hosts": ["x"], "anything": object()}},
        {"meta": {"identity": {"key": "k", "state": ""}}},
        {"meta": {"identity": {"key": "k", "state": "s", "repeat_after": None}}},
        {"meta": {"identity": {"key": "k", "state": "s", "repeat_after": 60}}},
        {"meta": {"identity": {"key": "k", "state": "s", "repeat_after": 0.5}}},
        {"meta": {"unreadable": "why", "depth": 3}},
    ],
)
def test_a_meta_that_has_its_shape_is_taken(event: Any) -> None:
    check_meta(event, "mine")


@pytest.mark.parametrize(
    ("event", "place"),
    [
        (None, "event"),
        ("x", "event"),
        ([], "event"),
        ({"meta": []}, "event.meta"),
        ({"meta": {"uuid": None}}, "event.meta.uuid"),
        ({"meta": {"uuid": ""}}, "event.meta.uuid"),
        ({"meta": {"uuid": "u" * 201}}, "event.meta.uuid"),
        ({"meta": {"uuid": ["u"]}}, "event.meta.uuid"),
        ({"meta": {"identity": None}}, "event.meta.identity"),
        ({"meta": {"identity": {}}}, "event.meta.identity.key"),
        ({"meta": {"identity": {"key": "k"}}}, "event.meta.identity.state"),
        ({"meta": {"identity": {"key": 1, "state": "s"}}}, "event.meta.identity.key"),
        ({"meta": {"identity": {"key": "k", "state": True}}}, "event.meta.identity.state"),
        ({"meta": {"identity": {"key": "k", "state": "s", "repeat": 1}}}, "event.meta.identity.repeat"),
        *(
            (
                {"meta": {"identity": {"key": "k", "state": "s", "repeat_after": one}}},
                "event.meta.identity.repeat",
            )
            for one in ("60", -1, True, float("nan"), float("inf"), 1e30, [1])
        ),
        ({"meta": {"unreadable": None}}, "event.meta.unreadable"),
        ({"meta": {"depth": "3"}}, "event.meta.depth"),
        ({"meta": {"depth": True}}, "event.meta.depth"),
        ({"meta": {"depth": 10**9}}, "event.meta.depth"),
    ],
)
def test_a_meta_that_has_not_is_refused_with_source_and_place(event: Any, place: str) -> None:
    with pytest.raises(
        InvalidEvent, match=rf"^An event of mine cannot be stored: {re.escape(place)}.*: .+\.$"
    ):
        check_meta(event, "mine")


async def test_it_is_asked_of_a_houses_own_source_too(tmp_path: Path, journal: Journal) -> None:
    directory = tmp_path / "sources"
    directory.mkdir()
    (directory / "mine.py").write_text(IMPORTS + putting("{'meta': {'identity': {'key': 'k'}}}"))
    async with hosting(tmp_path, journal) as house:
        house.config = house.config.model_copy(update={"event_sources": directory})
        await house.start(house.source("mine"))
        await until(lambda: house.said)
        assert house.said[0] == (
            "mine",
            "An event of mine cannot be stored: event.meta.identity.state: Field required.",
        )
        assert house.events == []


# --- where collections are -------------------------------------------------------------------------


def test_collections_are_found_where_ansible_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zamu.ansible import collection_paths

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = Config(root=tmp_path, ansible_config=tmp_path / "sub" / "ansible.cfg")
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", "a:~/b:/c")
    assert collection_paths(config) == [tmp_path / "a", tmp_path / "b", Path("/c")]
    monkeypatch.delenv("ANSIBLE_COLLECTIONS_PATH")
    assert collection_paths(config)[0] == tmp_path / ".ansible" / "collections"
    (tmp_path / "sub").mkdir()
    config.ansible_config.write_text("[defaults]\ncollections_path = mine:/theirs\n")
    assert collection_paths(config) == [tmp_path / "sub" / "mine", Path("/theirs")]


def test_a_collection_of_the_house_comes_before_the_installed_one(tmp_path: Path) -> None:
    path = tmp_path / "ansible_collections/cyberark/pas/extensions/eda/plugins/event_source/syslog.py"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_plugin("cyberark.pas.syslog", "event_source", tmp_path, [tmp_path]) == path
    installed = find_plugin("cyberark.pas.syslog", "event_source", tmp_path, [tmp_path / "other"])
    assert installed != path


@pytest.mark.parametrize("name", ["generic", "range", "pg_listener", "webhook"])
def test_what_ansible_eda_handed_over_to_the_engine_is_found_there(tmp_path: Path, name: str) -> None:
    found = find_plugin(f"ansible.eda.{name}", "event_source", tmp_path)
    assert found == find_plugin(f"eda.builtin.{name}", "event_source", tmp_path)
