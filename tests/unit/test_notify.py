# SPDX-License-Identifier: Apache-2.0
"""The outbox with a real mail server in place of the world."""

import asyncio
import logging
from collections.abc import Iterator
from datetime import timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from harness import free_port
from unit.helpers import moment
from unit.test_host import until
from zamu import notify
from zamu.config import Channel, Config, Notify
from zamu.doorbell import ring
from zamu.ledger import Letter, Message
from zamu.ledger.sqlite import Ledger
from zamu.notify import CONSOLE, SHOWN, Outbox
from zamu.secrets import Secret
from zamu.state import State

SECRET = "s3cr3t-of-the-url"


class Mailbox:
    """What a mail server got; it refuses everything while `closed`."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.closed = False

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.closed:
            return "550 closed"
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 OK"

    def text(self) -> str:
        """The plain text of the last mail."""
        body = self.mails[-1].get_body(("plain",))
        assert body is not None
        return str(body.get_content())


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def mail_url(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The reference of a URL that reaches the mailbox."""
    controller = Controller(mailbox, hostname="127.0.0.1", port=free_port())
    controller.start()
    url = f"mailto://127.0.0.1:{controller.port}?from=zamu@example.net&to=you@example.net&pass={SECRET}"
    monkeypatch.setenv("MAIL_URL", url)
    yield "env:MAIL_URL"
    controller.stop()


@pytest.fixture
def dead_url(monkeypatch: pytest.MonkeyPatch) -> str:
    """The reference of a URL where nobody listens, with a secret in it."""
    monkeypatch.setenv("DEAD_URL", f"json://user:{SECRET}@127.0.0.1:{free_port()}/{SECRET}")
    return "env:DEAD_URL"


def channel(name: str, url: str, **fields: Any) -> Channel:
    return Channel(name=name, url=Secret(url), **fields)


async def send(state: State, ledger: Ledger, *channels: Channel) -> None:
    """Let the outbox run until every letter was delivered, or was tried once."""
    config = Config(root=state.root, notify=Notify(channels=list(channels)))
    task = asyncio.create_task(Outbox(config, state).run())

    def done() -> bool:
        assert not task.done(), task
        return all(letter.attempts for letter in ledger.letters())

    try:
        await until(lambda: list(state.bells.iterdir()))  # it listens
        await until(done)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_letter_is_delivered_once(
    state: State, ledger: Ledger, mailbox: Mailbox, mail_url: str
) -> None:
    ledger.tell(Message("A title", "line 1\nline 2", "urgent"))
    for _ in range(2):
        await send(state, ledger, channel("mail", mail_url))
    [mail] = mailbox.mails
    assert mail["Subject"] == "A title"
    assert mailbox.text().splitlines() == ["line 1", "line 2"]
    [letter] = ledger.letters("delivered")
    assert (letter.channel, letter.attempts) == ("mail", 1)


