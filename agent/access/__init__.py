"""Who may change what: principals with keys and roles, and the table of what each section of the configuration takes.

Pure: no I/O, closed by default. What no row of the table allows is denied, and an empty set of signers may do nothing.
"""

from agent.access.policy import PERMISSIONS, ROLES, Permission, Policy, Principal, Role

__all__ = ["PERMISSIONS", "ROLES", "Permission", "Policy", "Principal", "Role"]
