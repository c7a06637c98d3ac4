#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The module that puts a message into zamu's outbox."""

DOCUMENTATION = r"""
module: notify
short_description: Tell the operator through zamu's outbox
version_added: 0.1.0
description:
  - Puts a message into the outbox of the zamu on this machine; zamu delivers it at least once.
  - Runs on the control node, where zamu is; delegate it to localhost.
options:
  title:
    description: What the message is about, in a few words.
    type: str
    required: true
  body:
    description: The message itself, as plain text.
    type: str
    default: ""
  urgency:
    description: How much it matters.
    type: str
    choices: [low, normal, urgent]
    default: normal
  key:
    description:
      - Names the message. While zamu remembers one of the same key, it is not put into the outbox again, so
        that a playbook that was killed and is run again tells once. Empty, each is a message of its own.
    type: str
    default: ""
  state_directory:
    description: zamu's state directory.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: In check mode nothing is put into the outbox.
author:
  - The zamu developers
"""

EXAMPLES = r"""
- name: Say that the move begins
  boma.zamu.notify:
    title: web1 is being moved
    state_directory: /var/lib/zamu
  delegate_to: localhost
"""

RETURN = r"""
queued:
  description: Whether the message was put into the outbox now.
  returned: always
  type: bool
known:
  description: Whether zamu had a message of this key already.
  returned: always
  type: bool
"""

import traceback
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from zamu.doorbell import ring
    from zamu.errors import ZamuError
    from zamu.ledger import Message
    from zamu.ledger.sqlite import Ledger
    from zamu.state import State
except ImportError:
    ZAMU_ERROR = traceback.format_exc()
else:
    ZAMU_ERROR = None


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "title": {"type": "str", "required": True},
            "body": {"type": "str", "default": ""},
            "urgency": {"type": "str", "choices": ["low", "normal", "urgent"], "default": "normal"},
            "key": {"type": "str", "default": "", "no_log": False},
            "state_directory": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    if ZAMU_ERROR:
        module.fail_json(msg=missing_required_lib("zamu"), exception=ZAMU_ERROR)
    state = State(Path(module.params["state_directory"]))
    if not state.bells.is_dir():
        module.fail_json(msg=f"There is no zamu in {state.root}; set state_directory, or start zamu there.")
    message = Message.of(module.params["title"], module.params["body"], module.params["urgency"])
    origin = f"playbook {module.params['key']}" if module.params["key"] else None
    try:
        ledger = Ledger(state.ledger)
        if module.check_mode:
            known = origin is not None and ledger.told(origin)
            module.exit_json(changed=not known, queued=False, known=known)
        queued = ledger.tell(message, origin)
    except ZamuError as error:
        module.fail_json(msg=str(error))
    ring(state.bells, "outbox")
    module.exit_json(changed=queued, queued=queued, known=not queued)


if __name__ == "__main__":
    main()
