#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The module that asks one DNS server for the addresses of a name."""

DOCUMENTATION = r"""
module: dns_lookup
short_description: Ask one DNS server for the addresses of a name
version_added: 0.1.0
description:
  - Sends one question to one server over UDP. Needs neither a library nor a program on the host.
options:
  name:
    description: The name to resolve.
    type: str
    required: true
  server:
    description: The server, by its address.
    type: str
    required: true
  port:
    description: The server's UDP port.
    type: int
    default: 53
  type:
    description: Which addresses to ask for.
    type: str
    choices: [A, AAAA]
    default: A
  timeout:
    description: Seconds to wait for the answer.
    type: int
    default: 3
attributes:
  check_mode:
    support: full
    description: It changes nothing.
  diff_mode:
    support: none
author:
  - The zamu developers
"""

EXAMPLES = r"""
- name: Resolve a name at the house's own resolver
  boma.zamu.dns_lookup:
    name: debian.org
    server: 192.0.2.1
"""

RETURN = r"""
addresses:
  description: The addresses that were answered, in their short form.
  returned: success
  type: list
  elements: str
msg:
  description: The answer in words.
  returned: always
  type: str
"""

import secrets
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_address

from ansible.module_utils.basic import AnsibleModule

_TYPES = {"A": 1, "AAAA": 28}
_INTERNET = 1
_RECURSION_WANTED = 0x0100
_IS_ANSWER = 0x8000
_TRUNCATED = 0x0200
_POINTER = 0xC0
_REFUSALS = {
    1: "it says that the question is malformed (FORMERR)",
    2: "it failed to find out (SERVFAIL)",
    3: "there is no such name (NXDOMAIN)",
    4: "it does not do that (NOTIMP)",
    5: "it refuses (REFUSED)",
}


class DnsError(Exception):
    """There is no answer with addresses; the message says why."""


def question_of(name: str, kind: str) -> bytes:
    """The part of a message that says what is asked."""
    labels = name.rstrip(".").encode("ascii").split(b".")
    return b"".join(bytes([len(one)]) + one for one in labels) + struct.pack("!x2H", _TYPES[kind], _INTERNET)


def after_name(message: bytes, at: int) -> int:
    """Where the name ends that begins here; a pointer ends it."""
    while message[at]:
        if message[at] >= _POINTER:
            return at + 2
        at += 1 + message[at]
    return at + 1


def records(message: bytes, at: int, count: int) -> Iterator[tuple[int, bytes]]:
    """The type and the data of each record that begins here."""
    for _ in range(count):
        at = after_name(message, at)
        kind, _class, _life, length = struct.unpack_from("!2HIH", message, at)
        at += 10
        if at + length > len(message):
            raise IndexError
        yield kind, message[at : at + length]
        at += length


def addresses_in(message: bytes, kind: str, question: bytes) -> list[str]:
    """The addresses in an answer. Raises DnsError when it has none."""
    try:
        _id, flags, _questions, answers, _, _ = struct.unpack_from("!6H", message)
        if code := flags & 0x0F:
            raise DnsError(_REFUSALS.get(code, f"it answers with error {code}"))
        if flags & _TRUNCATED:
            raise DnsError("its answer is longer than UDP allows")
        found = list(records(message, 12 + len(question), answers))
        addresses = [str(ip_address(data)) for kind_, data in found if kind_ == _TYPES[kind]]
    except (struct.error, IndexError, ValueError) as error:
        raise DnsError("its answer is broken") from error
    if not addresses:
        raise DnsError(f"the name has no {kind} record there")
    return addresses


def lookup(name: str, server: str, port: int, kind: str, timeout: int) -> list[str]:
    """Ask, and give the addresses. What does not answer this very question is not heard."""
    question = question_of(name, kind)
    head = struct.pack("!H", secrets.randbits(16))
    deadline = time.monotonic() + timeout
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect((server, port))
            asking.send(head + struct.pack("!5H", _RECURSION_WANTED, 1, 0, 0, 0) + question)
            while (left := deadline - time.monotonic()) > 0:
                asking.settimeout(left)
                message = asking.recv(65535)
                echoed = message[12 : 12 + len(question)].lower() == question.lower()
                if message[:2] == head and echoed and message[2] & (_IS_ANSWER >> 8):
                    return addresses_in(message, kind, question)
    except TimeoutError:
        pass
    except OSError as error:
        raise DnsError(f"it cannot be asked: {error.strerror or error}") from error
    raise DnsError(f"it gave no answer within {timeout} s")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "server": {"type": "str", "required": True},
            "port": {"type": "int", "default": 53},
            "type": {"type": "str", "choices": ["A", "AAAA"], "default": "A"},
            "timeout": {"type": "int", "default": 3},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        found = lookup(wanted["name"], wanted["server"], wanted["port"], wanted["type"], wanted["timeout"])
    except DnsError as error:
        module.fail_json(msg=f"{error}.", addresses=[])
    module.exit_json(changed=False, addresses=found, msg=f"{', '.join(found)}.")


if __name__ == "__main__":
    main()
