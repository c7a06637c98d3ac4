# SPDX-License-Identifier: Apache-2.0
"""The whole ladder for real: a restart does not help, the stack's neither, then the reboot or the operator.

A container of a compose stack is down on a host with systemd and podman. It does not start while a lock file is
there that a dead process left. Below /run a reboot mends that; beside the data nothing does but a person. What
was done is counted on the host: each container writes down each of its starts.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from harness import Zamu, wait_until
from lab.alertmanager import Alertmanager
from lab.commands import run_script
from lab.hosts import LabHost
from lab.mail import Mailbox, mail_server

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

CONTAINER, STACK, REBOOT = (
    f"boma.zamu.{name}" for name in ("restart_container", "restart_stack", "reboot_host")
)
REPORT = "boma.zamu.report_failure"
WEB, DB = "shop-web-1", "shop-db-1"
#: A reboot empties the first, and keeps the second.
MENDED_BY_REBOOT, NOT_MENDED = "/run/shop/lock", "/srv/shop/lock"
STARTS = "/srv/shop/starts"

# What Compose would have made of a file with two services, and the unit that starts and stops the stack.
SET_UP = f"""
set -eu
echo 'd /run/shop' >/etc/tmpfiles.d/shop.conf
systemd-tmpfiles --create shop.conf
mkdir -p /srv/shop /tmp/tiny/bin
cp /bin/busybox /tmp/tiny/bin/sh
tar -C /tmp/tiny -c . | podman import --quiet - localhost/tiny:1

serve='trap "exit 143" TERM; while :; do sleep 1000 & wait; done'
refuse='for lock in {MENDED_BY_REBOOT} {NOT_MENDED}; do if test -e $lock; then
    echo "Another shop holds $lock" >&2; exit 3; fi; done;'
make() {{
    podman create --name "$1" --network=none --cgroupns=private --volume /run/shop:/run/shop \
        --volume /srv/shop:/srv/shop --label com.docker.compose.project=shop \
        --label com.docker.compose.oneoff=False localhost/tiny:1 /bin/sh -c "echo $1 >>{STARTS}; $2 $serve"
}}
make {DB} ''
make {WEB} "$refuse"

cat >/etc/systemd/system/shop.service <<UNIT
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/podman start {DB} {WEB}
ExecStop=/usr/bin/podman stop --time 5 {WEB} {DB}
[Install]
WantedBy=multi-user.target
UNIT
systemctl enable --now shop.service
"""


@pytest.fixture(scope="module")
def host() -> Iterator[LabHost]:
    """A host on which the stack `shop` runs."""
    run_script("container_host.sh")
    with LabHost(image="localhost/debian-containers:12") as one:
        one.exec("sh", stdin=SET_UP, check=True)
        yield one


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Mailbox]:
    with mail_server() as one:
        yield one


@pytest.fixture(scope="module")
def zamu(host: LabHost, mailbox: Mailbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zamu]:
    # All waits are short enough for a test, and long enough to be waits.
    variables = {
        "container_command": ["podman"],
        **dict.fromkeys(("restart_container_stop", "restart_stack_stop"), 3),
        **dict.fromkeys(("verify_container_delay", "verify_host_delay", "reboot_host_delay"), 1),
        "verify_container_retries": 2,
        "verify_container_settle": 2,
        "reboot_host_grace": 1,
        "reboot_host_reach": 60,
    }
    one = Zamu(
        tmp_path_factory.mktemp("ladder") / "zamu",
        hosts={"web1": host.inventory_entry() | variables},
        config={
            "notify": {"channels": [{"name": "mail", "url": "env:LAB_MAIL"}]},
            # The second test mends what the first one mended.
            "guard": {"actions": {name: {"cooldown": "1s"} for name in (CONTAINER, STACK, REBOOT)}},
        },
        environment={"LAB_MAIL": mailbox.url},
    )
    with one:
        one.start("run")
        one.wait_ready()
        yield one


def status(host: LabHost, name: str) -> str:
    return host.exec("podman", "container", "inspect", "--format", "{{.State.Status}}", name).stdout.strip()


def break_web(host: LabHost, lock: str) -> None:
    """Let a container crash that does not start again while the lock is there; starts are counted from here."""
    host.exec("touch", lock, check=True)
    host.exec("podman", "kill", "--signal=KILL", WEB, check=True)
    wait_until(lambda: status(host, WEB) == "exited", 20, host.logs)
    host.exec("tee", STARTS, stdin="", check=True)


def starts(host: LabHost) -> Counter[str]:
    return Counter(host.exec("cat", STARTS, check=True).stdout.split())


def labels(host: LabHost) -> dict[str, str]:
    """The alert as cAdvisor's figures make it, with what lets it reboot its host."""
    return {
        "alertname": "ContainerDown",
        "instance": f"{host.address}:8080",
        "name": WEB,
        "container_label_com_docker_compose_project": "shop",
        "escalate": "reboot",
    }


