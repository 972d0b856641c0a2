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
    ValidationInfo,
    field_validator,
    model_validator,
)

from api import older_fields
from config.catalog import MAX_REFERENCES, MAX_SCALE, MAX_STEPS
from models.lora.inspect import MAX_TRIGGER_CHARS, MAX_TRIGGER_WORDS
from models.lora.names import MAX_HUB_ID_CHARACTERS, NAME
from models.precision import known_precisions
from models.types import MAX_IMAGES, MAX_SEED, OutputFormat
from utils.lora_choice import MAX_LORAS, MAX_WEIGHT, LoraChoice
from utils.requests import DRAWN_SEED, Wanted

# Words of other APIs for ours, translated here and nowhere else.
ALIASES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}

# Routes whose body is a GenerateBody.
PICTURE_PATHS = frozenset({"/generate", "/jobs", "/submit-request", "/upload-image-generate"})
# Fields that a model's limits are about, and their types.
LIMITED_FIELDS = {
    "model": str,
    "backend": str,
    "precision": str,
    "width": int,
    "height": int,
    "seed": int,
    "num_images": int,
    "guidance_scale": float,
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
# A picture in text is as long as the body may be, so nobody looks at each of its characters here.
PictureText = Annotated[str, Field(min_length=1)]
Scale = Annotated[float, Field(ge=0, le=MAX_SCALE, allow_inf_nan=False)]
# How much a model takes is its row's to say.
Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


LoraName = Annotated[
    Text,
    BeforeValidator(older_fields.lora_name),
    Field(min_length=1, max_length=MAX_HUB_ID_CHARACTERS),
]
LoraWeight = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)]


class LoraBody(BaseModel):
    """One LoRA of a request."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: LoraName = Field(
        description="A name from GET /loras, a file name, or a Hugging Face id: `owner/repo` or "
        "`owner/repo/file.safetensors`, which is fetched once."
    )
    weight: LoraWeight = Field(1.0, description="How strongly it acts; negative: the other way.")
    trigger_word: Annotated[Text, Field(max_length=MAX_TRIGGER_CHARS)] | None = Field(
        None,
        description="Put before the prompt unless it is in it. Left out: the LoRA's own words; empty: none.",
    )

    @field_validator("weight", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        return 1.0 if value is None else value

    def choice(self) -> LoraChoice:
        return LoraChoice(**self.model_dump())


class LorasBody(BaseModel):
    """LoRAs in either form: a list, or the name of one and its weight."""

    model_config = ConfigDict(strict=True, extra="forbid")

    loras: Annotated[list[LoraBody], Field(max_length=MAX_LORAS)] | None = Field(
        None, description="`[]`: none. Left out: the service's default LoRAs."
    )
    lora_name: LoraName | None = Field(None, description="The short form of a list of one.")
    lora_weight: LoraWeight | None = Field(None, description="Of `lora_name`.")

    @field_validator("lora_name", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("lora_name")
    @classmethod
    def _one_form(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("loras") is not None:
            raise ValueError("there is a list in loras as well; send one of the two")
        return value

    @field_validator("lora_weight")
    @classmethod
    def _has_a_name(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("lora_name", "") is None:
            raise ValueError("is the weight of lora_name, which is missing")
        return value

    def choices(self) -> tuple[LoraChoice, ...] | None:
        """What is asked for; None where the choice is left to the service."""
        if self.lora_name is not None:
            weight = 1.0 if self.lora_weight is None else self.lora_weight
            return (LoraChoice(name=self.lora_name, weight=weight, field="lora_name"),)
        return None if self.loras is None else tuple(lora.choice() for lora in self.loras)


class ApplyLoraBody(LorasBody):
    """The LoRAs that requests get which name none. `name` and `weight` are `lora_name` and `lora_weight`."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"name": "pencil-sketch", "weight": 0.8}}
    )

    @model_validator(mode="before")
    @classmethod
    def _short_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        short = {"name": "lora_name", "weight": "lora_weight"}
        named = {short.get(name, name): value for name, value in data.items()}
        return named if len(named) == len(data) else data  # both names of one: refused by its own

    @model_validator(mode="after")
    def _something(self) -> ApplyLoraBody:
        if self.choices() is None:
            raise ValueError("names no LoRA; send `loras`, or `name` and `weight`")
        return self


