import math
import os
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tuninglab.data import images
from tuninglab.data.images import MAX_PIXELS, limit_aspect, load_image
from tuninglab.errors import UserError

# Pillow's own warnings of damaged files, which the package silences, pytest shows again.
pytestmark = pytest.mark.filterwarnings("ignore")

GENERATOR = np.random.default_rng(0)
RGB = Image.fromarray(GENERATOR.integers(0, 256, (12, 17, 3), dtype=np.uint8))


def saved(image, kind, **options):
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_kinds_come_back_exactly(tmp_path, kind, options):
    data = saved(RGB, kind, **options)
    path = tmp_path / "picture.JPG"  # the name decides nothing
    path.write_bytes(data)
    for source in (data, path, str(path), RGB):
        assert (pixels(load_image(source)) == pixels(RGB)).all()


def test_jpeg_and_its_cmyk_come_back_nearly():
    smooth = RGB.resize((64, 48))
    for image in (smooth, smooth.convert("CMYK")):
        got = pixels(load_image(saved(image, "JPEG", quality=98)))
        assert abs(got - pixels(smooth)).mean() < 12


def test_gray_palette_and_bilevel_modes():
    gray = RGB.convert("L")
    assert (pixels(load_image(saved(gray, "PNG"))) == np.asarray(gray)[..., None]).all()
    bilevel = gray.point(lambda value: 255 * (value > 128)).convert("1")
    expected = np.where(np.asarray(bilevel)[..., None], 255, 0)
    assert (pixels(load_image(saved(bilevel, "PNG"))) == expected).all()
    palette = RGB.quantize(8)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    for kind in ("PNG", "GIF"):
        got = pixels(load_image(saved(palette, kind)))
        assert (got == colours[np.asarray(palette)]).all()


def on_white(colour, alpha):
    alpha = alpha[..., None] / 255
    return colour * alpha + 255 * (1 - alpha)


def test_transparency_is_laid_on_white():
    alpha = GENERATOR.integers(0, 256, (12, 17)).astype(np.uint8)
    expected = on_white(pixels(RGB), alpha)
    rgba = RGB.copy()
    rgba.putalpha(Image.fromarray(alpha))
    assert abs(pixels(load_image(saved(rgba, "PNG"))) - expected).max() <= 1
    gray = RGB.convert("L")
    expected = on_white(np.asarray(gray)[..., None].astype(int), alpha)
    gray.putalpha(Image.fromarray(alpha))
    assert gray.mode == "LA"
    assert abs(pixels(load_image(saved(gray, "PNG"))) - expected).max() <= 1


