"""The page to try the model with, in a real Chromium against the real server."""

import base64
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from fruitstand.contract import FRUIT_CLASSIFIER, Preprocessing
from fruitstand.manifest import PreparedData
from fruitstand_client import Client
from serving.gateway.api_keys import add_api_key
from serving.page.web import WebServer
from serving.triton.embedded import EmbeddedServer
from tests.gateway_calls import opened

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)
PHONE, DESKTOP = (360, 740), (1100, 900)
DEADLINE_S = 60


@pytest.fixture(scope="module")
def url(server: EmbeddedServer) -> Iterator[str]:
    """The page in front of the real server."""
    with WebServer(0) as web:
        web.start(server.url)
        yield web.url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A headless Chromium with a profile of its own."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver: make system")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    running = webdriver.Chrome(options=options, service=Service(DRIVER))
    running.set_page_load_timeout(DEADLINE_S)
    yield running
    running.quit()


Open = Callable[..., webdriver.Chrome]


@pytest.fixture
def page(browser: webdriver.Chrome, url: str) -> Open:
    """Opens the page afresh at a size and in a colour scheme."""

    def open_page(
        size: tuple[int, int] = DESKTOP, scheme: str = "light", at: str | None = None
    ) -> webdriver.Chrome:
        metrics = {
            "width": size[0],
            "height": size[1],
            "deviceScaleFactor": 1,
            "mobile": size[0] < 500,
        }
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(at or url)
        wait(browser, lambda: text(browser, "server") != "Asking the server …")
        return browser

    return open_page


def wait(browser: webdriver.Chrome, condition: Callable[[], object]) -> None:
    """Until something is so; a deadline ends it."""
    WebDriverWait(browser, DEADLINE_S).until(lambda _: condition())


def text(browser: webdriver.Chrome, name: str) -> str:
    """What an element says, seen or not."""
    return browser.find_element(By.ID, name).get_attribute("textContent") or ""


def shown(browser: webdriver.Chrome, name: str) -> bool:
    """Whether an element can be seen."""
    return browser.find_element(By.ID, name).is_displayed()


def choose(browser: webdriver.Chrome, path: Path) -> None:
    """Choose a file, and wait until the page says how that ended."""
    browser.find_element(By.ID, "file").send_keys(str(path))
    wait(browser, lambda: text(browser, "status") not in ("", "Asking the server."))


def bars(browser: webdriver.Chrome) -> list[tuple[str, str]]:
    """Label and share of each bar."""
    rows = browser.find_elements(By.CSS_SELECTOR, "#bars li")
    return [
        (
            row.find_element(By.CLASS_NAME, "label").text,
            row.find_element(By.CLASS_NAME, "share").text,
        )
        for row in rows
    ]


def contrast(browser: webdriver.Chrome, selector: str) -> float:
    """Of an element's text with what lies behind it, 1 to 21 (WCAG 2.2, relative luminance)."""
    script = """
        let element = document.querySelector(arguments[0]);
        const colour = getComputedStyle(element).color;
        let behind;
        do { behind = getComputedStyle(element).backgroundColor; element = element.parentElement; }
        while (behind === 'rgba(0, 0, 0, 0)');
        return [colour, behind].map((one) => one.match(/[\\d.]+/g).slice(0, 3).map(Number));
    """
    luminance = []
    for channels in browser.execute_script(script, selector):
        linear = [
            c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels
        ]
        luminance.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(luminance) + 0.05) / (min(luminance) + 0.05)


