-- 2026-11-26: what was drawn and what it cost, one row for each job, so that a job which ran twice counts
-- once. A row outlives its job. `tags` is a JSON array. What an open job may cost stands with it.
ALTER TABLE job ADD COLUMN estimate_usd REAL NOT NULL DEFAULT 0;

CREATE TABLE usage (
    job_id      TEXT PRIMARY KEY,
    day         TEXT NOT NULL,
    owner       TEXT NOT NULL,
    backend     TEXT NOT NULL,
    model       TEXT NOT NULL,
    tags        TEXT NOT NULL,
    images      INTEGER NOT NULL,
    megapixels  REAL NOT NULL,
    gpu_seconds REAL NOT NULL,
    cost_usd    REAL NOT NULL,
    finished_at TEXT NOT NULL
) STRICT;

CREATE INDEX usage_by_day ON usage (day, owner);

-- A job without pictures that a cloud charges for, or may charge for, is written down where its state changes,
-- whoever changes it. One that succeeds is written down with its pictures.
CREATE TRIGGER job_charged AFTER UPDATE OF status ON job
WHEN new.status IN ('failed', 'cancelled') AND old.status IN ('queued', 'running')
BEGIN
    INSERT INTO usage (job_id, day, owner, backend, model, tags, images, megapixels, gpu_seconds, cost_usd, finished_at)
    SELECT new.id, substr(new.finished_at, 1, 10), new.owner, json_extract(new.request, '$.backend'), new.model,
           json_extract(new.request, '$.tags'), 0, 0, 0, sum(coalesce(cost_usd, estimate_usd)), new.finished_at
    FROM cloud_task WHERE job_id = new.id AND state <> 'refused'
    HAVING count(*) > 0
    ON CONFLICT (job_id) DO NOTHING;
END;

-- Jobs from before were all drawn here, at no cost.
INSERT INTO usage
SELECT id, substr(finished_at, 1, 10), owner, coalesce(json_extract(request, '$.backend'), ''), model,
       coalesce(json_extract(request, '$.tags'), '[]'), json_array_length(result, '$.images'),
       (SELECT coalesce(sum(json_extract(value, '$.width') * json_extract(value, '$.height')), 0) / 1e6
        FROM json_each(result, '$.images')),
       (coalesce(json_extract(result, '$.timings_ms.encode'), 0)
        + coalesce(json_extract(result, '$.timings_ms.denoise'), 0)
        + coalesce(json_extract(result, '$.timings_ms.decode'), 0)) / 1000.0,
       0, finished_at
FROM job WHERE status = 'succeeded' AND result IS NOT NULL AND finished_at IS NOT NULL;
