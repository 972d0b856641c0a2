"""A ComfyUI prompt as a graph: what is wired to what, and whether it can be drawn.

Every node must be one of `comfy_nodes.NODES`, every link must fit, every value be in its limits; what is
not is told per node, as ComfyUI tells it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from api.dialects.comfy_nodes import NODES, Value
from config.errors import FluxError

MAX_NODES = 200  # as many names as an object of a body has


class GraphRefused(FluxError):
    """`node_errors` by node id, in ComfyUI's shape; none where the prompt as a whole is at fault."""

    code, status = "prompt_outputs_failed_validation", 400

    def __init__(
        self, kind: str, message: str, node_errors: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = kind
        self.node_errors = dict(node_errors or {})


class Graph:
    """A prompt: what is wired to what. See `comfy_check.checked`."""

    def __init__(self, prompt: Any) -> None:
        if not isinstance(prompt, dict) or not prompt:
            raise GraphRefused("no_prompt", "No prompt provided")
        if len(prompt) > MAX_NODES:
            raise GraphRefused(
                "invalid_prompt", f"the prompt has {len(prompt)} nodes; {MAX_NODES} are read"
            )
        self.nodes: dict[str, dict[str, Any]] = prompt
        self._errors: dict[str, list[dict[str, Any]]] = {}

    def kind(self, node: str) -> str:
        return self.nodes[node]["class_type"]

    def link(self, node: str, key: str) -> tuple[str, int] | None:
        """The node and output that an input is wired to."""
        value = self.nodes[node]["inputs"].get(key)
        return (value[0], value[1]) if isinstance(value, list) else None

    def source(self, node: str, key: str) -> str | None:
        found = self.link(node, key)
        return found[0] if found else None

    def value(self, node: str, key: str) -> Any:
        """A value as it is typed in, or of a primitive that is wired to it; else the default."""
        kind = NODES[self.kind(node)].inputs[key]
        default = kind.default if isinstance(kind, Value) else None
        value = self.nodes[node]["inputs"].get(key)
        if value is None:  # null as well as left out
            return default
        for _ in range(MAX_NODES):
            if not isinstance(value, list):
                return value
            value = self.nodes[value[0]]["inputs"].get("value")
        return None

    def refuse(self, node: str, kind: str, message: str, details: str = "", **extra: Any) -> None:
        found = self._errors.setdefault(node, [])
        found.append({"type": kind, "message": message, "details": details, "extra_info": extra})

    def raise_errors(self, outputs: Collection[str]) -> None:
        if not self._errors:
            return
        node_errors = {
            node: {
                "errors": errors,
                "dependent_outputs": list(outputs),
                "class_type": str(_class_of(self.nodes.get(node)))[:100],
            }
            for node, errors in self._errors.items()
        }
        words = "; ".join(
            f"node {node[:40]} ({entry['class_type']}): {error['message']}"
            + (f" ({error['details']})" if error["details"] else "")
            for node, entry in node_errors.items()
            for error in entry["errors"]
        )
        raise GraphRefused(
            "prompt_outputs_failed_validation",
            f"Prompt outputs failed validation: {words}",
            node_errors,
        )

    # Checks

    def check_nodes(self) -> None:
        """Every node is one that is known, and its inputs are those it has."""
        for node, data in self.nodes.items():
            name = _class_of(data)
            if not isinstance(name, str) or name not in NODES:
                shown = str(name)[:80]
                self.refuse(
                    node,
                    "missing_node_type",
                    f"Node {shown!r} is not one that this service draws with",
                    shown,
                )
            elif not isinstance(data.get("inputs"), dict):
                self.refuse(node, "invalid_inputs", "The node has no inputs")
        self.raise_errors(())

    def check_inputs(self, node: str) -> None:
        """The inputs of a node that is drawn: all there, links that fit, values in their limits."""
        spec = NODES[self.kind(node)]
        for key, kind in spec.inputs.items():
            given = self.nodes[node]["inputs"].get(key)
            if given is None:
                has_default = isinstance(kind, Value) and (
                    kind.default is not None or kind.among == "default"
                )
                if key not in spec.optional and not has_default:
                    self.refuse(
                        node,
                        "required_input_missing",
                        "Required input is missing",
                        key,
                        input_name=key,
                    )
            elif isinstance(given, list):
                self._check_link(node, key, kind, given)
            elif isinstance(kind, str):
                self.refuse(
                    node,
                    "bad_linked_input",
                    f"Input {key} must be wired to a {kind}",
                    key,
                    input_name=key,
                )
            else:
                self._check_value(node, key, kind, given)

    def _check_link(self, node: str, key: str, kind: str | Value, given: list[Any]) -> None:
        wanted = kind if isinstance(kind, str) else kind.kind
        is_link = len(given) == 2 and isinstance(given[0], str) and type(given[1]) is int
        if not is_link or given[0] not in self.nodes:
            words = f"Input {key} is wired to a node that is not there"
            return self.refuse(
                node, "bad_linked_input", words, json.dumps(given)[:80], input_name=key
            )
        outputs = NODES[self.kind(given[0])].outputs
        there = outputs[given[1]] if 0 <= given[1] < len(outputs) else "nothing"
        numbers = ("INT", "FLOAT")
        if there != wanted and not (there in numbers and wanted in numbers):
            self.refuse(
                node, "return_type_mismatch", "Return type mismatch between linked nodes",
                f"{key}, received_type({there}) mismatch input_type({wanted})", input_name=key,
            )  # fmt: skip
        elif isinstance(kind, Value) and not isinstance(self.value(node, key), list):
            self._check_value(node, key, kind, self.value(node, key))

    def _check_value(self, node: str, key: str, kind: Value, given: Any) -> None:
        is_text = isinstance(given, str)
        if kind.kind in ("STRING", "COMBO"):
            if not is_text:
                self._bad_type(node, key, kind, given)
            return
        if kind.kind == "BOOLEAN":
            if not isinstance(given, bool):
                self._bad_type(node, key, kind, given)
            return
        is_whole = isinstance(given, int) and not isinstance(given, bool)
        is_number = is_whole or (isinstance(given, float) and math.isfinite(given))
        if not is_number or (kind.kind == "INT" and given != int(given)):
            return self._bad_type(node, key, kind, given)
        if kind.low is not None and given < kind.low:
            words = f"Value {str(given)[:40]} smaller than min of {kind.low}"
            self.refuse(
                node, "value_smaller_than_min", words, key, input_name=key, received_value=given
            )
        elif kind.high is not None and given > kind.high:
            words = f"Value {str(given)[:40]} bigger than max of {kind.high}"
            self.refuse(
                node, "value_bigger_than_max", words, key, input_name=key, received_value=given
            )

    def _bad_type(self, node: str, key: str, kind: Value, given: Any) -> None:
        self.refuse(
            node, "invalid_input_type", f"Failed to convert an input value to a {kind.kind} value",
            f"{key}, {json.dumps(given)[:60]}", input_name=key,
        )  # fmt: skip


def _class_of(data: Any) -> Any:
    return data.get("class_type") if isinstance(data, dict) else None
