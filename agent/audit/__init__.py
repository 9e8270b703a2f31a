"""The audit log: a Merkle log of everything that was done, signed checkpoints of it, and proofs.

The store appends leaves and signs (`agent.store`); here is what they are made of and how anybody holds the log, or a
copy of it, to what was signed. Nothing here reads a disk or a clock.
"""

from agent.audit.copy import Copy
from agent.audit.leaf import ACTIONS, Action, Entry, Leaf
from agent.audit.note import Signer, Verifier
from agent.audit.proof import Proof, Proven, check_proof, prove
from agent.audit.verify import LogBroken, Report, Verification, check_alerts, check_stored, not_stored, verify

__all__ = [
    "ACTIONS",
    "Action",
    "Copy",
    "Entry",
    "Leaf",
    "LogBroken",
    "Proof",
    "Proven",
    "Report",
    "Signer",
    "Verification",
    "Verifier",
    "check_alerts",
    "check_proof",
    "check_stored",
    "not_stored",
    "prove",
    "verify",
]
