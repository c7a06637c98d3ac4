# SPDX-License-Identifier: Apache-2.0
"""A real mail server that keeps what was delivered."""

from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MessageHandler

from harness import free_port


class Mailbox(MessageHandler):
    """What was delivered, and the address to which zamu sends it."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.url = f"mailto://127.0.0.1:{port}/?from=zamu@example.net&to=operator@example.net"
        self.subjects: list[str] = []
        self.texts: list[str] = []

    def handle_message(self, message: Message) -> None:
        self.subjects.append(str(message["subject"]))
        parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
        payloads = [part.get_payload(decode=True) for part in parts]
        self.texts.append(
            "\n".join(one.decode().replace("\r\n", "\n") for one in payloads if isinstance(one, bytes))
        )


@contextmanager
def mail_server() -> Iterator[Mailbox]:
    """Deliver into a mailbox until the end of the block."""
    port = free_port()
    mailbox = Mailbox(port)
    server = Controller(mailbox, hostname="127.0.0.1", port=port)
    server.start()
    try:
        yield mailbox
    finally:
        server.stop()
