# SPDX-License-Identifier: Apache-2.0
"""fakepve, furnished as a house's cluster: it is a Proxmox VE 9 that others wrote."""

from __future__ import annotations

from typing import Any

from fakepve.model import FakeVm  # type: ignore[import-untyped]
from fakepve.server import API, USER, ok, params  # type: ignore[import-untyped]

TOKEN, SECRET = "zamu@pve!act", "5c0de5ec-7e75-4a3d-9d4e-7e1150b0d1e5"
GIB = 1024**3
LONG_AGO = 7200
#: What docs/howto/proxmox_remedies.md gives the token.
AUDITOR = ("Sys.Audit", "VM.Audit", "Datastore.Audit")
RIGHTS = (
    "VM.PowerMgmt",
    "VM.GuestAgent.Audit",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
    "VM.Backup",
    "VM.Migrate",
)


def furnish(pve: Any) -> None:
    """Give the fake a second node, and a token with the privileges of the documentation."""
    pve.apitokens.update({TOKEN: SECRET})
    pve.add_node("pve2")
    pve.grant(TOKEN, "/", *AUDITOR)
    pve.grant(TOKEN, "/vms", *RIGHTS)
    pve.grant(TOKEN, "/storage/local", "Datastore.AllocateSpace")


def vm(pve: Any, vmid: int, name: str, status: str = "running", **more: Any) -> FakeVm:
    """A virtual machine with a disk and a guest agent that answers, which booted long ago."""
    config = {"agent": "1", "scsi0": f"local-lvm:vm-{vmid}-disk-0,size=8G"}
    found = pve.add_vm(vmid, name, status=status, config=config, **more)
    found.agent = {}
    if found.started_at:
        found.started_at -= LONG_AGO
    found.snapshots["old"] = {**config, "snaptime": 1}
    return found


def changes(method: str, path: str) -> bool:
    """Whether a request is there to change something: asking the guest agent is not."""
    return method != "GET" and not path.endswith("/agent/ping")


def told(pve: Any, vmid: int | None = None) -> list[str]:
    """What was sent to change something."""
    sent = [path for method, path, _ in pve.requests if changes(method, path)]
    return [path for path in sent if vmid is None or f"/{vmid}/" in path]


def answering(pve: Any) -> None:
    """Fill two gaps of fakepve with what it has itself: its own backup and migration do what the calls are for."""
    generic = pve._generic

    async def call(match: Any, values: dict[str, Any]) -> Any:
        vmid = int(values["vmid"])
        if match.template.endswith("/vzdump"):
            name = f"vzdump-qemu-{vmid}-2026_11_26-22_00_00.vma.zst"
            pve.store_file(values["storage"], name, GIB, content="backup")
            pve.storages[values["storage"]]["volumes"][f"backup/{name}"]["vmid"] = vmid
            return await pve.backup(vmid, user=TOKEN)
        return await pve.migrate(vmid, values["target"], user=TOKEN)

    async def serve(request: Any) -> Any:
        match = pve.resolve(request, API)
        if match and match.template == "/nodes/{node}/qemu/{vmid}/migrate" and request.method == "GET":
            return ok({"running": 1, "local_disks": [], "local_resources": []})
        if (
            request.method == "POST"
            and match
            and match.template.endswith(("/vzdump", "/qemu/{vmid}/migrate"))
        ):
            return ok(await pve.answer(request, match, await params(request), request[USER], call))
        return await generic(request)

    for route in list(pve.runner.app.router.routes()):
        if route.handler == generic:
            route._handler = serve


def booting(pve: Any) -> None:
    """Let a machine that is reset boot, so that its agent answers."""
    reset = pve._do_reset

    async def boot(guest: FakeVm, user: str, values: Any) -> Any:
        guest.agent = {}
        return await reset(guest, user, values)

    pve._do_reset = boot
