"""Pictures to RGB: capped in size and memory, of any common kind and depth."""

import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

from tuninglab.data.picture_files import open_picture
from tuninglab.data.sample import ImageSource, StoredPicture, brief
from tuninglab.errors import UserError

# Pillow decodes some fifty kinds, one of them through Ghostscript: only these are ever tried.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 89_478_485  # where Pillow starts to warn: a quarter GiB in RGB
MAX_ASPECT = 8
# Whatever the pixels are, there is a way from these to RGB.
PLAIN = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
# Its decoder holds a whole picture several times over.
MAX_PIXELS_WEBP = MAX_PIXELS // 2
# A tower sees some hundred pixels a side, and an image processor holds a picture four times over.
# Beyond this (100 MB), squares of 2 x 2 or more pixels become their mean before it does.
MOST_KEPT = 2**25
# Pixels of a side: converted at a time, so that steps in between (float64, RGBA) stay small.
TILE = 1024
TOO_LARGE = f"too large: at most {MAX_PIXELS:,} pixels are decoded; make it smaller"
# By the EXIF tag, and which of them exchange the sides, or begin at the other end of one.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED = {UPRIGHT[number] for number in (5, 6, 7, 8)}
FROM_THE_RIGHT = {UPRIGHT[number] for number in (2, 3, 7, 8)}
FROM_BELOW = {UPRIGHT[number] for number in (3, 4, 6, 7)}
REMEDY = "replace it with a whole picture file, or drop the record"

# What the threads of this process decode at the moment, in pixels.
_changed, _decoding = threading.Condition(), 0

# Pillow warns of damaged metadata without naming the file, and of large pictures, which are an
# error here from the same size on: both would only be noise between our own messages.
warnings.filterwarnings("ignore", module=r"PIL\.")


def load_image(source: ImageSource) -> Image.Image:
    """A picture, fully decoded, upright, in RGB; of several frames the first.

    Above MAX_PIXELS it is refused before decoding (Pillow itself stops at 178,956,970); above
    MOST_KEPT it comes back smaller by a whole factor.

    Args:
        source: a path, which is trusted; the bytes of a file, or where they are stored; or a PIL
            image.

    Raises:
        UserError: missing, no regular file, no picture, damaged, or too large; it names the file.
    """
    if isinstance(source, Image.Image):
        return _decoded(source, "the picture")
    if isinstance(source, bytes):
        return _opened(BytesIO(source), "the picture given as bytes")
    if isinstance(source, StoredPicture):
        return _opened(BytesIO(source.read()), f"picture {brief(source.name, 200)}")
    with open_picture(source) as file:
        return _opened(file, f"picture {brief(os.fspath(source), 200)}")


def check_picture(file: BinaryIO, label: str, whole: bool) -> tuple[int, int]:
    """Pass if `load_image` would take a picture; in less time and memory than it takes.

    Returns the pixels of its width and height, as the file has them.

    Args:
        file: of the picture, at its start.
        label: what messages call it.
        whole: read all of it; else its header only, which tells neither a cut file nor a damaged
            one.

    Raises:
        UserError: as `load_image`.
    """
    with _recognised(file, label) as image:
        width, height = image.size
        if not whole:
            _check_size(image, label)
        elif image.mode not in PLAIN:
            _decoded(image, label)
        else:
            _check_size(image, label)
            # All of the file is read, but the last step, most of the time, is left out: of the
            # eight by eight pixels of a block, one is made.
            if image.format == "JPEG":
                image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            try:
                with _room_for(image.width * image.height):
                    image.load()
            except Exception as error:
                raise UserError(f"{label} is {_damaged(error)}") from None
    return width, height


def _opened(file: BinaryIO, label: str) -> Image.Image:
    with _recognised(file, label) as image:
        return _decoded(image, label, ours=True)


def _recognised(file: BinaryIO, label: str) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise UserError(
            f"{label} is not a picture of a known kind ({', '.join(FORMATS)}); {REMEDY}"
        ) from None
    except Image.DecompressionBombError:
        raise UserError(f"{label} is {TOO_LARGE}") from None
    except Exception as error:
        # Damaged headers make Pillow's readers fail in any way, from struct.error to KeyError.
        raise UserError(f"{label} is {_damaged(error)}") from None


