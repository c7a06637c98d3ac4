# SPDX-License-Identifier: Apache-2.0
"""One run of one playbook, in a session of its own: it outlives the engine that wanted it."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from zamu import processes
from zamu.doorbell import ring
from zamu.gate import inert
from zamu.gate.settings import Settings, load
from zamu.ledger import Run, Status, TaskResult
from zamu.ledger.sqlite import Ledger
from zamu.state import State

# ansible-playbook's exit code after SIGINT.
_ANSIBLE_INTERRUPTED = 99


def main(run_id: str) -> int:
    """Run the playbook of a claimed run and write its end into the ledger."""
    settings = load()
    state = State(Path(settings.state))
    ledger = Ledger(state.ledger)
    if not ledger.start(run_id, processes.identity()):
        return 1  # somebody took us for dead, and began again
    ring(state.bells, "ledger")
    run = ledger.get(run_id)
    assert run is not None  # it was just started
    try:
        code = _play(settings, run)
        status, reason = _judge(ledger, settings, run, code)
    except OSError as error:
        status, reason = Status.FAILED, f"Ansible could not be started: {error}."
    verified = None if run.dry else status is Status.SUCCESSFUL
    ledger.finish(run_id, status, verified=verified, reason=reason)
    ring(state.bells, "ledger")
    return 0


def _play(settings: Settings, run: Run) -> int | None:
    """Run the real ansible-playbook; None when it took too long and was ended."""
    with tempfile.NamedTemporaryFile("w", dir=State(Path(settings.state)).engine, suffix=".yml") as file:
        file.write(inert.write(run.intent.variables))
        file.flush()
        where = ["-i", settings.inventory, "--limit", ",".join(run.intent.hosts)]
        how = ["--check", "--diff"] if run.dry else []
        with subprocess.Popen(
            [settings.ansible_playbook, *where, *how, "-e", f"@{file.name}", run.intent.path],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "ZAMU_RUN_ID": run.id, "ZAMU_INTENT": run.intent.key},
            preexec_fn=processes.die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - no threads here
        ) as ansible:
            try:
                return ansible.wait(timeout=settings.run_timeout)
            except subprocess.TimeoutExpired:
                processes.end(processes.identity(ansible.pid), family=True)
                return None


def _judge(ledger: Ledger, settings: Settings, run: Run, code: int | None) -> tuple[Status, str | None]:
    if code is None:
        return Status.FAILED, f"The playbook took longer than {settings.run_timeout:.0f} s and was ended."
    if code < 0 or code == _ANSIBLE_INTERRUPTED:
        return ledger.killed(run, settings.max_attempts)
    results = ledger.tasks(run.id)
    return _judge_dry(run, results, code) if run.dry else _judge_real(run, results, code)


def _judge_real(run: Run, results: list[TaskResult], code: int) -> tuple[Status, str | None]:
    if code != 0:
        return Status.FAILED, _failure(results) or _ended(run, code)
    checked = {one.host for one in results if one.role.startswith("verify_") and one.status == "ok"}
    missing = [host for host in run.intent.hosts if host not in checked]
    if missing:
        return Status.FAILED, (
            f"Not verified on {', '.join(missing)}: the playbook ended well, but no verify_ role "
            "checked the outcome there."
        )
    return Status.SUCCESSFUL, None


def _judge_dry(run: Run, results: list[TaskResult], code: int) -> tuple[Status, str | None]:
    """Nothing was done, so that nothing can be verified, and a role that tries says nothing."""
    done = [one for one in results if not one.role.startswith("verify_")]
    failure = _failure(done) if done else _ended(run, code)
    if failure:
        return Status.FAILED, f"Dry run. {failure}"
    would = [f"{one.task} ({one.host})" for one in done if one.changed]
    return Status.SUCCESSFUL, f"Dry run. It would have done: {', '.join(would) or 'nothing'}."


def _failure(results: list[TaskResult]) -> str | None:
    bad = next((one for one in results if one.status in {"failed", "unreachable"}), None)
    return None if bad is None else f"{bad.task} ({bad.host}): {bad.text}"


def _ended(run: Run, code: int) -> str:
    return f"ansible-playbook ended with {code}; see logs/run-{run.id}.log."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
