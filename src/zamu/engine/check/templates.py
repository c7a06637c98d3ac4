# SPDX-License-Identifier: Apache-2.0
"""What a template speaks of, read by the template engine that will render it. Nothing is rendered."""

from collections.abc import Iterator
from dataclasses import dataclass

from ansible_rulebook.jinja import register_filters
from jinja2 import TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.nativetypes import NativeEnvironment
from jinja2.runtime import Context

#: The steps to a value, from its root name: ("event", "alert", "labels", "name").
type Path = tuple[str | int, ...]


@pass_context
def _not_now(_: Context, value: object) -> object:
    return value


# With these, what is constant is not worked out while it is compiled: `10 ** 10 ** 10` would take for ever.
_ENVIRONMENT = NativeEnvironment(optimized=False, finalize=_not_now)
register_filters(_ENVIRONMENT)


@dataclass(frozen=True)
class Template:
    """The names that a template takes from outside, and the paths that begin with them."""

    names: frozenset[str]
    paths: frozenset[Path]


def read_template(text: str) -> Template | str | None:
    """Read a text as the engine would: None when it renders nothing, a sentence when it cannot."""
    if "{{" not in text or "}}" not in text:
        return None
    try:
        tree = _ENVIRONMENT.parse(text)
        _ENVIRONMENT.compile(text, raw=True)  # knows the filters
    except TemplateSyntaxError as error:
        return f"the template cannot be read: {str(error.message).rstrip('.')}; mend it."
    except (TemplateError, RecursionError, ValueError) as error:
        return f"the template cannot be read: {str(error).rstrip('.')}; mend it."
    # jinja2.meta knows the names, too, but works out what is constant on the way.
    named = list(tree.find_all(nodes.Name))
    own = {name.name for name in named if name.ctx != "load"} | {"loop"} | set(_ENVIRONMENT.globals)
    return Template(frozenset(name.name for name in named) - own, frozenset(_paths(tree)))


def path_of(text: str) -> Path | None:
    """The path that a text like `event.alert.labels['name']` is; None when it is something else."""
    try:
        tree = _ENVIRONMENT.parse("{{" + text + "}}")
        (output,) = tree.body
        (expression,) = output.nodes  # type: ignore[attr-defined]
        return _path(expression)
    except (TemplateError, RecursionError, ValueError, AttributeError):
        return None


def _paths(tree: nodes.Template) -> Iterator[Path]:
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        path = _path(node)
        if path:
            yield path


def _path(node: nodes.Node) -> Path | None:
    steps: list[str | int] = []
    while not isinstance(node, nodes.Name):
        if isinstance(node, nodes.Getattr):
            steps.append(node.attr)
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            steps.append(node.arg.value)
        else:
            return None
        node = node.node
    return (node.name, *reversed(steps))
