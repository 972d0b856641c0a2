"""The fleet router's dialect: its own examples as they are written, and what its dashboard asks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.api.dialects.conftest import KEY
from tests.service import RunningService

PNG = b"\x89PNG\r\n\x1a\n"

# As the router's documentation has them, but for the port.
PYTHON_EXAMPLE = '''
def mflux_generate_image(prompt, mflux_output_path="mflux_output.png", width=1024, height=1024):
    """Generate an image using mflux image generation via the fleet router."""
    mflux_resp = httpx.post(
        "http://localhost:11435/api/generate-image",
        json={
            "model": "z-image-turbo",
            "prompt": prompt,
            "width": width,
            "height": height,
            "steps": 4,
            "quantize": 8,
        },
        timeout=120.0,
    )
    mflux_resp.raise_for_status()
    with open(mflux_output_path, "wb") as f:
        f.write(mflux_resp.content)
    mflux_node = mflux_resp.headers.get("X-Fleet-Node", "unknown")
    mflux_time_ms = mflux_resp.headers.get("X-Generation-Time", "?")
    print(f"mflux image generation completed on {mflux_node} in {mflux_time_ms}ms")
    return mflux_output_path
'''
JAVASCRIPT_EXAMPLE = """
async function mfluxGenerateImage(prompt, width = 1024, height = 1024) {
  // mflux image generation via fleet router
  const mflux_resp = await fetch("http://localhost:11435/api/generate-image", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      model: "z-image-turbo", prompt, width, height, steps: 4, quantize: 8,
    }),
  });
  if (!mflux_resp.ok) throw new Error((await mflux_resp.json()).error);
  return Buffer.from(await mflux_resp.arrayBuffer());
}
"""


def post(service: RunningService, **body) -> httpx2.Response:
    return service.client.post("/api/generate-image", json=body)


def test_example_in_python_runs(anywhere: RunningService, tmp_path: Path, capsys) -> None:
    namespace = {"httpx": httpx2}
    exec(PYTHON_EXAMPLE.replace("11435", str(anywhere.port)), namespace)
    path = tmp_path / "out.png"
    namespace["mflux_generate_image"]("a neon-lit Tokyo alley", str(path))
    assert path.read_bytes().startswith(PNG)
    said = capsys.readouterr().out
    node = anywhere.client.get("/info").json()["node"]
    assert f"completed on {node} in " in said and "?ms" not in said


def node_runs(service: RunningService, call: str) -> subprocess.CompletedProcess:
    code = JAVASCRIPT_EXAMPLE.replace("11435", str(service.port)) + call
    return subprocess.run(
        ["node", "--input-type=module", "-e", code], capture_output=True, text=True, timeout=180
    )


def test_example_in_javascript_runs(anywhere: RunningService) -> None:
    call = 'process.stdout.write((await mfluxGenerateImage("an alley")).subarray(1, 4).toString());'
    done = node_runs(anywhere, call)
    assert done.stdout == "PNG", done.stderr


def test_example_in_javascript_throws_the_error(engine_service: RunningService) -> None:
    done = node_runs(
        engine_service, 'await mfluxGenerateImage("x").catch((e) => console.log(e.message));'
    )
    assert "image model 'z-image-turbo' not available on any node" in done.stdout
    assert "Available: embedded" in done.stdout


def test_answer_has_the_headers_of_the_router(engine_service: RunningService) -> None:
    answer = post(engine_service, model="embedded", prompt="x", width=128, height=128, seed=3)
    assert answer.headers["content-type"] == "image/png"
    assert answer.content.startswith(PNG)
    assert answer.headers["X-Fleet-Model"] == "embedded"
    assert answer.headers["X-Fleet-Node"] == engine_service.client.get("/info").json()["node"]
    assert answer.headers["X-Generation-Time"].isdecimal()
    assert answer.headers["X-Seed"] == "3"


def test_tags_are_kept_and_counted(anywhere: RunningService) -> None:
    before = anywhere.client.get("/dashboard/api/image-stats").json()
    answer = post(
        anywhere,
        model="z-image-turbo",
        prompt="your prompt for mflux image generation",
        metadata={"tags": ["mflux-project", "mflux-content-gen"]},
    )
    assert answer.status_code == 200, answer.text
    assert post(anywhere, model="z-image-turbo", prompt="raise").status_code == 500
    stats = anywhere.client.get("/dashboard/api/image-stats").json()
    assert stats["total"] == before["total"] + 2
    assert stats["failed"] == before["failed"] + 1
    assert stats["by_tag"] == {"mflux-project": 1, "mflux-content-gen": 1}
    assert sum(stats["by_model"].values()) == stats["total"]
    assert stats["by_model"]["z-image-turbo"] >= 2
    assert sum(stats["by_node"].values()) == stats["total"]
    assert [event["status"] for event in stats["recent"][-2:]] == ["completed", "failed"]
    assert stats["recent"][-2]["tags"] == ["mflux-project", "mflux-content-gen"]
    assert stats["avg_generation_ms"] >= 0


def test_models_are_those_that_draw_here(engine_service: RunningService) -> None:
    answer = engine_service.client.get("/api/image-models").json()
    node = engine_service.client.get("/info").json()["node"]
    there = engine_service.client.get("/api/models").json()["models"]
    assert {"name": "embedded", "type": "image", "backend": "flux", "fleet_nodes": [node]} in (
        answer["models"]
    )
    names = [model["name"] for model in answer["models"]]
    assert names == [model["id"] for model in there if model["available"]]
    assert "flux-dev" not in names


def test_health_tells_of_the_node(engine_service: RunningService) -> None:
    health = engine_service.client.get("/dashboard/api/health").json()
    assert health["status"] == "healthy"
    assert health["vitals"]["nodes_online"] == 1


def test_dashboard_is_the_page_and_asks_for_no_key(keyed: RunningService) -> None:
    answer = keyed.client.get("/dashboard")
    assert (answer.status_code, answer.headers["Location"]) == (307, "/ui/")
    assert keyed.client.get("/dashboard/api/settings").status_code == 401


def test_image_generation_is_switched_off_and_on(anywhere: RunningService) -> None:
    settings = "/dashboard/api/settings"
    done = anywhere.client.post(settings, json={"image_generation": False})
    assert done.json() == {"status": "updated", "updated": {"image_generation": False}}
    try:
        answer = post(anywhere, model="z-image-turbo", prompt="x")
        assert answer.status_code == 503
        assert "switched off" in answer.json()["error"]
        assert anywhere.client.get(settings).json()["image_generation"] is False
    finally:
        anywhere.client.post(settings, json={"image_generation": True})
    read = anywhere.client.get(settings).json()
    assert read["image_generation"] is True
    assert "z-image-turbo" in read["nodes"][0]["image_models"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"prompt": "x"}, 400, "model is required"),
        ({"model": "embedded"}, 400, "prompt"),
        ({"model": "embedded", "prompt": ""}, 400, "prompt"),
        ({"model": "sd9", "prompt": "x"}, 404, "not available on any node"),
        ({"model": "flux-dev", "prompt": "x"}, 404, "needs a GPU"),
        ({"model": "embedded", "prompt": "x", "width": 1024}, 400, "width"),
        ({"model": "embedded", "prompt": "x", "steps": 0}, 400, "steps"),
        ({"model": "embedded", "prompt": "x", "quantize": 2}, 400, "quantize"),
        ({"model": "embedded", "prompt": "x", "metadata": {"tags": "a"}}, 400, "metadata.tags"),
        ({"model": "embedded", "prompt": "raise"}, 500, "drawing failed"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_fault_is_one_sentence(
    engine_service: RunningService, body: dict, status: int, words: str
) -> None:
    answer = post(engine_service, **body)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]


@pytest.mark.parametrize("body", [{"cpu": 1}, {"image_generation": "yes"}, []])
def test_setting_that_is_none_is_refused(engine_service: RunningService, body) -> None:
    answer = engine_service.client.post("/dashboard/api/settings", content=json.dumps(body))
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]


def test_key_that_is_missing_is_told_in_the_routers_shape(keyed: RunningService) -> None:
    answer = keyed.client.post("/api/generate-image", json={})
    assert (answer.status_code, list(answer.json())) == (401, ["error"])
    answer = keyed.client.get("/dashboard/api/health", headers={"X-API-Key": KEY})
    assert answer.status_code == 200
