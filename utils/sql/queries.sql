-- name: insert_jobs
-- New jobs at the end of the line, in their order: `rows` is a JSON array of arrays. seq grows by one.
INSERT INTO job (id, status, request, model, owner, created_at, idempotency_key, body_sha256, estimate_usd)
SELECT json_extract(value, '$[0]'), 'queued', json_extract(value, '$[1]'), json_extract(value, '$[2]'),
       json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
       json_extract(value, '$[6]'), json_extract(value, '$[7]')
FROM json_each(:rows) ORDER BY key;

-- name: job_by_id
SELECT * FROM job WHERE id = :id;

-- name: job_by_idempotency_key
SELECT * FROM job WHERE owner = :owner AND idempotency_key = :idempotency_key;

-- name: forget_idempotency_key
-- A key is remembered for a while; after that it may name another job.
UPDATE job SET idempotency_key = NULL
WHERE owner = :owner AND idempotency_key = :idempotency_key AND created_at < :before;

-- name: queued_jobs
-- The line: what a place in it and a deadline need.
SELECT seq, id, owner, created_at, attempts, json_extract(request, '$.backend') AS backend
FROM job WHERE status = 'queued' ORDER BY seq;

-- name: count_by_status
SELECT status, count(*) AS jobs FROM job GROUP BY status;

-- name: head_of_line
-- The oldest waiting jobs of the models that a worker can run.
SELECT * FROM job
WHERE status = 'queued' AND model IN (SELECT value FROM json_each(:models))
ORDER BY seq LIMIT :limit;

-- name: claim
-- A waiting job becomes the worker's. The attempt is counted before any work begins.
UPDATE job
SET status = 'running', worker = :worker, attempts = attempts + 1, started_at = :now
WHERE seq = :seq AND status = 'queued'
RETURNING *;

-- name: expire_queued
UPDATE job SET status = 'failed', finished_at = :now, error_code = 'timeout', error_message = :message
WHERE id = :id AND status = 'queued'
RETURNING *;

-- name: clear_queued
UPDATE job SET status = 'cancelled', finished_at = :now WHERE status = 'queued'
RETURNING *;

-- name: read_state
SELECT value FROM state WHERE key = :key;

-- name: write_state
INSERT INTO state (key, value) VALUES (:key, :value)
ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: requeue
-- Back to its old place: seq does not change. A stop takes its attempt back, a dead worker does not.
UPDATE job
SET status = 'queued', worker = NULL, started_at = NULL, attempts = attempts - :attempts_back
WHERE id = :id AND status = 'running'
RETURNING *;

-- name: succeed
UPDATE job SET status = 'succeeded', finished_at = :now, result = :result
WHERE id = :id AND status = 'running'
RETURNING *;

-- name: fail
UPDATE job SET status = 'failed', finished_at = :now, error_code = :code, error_message = :message
WHERE id = :id AND status = 'running'
RETURNING *;

-- name: cancel_queued
UPDATE job SET status = 'cancelled', finished_at = :now WHERE id = :id AND status = 'queued'
RETURNING *;

-- name: cancel_running
UPDATE job SET status = 'cancelled', finished_at = :now WHERE id = :id AND status = 'running'
RETURNING *;

-- name: cancel_open
-- A job that waits or runs. In one change: it may go from one to the other meanwhile.
UPDATE job SET status = 'cancelled', finished_at = :now WHERE id = :id AND status IN ('queued', 'running')
RETURNING *;

-- name: running_jobs
SELECT * FROM job WHERE status = 'running' ORDER BY seq;

-- name: loras_of_open_jobs
-- The LoRAs, by content, of jobs that wait or run.
SELECT DISTINCT json_extract(lora.value, '$.sha256') AS sha256
FROM job, json_each(job.request, '$.loras') AS lora
WHERE job.status IN ('queued', 'running');

