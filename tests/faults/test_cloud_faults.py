"""A service that is killed while BFL's cloud has its jobs: nothing is paid for twice, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.cloud import StandIn
from tests.service import RunningService


def test_service_killed_goes_on_with_what_the_cloud_has_and_asks_for_nothing_twice(
    start_engine: Callable[..., RunningService], cloud: StandIn, tmp_path: Path
) -> None:
    options = {"folder": tmp_path / "killed", "wait_for_workers": False, **cloud.environ}
    service = start_engine(**options)
    taken = service.submit("taken [[delay=1.5]]", model="flux-2-klein-4b")
    silent = service.submit("silent [[then=hang]]", model="flux-2-klein-4b")
    service.wait_until(lambda: any(call["method"] == "GET" for call in cloud.calls))
    service.wait_until(lambda: len(cloud.submits) == 2)
    service.kill()

    again = start_engine(**options)
    drawn = again.wait_for_job(taken)
    assert drawn["status"] == "succeeded" and drawn["result"]["cost_usd"] > 0
    unclear = again.wait_for_job(silent)
    assert unclear["error"]["code"] == "provider_error"
    assert "may have charged" in unclear["error"]["message"]
    assert len(cloud.submits) == 2  # one for each, however often the service began
    assert again.files() == {drawn["result"]["filename"]}
    hosts = {call["host"] for call in cloud.calls if call["has_key"]}
    assert hosts == {f"127.0.0.1:{cloud.port}"}
