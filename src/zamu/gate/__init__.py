# SPDX-License-Identifier: Apache-2.0
"""The gate: data made inert, target checked, guard asked, ledger written, doubles fenced."""