def test_transparent_palette_entries_are_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    for kind in ("PNG", "GIF"):
        got = pixels(load_image(saved(palette, kind, transparency=1)))
        assert got.tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_a_transparent_colour_of_rgb_and_gray_is_white():
    rgb = Image.new("RGB", (2, 1), (1, 2, 3))
    rgb.putpixel((1, 0), (9, 9, 9))
    got = pixels(load_image(saved(rgb, "PNG", transparency=(1, 2, 3))))
    assert got.tolist() == [[[255, 255, 255], [9, 9, 9]]]
    gray = rgb.convert("L")
    got = pixels(load_image(saved(gray, "PNG", transparency=9)))
    assert got[0, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_by_its_range(kind):
    values = np.linspace(0, 65535, 300).astype(np.uint16).reshape(10, 30)
    got = pixels(load_image(saved(Image.fromarray(values), kind)))
    assert abs(got - values[..., None] / 257).max() <= 0.5
    dark = saved(Image.fromarray(np.full((2, 2), 257, np.uint16)), kind)
    assert (pixels(load_image(dark)) == 1).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize(
    ("low", "high", "black", "white"),
    [
        (0, 1, 0, 1),
        (0, 200, 0, 255),
        (0, 40000, 0, 65535),
        (-500, 900, -500, 900),
        (5, 1e6, 5, 1e6),
    ],
)
def test_wide_gray_is_scaled_not_clipped(dtype, low, high, black, white):
    values = np.linspace(low, high, 64).astype(dtype).reshape(8, 8)
    got = pixels(load_image(saved(Image.fromarray(values), "TIFF")))
    expected = (values.astype(float) - black) / (white - black) * 255
    assert abs(got - expected[..., None]).max() <= 0.51


MODES = ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiles_change_no_pixel(mode, orientation):
    generator = np.random.default_rng(1)
    if mode == "I;16":
        picture = Image.fromarray(generator.integers(0, 65536, (13, 22), dtype=np.uint16))
    elif mode in ("I", "F"):
        values = generator.normal(size=(13, 22)) * 1000
        picture = Image.fromarray(values.astype({"I": np.int32, "F": np.float32}[mode]))
    else:
        values = generator.integers(0, 256, (13, 22, 4), dtype=np.uint8)
        # Only there is transparency: Pillow makes no LA of RGBA otherwise.
        colours = Image.fromarray(values) if "A" in mode else Image.fromarray(values[..., :3])
        picture = colours.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.info["exif"] = exif.tobytes()
    whole = load_image(picture)
    with mock.patch.object(images, "TILE", 5):
        assert (pixels(load_image(picture)) == pixels(whole)).all()
    # By Pillow's own way, where the mode has one that keeps the range.
    if mode in ("1", "L", "RGB", "CMYK", "YCbCr", "HSV", "P"):
        expected = ImageOps.exif_transpose(picture).convert("RGB")
        assert (pixels(whole) == pixels(expected)).all()


def test_threads_decode_no_more_pixels_together_than_one_may_have():
    held, most = [0], [0]
    real = images.to_rgb

    def counting(image):
        held[0] += image.width * image.height
        most[0] = max(most[0], held[0])
        try:
            time.sleep(0.01)
            return real(image)
        finally:
            held[0] -= image.width * image.height

    data = [saved(Image.new("RGB", size), "PNG") for size in ((10, 10), (6, 6), (3, 3))] * 4
    with (
        mock.patch.object(images, "MAX_PIXELS", 100),
        mock.patch.object(images, "to_rgb", counting),
        ThreadPoolExecutor(8) as pool,
    ):
        sizes = [picture.size for picture in pool.map(load_image, data)]
    assert sizes == [(10, 10), (6, 6), (3, 3)] * 4
    assert 36 < most[0] <= 100
    assert images._decoding == 0


# Not ru_maxrss: what the process that started this one had counts there, too.
WIDE = """
import re, sys
import numpy as np
from PIL import Image, ImageOps
from tuninglab.data.images import load_image
from concurrent.futures import ThreadPoolExecutor
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
# glibc keeps for each thread some of what it freed: four of them came to 2.1 GiB of float pictures.
with ThreadPoolExecutor(1) as pool:
    sizes = list(pool.map(lambda name: load_image(name).size, sys.argv[1:]))
assert sizes == [(4725, 4725)] * len(sizes)
print((peak() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts KiB as Linux does")
@pytest.mark.parametrize(
    ("kind", "options", "dtype"),
    [
        ("PNG", {}, np.uint16),
        ("TIFF", {"compression": "tiff_deflate"}, np.float32),
        ("TIFF", {"compression": "tiff_deflate"}, np.int32),
        ("PNG", {}, "RGBA"),
    ],
)
def test_large_pictures_take_little_memory_one_after_another(tmp_path, kind, options, dtype):
    if dtype == "RGBA":
        large = Image.new("RGBA", (9450, 9450), (1, 2, 3, 100))
    else:
        large = Image.fromarray(np.full((9450, 9450), 300, dtype))
    large.save(tmp_path / "0", kind, **options)
    del large
    names = [tmp_path / str(number) for number in range(4)]
    for name in names[1:]:
        os.link(names[0], name)
    done = subprocess.run(
        [sys.executable, "-c", WIDE, *map(str, names)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(images.__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1100


def test_a_flat_or_not_finite_float_picture():
    flat = Image.fromarray(np.full((2, 2), -3.0, np.float32))
    assert (pixels(load_image(flat)) == 0).all()
    with pytest.raises(UserError, match="not finite"):
        load_image(Image.fromarray(np.array([[np.nan, 1.0]], np.float32)))


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(mode, orientation):
    values = np.arange(6).reshape(2, 3)
    undo = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.T,
        6: np.rot90(values, -1),
        7: np.rot90(values, 2).T,
        8: np.rot90(values),
    }[orientation]
    scale, dtype = (257 * 10, np.uint16) if mode == "I;16" else (10, np.uint8)
    image = Image.fromarray((values * scale).astype(dtype))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image.convert("RGB") if mode == "RGB" else image, "PNG", exif=exif)
    assert (pixels(load_image(data))[..., 0] == undo * 10).all()


def test_a_broken_exif_block_does_not_spoil_whole_pixels():
    for block in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        assert (pixels(load_image(saved(RGB, "PNG", exif=block))) == pixels(RGB)).all()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_frames_the_first_is_taken(kind):
    red, blue = Image.new("RGB", (5, 4), (255, 0, 0)), Image.new("RGB", (5, 4), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    got = pixels(load_image(saved(red, kind, save_all=True, append_images=[blue], **options)))
    assert (got == [255, 0, 0]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 7)])
def test_any_shape_loads(size):
    assert load_image(saved(Image.new("RGB", size), "PNG")).size == size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_cut_files_are_refused(kind):
    noise = Image.fromarray(GENERATOR.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, kind)
    for fraction in (0.0, 0.001, 0.01, 0.5, 0.9):
        with pytest.raises(UserError, match="damaged|known kind"):
            load_image(data[: int(len(data) * fraction)])


def png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = struct.pack(">I", 1000) + b"IDAT" + zlib.compress(bytes(50))
    return b"\x89PNG\r\n\x1a\n" + chunk + data


@pytest.mark.parametrize("size", [(10_000, 10_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_a_header_that_claims_a_huge_size_is_refused_before_decoding(size):
    with pytest.raises(UserError, match=f"too large: at most {MAX_PIXELS:,} pixels"):
        load_image(png_header(*size))


def test_kinds_that_are_not_read_are_refused():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    for data in (b"", b"hello", postscript, saved(RGB, "PPM"), saved(RGB, "ICO")):
        with pytest.raises(UserError, match=r"not a picture of a known kind \(PNG, JPEG, WEBP"):
            load_image(data)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    kept=st.floats(0, 1),
)
def test_damaged_bytes_give_a_picture_or_a_user_error(kind, changes, kept):
    data = bytearray(saved(RGB, kind))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        with mock.patch.object(images, "MAX_PIXELS", 10**6):
            assert load_image(bytes(data[: int(len(data) * kept)])).mode == "RGB"
    except UserError as error:
        assert "picture" in str(error)


def test_only_extreme_shapes_lose_their_ends():
    image = Image.new("RGB", (800, 100))
    assert limit_aspect(image) is image
    ramp = Image.fromarray(np.arange(200, dtype=np.uint8)[None].repeat(10, 0))
    assert np.asarray(limit_aspect(ramp))[0].tolist() == list(range(60, 140))
    assert limit_aspect(Image.new("L", (1, 5000))).size == (1, 8)


def test_a_picture_beyond_what_is_kept_comes_back_smaller_and_alike():
    noise = np.random.default_rng(0).integers(0, 256, (41, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    with mock.patch.object(images, "MOST_KEPT", 41 * 60):
        assert load_image(picture).size == (60, 41)
    for most, factor in ((41 * 60 - 1, 2), (41 * 60 // 4 - 1, 3), (1, 50)):
        with mock.patch.object(images, "MOST_KEPT", most):
            small = load_image(picture)
        assert small.size == (math.ceil(60 / factor), math.ceil(41 / factor))
        # The mean of each square, in float64; Pillow rounds it.
        whole = noise[: 41 // factor * factor, : 60 // factor * factor].astype(np.float64)
        if whole.size:
            rows, columns = whole.shape[0] // factor, whole.shape[1] // factor
            means = whole.reshape(rows, factor, columns, factor, 3).mean((1, 3))
            assert np.abs(np.asarray(small)[:rows, :columns] - means).max() <= 1


def test_of_webp_fewer_pixels_are_decoded(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.webp")
    with mock.patch.object(images, "MAX_PIXELS_WEBP", 40 * 30):
        assert load_image(tmp_path / "a.webp").size == (40, 30)
    with (
        mock.patch.object(images, "MAX_PIXELS_WEBP", 40 * 30 - 1),
        pytest.raises(UserError, match="a.webp' has 40x30 pixels; of WebP at most 1,199 are"),
    ):
        load_image(tmp_path / "a.webp")
