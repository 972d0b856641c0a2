-- What PostgreSQL says otherwise than ../queries.sql, and what several front doors ask beside it.
-- :door and :epoch are always there: who asks, and under which lease it routes, or did last.

-- name: insert_jobs
-- New jobs at the end of the line, in their order: `rows` is a JSON array of arrays.
INSERT INTO job (id, status, request, model, owner, created_at, idempotency_key, body_sha256, estimate_usd, backend)
SELECT value ->> 0, 'queued', value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
       CAST(value ->> 7 AS DOUBLE PRECISION), value ->> 8
FROM json_array_elements(CAST(:rows AS json)) WITH ORDINALITY AS new (value, place) ORDER BY place
RETURNING seq;

-- name: stand_in_line
-- One door appends at a time: whoever sees a job has seen all before it, and the line's bound holds.
SELECT pg_advisory_xact_lock(4873921, 1);

-- name: count_line
SELECT backend, owner, count(*) AS jobs FROM job WHERE status = 'queued' GROUP BY backend, owner;

-- name: queued_jobs
SELECT seq, id, owner, created_at, attempts, backend FROM job WHERE status = 'queued' ORDER BY seq;

-- name: head_of_line
-- The oldest waiting jobs of the models that a worker can run, but for those that somebody is just taking.
SELECT * FROM job
WHERE status = 'queued' AND model IN (SELECT json_array_elements_text(CAST(:models AS json)))
ORDER BY seq LIMIT :limit FOR UPDATE SKIP LOCKED;

-- name: claim
-- A waiting job becomes the worker's, while the door that takes it has the lease: who takes that over waits for this.
-- A pause holds from the moment in which some door has answered it.
WITH held AS MATERIALIZED (
    SELECT epoch FROM lease
    WHERE name = 'router' AND door = :door AND epoch = :epoch AND ends_at > clock_timestamp()
      AND NOT EXISTS (SELECT 1 FROM state WHERE key = 'paused' AND value = 'true') FOR SHARE
)
UPDATE job
SET status = 'running', worker = :worker, attempts = attempts + 1, started_at = :now, door = :door, epoch = :epoch
WHERE seq = (SELECT seq FROM job WHERE seq = :seq AND status = 'queued' FOR UPDATE SKIP LOCKED)
  AND EXISTS (SELECT 1 FROM held)
RETURNING *;

-- name: requeue
-- A door that has lost its lease leaves what a later one began.
UPDATE job
SET status = 'queued', worker = NULL, started_at = NULL, attempts = attempts - :attempts_back
WHERE id = :id AND status = 'running' AND epoch <= :epoch
RETURNING *;

-- name: succeed
UPDATE job SET status = 'succeeded', finished_at = :now, result = :result
WHERE id = :id AND status = 'running' AND epoch <= :epoch
RETURNING *;

-- name: fail
UPDATE job SET status = 'failed', finished_at = :now, error_code = :code, error_message = :message
WHERE id = :id AND status = 'running' AND epoch <= :epoch
RETURNING *;

-- name: cancel_running
UPDATE job SET status = 'cancelled', finished_at = :now
WHERE id = :id AND status = 'running' AND epoch <= :epoch
RETURNING *;

-- name: loras_of_open_jobs
SELECT DISTINCT lora.value ->> 'sha256' AS sha256
FROM job, json_array_elements(CAST(job.request AS json) -> 'loras') AS lora (value)
WHERE job.status IN ('queued', 'running');

-- name: inputs_of_open_jobs
SELECT input.value AS sha256
FROM job, LATERAL (VALUES (CAST(request AS json) ->> 'image'), (CAST(request AS json) ->> 'mask')) AS input (value)
WHERE job.status IN ('queued', 'running') AND input.value IS NOT NULL
UNION
SELECT reference.value
FROM job, json_array_elements_text(CAST(job.request AS json) -> 'reference_images') AS reference (value)
WHERE job.status IN ('queued', 'running');

-- name: list_jobs_of_owner
SELECT * FROM job WHERE owner = :owner AND (CAST(:status AS TEXT) IS NULL OR status = CAST(:status AS TEXT))
ORDER BY seq DESC LIMIT :limit OFFSET :offset;