def test_a_chosen_image_shows_the_five_likeliest_classes(
    page: Open, server: EmbeddedServer, test_images: list[Path]
) -> None:
    """As the gRPC client is told them, with latency and model version."""
    browser = page()
    with Client(server.url) as client:
        (expected,) = client.classify([test_images[0]])
    choose(browser, test_images[0])
    # The small model of the tests has four classes.
    assert bars(browser) == [(one.label, f"{100 * one.probability:.1f} %") for one in expected.top_k[:5]]
    assert text(browser, "latency").removesuffix(" ms").isdecimal()
    assert text(browser, "model-version") == expected.model_version
    assert text(browser, "server") == "The server is ready"
    assert text(browser, "status").startswith(f"{expected.label}, ")
    assert shown(browser, "preview")
    assert not shown(browser, "problem")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_where_the_server_explains_the_page_says_why(
    scheme: str, page: Open, url: str, explaining_server: EmbeddedServer, prepared: PreparedData
) -> None:
    """A map for each class, and the nearest training images; nothing where no explainer is served."""
    known = prepared.directory / prepared.split("train")[0].path
    browser = page()
    choose(browser, known)
    assert not shown(browser, "why")
    with WebServer(0) as web:
        web.start(explaining_server.url)
        browser = page(PHONE, scheme, web.url)
        choose(browser, known)
        wait(browser, lambda: shown(browser, "why"))
        options = browser.find_elements(By.CSS_SELECTOR, "#map option")
        assert [one.text for one in options] == [label for label, _ in bars(browser)]
        shade = "return document.getElementById('tint').toDataURL()"
        first = browser.execute_script(shade)
        options[-1].click()
        assert browser.execute_script(shade) != first
        assert len(browser.find_elements(By.CSS_SELECTOR, "#neighbours li")) == 5
        assert shown(browser, "seen")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
        seen = {one: contrast(browser, one) for one in ("#seen", "#neighbours .share", "label[for=map]")}
    assert {selector: ratio for selector, ratio in seen.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_may_be_dropped_or_pasted(way: str, page: Open, test_images: list[Path]) -> None:
    """Anywhere on the page."""
    browser = page()
    script = """
        const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], 'fruit.jpg', { type: 'image/jpeg' }));
        const made = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
        document.body.dispatchEvent(
            arguments[1] === 'drop' ? new DragEvent('drop', made) : new ClipboardEvent('paste', made));
    """
    browser.execute_script(script, base64.b64encode(test_images[0].read_bytes()).decode(), way)
    wait(browser, lambda: shown(browser, "answer"))
    assert len(bars(browser)) == 4
    assert text(browser, "name") == "fruit.jpg"


def test_what_is_no_image_gets_a_plain_message(page: Open, test_images: list[Path], tmp_path: Path) -> None:
    """The earlier answer is gone; an empty and a too large file are not even sent."""
    letter, empty, large = (tmp_path / name for name in ("letter.jpg", "empty.jpg", "large.jpg"))
    letter.write_text("this is a letter and no image\n" * 50)
    empty.touch()
    large.write_bytes(bytes(Preprocessing().max_encoded_bytes + 1))
    browser = page()
    choose(browser, test_images[0])
    assert shown(browser, "answer")
    for path, title, reason in (
        (letter, "This image was rejected", "Not an image: none of JPEG, PNG, WebP, BMP."),
        (empty, "This file is empty", "Choose another one."),
        (large, "This file is too large", "It has 8.0 MiB; at most 8.0 MiB are taken."),
    ):
        choose(browser, path)
        wait(browser, lambda title=title: text(browser, "problem-title") == title)
        assert text(browser, "problem-reason") == reason
        assert text(browser, "status") == f"{title}. {reason}"
        assert shown(browser, "problem")
        assert not shown(browser, "answer")
    choose(browser, test_images[1])
    wait(browser, lambda: shown(browser, "answer"))
    assert not shown(browser, "problem")


def test_a_server_that_is_away_is_named_and_asked_again(page: Open, test_images: list[Path]) -> None:
    """With a button, by keyboard."""
    with socket.socket() as nobody, WebServer(0) as web:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        web.start(f"127.0.0.1:{nobody.getsockname()[1]}")
        browser = page(at=web.url)
        assert text(browser, "server") == "The server does not answer"
        choose(browser, test_images[0])
        assert text(browser, "problem-title") == "The server does not answer"
        assert "fruitstand serve" in text(browser, "problem-reason")
        button = browser.find_element(By.ID, "again")
        ActionChains(browser).send_keys(Keys.TAB, Keys.TAB).perform()  # past the choice of an image
        assert browser.switch_to.active_element == button
        browser.execute_script("document.getElementById('status').textContent = ''")
        ActionChains(browser).send_keys(Keys.ENTER).perform()
        wait(browser, lambda: text(browser, "status").startswith("The server does not answer"))


def test_the_page_works_with_the_keyboard_alone(page: Open, test_images: list[Path]) -> None:
    """One Tab reaches the choice, a ring shows it, Enter opens it; focus stays there for the next image."""
    browser = page()
    browser.execute_script(
        "document.getElementById('file').addEventListener('click', (event) => {"
        " window.opened = event.isTrusted; event.preventDefault(); })"  # the dialog is not a page's to drive
    )
    ActionChains(browser).send_keys(Keys.TAB).perform()
    chooser = browser.find_element(By.ID, "file")
    assert browser.switch_to.active_element == chooser
    assert browser.find_element(By.ID, "drop").value_of_css_property("outline-style") == "solid"
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.execute_script("return window.opened") is True
    choose(browser, test_images[0])
    assert len(bars(browser)) == 4
    assert browser.switch_to.active_element == chooser


def test_a_screen_reader_is_told_what_things_are(page: Open, test_images: list[Path]) -> None:
    """Names come from the accessibility tree, as Chromium computes it; the answer is a live region's."""
    browser = page()
    choose(browser, test_images[0])
    chooser = browser.find_element(By.ID, "file")
    assert "Choose another image" in chooser.accessible_name
    status = browser.find_element(By.ID, "status")
    assert status.aria_role == "status"
    assert status.get_attribute("aria-live") == "polite"
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
    assert browser.find_element(By.ID, "answer").accessible_name == "Most likely"


@pytest.mark.parametrize("size", [pytest.param(PHONE, id="phone"), pytest.param(DESKTOP, id="desktop")])
def test_nothing_is_wider_than_the_window(size: tuple[int, int], page: Open, test_images: list[Path]) -> None:
    """Neither before nor after an answer, nor with a file name that has no end."""
    browser = page(size)
    width = "return document.documentElement.scrollWidth"
    assert browser.execute_script(width) <= size[0]
    choose(browser, test_images[0])
    assert browser.execute_script(width) <= size[0]
    browser.execute_script("document.getElementById('name').textContent = 'a'.repeat(200)")
    assert browser.execute_script(width) <= size[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_colour_schemes(
    scheme: str, page: Open, test_images: list[Path], tmp_path: Path
) -> None:
    """At least 4.5 to 1, and dark is dark."""
    browser = page(scheme=scheme)
    seen = {one: contrast(browser, one) for one in ("h1", "header p", "#choose", "#formats", "footer")}
    choose(browser, test_images[0])
    seen |= {one: contrast(browser, one) for one in (".label", "li + li .share", "dt", "dd", "h2")}
    letter = tmp_path / "letter.jpg"
    letter.write_text("no image")
    choose(browser, letter)
    wait(browser, lambda: shown(browser, "problem"))
    seen |= {one: contrast(browser, one) for one in ("#problem-title", "#problem-reason")}
    assert {selector: ratio for selector, ratio in seen.items() if ratio < 4.5} == {}
    red = int(
        browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        .split("(")[1]
        .split(",")[0]
    )
    assert (red < 64) == (scheme == "dark")


def test_the_page_asks_the_classifier_that_is_chosen(
    page: Open, url: str, server: EmbeddedServer, test_images: list[Path]
) -> None:
    """Of several; the first one at first. A server with one has nothing to choose."""
    assert not shown(page(), "models")
    with WebServer(0) as web:
        web.start(server.url, "fish_classifier", FRUIT_CLASSIFIER)
        browser = page(at=web.url)
        choose(browser, test_images[0])
        assert text(browser, "problem-reason") == "The server has no such classifier or version."
        Select(browser.find_element(By.ID, "model")).select_by_visible_text(FRUIT_CLASSIFIER)
        wait(browser, lambda: shown(browser, "answer"))
        assert len(bars(browser)) == 4


def test_the_page_asks_for_the_key_that_a_gateway_wants(
    page: Open, server: EmbeddedServer, test_images: list[Path], tmp_path: Path
) -> None:
    """Once it is typed the image is answered; the page itself needs none."""
    secret = add_api_key(tmp_path / "api_keys.json", "page", days=1, requests_per_s=None)
    gateway = opened([server], tmp_path, tmp_path / "envoy.log")
    try:
        browser = page(at=gateway.http_url)
        assert text(browser, "server") == "The server is ready"
        choose(browser, test_images[0])
        wait(browser, lambda: shown(browser, "key"))
        assert text(browser, "problem-title") == "This server asks for an API key"
        assert browser.switch_to.active_element == browser.find_element(By.ID, "key")
        ActionChains(browser).send_keys(secret, Keys.ENTER).perform()
        wait(browser, lambda: shown(browser, "answer"))
        assert len(bars(browser)) == 4
        assert not shown(browser, "key")
    finally:
        gateway.stop()
