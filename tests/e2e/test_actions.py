# SPDX-License-Identifier: Apache-2.0
"""An action that the rules engine drops before its playbook begins is tried again, or is shown."""

from pathlib import Path

import pytest
import yaml

from harness import LINE_RULEBOOK, Zamu, line_alert, line_writer, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

KILLED_ONCE = """\
#!/bin/sh
if [ ! -e {mark} ]; then
    touch {mark}
    kill -KILL $$
fi
exec {door} "$@"
"""


def test_a_gate_that_is_killed_before_it_wrote_anything_is_asked_again(tmp_path: Path) -> None:
    with line_writer(tmp_path) as zamu:
        zamu.start("intake", "engine")
        zamu.wait_ready()
        door = zamu.state / "engine" / "bin" / "ansible-playbook"
        real = door.with_name("real")
        door.rename(real)
        door.write_text(KILLED_ONCE.format(mark=tmp_path / "mark", door=real))
        door.chmod(0o755)
        assert zamu.post(line_alert("killed"))[0] == 202
        zamu.wait_for_run("write_line", "successful")
        assert (tmp_path / "mark").exists()
        assert (tmp_path / "lines").read_text().split() == ["killed"]


def test_a_gate_without_settings_is_asked_again(tmp_path: Path) -> None:
    with line_writer(tmp_path) as zamu:
        zamu.start("intake", "engine")
        zamu.wait_ready()
        settings = zamu.state / "engine" / "gate.json"
        aside = settings.rename(tmp_path / "aside")
        assert zamu.post(line_alert("later"))[0] == 202
        wait_until(lambda: "has no settings" in engine_log(zamu), 60, zamu.story)
        aside.rename(settings)
        zamu.wait_for_run("write_line", "successful")
        assert (tmp_path / "lines").read_text().split() == ["later"]


def test_an_argument_that_cannot_be_rendered_becomes_a_failed_run(tmp_path: Path) -> None:
    with line_writer(tmp_path) as zamu:
        rulebook = [{**LINE_RULEBOOK[0], "rules": [dict(LINE_RULEBOOK[0]["rules"][0])]}]
        rulebook[0]["rules"][0]["action"] = {
            "run_playbook": {"name": "write_line", "extra_vars": {"line": "{{ event.alert.labels.missing }}"}}
        }
        (zamu.directory / "rulebooks" / "torture.yml").write_text(yaml.safe_dump(rulebook))
        zamu.start("intake", "engine")
        zamu.wait_ready()
        assert zamu.post(line_alert("never"))[0] == 202
        (run,) = zamu.wait_for_run("write_line", "failed")
        assert "'missing'" in run["reason"]
        assert (run["rule"], run["hosts"], run["started_at"]) == ("Write a line", ["web1"], None)
        (event,) = zamu.events()
        assert run["events"] == [event["uuid"]]
        # Nothing is left that would try it for ever, and the next one is not held up.
        zamu.wait_settled()
        assert not (tmp_path / "lines").exists()


def engine_log(zamu: Zamu) -> str:
    return (zamu.state / "logs" / "engine.log").read_text()
