# SPDX-License-Identifier: Apache-2.0
"""The engine: rulebooks composed for ansible-rulebook, its supervisor, and the way events get in."""
