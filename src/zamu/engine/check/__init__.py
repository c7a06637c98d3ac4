# SPDX-License-Identifier: Apache-2.0
"""Finds what is wrong with rulebooks before the engine meets it: `check` for files, `examine` for what
was read of them. docs/reference/checks.md lists the names of all checks.
"""

from collections.abc import Iterable
from pathlib import Path

from zamu.config import Config
from zamu.documents import Finding
from zamu.engine.check.playbooks import Playbooks
from zamu.engine.check.rules import examine_rules, posted_keys, same_rule_names
from zamu.engine.check.sources import examine_sources, same_source_names, shape_of
from zamu.engine.check.surroundings import examine_surroundings
from zamu.rulebooks import Rulebooks, read, refuse_unused


def check(config: Config, paths: Iterable[Path] = ()) -> list[Finding]:
    """What is wrong in rulebooks: files, or directories with all that lie below; default: the configured.

    Raises RulebookError when there is no rulebook, or zamu.yml means a source that there is not.
    """
    wanted = list(paths)
    rulebooks, findings = read(wanted or [config.rulebooks], config.sources)
    if not wanted and not findings:
        refuse_unused(config.sources, rulebooks)
    return sorted({*findings, *examine(config, rulebooks)})


def examine(config: Config, rulebooks: Rulebooks) -> list[Finding]:
    """What is wrong with rulesets that were read, with their playbooks, and with what surrounds them."""
    posted = posted_keys(rulebooks)
    playbooks = Playbooks(config)
    findings = [*examine_surroundings(config), *same_source_names(rulebooks), *same_rule_names(rulebooks)]
    for ruleset in rulebooks.rulesets:
        findings += examine_sources(config, ruleset)
        findings += examine_rules(config, ruleset, shape_of(config, ruleset, posted), playbooks)
    return sorted({*findings, *playbooks.findings})