-- name: inputs_of_open_jobs
-- The pictures, by content, that jobs begin with or look at which wait or run. Older rows have none.
SELECT input.value AS sha256
FROM job, json_each(json_array(json_extract(request, '$.image'), json_extract(request, '$.mask'))) AS input
WHERE job.status IN ('queued', 'running') AND input.value IS NOT NULL
UNION
SELECT reference.value
FROM job, json_each(job.request, '$.reference_images') AS reference
WHERE job.status IN ('queued', 'running');

-- name: list_jobs
SELECT * FROM job ORDER BY seq DESC LIMIT :limit OFFSET :offset;

-- name: list_jobs_by_status
SELECT * FROM job WHERE status = :status ORDER BY seq DESC LIMIT :limit OFFSET :offset;

-- name: list_jobs_of_owner
SELECT * FROM job WHERE owner = :owner AND (:status IS NULL OR status = :status)
ORDER BY seq DESC LIMIT :limit OFFSET :offset;

-- name: ended_by_model
-- Jobs that succeeded or failed since a moment, and the ms that those with pictures took without waiting.
SELECT model, status, count(*) AS jobs,
       sum(json_extract(result, '$.timings_ms.total') - json_extract(result, '$.timings_ms.queued')) AS ms
FROM job
WHERE finished_at >= :since AND status IN ('succeeded', 'failed') AND (:owner IS NULL OR owner = :owner)
GROUP BY model, status;

-- name: ended_by_worker
SELECT worker, count(*) AS jobs FROM job
WHERE finished_at >= :since AND status IN ('succeeded', 'failed') AND (:owner IS NULL OR owner = :owner)
GROUP BY worker;

-- name: ended_by_tag
SELECT tag.value AS tag, count(*) AS jobs FROM job, json_each(job.request, '$.tags') AS tag
WHERE finished_at >= :since AND status IN ('succeeded', 'failed') AND (:owner IS NULL OR owner = :owner)
GROUP BY tag.value;

-- name: ended_last
-- The last that succeeded or failed since a moment, newest first.
SELECT * FROM job
WHERE finished_at >= :since AND status IN ('succeeded', 'failed') AND (:owner IS NULL OR owner = :owner)
ORDER BY finished_at DESC LIMIT :limit;

-- name: insert_image
INSERT INTO image (id, job_id, filename, seed, width, height, size_bytes, created_at, precision, engine)
VALUES (:id, :job_id, :filename, :seed, :width, :height, :size_bytes, :created_at, :precision, :engine);

-- name: insert_usage
-- With the job's success, in one transaction. What a cloud charged stands in cloud_task.
INSERT INTO usage (job_id, day, owner, backend, model, tags, images, megapixels, gpu_seconds, cost_usd, finished_at)
VALUES (:job_id, :day, :owner, :backend, :model, :tags, :images, :megapixels, :gpu_seconds,
        (SELECT coalesce(sum(coalesce(cost_usd, estimate_usd)), 0.0) FROM cloud_task
         WHERE job_id = :job_id AND state <> 'refused'),
        :finished_at)
ON CONFLICT (job_id) DO NOTHING;

-- name: image_by_id
SELECT image.*, job.request, job.owner, job.result FROM image JOIN job ON job.id = image.job_id WHERE image.id = :id;

-- name: image_by_filename
SELECT image.*, job.request, job.owner, job.result FROM image JOIN job ON job.id = image.job_id WHERE image.filename = :filename;