class RemoveLoraBody(BaseModel):
    """Which default LoRA to end; left out: all of them."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: LoraName | None = None

    @model_validator(mode="before")
    @classmethod
    def _long_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and "lora_name" in data and "name" not in data:
            return {
                **{k: v for k, v in data.items() if k != "lora_name"},
                "name": data["lora_name"],
            }
        return data


class ChangeLoraBody(BaseModel):
    """What to change of a LoRA in the library; left out or null: as it is."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Text | None = Field(None, description="1 to 64 of a-z, 0-9, - and _.")
    trigger_words: (
        Annotated[
            list[Annotated[Text, Field(min_length=1, max_length=MAX_TRIGGER_CHARS)]],
            Field(max_length=MAX_TRIGGER_WORDS),
        ]
        | None
    ) = Field(None, description="Put before a prompt that lacks them. `[]`: none.")

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not NAME.fullmatch(value):
            raise ValueError(
                "must be 1 to 64 lower-case letters, digits, - and _, with a letter or digit first"
            )
        return value

    @model_validator(mode="after")
    def _something(self) -> ChangeLoraBody:
        if self.name is None and self.trigger_words is None:
            raise ValueError("changes nothing; send name, trigger_words or both")
        return self


class Metadata(BaseModel):
    """What the client wants remembered with the job."""

    model_config = ConfigDict(strict=True, extra="forbid")

    tags: list[Annotated[Text, Field(min_length=1, max_length=MAX_TAG_CHARACTERS)]] = Field(
        default_factory=list, max_length=MAX_TAGS
    )


class GenerateBody(LorasBody):
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
    precision: Id | None = Field(
        None,
        description=f"What the picture must be drawn in: {' or '.join(known_precisions())}. A service has one; a "
        "fleet gives the job to a machine that has it. Left out: any.",
    )
    width: int | None = Field(
        None, description="Pixels, a multiple of 16 within the model's limits."
    )
    height: int | None = Field(
        None, description="Pixels, a multiple of 16 within the model's limits."
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = Field(
        None, description="Steps of the sampler. Also called `steps`."
    )
    guidance_scale: Guidance | None = Field(
        None,
        description="Guidance, for models that have it: embedded in FLUX, classifier-free in Stable Diffusion. "
        "0 to 20, for some models more. Also called "
        "`guidance`.",
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
    image: PictureText | None = Field(
        None,
        description="A picture to begin with: PNG, JPEG or WebP as base64 or as a data URL, or the id of a "
        "picture of this service. Never another URL. Without `width` and `height` the answer has its size, "
        "rounded to 16 and within the model's limits; of another shape it is cut to, around its middle.",
    )
    mask: PictureText | None = Field(
        None,
        description="Of the same size as `image`, in the same forms: what is white is drawn anew, what is black "
        "keeps every pixel, grey blends.",
    )
    strength: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None,
        description="How much of `image` is drawn anew: 0 nothing, 1 all. That share of the steps is run, at "
        "least one. Left out: 0.6, and 1 with a mask.",
    )
    reference_images: Annotated[list[PictureText], Field(max_length=MAX_REFERENCES)] = Field(
        default_factory=list,
        description="Pictures to look at, in the same forms as `image`, for models that edit by the prompt. "
        "Without `width` and `height` the answer has the shape of the first.",
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
        data = older_fields.translated(data)
        for alias, name in ALIASES.items():
            value, named = data.get(alias), data.get(name)
            if value is None or named is None or (type(value), value) == (type(named), named):
                data.pop(alias, None)
                if value is not None:
                    data[name] = value
        return data

    @field_validator("mask", "strength")
    @classmethod
    def _has_an_image(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("image", "") is None:
            raise ValueError("goes with image, which is missing")
        return value

    @field_validator("image", "mask", mode="before")
    @classmethod
    def _no_picture(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("reference_images", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [value] if value else []
        return value

    @field_validator(
        "num_images",
        "output_format",
        "output_quality",
        "metadata",
        "reference_images",
        mode="before",
    )
    @classmethod
    def _null_is_default(cls, value: Any, info: Any) -> Any:
        if value is None:
            return cls.model_fields[info.field_name].get_default(call_default_factory=True)
        return value

    def wanted(self) -> Wanted:
        # Not `model_dump`, which looks into every value: none of these holds others.
        values = {name: value for name, value in vars(self).items() if name not in _NOT_PLAIN}
        return Wanted(
            **values,
            tags=tuple(self.metadata.tags),
            loras=self.choices(),
            reference_images=tuple(self.reference_images),
        )

    def digest(self) -> str:
        """SHA-256 of the body's meaning, to compare two bodies sent under one key."""
        digest = hashlib.sha256(self.model_dump_json(exclude=_PICTURES).encode())
        pictures = [("image", self.image), ("mask", self.mask)]
        pictures += [("reference_images", value) for value in self.reference_images]
        for name, value in pictures:
            if value is not None:
                digest.update(f"{name} {len(value)} ".encode())
                digest.update(value.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


_PICTURES = {"image", "mask", "reference_images"}
_NOT_PLAIN = frozenset({"metadata", "reference_images", *LorasBody.model_fields})


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
    if (reason := older_fields.why_not(name)) is not None:
        return reason
    known = [*GenerateBody.model_fields, *ALIASES]
    if name.startswith("loras."):
        known = list(LoraBody.model_fields)
    close = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    return "there is no such field" + (f"; did you mean {close[0]}?" if close else "")
