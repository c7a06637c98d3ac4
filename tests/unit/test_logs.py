# SPDX-License-Identifier: Apache-2.0
import logging
from collections.abc import Iterator

import pytest

from zamu import logs

FORGED = "value\n12:00:00  zamu ERROR: forged\r\n\x1b[31mred\x85\u2028\u202e"


type Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """The loggers are afterwards as before."""
    root = logging.getLogger()
    before = (root.handlers, root.level)
    known = {name: logging.getLogger(name).level for name in ("zamu", "apprise", "urllib3")}
    yield
    root.handlers = before[0]
    root.setLevel(before[1])
    for name, level in known.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("verbose", [False, True])
def test_a_value_from_outside_cannot_forge_a_line_or_speak_to_the_terminal(
    capsys: Capture, verbose: bool
) -> None:
    logs.configure(verbose)
    logging.getLogger("zamu.test").warning("It said %s.", FORGED)
    [line] = capsys.readouterr().err.split("\n")[:-1]
    assert line.isprintable()
    assert "zamu.test WARNING: It said value\ufffd12:00:00" in line


@pytest.mark.parametrize("verbose", [False, True])
def test_the_text_of_an_exception_cannot_either(capsys: Capture, verbose: bool) -> None:
    logs.configure(verbose)
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("zamu.test").exception("It failed")
    err = capsys.readouterr().err
    shown = err.split("\n")[:-1]
    assert all(line.isprintable() for line in shown)
    assert [line for line in shown if not line.startswith(" ")] == shown[:1]
    assert "ValueError: value" in err
    assert ("Traceback" in err) is verbose


def test_a_line_is_cut(capsys: Capture) -> None:
    logs.configure()
    logging.getLogger("zamu").warning("x" * 100_000)
    assert len(capsys.readouterr().err) <= 2_001


def test_our_information_is_shown_and_that_of_others_only_when_verbose(capsys: Capture) -> None:
    logs.configure()
    for name in ("zamu.test", "aiohttp.access"):
        logging.getLogger(name).info("from %s", name)
        logging.getLogger(name).debug("detail of %s", name)
    assert capsys.readouterr().err.count("\n") == 1
    logs.configure(verbose=True)
    logging.getLogger("zamu.test").debug("detail")
    assert "DEBUG: detail" in capsys.readouterr().err


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("name", ["apprise", "apprise.plugins", "urllib3.connectionpool"])
def test_who_logs_the_url_of_a_channel_is_silent(capsys: Capture, verbose: bool, name: str) -> None:
    logs.configure(verbose)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger(name).log(level, "POST /bot-token HTTP/1.1")
    assert capsys.readouterr().err == ""