async def test_many_messages_go_out_as_one_with_counts_by_title(
    state: State, ledger: Ledger, mailbox: Mailbox, mail_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_CALM", timedelta(seconds=1))
    for number in range(400):
        ledger.tell(Message("web1 is down" if number % 4 else "web2 is down", "words", "low"))
    ledger.tell(Message("A storm", "the switch", "urgent"), origin="storm x")
    await send(state, ledger, channel("mail", mail_url))
    assert [mail["Subject"] for mail in mailbox.mails] == ["A storm", "400 messages, most: web1 is down"]
    assert mailbox.text().splitlines() == [
        "300 x web1 is down",
        "100 x web2 is down",
        "`zamu messages` shows them all.",
    ]
    assert len(ledger.letters("delivered")) == 401


async def test_messages_are_gathered_while_more_come_and_then_sent(
    state: State, ledger: Ledger, mailbox: Mailbox, mail_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_CALM", timedelta(seconds=2))
    config = Config(root=state.root, notify=Notify(channels=[channel("mail", mail_url)]))
    task = asyncio.create_task(Outbox(config, state).run())
    await until(lambda: list(state.bells.iterdir()))
    for number in range(40):
        ledger.tell(Message(f"{number % 10} is down", ""))
        ring(state.bells, "outbox")
        await asyncio.sleep(0.01)
    await until(lambda: len(ledger.letters("delivered")) == 40)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(mailbox.mails) <= 6  # at most five before it was known that there are many


def test_a_digest_is_as_urgent_as_the_most_urgent_in_it_and_names_few_titles() -> None:
    letters = [
        Letter(number, Message(f"{number}", "", urgency), moment(), "waiting", 0)
        for number, urgency in enumerate(["low", "urgent", *["normal"] * 28])
    ]
    found = notify.digest(letters)
    assert found.urgency == "urgent"
    assert found.body.splitlines()[-2:] == ["and 10 other titles", "`zamu messages` shows them all."]
    assert notify.digest(letters[:1]) == letters[0].message


async def test_a_letter_that_comes_while_it_waits_is_delivered_when_the_bell_rings(
    state: State, ledger: Ledger, mailbox: Mailbox, mail_url: str
) -> None:
    config = Config(root=state.root, notify=Notify(channels=[channel("mail", mail_url)]))
    task = asyncio.create_task(Outbox(config, state).run())
    await until(lambda: list(state.bells.iterdir()))
    ledger.tell(Message("A title", "text"))
    ring(state.bells, "outbox")
    await until(lambda: ledger.letters("delivered"))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(mailbox.mails) == 1
    assert list(state.bells.iterdir()) == []


async def test_when_a_channel_fails_the_next_takes_the_letter(
    state: State, ledger: Ledger, mailbox: Mailbox, mail_url: str, dead_url: str
) -> None:
    ledger.tell(Message("A title", "text"))
    await send(state, ledger, channel("first", dead_url), channel("second", mail_url))
    assert [letter.channel for letter in ledger.letters()] == ["second"]
    assert len(mailbox.mails) == 1


async def test_when_all_fail_the_letter_is_kept_and_that_is_said_once_without_secrets(
    state: State, ledger: Ledger, dead_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    from zamu import logs

    before = logging.getLogger().handlers
    logs.configure(verbose=True)
    logging.getLogger().handlers = before
    ledger.tell(Message("one", "text"))
    ledger.tell(Message("two", "text"))
    channels = [channel("first", dead_url), channel("second", "env:NOT_SET_IN_THIS_TEST")]
    await send(state, ledger, *channels, channel("third", "file:/dev/null"))
    for letter in ledger.letters("waiting"):
        assert letter.attempts == 1
        assert letter.error is not None
        assert letter.error.startswith("first: it did not take the message; second: The environment variable")
        assert "third: The secret in file /dev/null is empty" in letter.error
        assert SECRET not in letter.error
    assert ledger.due() == []
    warnings = [one for one in caplog.records if one.name == "zamu.notify"]
    assert len(warnings) == 1
    assert SECRET not in caplog.text


async def test_a_letter_that_was_kept_is_delivered_when_the_channel_is_back(
    state: State, ledger: Ledger, mailbox: Mailbox, mail_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mailbox.closed = True
    ledger.tell(Message("A title", "text"))
    config = Config(root=state.root, notify=Notify(channels=[channel("mail", mail_url)]))
    task = asyncio.create_task(Outbox(config, state).run())
    await until(lambda: ledger.letters()[0].attempts == 1)
    mailbox.closed = False
    ledger.postpone([1], "again", timedelta(seconds=-1))  # its time has come
    ring(state.bells, "outbox")
    await until(lambda: ledger.letters("delivered"))
    await until(lambda: "can be delivered again" in caplog.text)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(mailbox.mails) == 1


async def test_a_channel_takes_only_the_urgencies_that_are_meant_for_it(
    state: State, ledger: Ledger, mailbox: Mailbox, mail_url: str, dead_url: str
) -> None:
    ledger.tell(Message("low", "text", "low"))
    ledger.tell(Message("urgent", "text", "urgent"))
    loud = channel("loud", dead_url, urgencies=("urgent",))
    quiet = channel("quiet", mail_url, urgencies=("low", "normal"))
    await send(state, ledger, loud, quiet)
    assert [letter.state for letter in ledger.letters()] == ["delivered", "waiting"]
    assert [mail["Subject"] for mail in mailbox.mails] == ["low"]


async def test_an_urgency_that_no_channel_is_meant_for_goes_to_any(
    state: State, ledger: Ledger, mailbox: Mailbox, mail_url: str
) -> None:
    ledger.tell(Message("urgent", "text", "urgent"))
    await send(state, ledger, channel("quiet", mail_url, urgencies=("low",)))
    assert len(mailbox.mails) == 1


@pytest.mark.parametrize("shown", [False, True])
async def test_without_a_channel_it_goes_to_the_console_or_the_log(
    state: State,
    ledger: Ledger,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    shown: bool,
) -> None:
    monkeypatch.delenv(SHOWN, raising=False)
    if shown:
        monkeypatch.setenv(SHOWN, "1")
    ledger.tell(Message("A title", "text"))
    await send(state, ledger)
    assert [letter.channel for letter in ledger.letters("delivered")] == [CONSOLE]
    assert ("A title | text" in caplog.text) is not shown


@pytest.mark.parametrize(
    ("title", "body", "subject", "text"),
    [
        ("🎉 <b>bold</b> & {{ x }}", "<script>alert(1)</script> &amp; 🎉 {{ x }} *a* _b_", None, None),
        ("a\r\nBcc: x@example.net", "text", "a\ufffd\ufffdBcc: x@example.net", None),
        ("a\x1b[2J", "line\x1b[2J\x07", "a\ufffd[2J", None),
        ("警" * 300, "報" * 10_000, "警" * 66 + "…", None),
        ("🎉" * 300, "🎉" * 10_000, "🎉" * 50 + "…", None),
        ("ä" * 300, "ü" * 10_000, "ä" * 100 + "…", None),
    ],
)
async def test_whatever_an_event_said_arrives_as_text(
    state: State,
    ledger: Ledger,
    mailbox: Mailbox,
    mail_url: str,
    title: str,
    body: str,
    subject: str | None,
    text: str | None,
) -> None:
    message = Message.of(title, body)
    ledger.tell(message)
    await send(state, ledger, channel("mail", mail_url))
    [mail] = mailbox.mails
    assert mail["Subject"] == (subject or title)
    assert mail["Bcc"] is None
    assert mailbox.text().strip() == (text or message.body).strip()
    html = mail.get_body(("html",))
    if html is not None:
        assert "<script" not in str(html.get_content())
        assert "<b>" not in str(html.get_content())


@pytest.mark.parametrize(("title", "body"), [("", ""), (" ", " "), ("", "text"), ("title", "")])
async def test_a_message_without_words_does_not_block_the_outbox(
    state: State, ledger: Ledger, mailbox: Mailbox, mail_url: str, title: str, body: str
) -> None:
    ledger.tell(Message.of(title, body))
    ledger.tell(Message.of("next", "text"))
    await send(state, ledger, channel("mail", mail_url))
    assert [letter.state for letter in ledger.letters()] == ["delivered", "delivered"]


async def test_a_message_that_was_queued_uncut_arrives_too(
    state: State, ledger: Ledger, mailbox: Mailbox, mail_url: str
) -> None:
    ledger.tell(Message("a\nb\0c", "x\0y"))
    await send(state, ledger, channel("mail", mail_url))
    assert ledger.letters()[0].attempts == 1
