-- 2026-11-26: pictures that a cloud was asked for. A row is there before the cloud is asked, so that nothing is
-- asked for twice; state is 'asking' until it answers, then 'taken' (task_id and polling_url say where to look),
-- 'refused' (it costs nothing) or 'unclear' (nobody knows). cost_usd is the cloud's word, estimate_usd ours.
CREATE TABLE cloud_task (
    job_id       TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    picture      INTEGER NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('asking', 'taken', 'refused', 'unclear')),
    day          TEXT NOT NULL,
    estimate_usd REAL NOT NULL,
    cost_usd     REAL,
    task_id      TEXT,
    polling_url  TEXT,
    PRIMARY KEY (job_id, picture)
) STRICT;

CREATE INDEX cloud_task_day ON cloud_task (day);
