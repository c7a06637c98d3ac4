# SPDX-License-Identifier: Apache-2.0
"""`python -m zamu` is the command `zamu`."""

import sys

from zamu.cli import main

sys.exit(main())