-- name: list_images
-- Newest first, before an image (exclusive), with a word in the prompt.
SELECT image.*, job.request, job.owner, job.result FROM image JOIN job ON job.id = image.job_id
WHERE (:before IS NULL
       OR (image.created_at, image.id) < (SELECT created_at, id FROM image WHERE id = :before))
  AND (:owner IS NULL OR job.owner = :owner)
  AND (:words IS NULL OR json_extract(job.request, '$.prompt') LIKE :words ESCAPE '\')
ORDER BY image.created_at DESC, image.id DESC LIMIT :limit;

-- name: delete_image
DELETE FROM image WHERE id = :id;

-- name: cloud_task
SELECT * FROM cloud_task WHERE job_id = :job_id AND picture = :picture;

-- name: cloud_tasks_of_job
SELECT * FROM cloud_task WHERE job_id = :job_id ORDER BY picture;

-- name: cloud_spent
-- What a day cost, and what is on its way; what was refused costs nothing.
SELECT coalesce(sum(coalesce(cost_usd, estimate_usd)), 0.0) AS usd
FROM cloud_task WHERE day = :day AND state <> 'refused';

-- name: insert_cloud_task
-- Before the cloud is asked. A picture that was refused may be asked for again, on another day.
INSERT INTO cloud_task (job_id, picture, state, day, estimate_usd)
VALUES (:job_id, :picture, 'asking', :day, :estimate_usd)
ON CONFLICT (job_id, picture) DO UPDATE SET state = 'asking', day = excluded.day
WHERE cloud_task.state = 'refused';

-- name: note_cloud_task
UPDATE cloud_task
SET state = :state, task_id = coalesce(:task_id, task_id), polling_url = coalesce(:polling_url, polling_url),
    cost_usd = coalesce(:cost_usd, cost_usd)
WHERE job_id = :job_id AND picture = :picture;

-- name: pin_image
UPDATE image SET pinned = :pinned WHERE id = :id;

-- name: ends_of_images
-- The first and last place in the order in which pictures came, how many are not pinned, and their bytes.
SELECT min(rowid) AS first, max(rowid) AS last, coalesce(sum(pinned = 0), 0) AS loose,
       coalesce(sum(size_bytes) FILTER (WHERE pinned = 0), 0) AS bytes
FROM image;

-- name: images_between
-- Pictures in the order in which they came, with whether their job is still open.
SELECT image.rowid AS place, image.id, image.size_bytes, image.created_at,
       image.pinned OR job.status IN ('queued', 'running') AS is_kept
FROM image JOIN job ON job.id = image.job_id
WHERE image.rowid >= :first AND image.rowid < :after ORDER BY image.rowid;

-- name: remove_image
-- The row goes, the file's name stays until the file is gone. A picture that was pinned meanwhile stays.
DELETE FROM image WHERE id = :id AND pinned = 0 RETURNING filename;

-- name: note_removed
INSERT INTO image_removed (filename) VALUES (:filename) ON CONFLICT DO NOTHING;

-- name: removed_images
SELECT filename FROM image_removed WHERE filename > :after ORDER BY filename LIMIT :limit;

-- name: forget_removed
DELETE FROM image_removed WHERE filename IN (SELECT value FROM json_each(:filenames));

-- name: ends_of_jobs
SELECT (SELECT min(seq) FROM job) AS first, (SELECT max(seq) FROM job) AS last,
       (SELECT count(*) FROM job WHERE status = 'succeeded')
       + (SELECT count(*) FROM job WHERE status = 'failed')
       + (SELECT count(*) FROM job WHERE status = 'cancelled') AS ended;

-- name: jobs_between
-- Jobs in the order in which they came, with whether they are open or have pictures.
SELECT seq AS place, created_at, coalesce(finished_at, created_at) AS finished_at,
       status IN ('queued', 'running') OR EXISTS (SELECT 1 FROM image WHERE job_id = job.id) AS is_kept
FROM job WHERE seq >= :first AND seq < :after ORDER BY seq;

-- name: remove_jobs
DELETE FROM job
WHERE seq IN (SELECT value FROM json_each(:places)) AND +status IN ('succeeded', 'failed', 'cancelled')
  AND NOT EXISTS (SELECT 1 FROM image WHERE job_id = job.id)
RETURNING seq;

-- name: old_usage
SELECT job_id FROM usage WHERE day < :before AND job_id > :after ORDER BY job_id LIMIT :limit;

-- name: remove_usage
DELETE FROM usage WHERE job_id IN (SELECT value FROM json_each(:ids)) RETURNING job_id;
