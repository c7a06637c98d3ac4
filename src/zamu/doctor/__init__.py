# SPDX-License-Identifier: Apache-2.0
"""`zamu doctor`: what is installed, reachable and configured, and what to do about what is not."""
