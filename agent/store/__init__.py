"""The store: cursor, operator state, alerts, outbox and dead letters in one SQLite file, one fsynced commit a batch.

`Store` owns the only writing connection, on a thread of its own. Streams hand it finished commits; what waits is
grouped into one transaction, each in its own savepoint, so one fsync serves all. `Reader` opens the same file
read-only for commands. A full disk leaves everything as it was and raises `RetryableError`; after any other disk error
the file is not trusted any more: `StoreBroken`, and the process ends and recovers at its next start.
"""

from agent.store.reader import Reader
from agent.store.sqlite import Books, Commit, Store, StoreBroken

__all__ = ["Books", "Commit", "Reader", "Store", "StoreBroken"]
