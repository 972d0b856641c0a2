-- 2026-11-20: jobs and images.
-- seq is the place in line. error_* are set when status is 'failed', result when it is 'succeeded'.
CREATE TABLE job (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT NOT NULL UNIQUE,
    status          TEXT NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    request         TEXT NOT NULL,
    created_at      TEXT NOT NULL,
    started_at      TEXT,
    finished_at     TEXT,
    attempts        INTEGER NOT NULL DEFAULT 0,
    worker          TEXT,
    result          TEXT,
    error_code      TEXT,
    error_message   TEXT,
    idempotency_key TEXT UNIQUE,
    body_sha256     TEXT
) STRICT;

CREATE INDEX job_open ON job (status, seq) WHERE status IN ('queued', 'running');

CREATE TABLE image (
    id         TEXT PRIMARY KEY,
    job_id     TEXT NOT NULL REFERENCES job (id),
    filename   TEXT NOT NULL UNIQUE,
    seed       INTEGER NOT NULL,
    width      INTEGER NOT NULL,
    height     INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    precision  TEXT NOT NULL,
    engine     TEXT NOT NULL
) STRICT;

CREATE INDEX image_newest ON image (created_at DESC, id DESC);
