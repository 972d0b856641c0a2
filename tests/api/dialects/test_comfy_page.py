"""The page and the service read the same request out of a ComfyUI prompt."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from api.dialects.comfy_read import read
from config.settings import ROOT
from tests.api.dialects.comfy_prompts import Prompt, custom, ksampler, node, with_lora


def prompts() -> dict[str, Prompt]:
    negative = ksampler("a cat", cfg=2.5)
    negative["7"]["inputs"]["text"] = "fog"
    guided = ksampler(positive=["20", 0])
    guided["20"] = node("FluxGuidance", conditioning=["6", 0], guidance=2.0)
    guider = custom("a cat")
    guider["22"] = node("BasicGuider", model=["30", 0], conditioning=["26", 0])
    several = ksampler()
    several["5"]["inputs"]["batch_size"] = 4
    return {
        "basic": ksampler("a red balloon"),
        "custom sampler": custom("a cat"),
        "negative": negative,
        "guidance": guided,
        "lora": with_lora(ksampler(), "styles/sepia.safetensors", 0.8),
        "basic guider": guider,
        "several": several,
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the page reads, by name."""
    module = (ROOT / "frontend" / "js" / "graph" / "comfy.js").as_uri()
    code = (
        f"import {{ fromComfy }} from {json.dumps(module)};"
        "let text = ''; for await (const piece of process.stdin) text += piece;"
        "const read = Object.entries(JSON.parse(text)).map(([name, prompt]) => [name, fromComfy(prompt).wanted]);"
        "console.log(JSON.stringify(Object.fromEntries(read)));"
    )
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code],
        input=json.dumps(prompts()),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout)


@pytest.mark.parametrize("name", prompts())
def test_prompt_is_one_request_to_both(page: dict[str, Any], name: str) -> None:
    ours = read(prompts()[name]).values
    cfg = ours.pop("cfg", None)
    if "negative_prompt" in ours:
        ours["true_cfg_scale"] = cfg
    theirs = {key: value for key, value in page[name].items() if value is not None}
    theirs.pop("model", None)
    assert theirs == ours
