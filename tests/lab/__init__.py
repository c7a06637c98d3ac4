# SPDX-License-Identifier: Apache-2.0
"""Real counterparts for the tests: Debian hosts with systemd and SSH, and a real Alertmanager."""
