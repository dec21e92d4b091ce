"""A headless chromium, for the pictures of pages and for their tests."""

import shutil

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

HOW_TO_INSTALL = "install chromium and chromium-driver (apt install chromium-driver)"


def programs() -> tuple[str, str] | None:
    """Where the browser and its driver are; None if one of them is not installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


def open_browser(width_px: int = 1200, height_px: int = 900) -> webdriver.Chrome:
    """A browser of its own, with nothing remembered; `quit()` ends it.

    Raises:
        FileNotFoundError: it is not installed; says how that is done.
    """
    found = programs()
    if found is None:
        raise FileNotFoundError(HOW_TO_INSTALL)
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for flag in (
        "--headless=new",
        # Where everything runs as root, chromium has no sandbox.
        "--no-sandbox",
        "--disable-gpu",
        # A container's /dev/shm is too small for it.
        "--disable-dev-shm-usage",
        # What a browser asks its maker for by itself.
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--hide-scrollbars",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--window-size={width_px},{height_px}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(found[1]))
