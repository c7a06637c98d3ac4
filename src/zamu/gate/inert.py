# SPDX-License-Identifier: Apache-2.0
"""Makes a playbook's variables inert: text stays text, whatever it contains.

ansible-core trusts an extra-vars file as templates, and the engine writes what events say into that
file. Here every string is tagged `!unsafe`, Ansible's own mark for text that is never a template.
"""

import json
from collections.abc import Callable
from typing import Any

import yaml

from zamu.event import clean_text

_STRING = "tag:yaml.org,2002:str"


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML and no tag beside its own, whatever a library has added to the common loader."""

    yaml_constructors = {  # noqa: RUF012 - pyyaml's own way
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.startswith("tag:yaml.org,2002:")
    }


class _InertDumper(yaml.SafeDumper):
    """Writes every string as `!unsafe "…"`."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent(dumper: _InertDumper, text: str) -> yaml.ScalarNode:
    # Ansible reads `!unsafe "yes"` as a boolean. A quoted "yes" stays a string, and nothing that
    # YAML takes for a number, boolean, null, date or merge key can hold a template.
    resolve: Callable[..., str] = dumper.resolve
    plain = resolve(yaml.ScalarNode, text, (True, False)) == _STRING
    return dumper.represent_scalar("!unsafe" if plain else _STRING, text, style='"')


_InertDumper.add_representer(str, _represent)


def read(text: str) -> dict[str, Any]:
    """Parse an extra-vars file as plain data. Raises ValueError when it is anything else."""
    try:
        data = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"the variables are not plain YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError("the variables are not a mapping")
    found: dict[str, Any] = _joined(data)
    return found


def plain(variables: Any) -> dict[str, Any]:
    """Variables that were not written yet, as `read` would give them. Raises ValueError."""
    found: dict[str, Any] = _joined(json.loads(json.dumps(variables, default=dict)))
    return found


def _joined(value: Any) -> Any:
    """Join the surrogate pairs that Java makes of characters outside the basic plane.

    Raises ValueError for what JSON, and so the ledger, cannot hold.
    """
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(str(key)): _joined(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_joined(child) for child in value]
    if value is not None and not isinstance(value, bool | int | float):
        raise ValueError(f"a {type(value).__name__} is no plain value here; quote it in the rulebook")
    return value


def write(variables: dict[str, Any]) -> str:
    """The text of an extra-vars file in which no string is a template."""
    return yaml.dump(variables, Dumper=_InertDumper, allow_unicode=True, width=1_000_000)
