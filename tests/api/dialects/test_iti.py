"""The ITI image service's dialect, and its workflow for n8n."""

from __future__ import annotations

import base64
import json

import pytest

from config.settings import ROOT
from tests.api.dialects.conftest import KEY
from tests.service import RunningService


def test_txt2img_takes_a_backend_and_answers_as_generate(engine_service: RunningService) -> None:
    body = {"prompt": "x", "backend": "flux", "width": 128, "height": 128, "seed": 4}
    answer = engine_service.client.post("/api/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    native = engine_service.client.post("/generate", json=body).json()
    for name in ("seed", "width", "height", "model", "backend", "image"):
        assert answer.json()[name] == native[name]
    assert base64.b64decode(answer.json()["image"]).startswith(b"\x89PNG")


def test_txt2img_knows_older_names(engine_service: RunningService) -> None:
    body = {"prompt": "x", "width": 128, "height": 128, "batch_size": 2, "cfg_scale": 3}
    answer = engine_service.client.post("/api/txt2img", json=body).json()
    assert len(answer["images"]) == 2
    assert answer["guidance_scale"] == 3


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "backend": "flux-local"}, "needs a GPU"),
        ({"prompt": "x", "backend": "dall-e"}, "backend"),
        ({"prompt": "x", "batch_size": 9}, "batch_size"),
        ({"prompt": "x", "n": 1, "num_images": 2}, "n"),
        ({"prompt": "x", "colour": 1}, "colour"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_txt2img_fault_names_the_field(
    engine_service: RunningService, body: dict, field: str
) -> None:
    answer = engine_service.client.post("/api/txt2img", json=body)
    assert 400 <= answer.status_code < 500
    assert field in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/health", "/info", "/api/backends", "/api/models"])
def test_what_is_asked_beside_needs_the_key_in_its_header(keyed: RunningService, path: str) -> None:
    assert keyed.client.get(path).status_code == 401
    assert keyed.client.get(path, headers={"X-API-Key": KEY}).status_code == 200


def test_workflow_of_n8n_asks_this_route(engine_service: RunningService) -> None:
    """Its request is sent as n8n would send it, with the node's own expressions filled in."""
    workflow = json.loads((ROOT / "docs" / "n8n-workflow.json").read_text(encoding="utf-8"))
    nodes = {node["name"]: node for node in workflow["nodes"]}
    assert set(workflow["connections"]) <= set(nodes)
    linked = {
        link["node"]
        for outputs in workflow["connections"].values()
        for links in outputs["main"]
        for link in links
    }
    assert linked <= set(nodes)
    [request] = [
        node["parameters"]
        for node in workflow["nodes"]
        if node["type"] == "n8n-nodes-base.httpRequest"
    ]
    assert request["url"].endswith("/api/txt2img")
    assert request["method"] == "POST"
    [settings] = [
        node["parameters"] for node in workflow["nodes"] if node["type"] == "n8n-nodes-base.set"
    ]
    values = {each["name"]: each["value"] for each in settings["assignments"]["assignments"]}
    body = {}
    for parameter in request["bodyParameters"]["parameters"]:
        expression = parameter["value"]
        assert expression.startswith("={{ $json.") and expression.endswith(" }}")
        body[parameter["name"]] = values[expression[len("={{ $json.") : -len(" }}")]]
    answer = engine_service.client.post("/api/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    [convert] = [
        node["parameters"]
        for node in workflow["nodes"]
        if node["type"] == "n8n-nodes-base.convertToFile"
    ]
    assert convert["operation"] == "toBinary"
    assert base64.b64decode(answer.json()[convert["sourceProperty"]])