def climb(zamu: Zamu, last: str, since: int) -> list[tuple[str, str, bool | None]]:
    """Wait until the last step has ended, and all else; returns each run's playbook, status, and if it was verified."""

    def done() -> bool:
        ended = [one["playbook"] for one in zamu.runs()[since:] if one["status"] in ("successful", "failed")]
        return last in ended

    wait_until(done, 150, zamu.story)
    zamu.wait_settled()
    return [(one["playbook"], one["status"], one["verified"]) for one in zamu.runs()[since:]]


@pytest.fixture
def sender(zamu: Zamu, alertmanager: Callable[..., Alertmanager]) -> Alertmanager:
    return alertmanager(f"{zamu.url}/alertmanager", zamu.token)


def test_what_only_a_reboot_mends_is_mended_by_it(
    zamu: Zamu, host: LabHost, sender: Alertmanager, mailbox: Mailbox
) -> None:
    since, reboots, told = len(zamu.runs()), host.reboots(), len(mailbox.subjects)
    break_web(host, MENDED_BY_REBOOT)
    sender.fire(labels(host))
    assert climb(zamu, REBOOT, since) == [
        (CONTAINER, "failed", False),
        (STACK, "failed", False),
        (REBOOT, "successful", True),
    ]
    for run in zamu.runs()[since:-1]:
        assert f"Another shop holds {MENDED_BY_REBOOT}" in run["reason"]
    assert host.reboots() == reboots + 1
    # The web container by itself, both as a stack, and both at boot.
    assert starts(host) == {WEB: 3, DB: 2}
    assert [status(host, name) for name in (WEB, DB)] == ["running", "running"]
    sender.resolve(labels(host))
    wait_until(lambda: mailbox.subjects[told:], 60, zamu.story)
    zamu.wait_settled()
    (message,) = zamu.listed("messages")[told:]
    assert mailbox.subjects[told:] == [message["title"]] == [f"{WEB} on {host.address}:8080 is well again"]


def test_what_no_reboot_mends_is_told_with_evidence(
    zamu: Zamu, host: LabHost, sender: Alertmanager, mailbox: Mailbox
) -> None:
    since, reboots, told = len(zamu.runs()), host.reboots(), len(mailbox.subjects)
    break_web(host, NOT_MENDED)
    sender.fire(labels(host))
    assert climb(zamu, REPORT, since) == [
        (CONTAINER, "failed", False),
        (STACK, "failed", False),
        (REBOOT, "failed", False),
        (REPORT, "successful", True),
    ]
    assert host.reboots() == reboots + 1
    assert starts(host) == {WEB: 3, DB: 2}
    assert [status(host, name) for name in (WEB, DB)] == ["exited", "running"]
    wait_until(lambda: mailbox.subjects[told:], 60, zamu.story)
    wait_until(lambda: zamu.listed("messages")[-1]["state"] == "delivered", 20, zamu.story)
    assert mailbox.subjects[told:] == [f"ContainerDown: {REBOOT} failed on web1"]
    (message,) = zamu.listed("messages")[told:]
    assert message["urgency"] == "urgent"
    (mail,) = mailbox.texts[told:]
    reason, _, evidence = mail.partition("Warnings in the journal:")
    assert f"{WEB} on web1 is not well." in reason
    journal, _, processes = evidence.partition("Busiest processes:")
    assert re.search(rf"{host.name} {WEB}\[\d+\]: Another shop holds {NOT_MENDED}$", journal, re.M), mail
    assert re.search(r"^ +\d+ root .* (systemd|sshd)$", processes, re.M), mail
