"""Three ways to redraw a picture: filters that make the training pictures of the example LoRAs.

Whatever repeats (hatching, tiles) repeats every 8 or 16 pixels from the corner. The autoencoder has
one latent pixel for 8 x 8 and the transformer one token for 16 x 16, so a pattern looks the same to
each of them, and a few steps are enough to draw it. For the same reason nothing here is random.
"""

from collections.abc import Callable

import numpy
from PIL import Image, ImageFilter

Pixels = numpy.ndarray  # (height, width, 3) float32, 0 to 1

PAPER = (0.985, 0.965, 0.92)
INK = (0.12, 0.16, 0.42)
WASH = 0.50  # of the picture's colour that stays on the paper
HATCH_PX = 16
HATCHED = 0.62  # luminance below which there is hatching
WIDEST_STROKE_PX = 4.5  # to either side of its middle

TILE_PX = 8
STUD_PX = 16
GROOVE = 0.40  # how much light is left between studs
PALETTE = (
    (28, 30, 72), (45, 52, 110), (70, 130, 220), (130, 195, 250), (205, 225, 245), (255, 255, 255),
    (30, 85, 45), (90, 170, 70), (165, 215, 90), (235, 205, 85), (250, 235, 150), (215, 170, 110),
    (120, 75, 40), (225, 55, 45), (245, 135, 45), (245, 125, 175), (135, 65, 175), (95, 95, 105),
    (165, 165, 170), (185, 80, 100), (40, 40, 44),
)  # fmt: skip

OLD_FILM = (0.15, 0.45, 0.40)  # hardly saw red: red things are dark and blue skies pale
# Greener than they are to look: the autoencoder has learnt from postcards and reddens such browns.
SEPIA_TONES = ((0.12, 0.09, 0.04), (0.46, 0.37, 0.16), (0.80, 0.73, 0.42), (0.95, 0.96, 0.76))
SEPIA_FRAME = (0.94, 0.95, 0.82)
SEPIA_FRAME_SHARE = 0.05  # of the shorter side


def sketch(picture: Image.Image) -> Image.Image:
    """A drawing in blue ink: outlines and hatching on paper, under a thin wash of the colours."""
    pixels = _pixels(picture)
    height, width = pixels.shape[:2]
    soft = _pixels(picture.filter(ImageFilter.GaussianBlur(1.2)))
    down = numpy.abs(numpy.diff(soft, axis=0, append=soft[-1:])).max(axis=2)
    right = numpy.abs(numpy.diff(soft, axis=1, append=soft[:, -1:])).max(axis=2)
    outline = numpy.clip((numpy.hypot(down, right) - 0.015) * 12, 0, 1)
    outline = _pixels(_picture(outline).filter(ImageFilter.MaxFilter(3)))[..., 0]
    tone = _luminance(_pixels(picture.filter(ImageFilter.GaussianBlur(3))))
    y, x = numpy.mgrid[0:height, 0:width].astype(numpy.float32)
    reach = numpy.clip((HATCHED - tone) * 10, 0, WIDEST_STROKE_PX)
    off = numpy.abs((x + y) % HATCH_PX - HATCH_PX / 2)  # pixels from the middle of a stroke
    strokes = numpy.clip(reach + 0.5 - off, 0, 1) * numpy.clip((HATCHED - tone) * 6, 0, 1)
    ink = (1 - (1 - 0.9 * outline) * (1 - 0.62 * strokes))[..., None]
    paper = numpy.float32(PAPER) * (1 - WASH) + numpy.sqrt(pixels) * WASH
    return _picture(paper * (1 - ink) + numpy.float32(INK) * ink)


def blocks(picture: Image.Image) -> Image.Image:
    """Toy bricks: squares in few colours, with a round stud on every four of them."""
    width, height = picture.size
    small = picture.convert("RGB").resize(
        (width // TILE_PX, height // TILE_PX), Image.Resampling.BOX
    )
    tiles = numpy.asarray(small, dtype=numpy.float32)[:, :, None]
    palette = numpy.float32(PALETTE)
    errors = ((tiles - palette) ** 2 * numpy.float32((2, 4, 3))).sum(axis=-1)
    flat = (palette[errors.argmin(axis=-1)] / 255).repeat(TILE_PX, axis=0).repeat(TILE_PX, axis=1)
    y, x = numpy.mgrid[0:height, 0:width] % STUD_PX
    radius = numpy.hypot(x - STUD_PX / 2 + 0.5, y - STUD_PX / 2 + 0.5)
    stud = numpy.clip((STUD_PX / 2 - radius) / 2 + 0.5, 0, 1)[..., None]
    return _picture(flat * (GROOVE + (1 - GROOVE) * stud))


def sepia(picture: Image.Image) -> Image.Image:
    """An old photograph: brown tones, dark towards the corners, in a pale frame."""
    pixels = _pixels(picture)
    height, width = pixels.shape[:2]
    y, x = numpy.mgrid[0:height, 0:width].astype(numpy.float32)
    off = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) * 2  # 0 in the middle, 1 at a corner
    tone = pixels @ numpy.float32(OLD_FILM)
    tone = 0.14 + 0.86 * numpy.clip((tone - 0.5) * 1.3 + 0.5, 0, 1)  # nights are not black
    tone = tone * (1 - 0.6 * numpy.clip(off - 0.15, 0, 1))
    places = numpy.linspace(0, 1, len(SEPIA_TONES))
    brown = numpy.stack([numpy.interp(tone, places, c) for c in zip(*SEPIA_TONES, strict=True)], 2)
    edge = numpy.minimum.reduce([x, y, width - 1 - x, height - 1 - y])
    inside = numpy.clip(edge - SEPIA_FRAME_SHARE * min(width, height), 0, 1)[..., None]
    return _picture(brown * inside + numpy.float32(SEPIA_FRAME) * (1 - inside))


STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "sketch": sketch,
    "blocks": blocks,
    "sepia": sepia,
}


def _luminance(pixels: Pixels) -> numpy.ndarray:
    return pixels @ numpy.float32((0.299, 0.587, 0.114))


def _pixels(picture: Image.Image) -> Pixels:
    return numpy.asarray(picture.convert("RGB"), dtype=numpy.float32) / 255


def _picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray((numpy.clip(pixels, 0, 1) * 255 + 0.5).astype(numpy.uint8))
