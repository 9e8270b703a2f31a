-- Version 4. Times are microseconds since 1970 UTC; documents are JSON.

CREATE TABLE stream (
    id TEXT PRIMARY KEY,
    cursor BLOB NOT NULL,
    as_of INTEGER NOT NULL,
    watermark INTEGER NOT NULL,
    accounted INTEGER -- as_of of its last audit leaf
) WITHOUT ROWID;

-- The books and every other number, added up. scope: a stream, a sink.
CREATE TABLE counter (
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (scope, name)
) WITHOUT ROWID;

CREATE TABLE state_part (
    stream TEXT NOT NULL,
    operator TEXT NOT NULL,
    part INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    block BLOB NOT NULL,
    PRIMARY KEY (stream, operator, part)
);

CREATE TABLE state_delta (
    stream TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    operator TEXT NOT NULL,
    block BLOB NOT NULL,
    PRIMARY KEY (stream, sequence, operator)
);

-- The embedded alert store: one row a revision. `repeats` counts findings that came to a row already stored; `leaf` is
-- the audit leaf of the batch that stored it.
CREATE TABLE alert (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    revision TEXT NOT NULL,
    stream TEXT NOT NULL,
    rule_id TEXT NOT NULL,
    title TEXT NOT NULL,
    level TEXT NOT NULL,
    time INTEGER NOT NULL,
    created INTEGER NOT NULL,
    deliver INTEGER NOT NULL,
    repeats INTEGER NOT NULL DEFAULT 0,
    leaf INTEGER NOT NULL,
    acked INTEGER,
    acked_by TEXT,
    verdict TEXT,
    note TEXT,
    bytes INTEGER NOT NULL,
    document BLOB NOT NULL,
    UNIQUE (id, revision)
);
CREATE INDEX alert_time ON alert (time);
CREATE INDEX alert_rule ON alert (rule_id, time);

-- The audit log. Leaves are numbered from 0 without a gap; `members`, one a line, are what a batch's leaf stands for.
CREATE TABLE leaf (
    number INTEGER PRIMARY KEY,
    hash BLOB NOT NULL,
    bytes BLOB NOT NULL,
    members BLOB NOT NULL
);
CREATE TRIGGER leaf_is_append_only BEFORE UPDATE ON leaf BEGIN SELECT RAISE(ABORT, 'leaves are append-only'); END;
CREATE TRIGGER leaf_is_kept BEFORE DELETE ON leaf BEGIN SELECT RAISE(ABORT, 'leaves are append-only'); END;

-- What was signed; `peaks` is all that is needed to append to that many leaves.
CREATE TABLE checkpoint (
    size INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,
    peaks BLOB NOT NULL,
    note TEXT NOT NULL
);
CREATE TRIGGER checkpoint_is_append_only BEFORE UPDATE ON checkpoint
    BEGIN SELECT RAISE(ABORT, 'checkpoints are append-only'); END;
CREATE TRIGGER checkpoint_is_kept BEFORE DELETE ON checkpoint
    BEGIN SELECT RAISE(ABORT, 'checkpoints are append-only'); END;

-- Configurations that were accepted, as they were signed.
CREATE TABLE configuration (
    revision INTEGER PRIMARY KEY,
    text BLOB NOT NULL,
    envelope BLOB NOT NULL,
    leaf INTEGER NOT NULL REFERENCES leaf (number)
);

-- Streams that an operator has paused; the leaf says who and when.
CREATE TABLE paused (
    stream TEXT PRIMARY KEY,
    leaf INTEGER NOT NULL REFERENCES leaf (number)
) WITHOUT ROWID;

-- Sinks that get a copy of every leaf and checkpoint. One that does no more keeps the first leaf and the first size of a
-- checkpoint that it has not got.
CREATE TABLE audit_sink (
    id TEXT PRIMARY KEY,
    leaf INTEGER,
    checkpoint INTEGER
) WITHOUT ROWID;

-- What waits for a sink: an alert, or the copy of a leaf or a checkpoint. A row goes when the sink has said yes; a
-- refused one stays with its reason.
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY,
    sink TEXT NOT NULL,
    alert INTEGER REFERENCES alert (number),
    leaf INTEGER REFERENCES leaf (number),
    checkpoint INTEGER REFERENCES checkpoint (size),
    attempts INTEGER NOT NULL DEFAULT 0,
    not_before INTEGER NOT NULL DEFAULT 0,
    refused TEXT,
    CHECK ((alert IS NULL) + (leaf IS NULL) + (checkpoint IS NULL) = 2)
);
CREATE INDEX outbox_alerts ON outbox (sink, number, not_before) WHERE refused IS NULL AND alert IS NOT NULL;
CREATE INDEX outbox_audit ON outbox (sink, number, not_before) WHERE refused IS NULL AND alert IS NULL;
CREATE INDEX outbox_alert ON outbox (alert);

CREATE TABLE dead_letter (
    identity TEXT PRIMARY KEY,
    stream TEXT NOT NULL,
    source TEXT NOT NULL,
    partition TEXT NOT NULL,
    path TEXT NOT NULL,
    key BLOB NOT NULL,
    format TEXT NOT NULL,
    lineage TEXT NOT NULL,
    reason TEXT NOT NULL,
    time INTEGER NOT NULL,
    size INTEGER NOT NULL,
    digest TEXT NOT NULL,
    raw BLOB
) WITHOUT ROWID;
