# SPDX-License-Identifier: Apache-2.0
"""The status pages: health for machines and for people."""
