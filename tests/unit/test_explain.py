# SPDX-License-Identifier: Apache-2.0
"""`zamu explain` does nothing, whatever the house lets be done."""

from pathlib import Path

import msgspec
import pytest

from unit.helpers import gate_settings, intent
from zamu import policy
from zamu.explain import observing
from zamu.gate.guard import Guard
from zamu.gate.policy import Guard as Told
from zamu.ledger import Answer
from zamu.ledger.sqlite import Ledger

SAID = {
    "mend": {"trust": "auto", "window": "night"},
    "other": {"trust": "propose", "dry_run": True},
}


@pytest.mark.parametrize("playbook", [*SAID, *policy.Guard.built_in])
def test_in_the_rehearsal_every_action_is_only_observed(
    tmp_path: Path, ledger: Ledger, playbook: str
) -> None:
    night = {"night": {"cron": "0 2 * * *", "duration": "3h"}}
    house = policy.Guard.model_validate({"actions": SAID, "windows": night})
    settings = gate_settings(tmp_path)
    settings = msgspec.structs.replace(settings, guard=msgspec.convert(observing(house).as_told(), Told))
    verdict = Guard(intent(playbook=playbook), settings).judge(ledger, False)
    assert (verdict.answer, str(verdict.reason).partition(":")[0]) == (Answer.DENY, "observed only")
