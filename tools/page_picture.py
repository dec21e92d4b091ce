"""Photograph the page of `tuninglab serve` for docs/images/page.png: base beside tuned.

    python -m tools.page_picture runs/demo

The first two questions that the run shows to try are asked, whatever is answered; it needs chromium
and chromium-driver.
"""

import argparse
import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tools.browser import open_browser

QUESTIONS = 2
WIDTH_PX, HEIGHT_PX = 1200, 860
# Of the first answers of a large model on a slow machine.
PATIENCE_S = 600


@contextlib.contextmanager
def serving(run: Path) -> Iterator[str]:
    """The address of a server of the run, on any free port.

    Raises:
        RuntimeError: it has ended without one; its own words stand on standard error.
    """
    command = [sys.executable, "-m", "tuninglab", "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            yield _address(server.stderr)
        finally:
            server.terminate()


def _address(lines: IO[str]) -> str:
    for line in lines:
        sys.stderr.write(line)
        if found := re.match(r"page: +(\S+)", line):
            return found[1]
    raise RuntimeError("the server has not begun")


def ask(driver: Chrome, address: str) -> None:
    """Open the page and ask the questions, each of the base and of the tuned model."""

    def shown(selector: str, count: int = 1) -> bool:
        found = driver.find_elements(By.CSS_SELECTOR, selector)
        return len([element for element in found if element.is_displayed()]) >= count

    waiting = WebDriverWait(driver, PATIENCE_S)
    driver.get(address)
    waiting.until(lambda _: shown(".card", QUESTIONS))
    driver.find_element(By.ID, "beside").click()
    for number in range(QUESTIONS):
        if number > 0:
            driver.find_element(By.TAG_NAME, "summary").click()
        driver.find_elements(By.CSS_SELECTOR, ".card")[number].click()
        waiting.until(lambda _: shown("#thumbnails img"))
        driver.find_element(By.ID, "send").click()
        asked = number + 1
        waiting.until(lambda _, asked=asked: shown(".answer.done", 2 * asked) and shown("#send"))


def photograph(driver: Chrome, out: Path) -> None:
    """Write the whole page as one picture."""
    height = driver.execute_script("return document.documentElement.scrollHeight")
    size = {"width": WIDTH_PX, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as picture:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.convert("RGB").save(out, optimize=True)


def main() -> None:
    """Parse the command line, ask and photograph."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images/page.png"))
    options = parser.parse_args()
    driver = open_browser(WIDTH_PX, HEIGHT_PX)
    try:
        with serving(options.run) as address:
            ask(driver, address)
            photograph(driver, options.out)
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
