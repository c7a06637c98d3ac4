# SPDX-License-Identifier: Apache-2.0
"""Kills intake at random moments while every source hears numbered things, and counts.

    .venv/bin/python bench/source_kills.py [--rounds N] [--seed N] [--write]

All senders speak all the time. Webhooks are posted until they are answered 202 (alertmanager, webhook,
forgejo, aide, uptime_kuma, proxmox); a real mosquitto, a real journald, and a fake of Proxmox VE's API that
others wrote have something new (mqtt, journald, proxmox again); lines are appended to files that are rotated
now and then (suricata, fail2ban, auditd); time goes on (clock); targets turn bad and good (http_check).
Each round kills intake with SIGKILL; now and then it stays dead for more than a minute. Afterwards everything
that was acknowledged, published, written, logged, due or seen has to be in the journal, once. Exit code 1
when something is lost or doubled. The source `runs` is heard in bench/torture.py, which kills what runs.
Needs root, and the Debian packages mosquitto and systemd.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from rounds import main
from senders import Sender
from senders.clock import clock
from senders.logs import Files
from senders.programs import journald, mosquitto, proxmox_tasks
from senders.targets import targets
from senders.webhooks import SECRET, webhooks

from harness import Zamu, wait_until

#: In so many rounds intake stays dead once for so many seconds: what the clock then missed is no longer late.
LONG_EVERY, LONG = 20, 65


def torture(rounds: int, seed: int) -> dict[str, dict[str, int]]:
    dice = random.Random(seed)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zamu-kills-")))
        zamu = Zamu(
            directory / "zamu",
            hosts={"web1": {}},
            rulebooks={},
            environment={"FORGEJO_SECRET": SECRET},
        )
        files = Files(directory)
        turning = stack.enter_context(targets(random.Random(seed)))
        senders = [
            *webhooks(zamu),
            stack.enter_context(mosquitto(directory)),
            stack.enter_context(journald()),
            stack.enter_context(proxmox_tasks(directory)),
            *files.senders,
            clock(zamu.state),
            turning,
        ]
        (zamu.directory / "rulebooks" / "kills.yml").write_text(yaml.safe_dump(rulebook(senders)))
        stack.enter_context(zamu)
        zamu.start("intake")
        zamu.wait_listening()
        for sender in senders:
            if sender.begins_late:
                wait_until(lambda one=sender: one.send(0) and stored(zamu, [one]), 60, zamu.story)  # type: ignore[misc]
        for sender in senders:
            stack.callback(sender.end)
            sender.start()
        for number in range(1, rounds + 1):
            time.sleep(dice.uniform(0, 4))
            zamu.kill_part("intake")
            if dice.random() < 0.5:
                files.rotate()
            if number % LONG_EVERY == 0:
                time.sleep(LONG)
            turning.another_asks()
            zamu.start("intake")
            zamu.wait_listening()
            print(f"[{number}/{rounds}] sent so far: {sum(len(one.sent) for one in senders)}", flush=True)
        for sender in senders:
            sender.finish()
        return counted(zamu, senders)


def rulebook(senders: list[Sender]) -> list[dict[str, Any]]:
    """One ruleset that hears them all and does nothing."""
    never = {"name": "Never", "condition": "event.never is defined", "action": {"debug": {}}}
    sources = [{"name": one.source, one.plugin: one.arguments} for one in senders]
    return [{"name": "Kills", "hosts": "all", "sources": sources, "rules": [never]}]


def stored(zamu: Zamu, senders: list[Sender]) -> dict[str, Counter[int]]:
    """How often each number of each source is in the journal."""
    number = {one.source: one.number for one in senders}
    found: dict[str, Counter[int]] = {}
    for entry in zamu.events():
        event = entry["event"]
        source = event["meta"]["source"]["name"]
        if source in number:
            found.setdefault(source, Counter())[number[source](event)] += 1
    return found


def counted(zamu: Zamu, senders: list[Sender]) -> dict[str, dict[str, int]]:
    """What became of it all, when nothing is lost any more, or does not come for two minutes."""

    def lost() -> dict[str, list[int]]:
        found = stored(zamu, senders)
        missing = {one.source: one.lost(found.get(one.source, Counter())) for one in senders}
        return {source: numbers[:10] for source, numbers in missing.items() if numbers}

    try:
        wait_until(lambda: not lost(), 120, lambda: str(zamu.health()))
    except AssertionError:
        print(f"Missing: {lost()}\n{zamu.story()}", file=sys.stderr)
    found = stored(zamu, senders)
    return {
        one.source: {
            "sent": len(one.sent),
            "lost": len(one.lost(found.get(one.source, Counter()))),
            "doubled": len(one.doubled(found.get(one.source, Counter()))),
        }
        for one in senders
    }


def wrong(counts: dict[str, dict[str, int]]) -> bool:
    return any(not one["sent"] or one["lost"] or one["doubled"] for one in counts.values())


if __name__ == "__main__":
    sys.exit(main("source_kills", __doc__, 50, torture, wrong))