def _check_size(image: Image.Image, label: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(f"{label} has {width}x{height} pixels, {TOO_LARGE}")
    if image.format == "WEBP" and width * height > MAX_PIXELS_WEBP:
        raise UserError(
            f"{label} has {width}x{height} pixels; of WebP at most {MAX_PIXELS_WEBP:,} are "
            "decoded. Make it smaller, or save it as PNG or JPEG"
        )
    if width * height == 0:
        raise UserError(f"{label} has no pixels ({width}x{height}); expected at least 1x1")


def _decoded(image: Image.Image, label: str, ours: bool = False) -> Image.Image:
    _check_size(image, label)
    width, height = image.size
    try:
        with _room_for(width * height):
            image.load()
            rgb = to_rgb(image)
            # Here: by the time this thread is gone, another may hold the next picture.
            if ours:
                image.close()
            factor = math.ceil(math.sqrt(width * height / MOST_KEPT))
            if factor > 1:
                rgb = rgb.reduce(factor)
            return rgb
    except Exception as error:
        # As above, now for damaged pixels: truncated, broken compression, impossible palette.
        raise UserError(f"{label} is {_damaged(error)}") from None


def _damaged(error: Exception) -> str:
    return f"damaged: {str(error) or type(error).__name__}; {REMEDY}"


@contextmanager
def _room_for(pixels: int) -> Iterator[None]:
    """Wait until what all threads decode has at most MAX_PIXELS together, or nothing else does."""
    global _decoding
    with _changed:
        _changed.wait_for(lambda: not _decoding or _decoding + pixels <= MAX_PIXELS)
        _decoding += pixels
    try:
        yield
    finally:
        with _changed:
            _decoding -= pixels
            _changed.notify_all()


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture upright by its EXIF tag, on white where transparent, in 8-bit RGB.

    Raises:
        ValueError: the pixel values are not finite, or Pillow has no way from this mode to RGB.
    """
    method = UPRIGHT.get(_orientation(image))
    turned = method in TURNED
    width, height = image.size
    upright = Image.new("RGB", (height, width) if turned else (width, height))
    black, white = _range(image) if _is_wide_gray(image) else (0.0, 0.0)
    for box in _tiles(image):
        tile = image.crop(box)
        if _is_wide_gray(tile):
            tile = _from_wide_gray(tile, black, white)
        # White, as pages are; Pillow's own conversion shows the arbitrary colour underneath.
        if tile.has_transparency_data:
            tile = tile.convert("RGBA")
            tile = Image.alpha_composite(Image.new("RGBA", tile.size, "white"), tile)
        tile = tile.convert("RGB")
        left, top, right, bottom = box
        x = image.width - right if method in FROM_THE_RIGHT else left
        y = image.height - bottom if method in FROM_BELOW else top
        place = (y, x) if turned else (x, y)
        upright.paste(tile if method is None else tile.transpose(method), place)
    return upright


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except SyntaxError:
        # Pillow's word for an EXIF block that is none; the pixels beside it are whole.
        return None


def _tiles(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """The boxes (left, top, right, bottom) that a picture is gone through in."""
    width, height = image.size
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            yield left, top, min(left + TILE, width), min(top + TILE, height)


def _is_wide_gray(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _range(image: Image.Image) -> tuple[float, float]:
    """The values of black and of white in a picture of 16-bit, 32-bit or float gray."""
    lows, highs = [], []
    for box in _tiles(image):
        values = np.asarray(image.crop(box))
        if not np.isfinite(values).all():
            raise ValueError("holds values that are not finite")
        lows.append(float(values.min()))
        highs.append(float(values.max()))
    low, high = min(lows), max(highs)
    if image.mode.startswith("I;16"):
        return 0.0, 65535.0
    if low >= 0 and high <= 65535:
        # These modes do not say their range: the smallest usual one that holds the picture.
        return 0.0, next(top for top in (1.0, 255.0, 65535.0) if high <= top)
    return low, high


def _from_wide_gray(image: Image.Image, black: float, white: float) -> Image.Image:
    """Wide gray scaled to 8 bits; Pillow's own conversion clips at 255."""
    scaled = (np.asarray(image, dtype=np.float64) - black) * (255.0 / max(white - black, 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def limit_aspect(image: Image.Image) -> Image.Image:
    """The middle of an extremely long picture, at most MAX_ASPECT times as long as wide.

    CLIP's processor scales the short side up and then keeps the middle square only: a picture of
    1x5000 would pass through 224x1,120,000 pixels (0.7 GiB) first.
    """
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))
