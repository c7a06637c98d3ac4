# SPDX-License-Identifier: Apache-2.0
"""The guard asks the real Alertmanager of Debian what fires, and who is unwell."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import wait_until
from lab.alertmanager import Alertmanager
from lab.commands import run
from unit.helpers import gate_settings
from zamu.errors import ZamuError
from zamu.gate.settings import Settings
from zamu.gate.surroundings import firing, unwell
from zamu.inventory import Inventory

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]

WELL = {"alertname": "Slow", "instance": "web1", "severity": "warning"}
DOWN = {"alertname": "Down", "instance": "web2:9100", "severity": "critical"}
HIDDEN = {"alertname": "Hidden", "instance": "web1", "severity": "warning"}


@pytest.fixture
def peer() -> Iterator[Alertmanager]:
    with Alertmanager("http://127.0.0.1:9/nobody") as found:
        yield found


def asking(directory: Path, url: str) -> Settings:
    names = {"web1": "web1", "web2": "web2"}
    return gate_settings(
        directory, guard={"alertmanager": {"url": url}}, found=Inventory(frozenset(names), names)
    )


def test_what_fires_what_is_silenced_and_who_is_unwell(peer: Alertmanager, tmp_path: Path) -> None:
    settings = asking(tmp_path, peer.api_url)
    assert firing(settings.guard.alertmanager) == []
    for labels in (WELL, DOWN, HIDDEN):
        peer.fire(labels)
    silence = ("silence", "add", "alertname=Hidden", "--comment=test", "--author=test", "--duration=5m")
    run("/usr/bin/amtool", *silence, f"--alertmanager.url={peer.api_url}")

    def states() -> dict[str, str]:
        return {
            alert["labels"]["alertname"]: alert["status"]["state"]
            for alert in firing(settings.guard.alertmanager)
        }

    wanted = {"Slow": "active", "Down": "active", "Hidden": "suppressed"}
    wait_until(lambda: states() == wanted, 30, lambda: f"{states()}\n{peer.logs()}")
    assert {len(alert["fingerprint"]) for alert in firing(settings.guard.alertmanager)} == {16}
    assert unwell(settings, settings.found) == {"web2"}
    peer.resolve(DOWN)
    wait_until(lambda: "Down" not in states(), 30, lambda: f"{states()}\n{peer.logs()}")
    assert unwell(settings, settings.found) == set()


def test_one_that_is_gone_is_named(peer: Alertmanager, tmp_path: Path) -> None:
    settings = asking(tmp_path, peer.api_url)
    peer.stop()
    with pytest.raises(ZamuError, match=r"Alertmanager \(http://127.0.0.1:\d+\) does not say what fires"):
        firing(settings.guard.alertmanager)
