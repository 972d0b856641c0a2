-- 2026-11-21: who submitted a job (a digest of the key; empty without keys), its model, what the
-- service remembers over a restart. An idempotency key belongs to its owner.
CREATE TABLE job_new (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT NOT NULL UNIQUE,
    status          TEXT NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    request         TEXT NOT NULL,
    model           TEXT NOT NULL,
    owner           TEXT NOT NULL,
    created_at      TEXT NOT NULL,
    started_at      TEXT,
    finished_at     TEXT,
    attempts        INTEGER NOT NULL DEFAULT 0,
    worker          TEXT,
    result          TEXT,
    error_code      TEXT,
    error_message   TEXT,
    idempotency_key TEXT,
    body_sha256     TEXT,
    UNIQUE (owner, idempotency_key)
) STRICT;

INSERT INTO job_new
SELECT seq, id, status, request, json_extract(request, '$.model'), '', created_at, started_at, finished_at,
       attempts, worker, result, error_code, error_message, idempotency_key, body_sha256
FROM job;

-- The numbers go on where they were, also when the newest rows are gone.
DELETE FROM sqlite_sequence WHERE name = 'job_new';
INSERT INTO sqlite_sequence (name, seq) SELECT 'job_new', seq FROM sqlite_sequence WHERE name = 'job';

DROP TABLE job;
ALTER TABLE job_new RENAME TO job;
CREATE INDEX job_open ON job (status, seq) WHERE status IN ('queued', 'running');

CREATE TABLE state (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
