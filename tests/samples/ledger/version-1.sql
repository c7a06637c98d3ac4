-- SPDX-License-Identifier: Apache-2.0
-- A ledger as zamu wrote it before it had a guard.
BEGIN TRANSACTION;
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    origin TEXT UNIQUE,
    title TEXT NOT NULL,
    body TEXT NOT NULL,
    urgency TEXT NOT NULL,
    created_at TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',
    attempts INTEGER NOT NULL DEFAULT 0,
    next_at TEXT NOT NULL,
    channel TEXT,
    error TEXT
);
INSERT INTO "outbox" VALUES(1,NULL,'a','b','normal','2026-11-26T19:17:07.793210Z','waiting',0,'2026-11-26T19:17:07.793228Z',NULL,NULL);
CREATE TABLE runs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    key TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    playbook TEXT NOT NULL,
    target TEXT NOT NULL,
    intent TEXT NOT NULL,
    by_hand INTEGER NOT NULL DEFAULT 0,
    status TEXT NOT NULL,
    verified INTEGER,
    process TEXT,
    created_at TEXT NOT NULL,
    started_at TEXT,
    finished_at TEXT,
    reason TEXT,
    UNIQUE (key, attempt)
);
INSERT INTO "runs" VALUES(1,'1b02a591-26c4-4a26-aeac-66f9cd2980ae','k',1,'mend','web1','{"key": "k", "events": ["e"], "ruleset": "Ruleset", "rule": "Rule", "playbook": "mend", "path": "/mend.yml", "hosts": ["web1"], "target": "web1", "variables": {}, "depth": 0}',0,'successful',NULL,'4194305:1.00','2026-11-26T19:17:07.783692Z',NULL,'2026-11-26T19:17:07.789165Z',NULL);
CREATE TABLE tasks (
    run TEXT NOT NULL,
    at TEXT NOT NULL,
    play TEXT NOT NULL,
    role TEXT NOT NULL,
    task TEXT NOT NULL,
    host TEXT NOT NULL,
    status TEXT NOT NULL,
    changed INTEGER NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX runs_by_target ON runs (playbook, target, created_at);
CREATE INDEX runs_by_status ON runs (status);
CREATE INDEX runs_by_end ON runs (finished_at);
CREATE INDEX tasks_by_run ON tasks (run);
CREATE INDEX outbox_by_state ON outbox (state, next_at);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('runs',1);
INSERT INTO "sqlite_sequence" VALUES('outbox',1);
COMMIT;
PRAGMA user_version=1;
