"""Pictures to RGB: kept inside their root, capped in size, of any common kind and depth."""

import re
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tuninglab.data.sample import ImageSource, brief, reason
from tuninglab.errors import UserError

# Pillow decodes some fifty kinds, one of them through Ghostscript: only these are ever tried.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 89_478_485  # where Pillow starts to warn: a quarter GiB in RGB
MAX_ASPECT = 8
TOO_LARGE = f"too large: at most {MAX_PIXELS:,} pixels are decoded; make it smaller"
REMEDY = "replace it with a whole picture file, or drop the record"
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+://|data:)")

# Pillow warns of damaged metadata without naming the file, and of large pictures, which are an
# error here from the same size on: both would only be noise between our own messages.
warnings.filterwarnings("ignore", module=r"PIL\.")


def confined_path(name: str, root: Path) -> Path:
    """The resolved path of a picture named in a data file, which must lie under `root`.

    Args:
        name: the path relative to the root.
        root: an absolute folder with its symlinks resolved.

    Raises:
        UserError: the name is a URL, absolute, or leaves the root (by `..` or a symlink).
    """
    # Never fetched: a data file must not make this machine open connections.
    if _SCHEME.match(name):
        raise UserError(f"picture {brief(name, 200)} is a URL; download it first and give its path")
    if Path(name).is_absolute():
        raise UserError(
            f"picture {brief(name, 200)} is an absolute path; give it relative to the image root "
            f"{root} (--image_root)"
        )
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL in the name
        raise UserError(
            f"picture {brief(name, 200)} has no usable path: {reason(error)}; correct it"
        ) from None
    # `..` inside the root is fine: what counts is where the path ends, after all links.
    if not path.is_relative_to(root):
        raise UserError(
            f"picture {brief(name, 200)} leads out of the image root {root}; copy it there "
            "or name a root that holds it (--image_root)"
        )
    return path


def load_image(source: ImageSource) -> Image.Image:
    """A picture, fully decoded, upright, in RGB; of several frames the first.

    Above MAX_PIXELS it is refused before decoding (Pillow itself stops at 178,956,970).

    Args:
        source: a path, which is trusted; the bytes of a file; or a PIL image.

    Raises:
        UserError: missing, no regular file, no picture, damaged, or too large; it names the file.
    """
    if isinstance(source, Image.Image):
        return _decoded(source, "the picture")
    if isinstance(source, bytes):
        return _opened(BytesIO(source), "the picture given as bytes")
    path = Path(source)
    label = f"picture {brief(str(path), 200)}"
    try:
        if not path.exists():
            raise UserError(f"{label} does not exist; check its name and --image_root")
        if not path.is_file():  # also a pipe, which would be waited for without end
            raise UserError(f"{label} is no regular file; expected a picture")
        with path.open("rb") as file:
            return _opened(file, label)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{label} cannot be read: {reason(error)}; check its name and permissions"
        ) from error


def _opened(file, label: str) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise UserError(
            f"{label} is not a picture of a known kind ({', '.join(FORMATS)}); {REMEDY}"
        ) from None
    except Image.DecompressionBombError:
        raise UserError(f"{label} is {TOO_LARGE}") from None
    except Exception as error:
        # Damaged headers make Pillow's readers fail in any way, from struct.error to KeyError.
        raise UserError(f"{label} is {_damaged(error)}") from None
    with image:
        return _decoded(image, label)


def _decoded(image: Image.Image, label: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(f"{label} has {width}x{height} pixels, {TOO_LARGE}")
    if width * height == 0:
        raise UserError(f"{label} has no pixels ({width}x{height}); expected at least 1x1")
    try:
        image.load()
        return to_rgb(image)
    except Exception as error:
        # As above, now for damaged pixels: truncated, broken compression, impossible palette.
        raise UserError(f"{label} is {_damaged(error)}") from None


def _damaged(error: Exception) -> str:
    return f"damaged: {str(error) or type(error).__name__}; {REMEDY}"


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture upright by its EXIF tag, on white where transparent, in 8-bit RGB.

    Raises:
        ValueError: the pixel values are not finite, or Pillow has no way from this mode to RGB.
    """
    try:
        image = ImageOps.exif_transpose(image)
    except SyntaxError:
        # Pillow's word for an EXIF block that is none; the pixels beside it are whole.
        image = image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_wide_gray(image)
    # White, as pages are; Pillow's own conversion shows the arbitrary colour underneath.
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _from_wide_gray(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float gray scaled to 8 bits; Pillow's own conversion clips at 255."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite")
    low, high = values.min(), values.max()
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 65535:
        # These modes do not say their range: the smallest usual one that holds the picture.
        low, high = 0.0, next(top for top in (1.0, 255.0, 65535.0) if high <= top)
    scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


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
