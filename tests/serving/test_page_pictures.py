"""Pictures on their way into a question: by file, paste, drop and camera, and made smaller."""

import base64

import pytest
from PIL import Image

from tests.serving.browsing import needs_browser
from tests.serving.sent_pictures import BLUE, GREEN, RED, colours, picture_of

pytestmark = needs_browser


def test_a_large_picture_is_made_smaller_and_a_small_one_kept(page, server, tmp_path):
    photo, drawing = tmp_path / "photo.jpg", tmp_path / "drawing.png"
    upright = Image.Exif()
    upright[0x0112] = 6  # a quarter turn, as phones write it
    Image.effect_noise((3000, 1500), 60).convert("RGB").save(photo, exif=upright)
    dots = Image.effect_noise((200, 100), 60).convert("RGB")
    dots.save(drawing)
    page.attach(photo, drawing)
    page.ask("Which?")
    large, small, _ = server.asked[0]["messages"][0]["content"]
    head, picture = picture_of(large)
    assert (head, picture.size) == ("data:image/jpeg", (512, 1024))
    head, picture = picture_of(small)
    assert (head, picture.size) == ("data:image/png", (200, 100))
    assert picture.convert("RGB").tobytes() == dots.tobytes()


def test_a_file_that_is_no_picture_is_told(page, server, tmp_path, files):
    (tmp_path / "letter.txt").write_text("Dear")
    page.one("#files").send_keys(f"{tmp_path / 'letter.txt'}\n{files[0]}")
    page.until(lambda: page.all("#thumbnails img"))
    page.until(lambda: page.one("#notice").text)
    assert page.one("#notice").text.startswith("letter.txt cannot be read as a picture.")
    page.ask("What?")
    assert [colours(m) for m in server.asked[0]["messages"]] == [[RED, "What?"]]
    assert page.one("#notice").text == ""


def test_pictures_that_are_taken_away_are_not_sent(page, server, files):
    page.attach(*files)
    page.click("[aria-label='Remove picture 2']")
    assert len(page.all("#thumbnails img")) == 2
    page.ask("Which?")
    assert [colours(m) for m in server.asked[0]["messages"]] == [[RED, BLUE, "Which?"]]
    assert page.all("#thumbnails img") == []


TRANSFER = """
    const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "given.png", { type: "image/png" }));
    const made = arguments[0] === "paste"
      ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })
      : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
    document.querySelector("main").dispatchEvent(made);
    return made.defaultPrevented;
"""


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_a_picture_comes_by_paste_and_by_drop(page, server, files, way):
    # Not prevented, a dropped file would be shown in the page's place.
    assert page.run(TRANSFER, way, base64.b64encode(files[1].read_bytes()).decode())
    page.until(lambda: page.all("#thumbnails img"))
    page.ask("What?")
    assert [colours(m) for m in server.asked[0]["messages"]] == [[GREEN, "What?"]]


def test_a_picture_comes_of_the_camera(page, server):
    page.click("#open-camera")
    page.until(lambda: page.run("return document.getElementById('view').videoWidth"))
    page.click("#take")
    page.until(lambda: page.all("#thumbnails img"))
    assert not page.one("#camera").is_displayed()
    assert page.run("return document.getElementById('view').srcObject") is None
    page.ask("Who?")
    _, picture = picture_of(server.asked[0]["messages"][0]["content"][0])
    assert picture.width > 100
