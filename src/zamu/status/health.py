# SPDX-License-Identifier: Apache-2.0
"""Whether zamu is well, in one place for `/healthz`, the page and the console."""

from dataclasses import asdict, dataclass, field

from zamu.state import State

PARTS = ("intake", "engine")


@dataclass(frozen=True)
class Health:
    """`ready` when every part is; `reason` says what is not, as a sentence."""

    ready: bool
    reason: str | None
    parts: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """The body of `/healthz`."""
        return {"status": "ready" if self.ready else "not ready", **asdict(self)}


def health(state: State) -> Health:
    """Ask what each part says of itself; a part whose process is gone says nothing."""
    parts: dict[str, str] = {}
    reasons: list[str] = []
    sources: dict[str, str] = {}
    for part in PARTS:
        found = state.status(part)
        parts[part] = str(found.get("state", "starting")) if found else "not running"
        if parts[part] != "ready":
            why = found.get("reason") if found else None
            reasons.append(f"The {part} is {parts[part]}{f': {why}' if why else ''}.")
        if found and part == "intake":
            sources = found.get("sources", {})
    return Health(not reasons, " ".join(reasons) or None, parts, sources)
