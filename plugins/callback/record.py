# SPDX-License-Identifier: Apache-2.0
"""The callback plugin that records playbooks in zamu's ledger."""

DOCUMENTATION = r"""
name: record
type: notification
short_description: Records plays, tasks and results in zamu's ledger
version_added: 0.1.0
description:
  - Playbooks that zamu starts are recorded under the run that the gate opened for them.
  - A playbook that a person starts is recorded as a run by hand, if there is a zamu state directory
    (E(ZAMU_STATE), or C(.zamu) in the working directory); otherwise nothing happens.
  - A record that cannot be written never stops the playbook.
requirements:
  - the Python package zamu in Ansible's own environment
author:
  - The zamu developers
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

try:
    from zamu.gate.recorder import TEXT_LIMIT, Recorder, find_state
    from zamu.ledger import TaskResult
except ImportError:
    find_state = None


class CallbackModule(CallbackBase):
    """Hands what Ansible reports to the recorder."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "boma.zamu.record"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._recorder: Any = None
        self._play = ""

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Open the record."""
        state = find_state() if find_state else None
        if state is None:
            return
        path = Path(playbook._file_name)
        run_id = os.environ.get("ZAMU_RUN_ID")
        self._guarded(lambda: setattr(self, "_recorder", Recorder(state, run_id, path)))

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Remember the play's name."""
        self._play = play.get_name()

    def v2_runner_on_ok(self, result: Any) -> None:
        """Record a task that did its work."""
        self._record(result, "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Record a task that failed."""
        self._record(result, "ignored" if ignore_errors else "failed")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Record a host that did not answer."""
        self._record(result, "unreachable")

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Record a task that was not needed."""
        self._record(result, "skipped")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Close the record."""
        if self._recorder is not None:
            failed = sorted({*stats.failures, *stats.dark})
            self._guarded(lambda: self._recorder.end(failed))

    def _record(self, result: Any, status: str) -> None:
        # That the arguments were valid is no work of the role, and above all no verification.
        if self._recorder is None or str(result.task.action).endswith("validate_argument_spec"):
            return
        found = result.result
        role = result.task._role
        words = "" if found.get("censored") else str(found.get("msg") or found.get("stderr") or "")
        entry = TaskResult(
            play=self._play,
            role=role.get_name(include_role_fqcn=False) if role else "",
            task=result.task.name or result.task.action,
            host=result.host.get_name(),
            status=status,
            changed=bool(found.get("changed")),
            text=words[:TEXT_LIMIT],
        )
        self._guarded(lambda: self._recorder.record(entry))

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:
            self._recorder = None
            self._display.warning(f"zamu's ledger does not record this playbook: {error}")
