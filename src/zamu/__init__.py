# SPDX-License-Identifier: Apache-2.0
"""zamu: event-driven automation for a homelab that is durable, safe, rehearsable and visible."""

__version__ = "0.1.0"
