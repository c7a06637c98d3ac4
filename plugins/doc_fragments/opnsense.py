# SPDX-License-Identifier: Apache-2.0
"""What the documentation of the OPNsense modules says alike; module_utils/opnsense.py has the options."""


class ModuleDocFragment:
    """Where the firewall's API is, and who asks."""

    DOCUMENTATION = r"""
options:
  url:
    description: The firewall's address, such as V(https://192.0.2.1). Has to be set, and to be https.
    type: str
  key:
    description: The API key. Has to be set.
    type: str
  secret:
    description: The API key's secret. Has to be set.
    type: str
  ca:
    description:
      - The file of the authority that signed the firewall's certificate.
      - Without it, what this machine trusts is trusted.
    type: path
  validate_certs:
    description: Whether the certificate is checked. Without that, anybody on the way can take the API key.
    type: bool
    default: true
  timeout:
    description: Seconds that one answer may take.
    type: int
    default: 30
notes:
  - Runs where Ansible is; the firewall needs neither SSH nor Python.
  - What changes something is sent once. If no answer comes, the module fails, and running it again is safe.
attributes:
  action_group:
    support: full
    description: Use C(group/boma.zamu.opnsense) in C(module_defaults) to set these options once.
"""
