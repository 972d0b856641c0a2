"""Fields of flux_api's clients that other programs and its own page still send.

What asks for nothing is left out; what asks for something that is not done here is refused by name.
"""

from __future__ import annotations

from typing import Any

# Their words for ours.
NAMES = {"image_strength": "strength", "image_guidance_scale": "guidance_scale"}
# What they can switch on, in words for people, and the fields that say how.
SWITCHES = {"upscale": "upscaling", "remove_background": "removing a background"}
DETAILS = frozenset({"upscale_factor", "bg_strength", "downscale"})
LORA_FOLDER = "uploads/lora_files/"
_OFF = (None, False, "")


def translated(data: dict[str, Any]) -> dict[str, Any]:
    """A body in our words; what is not translated stays, and is refused by its name."""
    is_on = [name for name in SWITCHES if data.get(name) not in _OFF]
    return {
        NAMES[name] if name in NAMES and NAMES[name] not in data else name: value
        for name, value in data.items()
        if name in is_on or not (name in SWITCHES or name in DETAILS)
    }


def lora_name(value: Any) -> Any:
    """A LoRA that is called by the path it was told to have after its upload."""
    return value.removeprefix(LORA_FOLDER) if isinstance(value, str) else value


def why_not(name: str) -> str | None:
    """What to say about a switch that is on; None for any other field."""
    if name not in SWITCHES:
        return None
    return f"{SWITCHES[name]} is not done here; leave the field out, or send false"
