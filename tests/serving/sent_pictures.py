"""Pictures as a test of the page sends them, and as they arrive."""

import base64
import io

from PIL import Image

RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


def picture_of(part):
    assert part["type"] == "image_url"
    head, _, data = part["image_url"]["url"].partition(";base64,")
    return head, Image.open(io.BytesIO(base64.b64decode(data)))


def colours(message):
    """What is sent of a message: texts as they are, pictures as the colour in their middle."""
    if isinstance(message["content"], str):
        return message["content"]
    seen = []
    for part in message["content"]:
        if part["type"] == "text":
            seen.append(part["text"])
        else:
            picture = picture_of(part)[1].convert("RGB")
            seen.append(picture.getpixel((picture.width // 2, picture.height // 2)))
    return seen
