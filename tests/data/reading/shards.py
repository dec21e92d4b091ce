"""What tests of containers need: pictures, tars, and records with the bytes of their pictures."""

import io
import tarfile
from functools import cache

from PIL import Image

from tuninglab.data.reading.found import Reading
from tuninglab.data.sample import StoredPicture


@cache
def picture(number, kind="PNG"):
    """The file of a picture; another for each number."""
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (number % 256, number // 256 % 256, 7)).save(file, kind)
    return file.getvalue()


def write_tar(path, members, **settings):
    """A tar of (name, bytes)."""
    with tarfile.open(path, "w", **settings) as tar:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return path


def with_bytes(value):
    """A record in which stored pictures became their bytes."""
    if isinstance(value, StoredPicture):
        return value.read()
    if isinstance(value, dict):
        return {key: with_bytes(one) for key, one in value.items()}
    return [with_bytes(one) for one in value] if isinstance(value, list) else value


def records(found, reading=None):
    """All records, pictures as bytes; broken ones as the text that says why."""
    return [
        str(record) if isinstance(record, ValueError) else with_bytes(record)
        for _, record in found.records(reading or Reading())
    ]
