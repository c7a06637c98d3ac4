# SPDX-License-Identifier: Apache-2.0
"""Intake: hosts the event sources, one web server for all of them, and writes the journal."""
