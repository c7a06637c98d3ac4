# SPDX-License-Identifier: Apache-2.0
"""The one configuration file, `zamu.yml`: what may stand in it, and how it is read.

Every key has a default, so that no file at all is a valid configuration. A wrong or unknown key is
refused with its file, line, name and what is allowed.
"""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from zamu import documents
from zamu.documents import line_of
from zamu.errors import ConfigError
from zamu.event import MAX_DEPTH, MAX_VALUES
from zamu.policy import Guard
from zamu.secrets import VAULT_HEADER
from zamu.section import Duration, SecretReference, Section

DEFAULT_FILE = Path("zamu.yml")
#: The directory of this repository: its rulebooks, playbooks and inventory are what is used by default.
HOME = Path(__file__).resolve().parents[2]
#: Keys that name a part of a house, each with the default of the directory of its name.
_CONTENT = ("rulebooks", "event_sources", "event_filters", "playbooks", "inventory", "ansible_config")

type Urgency = Literal["low", "normal", "urgent"]


class Tls(Section):
    """A certificate with its chain, and its key, as PEM files."""

    certificate: Path
    key: Path


class Intake(Section):
    """The web server that all webhook sources share, and the journal behind it."""

    listen: str = Field("127.0.0.1:8470", pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$")
    tls: Tls | None = None
    keep_events: Duration = timedelta(days=90)
    keep_identities: Duration = timedelta(days=365)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class Limits(Section):
    """All that bounds what comes from outside. What happens beyond each: docs/reference/limits.md."""

    connections: int = Field(250, ge=10, le=50_000, description="at once")
    idle: Duration = Field(timedelta(seconds=75), ge=timedelta(seconds=1))
    headers: int = Field(100, ge=20, le=1_000, description="lines of a request")
    header_size: int = Field(8_192, ge=1_024, le=65_536, description="bytes of one line")
    body: int = Field(1_048_576, ge=1_024, le=16_777_216, description="bytes")
    bodies: int = Field(33_554_432, ge=1_024, le=1_073_741_824, description="bytes of all bodies at once")
    body_time: Duration = Field(timedelta(seconds=15), ge=timedelta(seconds=1))
    linger: Duration = timedelta(seconds=2)
    depth: int = Field(MAX_DEPTH, ge=16, le=MAX_DEPTH, description="levels of JSON")
    values: int = Field(MAX_VALUES, ge=1_000, le=MAX_VALUES, description="of one JSON payload")
    events: int = Field(2_000, ge=1, le=100_000, description="that one message may make")
    rate: int = Field(20_000, ge=1, le=1_000_000, description="messages a second, of one source")
    burst: int = Field(20_000, ge=1, le=1_000_000, description="messages beyond the rate")
    waiting: int = Field(10_000, ge=100, le=1_000_000, description="events for the disk")
    source_memory: int = Field(512, ge=64, le=1_048_576, description="MiB of one foreign source")

    @model_validator(mode="after")
    def _consistent(self) -> "Limits":
        for small, large in (("body", "bodies"), ("events", "waiting")):
            if getattr(self, small) > getattr(self, large):
                raise ValueError(f"{small} is more than {large}: such a message could never be taken")
        return self


class Engine(Section):
    """ansible-rulebook and the playbooks that it starts."""

    max_runs: int = Field(8, ge=1, le=100, description="playbooks at the same time")
    jvm_memory: str = Field("256m", pattern=r"^\d+[mg]$")
    delivery_timeout: Duration = timedelta(seconds=30)
    settle: Duration = timedelta(seconds=2)
    drain: Duration = timedelta(seconds=30)
    run_timeout: Duration = timedelta(hours=1)
    max_depth: int = Field(5, ge=1, le=20, description="runs that set off runs")
    max_attempts: int = Field(3, ge=1, le=20, description="of a playbook that was killed")
    keep_runs: Duration = timedelta(days=365)


class Channel(Section):
    """One way to the operator. The first that works takes a message; the next are its fallback."""

    name: str = Field(min_length=1, max_length=40)
    url: SecretReference = Field(description="an Apprise URL; it often holds a token")
    urgencies: tuple[Urgency, ...] = ("low", "normal", "urgent")


class Notify(Section):
    """Where notifications go. Without a channel they go to the console."""

    channels: list[Channel] = Field(default_factory=list)


class Alarms(Section):
    """When intake tells that something is wrong with zamu itself."""

    engine_down: Duration = timedelta(minutes=5)
    lag: Duration = timedelta(minutes=10)
    put_off: Duration = timedelta(minutes=15)
    dead_letters: Duration = timedelta(hours=1)
    source_failing: Duration = timedelta(minutes=10)
    silent: dict[str, Duration] = Field(default_factory=dict)
    heap_percent: int = Field(80, ge=1, le=100)
    disk_percent: int = Field(5, ge=0, le=100)
    disk_bytes: int = Field(536_870_912, ge=0)
    settle: Duration = timedelta(minutes=1)

    def little_room(self, free: int, total: int) -> bool:
        """Whether a disk of `total` bytes has less left than it should."""
        return free < self.disk_bytes or 100 * free / total < self.disk_percent


class Config(Section):
    """All of zamu.yml. Paths are relative to the file, or to the working directory without one.

    What is not named is looked for there, too, and if it is not there either, zamu's own is used.
    """

    rulebooks: Path = Path("rulebooks")
    event_sources: Path = Path("event_sources")
    event_filters: Path = Path("event_filters")
    playbooks: Path = Path("playbooks")
    inventory: Path = Path("inventory/demo")
    ansible_config: Path = Path("ansible.cfg")
    vault_password: str | None = Field(None, pattern=r"^(file|program):.+")
    intake: Intake = Intake.model_construct()
    limits: Limits = Limits.model_construct()
    engine: Engine = Engine.model_construct()
    guard: Guard = Guard.model_construct()
    notify: Notify = Notify.model_construct()
    alarms: Alarms = Alarms.model_construct()
    sources: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="arguments added to the sources of that name"
    )
    root: Path = Field(exclude=True)

    @model_validator(mode="after")
    def _anchor(self) -> "Config":
        for name in _CONTENT:
            path = (self.root / getattr(self, name)).resolve()
            if name not in self.model_fields_set and not path.exists():
                path = HOME / getattr(self, name)
            object.__setattr__(self, name, path)
        if self.engine.keep_runs < self.intake.keep_events:
            raise ValueError(
                "engine.keep_runs is shorter than intake.keep_events: something could be done twice"
            )
        asked = self.guard.alertmanager
        if asked is not None and asked.ca is not None:
            object.__setattr__(asked, "ca", (self.root / asked.ca).resolve())
        if self.intake.tls is not None:
            for name in ("certificate", "key"):
                path = (self.root / getattr(self.intake.tls, name)).resolve()
                object.__setattr__(self.intake.tls, name, path)
        return self