-- name: ended_by_model
SELECT model, status, count(*) AS jobs,
       sum(CAST(CAST(result AS json) #>> '{timings_ms,total}' AS DOUBLE PRECISION)
           - CAST(CAST(result AS json) #>> '{timings_ms,queued}' AS DOUBLE PRECISION)) AS ms
FROM job
WHERE finished_at >= :since AND status IN ('succeeded', 'failed')
  AND (CAST(:owner AS TEXT) IS NULL OR owner = CAST(:owner AS TEXT))
GROUP BY model, status;

-- name: ended_by_worker
SELECT worker, count(*) AS jobs FROM job
WHERE finished_at >= :since AND status IN ('succeeded', 'failed')
  AND (CAST(:owner AS TEXT) IS NULL OR owner = CAST(:owner AS TEXT))
GROUP BY worker;

-- name: ended_by_tag
SELECT tag.value AS tag, count(*) AS jobs
FROM job, json_array_elements_text(CAST(job.request AS json) -> 'tags') AS tag (value)
WHERE finished_at >= :since AND status IN ('succeeded', 'failed')
  AND (CAST(:owner AS TEXT) IS NULL OR owner = CAST(:owner AS TEXT))
GROUP BY tag.value;

-- name: ended_last
SELECT * FROM job
WHERE finished_at >= :since AND status IN ('succeeded', 'failed')
  AND (CAST(:owner AS TEXT) IS NULL OR owner = CAST(:owner AS TEXT))
ORDER BY finished_at DESC LIMIT :limit;

-- name: list_images
-- SQLite's LIKE takes no notice of case, as ILIKE here.
SELECT image.*, job.request, job.owner, job.result FROM image JOIN job ON job.id = image.job_id
WHERE (CAST(:before AS TEXT) IS NULL
       OR (image.created_at, image.id) < (SELECT created_at, id FROM image WHERE id = CAST(:before AS TEXT)))
  AND (CAST(:owner AS TEXT) IS NULL OR job.owner = CAST(:owner AS TEXT))
  AND (CAST(:words AS TEXT) IS NULL OR CAST(job.request AS json) ->> 'prompt' ILIKE CAST(:words AS TEXT) ESCAPE '\')
ORDER BY image.created_at DESC, image.id DESC LIMIT :limit;

-- name: ends_of_images
SELECT min(place) AS first, max(place) AS last, count(*) FILTER (WHERE pinned = 0) AS loose,
       CAST(coalesce(sum(size_bytes) FILTER (WHERE pinned = 0), 0) AS BIGINT) AS bytes
FROM image;

-- name: images_between
SELECT image.place, image.id, image.size_bytes, image.created_at,
       image.pinned <> 0 OR job.status IN ('queued', 'running') AS is_kept
FROM image JOIN job ON job.id = image.job_id
WHERE image.place >= :first AND image.place < :after ORDER BY image.place;

-- name: forget_removed
DELETE FROM image_removed WHERE filename IN (SELECT json_array_elements_text(CAST(:filenames AS json)));

-- name: remove_jobs
DELETE FROM job
WHERE seq IN (SELECT CAST(value AS BIGINT) FROM json_array_elements_text(CAST(:places AS json)) AS place (value))
  AND status IN ('succeeded', 'failed', 'cancelled')
  AND NOT EXISTS (SELECT 1 FROM image WHERE job_id = job.id)
RETURNING seq;

-- name: remove_usage
DELETE FROM usage WHERE job_id IN (SELECT json_array_elements_text(CAST(:ids AS json))) RETURNING job_id;

-- name: spent
-- What a day's jobs came to, and those that wait or run will come to; see utils/usage.py.
SELECT (SELECT coalesce(sum(images), 0) FROM usage
        WHERE day = :day AND (CAST(:owner AS TEXT) IS NULL OR owner = CAST(:owner AS TEXT)))
       + coalesce(sum(CAST(CAST(request AS json) ->> 'num_images' AS INTEGER)), 0) AS images,
       (SELECT coalesce(sum(coalesce(task.cost_usd, task.estimate_usd)), 0.0)
        FROM cloud_task AS task JOIN job AS ended ON ended.id = task.job_id
        WHERE task.day = :day AND task.state <> 'refused' AND ended.status NOT IN ('queued', 'running')
          AND (CAST(:owner AS TEXT) IS NULL OR ended.owner = CAST(:owner AS TEXT)))
       + coalesce(sum(estimate_usd), 0.0) AS usd
FROM job
WHERE status IN ('queued', 'running') AND (CAST(:owner AS TEXT) IS NULL OR owner = CAST(:owner AS TEXT));

-- name: renew_lease
-- Also a little late, where nobody took it meanwhile.
UPDATE lease SET ends_at = clock_timestamp() + CAST(:seconds AS DOUBLE PRECISION) * interval '1 second'
WHERE name = 'router' AND door = :door AND epoch = :epoch
RETURNING epoch;

-- name: take_lease
INSERT INTO lease (name, door, epoch, ends_at)
VALUES ('router', :door, 1, clock_timestamp() + CAST(:seconds AS DOUBLE PRECISION) * interval '1 second')
ON CONFLICT (name) DO UPDATE SET door = excluded.door, epoch = lease.epoch + 1, ends_at = excluded.ends_at
WHERE lease.ends_at <= clock_timestamp()
RETURNING epoch;

-- name: release_lease
UPDATE lease SET ends_at = clock_timestamp() WHERE name = 'router' AND door = :door AND epoch = :epoch;

-- name: read_lease
SELECT lease.door, lease.epoch, lease.ends_at > clock_timestamp() AS holds, door.name
FROM lease LEFT JOIN door ON door.id = lease.door WHERE lease.name = 'router';

-- name: beat
INSERT INTO door (id, name, listens, seen_at) VALUES (:door, :name, :listens, clock_timestamp())
ON CONFLICT (id) DO UPDATE SET name = excluded.name, listens = excluded.listens, seen_at = excluded.seen_at;

-- name: doors
SELECT id, name, listens, CAST(extract(epoch FROM clock_timestamp() - seen_at) AS DOUBLE PRECISION) AS seconds
FROM door ORDER BY name, id;

-- name: forget_doors
DELETE FROM door WHERE seen_at < clock_timestamp() - interval '1 minute' OR id = CAST(:gone AS TEXT);

-- name: sums_of_open_jobs
-- What a door compares with its own memory: cheap, also for a long line.
SELECT count(*) FILTER (WHERE status = 'queued') AS queued,
       CAST(coalesce(sum(seq) FILTER (WHERE status = 'queued'), 0) AS TEXT) AS places,
       count(*) FILTER (WHERE status = 'running') AS running,
       CAST(coalesce(sum(seq) FILTER (WHERE status = 'running'), 0) AS TEXT) AS running_places
FROM job WHERE status IN ('queued', 'running');

-- name: open_jobs
SELECT seq, id, status, owner, created_at, attempts, backend, worker, door, epoch
FROM job WHERE status IN ('queued', 'running') ORDER BY seq;

-- name: begun_by_earlier
-- Jobs that run under an earlier lease: nobody hears of them any more.
SELECT * FROM job WHERE status = 'running' AND epoch < :epoch ORDER BY seq;

-- name: ended_of
-- Of these jobs those that have ended.
SELECT * FROM job
WHERE id IN (SELECT json_array_elements_text(CAST(:ids AS json))) AND status NOT IN ('queued', 'running');

-- name: states
SELECT key, value FROM state WHERE key IN (SELECT json_array_elements_text(CAST(:keys AS json)));

-- name: notify
SELECT count(pg_notify('flux_fleet', value))
FROM json_array_elements_text(CAST(:messages AS json)) AS message (value);

-- name: begin_file
-- A file of less than no bytes is not whole yet.
INSERT INTO file (kind, name, bytes, used_at) VALUES (:kind, :name, -1, clock_timestamp())
ON CONFLICT (kind, name) DO UPDATE SET used_at = excluded.used_at;

-- name: insert_part
INSERT INTO file_part (kind, name, part, data) VALUES (:kind, :name, :part, :data)
ON CONFLICT (kind, name, part) DO UPDATE SET data = excluded.data;

-- name: insert_picture_part
-- Of a job that runs under this door's lease, or an earlier one: what a later one draws is not written over.
WITH ours AS MATERIALIZED (
    SELECT 1 FROM job WHERE id = :job_id AND status = 'running' AND epoch <= :epoch FOR SHARE
)
INSERT INTO file_part (kind, name, part, data)
SELECT CAST(:kind AS TEXT), CAST(:name AS TEXT), CAST(:part AS INTEGER), CAST(:data AS BYTEA) FROM ours
ON CONFLICT (kind, name, part) DO UPDATE SET data = excluded.data
RETURNING part;

-- name: end_file
UPDATE file SET bytes = :bytes, used_at = clock_timestamp() WHERE kind = :kind AND name = :name;

-- name: end_picture
UPDATE file SET bytes = :bytes, used_at = clock_timestamp()
WHERE kind = :kind AND name = :name
  AND EXISTS (SELECT 1 FROM job WHERE id = :job_id AND status = 'running' AND epoch <= :epoch);

-- name: touch_file
UPDATE file SET used_at = clock_timestamp() WHERE kind = :kind AND name = :name RETURNING bytes;

-- name: file_part
SELECT data FROM file_part WHERE kind = :kind AND name = :name AND part = :part;

-- name: remove_files
-- The parts go with their file, and parts of a file that never became whole.
WITH gone AS (
    DELETE FROM file WHERE kind = :kind AND name IN (SELECT json_array_elements_text(CAST(:names AS json)))
)
DELETE FROM file_part WHERE kind = :kind AND name IN (SELECT json_array_elements_text(CAST(:names AS json)));

-- name: old_files
-- LoRAs and inputs that were not used for a while, and pictures that belong to no row any more.
SELECT kind, name FROM file
WHERE kind = :kind AND used_at < clock_timestamp() - CAST(:seconds AS DOUBLE PRECISION) * interval '1 second'
  AND (kind <> 'picture' OR NOT EXISTS (SELECT 1 FROM image WHERE filename = file.name))
LIMIT 1000;

-- name: known_pictures
SELECT filename FROM image WHERE filename IN (SELECT json_array_elements_text(CAST(:names AS json)));
