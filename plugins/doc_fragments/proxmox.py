# SPDX-License-Identifier: Apache-2.0
"""What the module for Proxmox VE says about its API; module_utils/proxmox.py has the options."""


class ModuleDocFragment:
    """Where the cluster's API is, and who asks."""

    DOCUMENTATION = r"""
options:
  url:
    description: One node's address, such as V(https://192.0.2.11:8006). Has to be set, and to be https.
    type: str
  token_id:
    description: The API token, such as V(zamu@pve!act). Has to be set.
    type: str
  token_secret:
    description: The API token's secret. Has to be set.
    type: str
  ca:
    description:
      - The file of the authority that signed the node's certificate.
      - Without it, what this machine trusts is trusted.
    type: path
  validate_certs:
    description: Whether the certificate is checked. Without that, anybody on the way can take the API token.
    type: bool
    default: true
  timeout:
    description: Seconds that one answer may take.
    type: int
    default: 30
notes:
  - Runs where Ansible is; the guest needs neither SSH nor Python.
  - What changes something is sent once. If no answer comes, the module fails, and running it again is safe.
attributes:
  action_group:
    support: full
    description: Use C(group/boma.zamu.proxmox) in C(module_defaults) to set these options once.
"""
