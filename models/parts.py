"""Parts that several models have alike, in memory once: FLUX.1's models have one T5, CLIP and autoencoder.

What is alike is known by content and not by name: the digests of a component's weights (the Hub's own,
where its cache has them), its configuration, the type of its numbers and the device. Every model gets
modules of its own over the same tensors, because its LoRAs put layers around theirs. Tensors stay as
long as a model has them.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import nn

from config.errors import ModelUnavailable
from models.fingerprint import fingerprint

Keys = Mapping[str, str]  # by the component's name


class Parts:
    """What the models of one process have in memory and can share."""

    def __init__(self) -> None:
        # As they were read, without anybody's LoRAs; alive as long as a module over the same tensors is.
        self._as_read: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()
        self._held_by: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

    def lend(self, keys: Keys) -> dict[str, nn.Module]:
        """A module for each of these parts that is in memory, for one model."""
        lent = {}
        for name, key in keys.items():
            as_read = self._as_read.get(key)
            if as_read is not None:
                lent[name] = over_the_same_tensors(as_read)
                self._held_by[lent[name]] = as_read
        return lent

    def remember(self, keys: Keys, part_of: Callable[[str], nn.Module]) -> None:
        """These parts of a model are on their devices, and nobody has changed them."""
        for name, key in keys.items():
            if key not in self._as_read:
                module = part_of(name)
                as_read = over_the_same_tensors(module)
                self._as_read[key] = self._held_by[module] = as_read


def keys_of(
    folder: Path, names: Iterable[str], dtype: torch.dtype, device_of: Callable[[str], str]
) -> dict[str, str]:
    """What tells the parts of a diffusers folder apart; none for one whose weights are not whole."""
    keys = {}
    for name in names:
        try:
            weights = fingerprint(folder, [name])
            configuration = (folder / name / "config.json").read_bytes()
        except (ModelUnavailable, OSError):
            continue  # whoever reads it says what is wrong
        facts: list[Any] = [
            sorted(json.dumps(entry, sort_keys=True) for entry in weights.values()),
            hashlib.sha256(configuration).hexdigest(),
            str(dtype),
            device_of(name),
        ]
        keys[name] = json.dumps(facts)
    return keys


def over_the_same_tensors(module: nn.Module) -> nn.Module:
    """A copy of the module's layers and none of its weights."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
