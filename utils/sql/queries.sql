-- name: insert_job
-- A new job at the end of the line.
INSERT INTO job (id, status, request, created_at, idempotency_key, body_sha256)
VALUES (:id, 'queued', :request, :created_at, :idempotency_key, :body_sha256)
RETURNING *;

-- name: job_by_id
SELECT * FROM job WHERE id = :id;

-- name: job_by_idempotency_key
SELECT * FROM job WHERE idempotency_key = :idempotency_key;

-- name: count_queued
SELECT count(*) FROM job WHERE status = 'queued';

-- name: count_by_status
SELECT status, count(*) FROM job GROUP BY status;

-- name: position
-- How many jobs wait before this one, itself counted: the head of the line is 1.
SELECT count(*) FROM job WHERE status = 'queued' AND seq <= :seq;

-- name: claim_next
-- The oldest waiting job becomes the worker's. The attempt is counted before any work begins.
UPDATE job
SET status = 'running', worker = :worker, attempts = attempts + 1, started_at = :now
WHERE seq = (SELECT seq FROM job WHERE status = 'queued' ORDER BY seq LIMIT 1)
RETURNING *;

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

-- name: running_jobs
SELECT * FROM job WHERE status = 'running' ORDER BY seq;

-- name: list_jobs
SELECT * FROM job ORDER BY seq DESC LIMIT :limit OFFSET :offset;

-- name: list_jobs_by_status
SELECT * FROM job WHERE status = :status ORDER BY seq DESC LIMIT :limit OFFSET :offset;

-- name: insert_image
INSERT INTO image (id, job_id, filename, seed, width, height, size_bytes, created_at, precision, engine)
VALUES (:id, :job_id, :filename, :seed, :width, :height, :size_bytes, :created_at, :precision, :engine);

-- name: image_by_id
SELECT image.*, job.request FROM image JOIN job ON job.id = image.job_id WHERE image.id = :id;

-- name: image_by_filename
SELECT image.*, job.request FROM image JOIN job ON job.id = image.job_id WHERE image.filename = :filename;

-- name: list_images
-- Newest first, before an image (exclusive), with a word in the prompt.
SELECT image.*, job.request FROM image JOIN job ON job.id = image.job_id
WHERE (:before IS NULL
       OR (image.created_at, image.id) < (SELECT created_at, id FROM image WHERE id = :before))
  AND (:words IS NULL OR json_extract(job.request, '$.prompt') LIKE :words ESCAPE '\')
ORDER BY image.created_at DESC, image.id DESC LIMIT :limit;

-- name: delete_image
DELETE FROM image WHERE id = :id;
