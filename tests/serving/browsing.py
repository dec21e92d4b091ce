"""The page of `tuninglab serve` as a user has it before him, in a real browser."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium.common import StaleElementReferenceException
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tools.browser import HOW_TO_INSTALL, programs

T = TypeVar("T")
PATIENCE_S = 20
needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(programs() is None, reason=HOW_TO_INSTALL),
]


class Page:
    """A page that has been opened, and what has become of it.

    Attributes:
        statuses: of replies that a test wants, which the browser tells on its console.
        broken: whether a test breaks connections, which it tells, too.
    """

    def __init__(self, driver: Chrome, url: str):
        self.driver, self.url = driver, url
        self.statuses: set[int] = set()
        self.broken = False
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.open()

    def check(self) -> None:
        """The console is quiet but for statuses that were to come; nobody else was asked."""
        told = self.driver.get_log("browser")
        errors = [entry["message"] for entry in told if entry["level"] != "DEBUG"]
        statuses = tuple(f"status of {status} " for status in self.statuses)
        if self.broken:
            statuses += ("net::ERR_INCOMPLETE_CHUNKED_ENCODING", "net::ERR_CONNECTION_REFUSED")
        assert [text for text in errors if not any(map(text.count, statuses))] == []
        asked = [
            event["params"]["request"]["url"]
            for event in self.events()
            if event["method"] == "Network.requestWillBeSent"
        ]
        assert any(url.startswith(self.url) for url in asked)
        own = (self.url, f"blob:{self.url}", "data:")
        assert [url for url in asked if not url.startswith(own)] == []

    def open(self) -> None:
        """Open it, anew if it is open; to be used once the server has told its models."""
        self.driver.get(self.url)

    def ready(self) -> None:
        """Wait for the models."""
        self.until(lambda: self.all("#model option"))

    def until(self, done: Callable[[], T]) -> T:
        """Wait for something to be true; what it is then."""
        waiting = WebDriverWait(
            self.driver,
            PATIENCE_S,
            poll_frequency=0.02,
            ignored_exceptions=[StaleElementReferenceException],
        )
        return waiting.until(lambda _: done())

    def all(self, selector: str) -> list[WebElement]:
        """Elements by their CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """The only element of a CSS selector."""
        (element,) = self.all(selector)
        return element

    def texts(self, selector: str) -> list[str]:
        """What is in elements, drawn or not, to the letter."""
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
        )

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def click(self, selector: str) -> None:
        """Click the only element of a CSS selector."""
        self.one(selector).click()

    def button(self, name: str) -> WebElement:
        """The only button of this name that is drawn."""
        (found,) = [b for b in self.all("button") if b.text == name and b.is_displayed()]
        return found

    def keys(self, *keys: str) -> None:
        """Press keys wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def attach(self, *files: Path) -> None:
        """Choose files as pictures, and wait until they are in the composer."""
        before = len(self.all("#thumbnails img"))
        self.one("#files").send_keys("\n".join(map(str, files)))
        self.until(lambda: len(self.all("#thumbnails img")) == before + len(files))

    def type(self, text: str) -> None:
        """Write into the question."""
        self.one("#question").send_keys(text)

    def ask(self, text: str) -> None:
        """Ask, and wait until all that are asked have answered."""
        self.type(text + Keys.ENTER)
        self.until(lambda: self.texts(".asked .text")[-1:] == [text])
        self.idle()

    def idle(self) -> None:
        """Wait until no answer is to come."""
        self.until(lambda: self.one("#send").is_displayed())

    def answers(self) -> list[str]:
        """The texts of all answers that are shown."""
        return self.texts(".answer .text")

    def events(self) -> list[dict[str, Any]]:
        """What the browser told about its network and console since the last time."""
        told = self.driver.get_log("performance")
        return [json.loads(entry["message"])["message"] for entry in told]
