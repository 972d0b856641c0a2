"""Bodies that clients send, checked strictly: a number is a number, an unknown name is an error."""

from __future__ import annotations

import difflib
import hashlib
import re
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from config.catalog import MAX_STEPS
from models.types import MAX_IMAGES, MAX_SEED, OutputFormat
from utils.requests import DRAWN_SEED, Wanted

# Words of other APIs for ours, translated here and nowhere else.
ALIASES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}

# Routes whose body is a GenerateBody.
PICTURE_PATHS = frozenset({"/generate", "/jobs"})
# Fields that a model's limits are about, and their types.
LIMITED_FIELDS = {
    "model": str,
    "backend": str,
    "width": int,
    "height": int,
    "seed": int,
    "num_images": int,
}

# In the contract, not in this version: named when they are used, never ignored.
NOT_BUILT = {
    "loras": "LoRAs",
    "lora_name": "LoRAs",
    "lora_weight": "LoRAs",
    "image": "image to image",
    "mask": "inpainting",
    "strength": "image to image",
    "reference_images": "reference images",
}

MAX_PROMPT_CHARACTERS = 2000
MAX_TAGS = 16
MAX_TAG_CHARACTERS = 64
# Control characters but tab and line ends, and halves of surrogate pairs.
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def _clean_text(value: Any) -> Any:
    """Text that any store, file and header can hold; the length counts after trimming."""
    if not isinstance(value, str):
        return value
    value = value.strip()
    # A text that is too long is refused for that, without a look at each of its characters.
    found = _NO_TEXT.search(value) if len(value) <= MAX_PROMPT_CHARACTERS else None
    if found:
        raise ValueError(
            f"holds the character U+{ord(found.group()):04X}, which is no text; remove it"
        )
    return value


Text = Annotated[str, BeforeValidator(_clean_text)]
Id = Annotated[str, BeforeValidator(_clean_text), Field(min_length=1, max_length=200)]
Scale = Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)]


class Metadata(BaseModel):
    """What the client wants remembered with the job."""

    model_config = ConfigDict(strict=True, extra="forbid")

    tags: list[Annotated[Text, Field(min_length=1, max_length=MAX_TAG_CHARACTERS)]] = Field(
        [], max_length=MAX_TAGS
    )


class GenerateBody(BaseModel):
    """One request for pictures. Left out or null: the model's default."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={
            "example": {"prompt": "a red balloon over green hills at sunset", "seed": 7}
        },
    )

    prompt: Annotated[Text, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)] = Field(
        description="What to draw: 1 to 2000 characters."
    )
    negative_prompt: Annotated[Text, Field(max_length=MAX_PROMPT_CHARACTERS)] | None = Field(
        None,
        description="What to keep away from; acts through true_cfg_scale and doubles the time of a step.",
    )
    model: Id | None = Field(None, description="An id from GET /api/models.")
    backend: Id | None = Field(None, description="An id from GET /api/backends.")
    width: int | None = Field(
        None, description="Pixels, a multiple of 16 within the model's limits."
    )
    height: int | None = Field(
        None, description="Pixels, a multiple of 16 within the model's limits."
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = Field(
        None, description="Steps of the sampler. Also called `steps`."
    )
    guidance_scale: Scale | None = Field(
        None,
        description="Embedded guidance, for models that have it. Also called `guidance`.",
    )
    true_cfg_scale: Scale | None = Field(
        None,
        description="Classifier-free guidance, used when there is a negative_prompt.",
    )
    seed: Annotated[int, Field(ge=DRAWN_SEED, le=MAX_SEED)] | None = Field(
        None, description="0 to 2^53-1. Null or -1: drawn, and reported in the answer."
    )
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = Field(
        1, description="Image i uses seed + i."
    )
    output_format: OutputFormat = Field(OutputFormat.PNG, strict=False)
    output_quality: Annotated[int, Field(ge=1, le=100)] = Field(
        95, description="For jpeg and webp."
    )
    metadata: Metadata = Field(default_factory=Metadata)

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, data: Any) -> Any:
        """Nothing is refused here, because that would hide the other faults: a name that stays is refused."""
        if not isinstance(data, dict):
            return data
        # Empty values ask for nothing: `loras: []` means none.
        data = {
            name: value
            for name, value in data.items()
            if name not in NOT_BUILT or value not in (None, [], "")
        }
        for alias, name in ALIASES.items():
            value, named = data.get(alias), data.get(name)
            if value is None or named is None or (type(value), value) == (type(named), named):
                data.pop(alias, None)
                if value is not None:
                    data[name] = value
        return data

    @field_validator("num_images", "output_format", "output_quality", "metadata", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any, info: Any) -> Any:
        if value is None:
            return cls.model_fields[info.field_name].get_default(call_default_factory=True)
        return value

    def wanted(self) -> Wanted:
        values = self.model_dump(exclude={"metadata"})
        return Wanted(**values, tags=tuple(self.metadata.tags))

    def digest(self) -> str:
        """SHA-256 of the body's meaning, to compare two bodies sent under one key."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class ModelBody(BaseModel):
    """Names a model."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Id | None = Field(
        None, description="An id from GET /api/models; left out: the default model."
    )


def why_not_taken(name: str) -> str:
    """What to say about a name that is in a GenerateBody and no field of it."""
    if name in ALIASES:
        return f"is the same field as {ALIASES[name]}, and both have a value; send one"
    if name in NOT_BUILT:
        return f"{NOT_BUILT[name]} is not built yet in this version; leave the field out"
    close = difflib.get_close_matches(name, [*GenerateBody.model_fields, *ALIASES], n=1)
    return "there is no such field" + (f"; did you mean {close[0]}?" if close else "")
