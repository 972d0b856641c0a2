"""Checks a ComfyUI prompt: its nodes, and of those that its outputs depend on every input."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from api.dialects.comfy_graph import Graph, GraphRefused
from api.dialects.comfy_nodes import NODES


def checked(prompt: Any, targets: Collection[str] | None = None) -> tuple[Graph, list[str]]:
    """The graph of a prompt and its output nodes. Raises GraphRefused. `targets`: of these only those."""
    graph = Graph(prompt)
    graph.check_nodes()
    outputs = [
        node
        for node in graph.nodes
        if NODES[graph.kind(node)].is_output and (targets is None or node in targets)
    ]
    if not outputs:
        raise GraphRefused("prompt_no_outputs", "Prompt has no outputs")
    for node in _upstream(graph, outputs):
        graph.check_inputs(node)
    graph.raise_errors(outputs)
    return graph, outputs


def _upstream(graph: Graph, outputs: Sequence[str]) -> list[str]:
    """The nodes that the outputs depend on. Raises GraphRefused for a graph that runs in a circle."""
    done: dict[str, bool] = {}  # False: on the way to it
    order: list[str] = []
    stack = [(node, False) for node in reversed(outputs)]
    while stack:
        node, is_left = stack.pop()
        if is_left:
            done[node] = True
            order.append(node)
        elif node not in done:
            done[node] = False
            stack.append((node, True))
            for value in graph.nodes[node]["inputs"].values():
                source = value[0] if isinstance(value, list) and value else None
                if isinstance(source, str) and source in graph.nodes:
                    if done.get(source) is False:
                        raise GraphRefused("dependency_cycle", f"node {source} is wired to itself")
                    stack.append((source, False))
    return order
