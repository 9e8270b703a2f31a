-- Version 2. Times are microseconds since 1970 UTC; documents are JSON.

CREATE TABLE stream (
    id TEXT PRIMARY KEY,
    cursor BLOB NOT NULL,
    as_of INTEGER NOT NULL,
    watermark INTEGER NOT NULL
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

-- The embedded alert store: one row a revision. `repeats` counts findings that came to a row already stored.
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

-- What waits for a sink. A row goes when the sink has said yes; a refused one stays with its reason.
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY,
    sink TEXT NOT NULL,
    alert INTEGER NOT NULL REFERENCES alert (number),
    attempts INTEGER NOT NULL DEFAULT 0,
    not_before INTEGER NOT NULL DEFAULT 0,
    refused TEXT
);
CREATE INDEX outbox_waiting ON outbox (sink, not_before, number) WHERE refused IS NULL;
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

-- What was done and by whom, append-only.
CREATE TABLE event (
    number INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,
    stream TEXT NOT NULL,
    action TEXT NOT NULL,
    data BLOB NOT NULL
);
CREATE TRIGGER event_is_append_only BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'event rows are append-only'); END;
CREATE TRIGGER event_is_kept BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'event rows are append-only'); END;
