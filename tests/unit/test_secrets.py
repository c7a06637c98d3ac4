# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from zamu.errors import ConfigError
from zamu.secrets import Secret


def test_a_secret_comes_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", " kept as it is ")
    assert Secret("env:A_SECRET").reveal() == " kept as it is "


def test_a_secret_comes_from_a_file_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    assert Secret(f"file:{tmp_path}/secret").reveal() == "hunter2"


def test_a_file_may_be_named_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "secret").write_text("hunter2")
    assert Secret("file:~/secret").reveal() == "hunter2"


def test_a_secret_is_read_again_each_time(tmp_path: Path) -> None:
    secret = Secret(f"file:{tmp_path}/secret")
    for text in ("one", "two"):
        (tmp_path / "secret").write_text(text)
        assert secret.reveal() == text


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_missing_or_empty_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("A_SECRET", raising=False)
    if value is not None:
        monkeypatch.setenv("A_SECRET", value)
    with pytest.raises(ConfigError, match="The environment variable A_SECRET is not set or is empty"):
        Secret("env:A_SECRET").reveal()


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read: No such file or directory"), (b" \n", "is empty"), (b"\xff", "cannot be")],
)
def test_a_file_that_gives_no_secret_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"The secret in file {path} {words}"):
        Secret(f"file:{path}").reveal()


@pytest.mark.parametrize("text", ["hunter2", "", "https://x/hunter2", "ENV:X", "$ANSIBLE_VAULT hunter2"])
def test_a_secret_in_the_clear_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="may not stand here in the clear; name it as env:NAME") as error:
        Secret(text)
    assert "hunter2" not in str(error.value)


def test_a_secret_shows_nothing_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2")
    secret = Secret("env:A_SECRET")
    assert "hunter2" not in f"{secret!r} {secret} {[secret]} {{{secret}}}"
    assert repr(secret) == "Secret(…)"
