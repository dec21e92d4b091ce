"""What all tests of this folder share."""

import pytest

from tuninglab.adapters import products


@pytest.fixture(autouse=True)
def nothing_large_enough_to_try(monkeypatch):
    """Which products are faster depends on what else the machine does; texts shall not."""
    monkeypatch.setattr(products, "SMALL", 2**30)


@pytest.fixture(scope="session")
def browser():
    """One browser for all tests of the page; each has an address, and so a memory, of its own."""
    from tools.browser import open_browser

    driver = open_browser()
    yield driver
    driver.quit()


@pytest.fixture
def server():
    """What the page talks to, with answers by a script."""
    from tests.serving.page_server import PageServer, listening

    scripted = PageServer()
    with listening(scripted.app()) as scripted.url:
        yield scripted


@pytest.fixture
def page(browser, server):
    """The page, open; in the end it must have told no error and asked nobody else for anything."""
    from tests.serving.browsing import Page

    opened = Page(browser, server.url)
    opened.ready()
    yield opened
    opened.check()
    browser.get("about:blank")


@pytest.fixture
def files(tmp_path):
    """Pictures by their colours."""
    from PIL import Image

    from tests.serving.sent_pictures import BLUE, GREEN, RED

    paths = [tmp_path / f"{name}.png" for name in ("red", "green", "blue")]
    for path, colour in zip(paths, (RED, GREEN, BLUE), strict=True):
        Image.new("RGB", (32, 24), colour).save(path)
    return paths
