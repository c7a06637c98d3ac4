#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The module that looks at one guest of Proxmox VE and does one thing to it, if nothing stands against it."""

DOCUMENTATION = r"""
module: proxmox_guest
short_description: Start, reset, snapshot, roll back, back up, migrate or look at one guest of Proxmox VE
version_added: 0.1.0
description:
  - First tells apart what is wrong. If the cluster has no quorum, the guest's node is down, or the guest is
    locked or at work, nothing is done and the failure says so.
  - Does it once, follows the task to its end, and fails unless the task ended well.
  - What is already so is left alone. If a task of the same kind runs already, it is waited for instead.
options:
  guest:
    description: The guest, by its number or its name in Proxmox VE.
    type: str
    required: true
  action:
    description:
      - V(look) changes nothing, and returns what is not as asked for.
      - V(start) starts it unless it runs.
      - V(reset) resets a virtual machine whose guest agent does not answer, as the button of a real one does.
      - V(snapshot) takes the snapshot unless there is one of that name.
      - V(rollback) goes back to the snapshot.
      - V(backup) makes a backup unless there is one that is new enough.
      - V(migrate) moves the guest to another node of the cluster.
    type: str
    choices: [look, start, reset, snapshot, rollback, backup, migrate]
    default: look
  wait:
    description: Seconds that the task may take, and then the guest until it is as it should be.
    type: int
    default: 120
  running:
    description: For V(look), whether it has to run. For V(rollback), whether it is started afterwards.
    type: bool
    default: true
  agent:
    description: For V(look), whether its guest agent has to answer. A container has none, and is not asked.
    type: bool
    default: false
  force:
    description: For V(reset), whether it is reset although the guest agent answers or cannot be asked.
    type: bool
    default: false
  tries:
    description: For V(reset), how often the guest agent is asked before it counts as silent.
    type: int
    default: 3
  delay:
    description: For V(reset), seconds between two of these questions.
    type: int
    default: 5
  grace:
    description:
      - For V(reset), seconds after a start or a reset in which it may still be booting.
      - For V(rollback), seconds after a rollback to the same snapshot in which there is no second one.
    type: int
    default: 300
  snapshot:
    description: For V(look), V(snapshot) and V(rollback), the snapshot's name.
    type: str
  limit:
    description: For V(snapshot), how many snapshots the guest may have; one more is refused.
    type: int
    default: 10
  ram:
    description: For V(snapshot), whether the memory of a running virtual machine is saved, too.
    type: bool
    default: false
  storage:
    description: For V(look) and V(backup), the storage that holds the backup.
    type: str
  max_age:
    description: For V(look) and V(backup), seconds that the newest backup may be old.
    type: int
    default: 43200
  min_free:
    description: For V(backup), gibibytes that have to be free on the storage.
    type: int
    default: 10
  mode:
    description: For V(backup), whether the guest goes on meanwhile, is suspended, or is stopped.
    type: str
    choices: [snapshot, suspend, stop]
    default: snapshot
  node:
    description: For V(look) and V(migrate), the node where it has to be.
    type: str
  restart:
    description: For V(migrate), whether a running container may be restarted; it cannot be moved otherwise.
    type: bool
    default: false
extends_documentation_fragment:
  - boma.zamu.proxmox
attributes:
  check_mode:
    support: full
    description: Checks everything, and says whether it would do it.
  diff_mode:
    support: none
author:
  - The zamu developers
"""

EXAMPLES = r"""
- name: Start the guest if it does not run
  boma.zamu.proxmox_guest:
    url: https://192.0.2.11:8006
    token_id: zamu@pve!act
    token_secret: "{{ proxmox_token_secret }}"
    guest: nextcloud
    action: start
  delegate_to: localhost
"""

RETURN = r"""
msg:
  description: What was done, or why nothing was.
  returned: success
  type: str
unmet:
  description: For V(look), sentences about what is not as asked for.
  returned: success
  type: list
  elements: str
"""

import re
import time
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.boma.zamu.plugins.module_utils.proxmox import OPTIONS, Api, ProxmoxError
from ansible_collections.boma.zamu.plugins.module_utils.rest import saying

