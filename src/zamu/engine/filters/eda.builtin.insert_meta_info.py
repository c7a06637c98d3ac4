# SPDX-License-Identifier: Apache-2.0
"""ansible-rulebook's own filter, where it looks first.

Without this file it would ask `ansible-galaxy collection list` for every source before it looks at
what it brings along, and stand still for seconds at each start.
"""

from ansible_rulebook.event_filter.insert_meta_info import main

__all__ = ["main"]
