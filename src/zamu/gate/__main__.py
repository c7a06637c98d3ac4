# SPDX-License-Identifier: Apache-2.0
"""`python -m zamu.gate` stands in for `ansible-playbook` on the engine's PATH."""

import sys

from zamu.gate.door import main

sys.exit(main())