ARGUMENTS: dict[str, Any] = {
    "guest": {"type": "str", "required": True},
    "action": {
        "type": "str",
        "choices": ["look", "start", "reset", "snapshot", "rollback", "backup", "migrate"],
        "default": "look",
    },
    "wait": {"type": "int", "default": 120},
    "running": {"type": "bool", "default": True},
    "agent": {"type": "bool", "default": False},
    "force": {"type": "bool", "default": False},
    "tries": {"type": "int", "default": 3},
    "delay": {"type": "int", "default": 5},
    "grace": {"type": "int", "default": 300},
    "snapshot": {"type": "str"},
    "limit": {"type": "int", "default": 10},
    "ram": {"type": "bool", "default": False},
    "storage": {"type": "str"},
    "max_age": {"type": "int", "default": 43200},
    "min_free": {"type": "int", "default": 10},
    "mode": {"type": "str", "choices": ["snapshot", "suspend", "stop"], "default": "snapshot"},
    "node": {"type": "str"},
    "restart": {"type": "bool", "default": False},
}
REQUIRED = [
    ("action", "snapshot", ["snapshot"]),
    ("action", "rollback", ["snapshot"]),
    ("action", "backup", ["storage"]),
    ("action", "migrate", ["node"]),
]

#: How the tasks of an action are called: of a virtual machine, of a container, and when HA manages either.
TASKS = {
    "start": {"qmstart", "vzstart", "hastart"},
    "reset": {"qmreset"},
    "snapshot": {"qmsnapshot", "vzsnapshot"},
    "rollback": {"qmrollback", "vzrollback"},
    "backup": {"vzdump"},
    "migrate": {"qmigrate", "vzmigrate", "hamigrate"},
}
#: A person who looks at the console is in nobody's way.
CONSOLES = {"vncproxy", "spiceproxy", "vncshell", "spiceshell"}
#: What a virtual machine that runs may say of itself, and be reset.
ALIVE = {"running", "guest-panicked", "internal-error"}
#: Proxmox VE's words when the agent did not answer. Any other failure says nothing about the guest.
SILENT = re.compile(r"agent is not running|qmp command 'guest-\S+' failed")
SERVER_ERROR = 500
GIB = 1024**3


class AlreadyError(Exception):
    """Nothing is to be done, and why."""


@dataclass(frozen=True)
class Guest:
    """A guest, and the node on which it is."""

    vmid: int
    name: str
    kind: str
    node: str

    @property
    def path(self) -> tuple[str, ...]:
        """Where the API has it."""
        return ("nodes", self.node, self.kind, str(self.vmid))

    def __str__(self) -> str:
        return f"{'container' if self.kind == 'lxc' else 'VM'} {self.vmid} ({self.name}) on node {self.node}"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=OPTIONS | ARGUMENTS, supports_check_mode=True, required_if=REQUIRED)
    try:
        result = Work(Api(module.params), module.params).run(module.check_mode)
    except ProxmoxError as error:
        module.fail_json(msg=str(error))
    except (KeyError, TypeError, ValueError) as error:
        module.fail_json(
            msg=f"{module.params['url']} gave an answer that is not understood ({error!r}): is it Proxmox VE?"
        )
    else:
        module.exit_json(**result)


