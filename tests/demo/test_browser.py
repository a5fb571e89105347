"""The page in a browser, as a person uses it: every tab, wide and narrow, light and dark, without an error."""

import json
import os
import re
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

TABS = ("Compare", "Choose", "Abilities", "Inside", "Publish")
LOOKS = [("desktop", False), ("phone", True)]
if os.environ.get("QLLM_TEST_LOOKS") == "all":
    LOOKS += [("desktop", True), ("phone", False)]
HELLO = "I am Mia. I have a red kite and a blue drum."
EVIL = "<img src=x onerror=console.error(1)> <b>bold</b>"
PALE, UNNAMED = ((Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("pale.js", "unnamed.js"))


class Visit:
    """One visitor's browser on the page."""

    def __init__(self, driver, url):
        from selenium.webdriver.common.by import By

        self.driver, self.url, self.css = driver, url, By.CSS_SELECTOR
        driver.get_log("browser")
        driver.get(url)
        self.wait("#qllm-send")
        self.until(lambda: driver.execute_script("return document.readyState") == "complete", "loaded")

    def all(self, selector):
        return self.driver.find_elements(self.css, selector)

    def until(self, holds, what, seconds=90):
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"waited for {what} in vain"
            time.sleep(0.05)

    def wait(self, selector, seconds=90):
        self.until(lambda: self.all(selector), selector, seconds)
        return self.all(selector)[0]

    def click(self, selector):
        element = self.wait(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def open(self, name):
        def visible():
            return [tab for tab in self.all("button[role=tab]") if tab.text == name]

        self.until(visible, f"the tab {name}")
        tab = visible()[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", tab)
        tab.click()
        self.until(lambda: visible()[0].get_attribute("aria-selected") == "true", f"the open tab {name}")

    def type(self, selector, text):
        from selenium.webdriver.common.keys import Keys

        field = self.wait(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)
        return field

    def text(self, selector):
        """What is there now, "" for nothing; in one step, since the page changes between two."""
        return self.driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def choose(self, label):
        """Click the choice of that name on the open tab."""
        script = (
            "const found = [...document.querySelectorAll('label')].find(e => e.innerText.trim() === arguments[0] "
            "&& e.checkVisibility()); found?.click(); return Boolean(found)"
        )
        self.until(lambda: self.driver.execute_script(script, label), f"the choice {label}")

    def check(self, what):
        """No error in the console, nothing pale, nothing unnamed or wider than the screen, nothing from elsewhere."""
        serious = [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert serious == [], what
        assert self.driver.execute_script(PALE) == [], what
        assert self.driver.execute_script(UNNAMED) == [], what
        asked = self.driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert [name for name in asked if not name.startswith((self.url, "data:", "blob:"))] == [], what
        width = "return [document.documentElement.scrollWidth, window.innerWidth]"
        page, screen = self.driver.execute_script(width)
        assert page <= screen, what


@pytest.fixture(scope="module", params=LOOKS, ids=lambda look: f"{look[0]}-{'dark' if look[1] else 'light'}")
def visit(request, page, start_browser):
    size, dark = request.param
    driver = start_browser(size, dark=dark)
    try:
        found = Visit(driver, page.url)
        assert driver.execute_script("return document.body.classList.contains('dark')") is dark
        yield found
    finally:
        driver.quit()


ANSWERED = "#qllm-status .qllm-verdict, #qllm-status .qllm-error"


def press(visit, button):
    """Press a button and wait for what the page says of this answer, not of the one before."""
    visit.driver.execute_script("document.querySelectorAll(arguments[0]).forEach(e => e.remove())", ANSWERED)
    visit.click(button)
    visit.wait(ANSWERED)


def send(visit, message):
    visit.type("#qllm-message textarea", message)
    press(visit, "#qllm-send")


def test_compare(visit):
    visit.open("Compare")
    visit.type('input[aria-label="Right scheme"]', "W3KV9")
    visit.until(
        lambda: "kv=9: allowed are 2" in visit.driver.page_source, "what is wrong with a scheme, while it is typed"
    )
    visit.type('input[aria-label="Right scheme"]', "W2KV2")
    visit.until(lambda: "weights 2 bits" in visit.driver.page_source, "what the scheme means")
    send(visit, HELLO)
    assert "Left: FP16" in visit.text("#qllm-left") and "Hello Mia" in visit.text("#qllm-left")
    assert "Right: W2KV2" in visit.text("#qllm-right")
    assert re.search(r"\d+ tokens/s", visit.text("#qllm-left")) and "KV cache" in visit.text("#qllm-left")
    assert visit.all("#qllm-left mark"), "differences are marked"
    assert visit.wait("#qllm-message textarea").get_attribute("value") == "", "the message was taken"
    visit.check("an answer")
    send(visit, EVIL)
    assert EVIL in visit.text("#qllm-left"), "what was typed is shown as it was typed"
    assert visit.text("#qllm-left").count("You\n") == 2, "the conversation goes on"
    visit.check("a message with markup")
    press(visit, "#qllm-retry")
    assert visit.text("#qllm-left").count("You\n") == 2, "the last turn is made again"
    visit.click("#qllm-clear")
    visit.until(lambda: "The answer will appear here" in visit.text("#qllm-left"), "an empty page")


def test_bad_input_is_explained_on_the_page(visit):
    visit.open("Compare")
    visit.driver.execute_script(
        "const e = document.querySelector('#qllm-message textarea'); e.value = 'x'.repeat(100000);"
        "e.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    visit.click("#qllm-send")
    visit.until(lambda: "100,000 characters" in visit.text("#qllm-status"), "what is wrong with the message")
    visit.type('input[aria-label="Model"]', "/etc/passwd")
    send(visit, "hi")
    assert "no model that this page can load" in visit.text("#qllm-status")
    assert "root:" not in visit.driver.page_source
    visit.check("errors")
    visit.type('input[aria-label="Model"]', "reference")
    send(visit, "hi")


def test_choose(visit):
    visit.open("Choose")
    visit.choose("A model")
    visit.click("#qllm-recommend")
    visit.wait("#qllm-evidence figure svg")
    assert visit.text("#qllm-advice .qllm-big")
    assert "qllm-hf recommend reference" in visit.text("#qllm-advice")
    assert visit.all("#qllm-evidence tr.qllm-chosen")
    visit.check("advice")


def test_abilities(visit):
    visit.open("Abilities")
    visit.click('#qllm-grid button[data-scheme="W2"][data-ability="emergent"]')
    visit.wait("#qllm-items article")
    shown = visit.text("#qllm-items")
    assert "2 of 4 items got worse under W2" in shown
    assert "FP16 says 1" in shown and "W2 says 1" in shown
    assert "<img src=x" in shown, "what a model wrote is text"
    visit.check("items")


def test_the_grid_can_be_used_without_a_mouse(visit):
    from selenium.webdriver.common.keys import Keys

    visit.open("Abilities")
    cell = visit.wait('#qllm-grid button[data-scheme="W2"][data-ability="nlp"]')
    visit.driver.execute_script("arguments[0].focus()", cell)
    visit.driver.switch_to.active_element.send_keys(Keys.ENTER)
    visit.until(lambda: "W2, nlp" in visit.text("#qllm-details"), "what is behind the cell")


def test_inside(visit):
    visit.open("Inside")
    visit.click("#qllm-look")
    visit.wait("#qllm-histogram svg")
    visit.wait("#qllm-layers svg")
    assert "W: at 2 bits all 35 break" in visit.text("#qllm-inside")
    visit.choose("2")
    visit.until(lambda: "at 2 bits" in visit.wait("#qllm-histogram").get_attribute("innerHTML"), "two bits")
    visit.check("tensors")


def test_publish(visit, local_hub):
    visit.open("Publish")
    visit.type("#qllm-repo input, #qllm-repo textarea", "bea/from-the-page")
    visit.click("#qllm-preview")
    visit.wait("#qllm-plan pre")
    assert "model.safetensors" in visit.text("#qllm-plan")
    token = visit.type("#qllm-token input", "hf_wrong_token")
    assert token.get_attribute("type") == "password"
    visit.click("#qllm-push")
    visit.wait("#qllm-plan .qllm-error")
    assert "does not accept this token" in visit.text("#qllm-plan")
    assert visit.wait("#qllm-token input").get_attribute("value") == "", "it is gone from the page"
    assert "hf_wrong_token" not in visit.driver.page_source
    right = local_hub.token("bea")
    visit.type("#qllm-token input", right)
    visit.click("#qllm-push")
    visit.wait("#qllm-plan a")
    assert f"{local_hub.url}/bea/from-the-page" in visit.text("#qllm-plan")
    assert right not in visit.driver.page_source
    visit.check("a push")


@contextmanager
def two(start_browser, url):
    drivers = [start_browser("desktop", dark=False) for _ in range(2)]
    try:
        yield [Visit(driver, url) for driver in drivers]
    finally:
        for driver in drivers:
            driver.quit()


def test_two_visitors_at_once_and_one_stops(page, start_browser):
    """A long text for each; the one who stops does not stop the other, and neither reads the other's."""
    with two(start_browser, page.url) as (ann, bea):
        for visitor, words in ((ann, "Once upon a time there was a cat"), (bea, "Once upon a time there was a dog")):
            visitor.choose("Continue the text")
            visitor.click(".label-wrap")
            field = visitor.type('input[aria-label^="number input for Tokens"]', "256")
            field.send_keys("\t")
            visitor.type("#qllm-message textarea", words)
        ann.click("#qllm-send")
        bea.click("#qllm-send")
        ann.until(lambda: "tokens, writing" in ann.text("#qllm-left"), "the first words")
        ann.click("#qllm-stop")
        ann.until(lambda: "stopped" in ann.text("#qllm-left"), "the end of one")
        bea.until(lambda: bea.all("#qllm-status .qllm-verdict"), "the other's answer")
        assert re.search(r"\d+ tokens, (reached|finished)", bea.text("#qllm-left"))
        assert "cat" in ann.text("#qllm-left") and "there was a dog" not in ann.text("#qllm-left")
        assert "dog" in bea.text("#qllm-left") and "there was a cat" not in bea.text("#qllm-left")


def test_a_closed_page_lets_the_next_visitor_in(page, start_browser):
    with two(start_browser, page.url) as (ann, bea):
        ann.choose("Continue the text")
        ann.click(".label-wrap")
        ann.type('input[aria-label^="number input for Tokens"]', "256").send_keys("\t")
        ann.type("#qllm-message textarea", "Once upon a time there was a cat")
        ann.click("#qllm-send")
        ann.until(lambda: "tokens, writing" in ann.text("#qllm-left"), "the first words")
        ann.driver.get("about:blank")
        send(bea, HELLO)
        assert "Hello Mia" in bea.text("#qllm-left")


def test_nothing_went_wrong_behind_the_page(page):
    """After all of the above: no traceback, no token in the log, and no request to elsewhere."""
    said = page.log.read_text()
    assert "Traceback" not in said
    assert "hf_" not in said
    assert json.dumps(said)
