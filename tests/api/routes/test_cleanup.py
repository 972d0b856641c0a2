"""`/admin/cleanup` and pins, asked of a real service."""

from __future__ import annotations

from tests.service import KeyedService, RunningService


def test_cleanup_now_is_told_and_remembered(engine_service: RunningService) -> None:
    report = engine_service.client.post("/admin/cleanup").json()
    assert report["dry_run"] is False and report["removed"]["outputs"]["count"] == 0
    last = engine_service.client.get("/admin/cleanup").json()["last"]
    assert last["started_at"] >= report["started_at"]


def test_cleanup_dry_run_is_not_the_last(engine_service: RunningService) -> None:
    assert engine_service.client.post("/admin/cleanup?dry_run=true").json()["dry_run"] is True
    last = engine_service.client.get("/admin/cleanup").json()["last"]
    assert last is None or last["dry_run"] is False


def test_cleanup_is_for_admins(keyed_service: KeyedService) -> None:
    assert keyed_service.client.post("/admin/cleanup").status_code == 200
    with keyed_service.as_key(keyed_service.make_key("generate", "loras")) as client:
        assert client.post("/admin/cleanup").status_code == 403
        assert client.get("/admin/cleanup").status_code == 403


def test_pin_of_anothers_picture_is_404(keyed_service: KeyedService) -> None:
    job = keyed_service.wait_for_job(keyed_service.submit())
    with keyed_service.as_key(keyed_service.make_key("generate")) as client:
        answer = client.put(f"/images/{job['result']['images'][0]['id']}/pin")
        assert answer.status_code == 404


def test_pin_is_shown_and_taken_back(engine_service: RunningService) -> None:
    job = engine_service.wait_for_job(engine_service.submit())
    image_id = job["result"]["images"][0]["id"]

    def is_pinned() -> bool:
        listed = engine_service.client.get("/images?limit=500").json()["images"]
        return next(image["pinned"] for image in listed if image["id"] == image_id)

    assert not is_pinned()
    assert engine_service.client.put(f"/images/{image_id}/pin").status_code == 204
    assert is_pinned()
    assert engine_service.client.delete(f"/images/{image_id}/pin").status_code == 204
    assert not is_pinned()


def test_pin_of_no_picture_is_404(engine_service: RunningService) -> None:
    assert engine_service.client.put("/images/none/pin").status_code == 404
