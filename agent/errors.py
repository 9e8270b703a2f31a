"""The error tree: one class for each thing a caller can do next.

::

    VedetteError
    ├── RetryableError     wait (``retry_after`` seconds, if the other side said) and do the same again
    ├── RecordError        this one record cannot be used: dead letter, with the place and the reason
    ├── ConfigError        stop before anything runs; says file, line and key
    ├── TrustError         refused because a signature, digest or state did not hold; audited
    └── AccessDenied       refused because the principal may not; audited

Text names the place, what was expected, what was found and the way out.
"""

from __future__ import annotations

import errno

FULL_DISK_S = 2.0
"""How long until a full disk is worth another try: no other side is spared by waiting longer."""


class VedetteError(Exception):
    """Root of all errors that Vedette raises on purpose."""


class RetryableError(VedetteError):
    """The same call may succeed later; nothing was changed."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RecordError(VedetteError):
    """One record cannot be read or mapped; *where* says which field or offset."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.where = where


class ConfigError(VedetteError):
    """Configuration, rule or mapping that cannot be used; *path* is ``file:line`` where known."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class TrustError(VedetteError):
    """A signature, digest, state or version did not verify."""


class AccessDenied(VedetteError):
    """The principal's roles do not allow the action."""


def full_disk_s(error: OSError) -> float | None:
    """Return `FULL_DISK_S` if *error* says that a disk or a quota is full, else None."""
    return FULL_DISK_S if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