class _Loader(documents.Loader):
    """Takes secrets."""


def _vault(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    text = loader.construct_scalar(node).strip()  # type: ignore[arg-type]
    if not str(text).startswith(VAULT_HEADER):
        raise yaml.constructor.ConstructorError(None, None, "!vault holds no vaulted text", node.start_mark)
    return str(text)


_Loader.add_constructor("!vault", _vault)


def load(path: Path | None) -> Config:
    """Read and check the configuration; `None` means `./zamu.yml`, or the defaults without one.

    Raises ConfigError with one line for each thing that is wrong.
    """
    if path is None and not DEFAULT_FILE.exists():
        return Config(root=Path.cwd())
    path = path or DEFAULT_FILE
    document = documents.read(path, _Loader, empty={})
    if isinstance(document, documents.Finding):
        raise ConfigError(f"{path}:{document.line}: {document.message}")
    tree, data = document.tree, document.data or {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: the file holds no keys; see docs/reference/configuration.md.")
    if "root" in data:
        raise ConfigError(f"{path}:{line_of(tree, ('root',))}: root: this key is unknown.")
    context = {"vault_password": data.get("vault_password")}
    try:
        return Config.model_validate({**data, "root": path.resolve().parent}, context=context)
    except ValidationError as error:
        problems = [_problem(path, tree, dict(item)) for item in error.errors()]
        raise ConfigError("\n".join(problems)) from None


def _problem(path: Path, tree: yaml.Node | None, error: dict[str, Any]) -> str:
    place = tuple(error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        allowed = ", ".join(_fields(place[:-1]))
        message = f"this key is unknown; allowed here: {allowed}"
    elif error["type"] == "model_type":  # as where nothing stands below a section's name
        allowed = ", ".join(_fields(place))
        message = f"Input should be a valid dictionary; keys that are allowed here: {allowed}"
    elif error["type"] == "list_type":
        message += "; write for example [one, two]"
    message = re.sub(r"datetime\.timedelta\((?:seconds=)?(\d+)\)", r"\1s", message)
    return f"{path}:{line_of(tree, place)}: {'.'.join(map(str, place))}: {message}."


def _fields(place: tuple[Any, ...]) -> list[str]:
    """The keys that are allowed at a place of the configuration."""
    model: type[BaseModel] = Config
    for step in place:
        field = model.model_fields.get(str(step))
        if field is not None:  # else a list's index or a dictionary's key: the model stays
            inner = (field.annotation, *getattr(field.annotation, "__args__", ()))
            model = next(
                (one for one in inner if isinstance(one, type) and issubclass(one, BaseModel)), model
            )
    return [name for name in model.model_fields if name != "root"]
