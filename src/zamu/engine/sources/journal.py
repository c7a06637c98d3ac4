# SPDX-License-Identifier: Apache-2.0
"""The event source of every composed ruleset: events out of zamu's journal. Nobody names it by hand."""

from zamu.engine.delivery import deliver as main

__all__ = ["main"]