class Work:
    """One action on one guest."""

    def __init__(self, api: Api, wanted: dict[str, Any]) -> None:
        self.api, self.wanted = api, wanted
        self.action = str(wanted["action"])
        self.nodes: dict[str, bool] = {}
        self.guest = self._find()

    def run(self, check_mode: bool) -> dict[str, Any]:
        """Do it, unless it is done already; gives what to tell."""
        if self.action == "look":
            unmet = self._unmet()
            return {"changed": False, "unmet": unmet, "msg": " ".join(unmet) or f"{self.guest} is as wanted."}
        try:
            running = self._running_task()
            if running is None:
                path, body = getattr(self, f"_{self.action}")()
        except AlreadyError as why:
            return {"changed": False, "msg": str(why)}
        if check_mode:
            return {"changed": True, "msg": f"{self.guest}: {self.action} would be done."}
        self.api.follow(running or self.api.post(*path, **body), self.wanted["wait"])
        if not self.api.wait_for(lambda: self._is_done() or None, self.wanted["wait"]):
            raise ProxmoxError(
                f"{self.guest}: the task of the {self.action} ended well, and {self.wanted['wait']} s later "
                "it is still not so: see the guest's tasks, and HA's if it manages the guest."
            )
        return {"changed": True, "msg": f"{self.guest}: {self.action} was done."}

    # --- what stands against touching anything ---------------------------------------------------

    def _find(self) -> Guest:
        """Find the guest, and tell a cluster or a node that is down from a guest that is."""
        self._check_cluster()
        wanted = self.wanted["guest"]
        rows = self.api.rows("cluster", "resources", type="vm")
        found = [row for row in rows if wanted in {str(row.get("vmid")), row.get("name")}]
        if not found:
            names = ", ".join(sorted(str(row.get("name")) for row in rows)) or "none at all"
            raise ProxmoxError(
                f"There is no guest {wanted!r} that the API token may see on {self.api.url}: "
                f"it sees {saying(names)}."
            )
        if len(found) > 1:
            numbers = ", ".join(sorted(str(row["vmid"]) for row in found))
            raise ProxmoxError(f"Several guests are {wanted!r} ({numbers}): name one by its number.")
        row = found[0]
        guest = Guest(int(row["vmid"]), str(row.get("name")), str(row["type"]), str(row["node"]))
        if row.get("template"):
            raise ProxmoxError(f"{guest} is a template: name a guest.")
        if not self.nodes.get(guest.node):
            raise ProxmoxError(
                f"Node {guest.node} is down, and with it {guest}: mend the node, the guest is not touched."
            )
        return guest

    def _check_cluster(self) -> None:
        rows = self.api.rows("cluster", "status")
        self.nodes = {
            str(row.get("name")): bool(row.get("online")) for row in rows if row.get("type") == "node"
        }
        # A single node has no row for a cluster, and needs no quorum.
        if any(row.get("type") == "cluster" and not row.get("quorate") for row in rows):
            down = ", ".join(sorted(name for name, online in self.nodes.items() if not online))
            raise ProxmoxError(
                f"The cluster of {self.api.url} has lost its quorum (down: {down or 'none is known'}): "
                "no guest is touched before enough nodes are back."
            )

    def _running_task(self) -> str | None:
        """Give the task that does it already; raise if another one works on the guest, or if it is locked."""
        rows = [
            row for row in self._tasks(self.guest.node, "active") if row.get("status") in {None, "RUNNING"}
        ]
        for row in rows:
            if row["type"] in TASKS[self.action]:
                return str(row["upid"])
        others = ", ".join(
            f"{row['type']} of {row.get('user')}" for row in rows if row["type"] not in CONSOLES
        )
        if others:
            raise ProxmoxError(
                f"{self.guest} is at work ({saying(others)}): nothing is done before that ends."
            )
        lock = self._current().get("lock")
        # A guest that was suspended to disk is locked until it is started.
        if lock and (self.action, lock) != ("start", "suspended"):
            raise ProxmoxError(
                f"{self.guest} is locked ({saying(lock)}): wait for what locked it. "
                f"If nothing works on it any more, unlock it by hand (qm or pct unlock {self.guest.vmid})."
            )
        return None

    def _tasks(self, node: str, source: str, **query: object) -> list[dict[str, Any]]:
        where = ("nodes", node, "tasks")
        return self.api.rows(*where, vmid=self.guest.vmid, source=source, limit=500, **query)

    def _current(self) -> dict[str, Any]:
        return self.api.state(*self.guest.path, "status", "current")

    # --- actions: what is to be sent, unless it is so already -------------------------------------

    def _start(self) -> tuple[tuple[str, ...], dict[str, object]]:
        current = self._current()
        if current.get("status") == "running":
            self._check_alive(current)
            raise AlreadyError(f"{self.guest} runs already.")
        return (*self.guest.path, "status", "start"), {}

    def _reset(self) -> tuple[tuple[str, ...], dict[str, object]]:
        current = self._current()
        if self.guest.kind != "qemu":
            raise ProxmoxError(f"{self.guest} is no virtual machine: only these can be reset.")
        if current.get("status") != "running":
            raise ProxmoxError(f"{self.guest} does not run, so it is not reset: start it.")
        self._check_alive(current)
        age = self._booted_since(current)
        if age < self.wanted["grace"]:
            raise AlreadyError(f"{self.guest} booted {age:.0f} s ago: it is given {self.wanted['grace']} s.")
        if not self.wanted["force"]:
            if not current.get("agent"):
                raise ProxmoxError(
                    f"{self.guest} has no guest agent that could be asked, so it is not reset: "
                    "switch the agent on in its options, or force it."
                )
            if self._agent_answers(self.wanted["tries"]):
                raise AlreadyError(f"{self.guest} is not reset, because its guest agent answers.")
        return (*self.guest.path, "status", "reset"), {}

    def _snapshot(self) -> tuple[tuple[str, ...], dict[str, object]]:
        name, there = self.wanted["snapshot"], self._snapshots()
        if self._complete(name, there):
            raise AlreadyError(f"{self.guest} has the snapshot {name} already.")
        if len(there) >= self.wanted["limit"]:
            raise ProxmoxError(
                f"{self.guest} has {len(there)} snapshots, and {self.wanted['limit']} are allowed: "
                "delete those that nobody needs."
            )
        body: dict[str, object] = {"snapname": name, "description": "By zamu"}
        if self.wanted["ram"] and self.guest.kind == "qemu":
            body["vmstate"] = 1
        return (*self.guest.path, "snapshot"), body

    def _rollback(self) -> tuple[tuple[str, ...], dict[str, object]]:
        name = self.wanted["snapshot"]
        if not self._complete(name, self._snapshots()):
            raise ProxmoxError(f"{self.guest} has no snapshot {name!r}: nothing was rolled back.")
        ended = self._last_end("rollback")
        if self._parent() == name and time.time() - ended < self.wanted["grace"]:
            raise AlreadyError(f"{self.guest} was rolled back to {name} {time.time() - ended:.0f} s ago.")
        body: dict[str, object] = {"start": 1} if self.wanted["running"] else {}
        return (*self.guest.path, "snapshot", name, "rollback"), body

    def _backup(self) -> tuple[tuple[str, ...], dict[str, object]]:
        storage = self.wanted["storage"]
        where = f"Storage {storage} on node {self.guest.node}"
        state = self.api.state("nodes", self.guest.node, "storage", storage, "status")
        if not state.get("enabled") or not state.get("active"):
            raise ProxmoxError(f"{where} is not available: mend it first, no backup was tried.")
        if "backup" not in str(state.get("content")).split(","):
            raise ProxmoxError(f"{where} is not for backups: name another one, or allow them there.")
        if (age := self._backup_age()) < self.wanted["max_age"]:
            raise AlreadyError(f"{self.guest} has a backup on {storage} that is {age:.0f} s old.")
        free = int(state.get("avail") or 0) / GIB
        if free < self.wanted["min_free"]:
            raise ProxmoxError(
                f"{where} is full: {free:.1f} GiB are free, and {self.wanted['min_free']} are wanted. "
                "Make room there, no backup was tried."
            )
        body = {
            "vmid": self.guest.vmid,
            "storage": storage,
            "mode": self.wanted["mode"],
            "compress": "zstd",
        }
        return ("nodes", self.guest.node, "vzdump"), body

    def _migrate(self) -> tuple[tuple[str, ...], dict[str, object]]:
        target = self.wanted["node"]
        if self.guest.node == target:
            raise AlreadyError(f"{self.guest} is there already.")
        if target not in self.nodes:
            raise ProxmoxError(f"There is no node {target!r}: name one of {saying(', '.join(self.nodes))}.")
        if not self.nodes[target]:
            raise ProxmoxError(f"Node {target} is down: nothing can be migrated there.")
        running = self._current().get("status") == "running"
        if self.guest.kind == "lxc":
            if running and not self.wanted["restart"]:
                raise ProxmoxError(
                    f"{self.guest} would be restarted by that: allow it (restart), or stop it."
                )
            return (*self.guest.path, "migrate"), {"target": target, **({"restart": 1} if running else {})}
        self._check_bound(target)
        return (*self.guest.path, "migrate"), {"target": target, **({"online": 1} if running else {})}

    def _check_bound(self, target: str) -> None:
        """Raise if the virtual machine hangs on what only its node has."""
        found = self.api.state(*self.guest.path, "migrate", target=target)
        disks = [str(disk.get("volid")) for disk in found.get("local_disks") or []]
        bound = [*disks, *map(str, found.get("local_resources") or [])]
        if bound:
            raise ProxmoxError(
                f"{self.guest} is not migrated, because only this node has {saying(', '.join(bound))}."
            )
        if target in (found.get("not_allowed_nodes") or {}):
            why = found["not_allowed_nodes"][target]
            raise ProxmoxError(
                f"{self.guest} may not be on node {target} ({saying(why)}): it is not migrated."
            )

    # --- what is so ------------------------------------------------------------------------------

    def _is_done(self) -> bool:
        """Whether what was wanted is so, once the task has ended."""
        match self.action:
            case "start":
                return self._runs()
            case "snapshot":
                return self._complete(self.wanted["snapshot"], self._snapshots())
            case "rollback":
                return self._parent() == self.wanted["snapshot"] and (
                    not self.wanted["running"] or self._runs()
                )
            case "migrate":
                rows = self.api.rows("cluster", "resources", type="vm")
                return any(
                    row.get("vmid") == self.guest.vmid and row.get("node") == self.wanted["node"]
                    for row in rows
                )
        return True

    def _unmet(self) -> list[str]:
        """Sentences about what is not as asked for."""
        wanted, guest = self.wanted, self.guest
        unmet = []
        if wanted["node"] and guest.node != wanted["node"]:
            unmet.append(f"{guest} is not on node {wanted['node']}.")
        if wanted["running"] and not self._runs():
            current = self._current()
            unmet.append(
                f"{guest} does not run ({saying(current.get('qmpstatus') or current.get('status'))})."
            )
        elif wanted["agent"] and guest.kind == "qemu" and not self._agent_answers(1):
            unmet.append(f"{guest}: its guest agent does not answer.")
        if wanted["snapshot"] and not self._complete(wanted["snapshot"], self._snapshots()):
            unmet.append(f"{guest} has no snapshot {wanted['snapshot']}.")
        if wanted["storage"] and self._backup_age() >= wanted["max_age"]:
            unmet.append(f"{guest} has no backup on {wanted['storage']} of the last {wanted['max_age']} s.")
        return unmet

    def _runs(self) -> bool:
        current = self._current()
        return current.get("status") == "running" and current.get("qmpstatus", "running") == "running"

    def _check_alive(self, current: dict[str, Any]) -> None:
        state = current.get("qmpstatus", "running")
        if state not in ALIVE:
            raise ProxmoxError(
                f"{self.guest} is held ({saying(state)}), and this does not help: see why it was paused "
                "(io-error: its storage is full or broken), and resume it."
            )

    def _booted_since(self, current: dict[str, Any]) -> float:
        """Seconds since it booted: a reset begins no new uptime, so the tasks are asked, too."""
        return min(float(current.get("uptime") or 0), time.time() - self._last_end("reset"))

    def _last_end(self, action: str) -> float:
        """When such a task last ended well, or 0; each node knows its own, and the guest may have moved."""
        since = int(time.time()) - self.wanted["grace"]
        online = [node for node, up in self.nodes.items() if up]
        rows = [row for node in online for row in self._tasks(node, "all", since=since)]
        well = [row for row in rows if str(row.get("status")).startswith(("OK", "WARNINGS"))]
        ends = [float(row.get("endtime") or 0) for row in well if row["type"] in TASKS[action]]
        return max(ends, default=0.0)

    def _agent_answers(self, tries: int) -> bool:
        for left in reversed(range(max(1, tries))):
            try:
                self.api.post(*self.guest.path, "agent", "ping")
            except ProxmoxError as error:
                if error.status != SERVER_ERROR or not SILENT.search(error.said):
                    raise
            else:
                return True
            if left:
                time.sleep(self.wanted["delay"])
        return False

    def _snapshots(self) -> list[dict[str, Any]]:
        rows = self.api.rows(*self.guest.path, "snapshot")
        return [row for row in rows if row.get("name") != "current"]

    def _parent(self) -> object:
        """The snapshot on which the guest now stands."""
        rows = self.api.rows(*self.guest.path, "snapshot")
        return next((row.get("parent") for row in rows if row.get("name") == "current"), None)

    def _complete(self, name: str, there: list[dict[str, Any]]) -> bool:
        found = next((row for row in there if row.get("name") == name), None)
        if found and found.get("snapstate"):
            raise ProxmoxError(
                f"The snapshot {name} of {self.guest} is incomplete ({saying(found['snapstate'])}): "
                "delete it first."
            )
        return found is not None

    def _backup_age(self) -> float:
        """Seconds since the newest backup on the storage was begun, or infinity."""
        where = ("nodes", self.guest.node, "storage", self.wanted["storage"], "content")
        rows = self.api.rows(*where, content="backup", vmid=self.guest.vmid)
        return min((time.time() - float(row.get("ctime") or 0) for row in rows), default=float("inf"))


if __name__ == "__main__":
    main()
