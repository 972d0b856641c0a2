"""How long each part is trained and on what."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSet:
    """Pictures of one size, encoded once and used by a phase."""

    size: tuple[int, int]  # width, height in pixels
    count: int
    batch_size: int
    weight: float = 1.0  # how often, against the phase's other sets
    frame_scale: int = 1  # see `position_ids`
    window: int = 0  # tokens, see `PictureFormat`


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRecipe:
    """One phase of the transformer's training; see `FlowPhase`."""

    name: str
    steps: int
    learning_rate: float
    sets: tuple[PictureSet, ...]
    subject_weight: float = 5.0
    decay_share: float = 0.4
    sampler_share: float = 0.0
    straighten_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The whole training."""

    autoencoder_pictures: int
    autoencoder_steps: int
    tokenizer_captions: int
    text_steps: int
    phases: tuple[PhaseRecipe, ...]
    shift: float  # of the scheduler
    sampler_steps: int = 4  # whose noise levels `sampler_share` and `straighten_share` are about
    save_every: int = 100  # steps


LAYOUT_SET = PictureSet(size=(128, 128), count=24_000, batch_size=64, frame_scale=2)
DETAIL_SET = PictureSet(size=(256, 256), count=8_000, batch_size=16, weight=1.00)
CUT_OUT_SET = PictureSet(size=(256, 256), count=8_000, batch_size=48, weight=1.00, window=8)
OTHER_SETS = (
    PictureSet(size=(128, 128), count=24_000, batch_size=48, weight=0.06),
    PictureSet(size=(192, 192), count=1_200, batch_size=24, weight=0.05),
    PictureSet(size=(256, 128), count=1_000, batch_size=28, weight=0.03),
    PictureSet(size=(128, 256), count=1_000, batch_size=28, weight=0.03),
    PictureSet(size=(320, 208), count=900, batch_size=14, weight=0.03),
    PictureSet(size=(208, 320), count=900, batch_size=14, weight=0.03),
    PictureSet(size=(384, 384), count=600, batch_size=5, weight=0.03),
    PictureSet(size=(512, 320), count=500, batch_size=5, weight=0.02),
    PictureSet(size=(320, 512), count=500, batch_size=5, weight=0.02),
    PictureSet(size=(512, 512), count=400, batch_size=2, weight=0.03),
)
# the sizes at which the layout of 256 x 256 goes wrong by most, more often
FINISH_WEIGHTS = {(128, 128): 0.35, (512, 512): 0.20, (192, 192): 0.10, (384, 384): 0.10}
FINISH_SETS = (
    DETAIL_SET,
    replace(CUT_OUT_SET, weight=0.6),
    *(replace(each, weight=FINISH_WEIGHTS.get(each.size, 0.08)) for each in OTHER_SETS),
)

# every shape of frame in its own right: more pictures, and the larger sizes as often as 256 x 256
SIZE_SETS = (
    replace(DETAIL_SET, weight=0.20),
    replace(CUT_OUT_SET, weight=0.10),
    PictureSet(size=(128, 128), count=24_000, batch_size=48, weight=0.10),
    PictureSet(size=(192, 192), count=4_000, batch_size=26, weight=0.10),
    PictureSet(size=(256, 128), count=3_000, batch_size=28, weight=0.05),
    PictureSet(size=(128, 256), count=3_000, batch_size=28, weight=0.05),
    PictureSet(size=(320, 208), count=2_500, batch_size=14, weight=0.05),
    PictureSet(size=(208, 320), count=2_500, batch_size=14, weight=0.05),
    PictureSet(size=(384, 256), count=2_000, batch_size=10, weight=0.05),
    PictureSet(size=(256, 384), count=2_000, batch_size=10, weight=0.05),
    PictureSet(size=(512, 192), count=1_500, batch_size=10, weight=0.04),
    PictureSet(size=(192, 512), count=1_500, batch_size=10, weight=0.04),
    PictureSet(size=(384, 384), count=2_000, batch_size=7, weight=0.09),
    PictureSet(size=(512, 320), count=1_500, batch_size=6, weight=0.05),
    PictureSet(size=(320, 512), count=1_500, batch_size=6, weight=0.05),
    PictureSet(size=(512, 512), count=1_500, batch_size=4, weight=0.12),
)

# sizes between those, so that it learns to find the frame's edges and not a list of frames
BETWEEN_SETS = (
    *(replace(each, weight=0.5 * each.weight) for each in SIZE_SETS),
    *(
        PictureSet(
            size=size, count=400, batch_size=max(4, 1_200_000 // (size[0] * size[1])), weight=0.03
        )
        for size in (
            (144, 144),
            (160, 240),
            (176, 304),
            (208, 208),
            (224, 336),
            (240, 432),
            (272, 272),
            (288, 192),
            (304, 400),
            (320, 320),
            (336, 224),
            (352, 480),
            (416, 288),
            (432, 240),
            (448, 448),
            (480, 352),
            (496, 144),
        )
    ),
)

FULL = Recipe(
    autoencoder_pictures=3_200,
    autoencoder_steps=8_500,
    tokenizer_captions=8_000,
    text_steps=1_200,
    phases=(
        PhaseRecipe(name="layout", steps=1_900, learning_rate=2e-3, sets=(LAYOUT_SET,)),
        PhaseRecipe(
            name="detail",
            steps=800,
            learning_rate=1.2e-3,
            sets=(DETAIL_SET, *OTHER_SETS),
            decay_share=0.0,
        ),
        PhaseRecipe(
            name="shapes",
            steps=900,
            learning_rate=1.4e-3,
            sets=(DETAIL_SET, *OTHER_SETS),
            subject_weight=9.0,
            decay_share=0.0,
            sampler_share=0.5,
        ),
        PhaseRecipe(
            name="outlines",
            steps=800,
            learning_rate=1.4e-3,
            sets=(DETAIL_SET, CUT_OUT_SET, *OTHER_SETS),
            subject_weight=7.0,
            decay_share=0.0,
            sampler_share=0.6,
        ),
        PhaseRecipe(
            name="finish",
            steps=700,
            learning_rate=1.3e-3,
            sets=FINISH_SETS,
            subject_weight=7.0,
            decay_share=0.8,
            sampler_share=0.6,
        ),
        PhaseRecipe(
            name="polish",
            steps=450,
            learning_rate=9e-4,
            sets=FINISH_SETS,
            subject_weight=7.0,
            decay_share=0.9,
            sampler_share=0.6,
        ),
        PhaseRecipe(
            name="sizes",
            steps=4_000,
            learning_rate=1.3e-3,
            sets=SIZE_SETS,
            subject_weight=7.0,
            decay_share=0.0,
            sampler_share=0.6,
        ),
        PhaseRecipe(
            name="settle",
            steps=4_500,
            learning_rate=1.2e-3,
            sets=SIZE_SETS,
            subject_weight=7.0,
            decay_share=1.0,
            sampler_share=0.6,
        ),
        PhaseRecipe(
            name="between",
            steps=800,
            learning_rate=7e-4,
            sets=BETWEEN_SETS,
            subject_weight=7.0,
            decay_share=1.0,
            sampler_share=0.6,
        ),
    ),
    shift=2.0,
)

_TINY_SET = PictureSet(size=(64, 64), count=8, batch_size=2)

TINY = Recipe(
    autoencoder_pictures=1,
    autoencoder_steps=1,
    tokenizer_captions=400,
    text_steps=1,
    phases=(
        PhaseRecipe(name="layout", steps=4, learning_rate=1e-3, sets=(_TINY_SET,)),
        PhaseRecipe(
            name="straighten",
            steps=1,
            learning_rate=1e-3,
            sets=(_TINY_SET,),
            straighten_share=1.0,
        ),
    ),
    shift=2.0,
    save_every=2,
)
RECIPES = {"full": FULL, "tiny": TINY}
