-- 2026-11-26: what may be removed and what not. A pinned picture stays whatever its age. A picture that is removed
-- leaves its row first and its file a moment later, for those who are fetching it: until then its name stands in
-- image_removed, also over a crash. The indices are for databases of a million jobs.
ALTER TABLE image ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;

CREATE TABLE image_removed (
    filename TEXT PRIMARY KEY
) STRICT;

CREATE INDEX image_of_job ON image (job_id);
CREATE INDEX job_by_status ON job (status, seq);
CREATE INDEX job_by_owner ON job (owner, seq);
CREATE INDEX job_finished ON job (finished_at) WHERE finished_at IS NOT NULL;
