"""`make docs-pictures`: pages and reports as a user meets them, made from painted fruit by the real commands.

    python docs/make_pictures.py            # a few minutes on two idle cores; needs chromium and chromedriver
    python docs/make_pictures.py --keep     # only draw again: data, run and version of the last time

What the commands make lies in build/pictures; the pictures go to docs/pictures, each under 150 KB.
"""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageEnhance
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from fruitstand.manifest import read_prepared
from fruitstand.stages import served
from serving.page.web import WebServer

WORK = Path("build/pictures")
OUT = Path("docs/pictures")
MAX_BYTES = 150_000
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars"
)
NUM_DRIFT_IMAGES = 300


def main() -> None:
    """Make data, run and version, then the pictures of all that shows them."""
    data, run, repository = WORK / "data", WORK / "run", WORK / "repository"
    if "--keep" not in sys.argv[1:]:
        shutil.rmtree(WORK, ignore_errors=True)
        fruitstand("data", "prepare", "--source", "generated", "--out", data, "--images-per-class", 120)
        # Little data and a small model: one that still makes mistakes has something to show in its report.
        settings = ("--epochs", 3, "--set", "batch_size=8", "--set", "lr=0.02")
        fruitstand("train", "--data", data, "--out", run, "--model", "resnet10t", *settings)
        fruitstand("export", "--run", run, "--repository", repository)
    fruitstand("data", "check", data, allowed=(0, 1))
    fruitstand("evaluate", "--run", run, "--data", data, "--out", WORK / "evaluation")
    test = [data / row.path for row in read_prepared(data).split("test")]
    folder = data / "images" / "Test"
    with served(repository, log=WORK / "triton.log") as url, browser() as page:
        sheet, address = WORK / "answers.png", ("--url", url)
        fruitstand(
            "classify", *test[:: len(test) // 16][:16], *address, "--sheet", sheet, "--out", WORK / "answers"
        )
        shutil.rmtree(WORK / "ramp", ignore_errors=True)
        ramp = ("--profile", "ramp", "--stage-s", 4, "--images", folder, "--out", WORK / "ramp")
        fruitstand("loadtest", *ramp, *address, allowed=(0, 1))
        darkened(test[:NUM_DRIFT_IMAGES], WORK / "dark")
        window = WORK / "window.npz"
        record = ("--repository", repository, "--keep-images", 24, "--out", window)
        fruitstand("drift", "record", WORK / "dark", *record, *address)
        fruitstand(
            "drift", "report", window, "--repository", repository, "--out", WORK / "drift", allowed=(1,)
        )
        with WebServer(0) as web:
            web.start(url)
            save("page", ask(page, web.url, test[0]))
        save("drift", screenshot(page, WORK / "drift" / "drift.html", (1000, 900)))
        save("data-check", screenshot(page, data / "check" / "check.html", (1060, 1100)))
        save("loadtest-report", screenshot(page, WORK / "ramp" / "report.html", (1200, 1000)))
    save("answers", sheet.read_bytes())
    for name in ("confusion", "reliability", "mistakes"):
        picture = WORK / "evaluation" / f"{name}.png"
        if name != "mistakes" or picture.is_file():  # a model without mistakes has no such sheet
            save(name, picture.read_bytes())
    save("training", (run / "curves.png").read_bytes())


def fruitstand(*arguments: object, allowed: tuple[int, ...] = (0,)) -> None:
    """Run one verb as a user does."""
    command = [sys.executable, "-m", "fruitstand", *map(str, arguments)]
    print("fruitstand", *command[3:], file=sys.stderr)
    if (status := subprocess.run(command, check=False).returncode) not in allowed:
        sys.exit(f"it ended with status {status}, expected {' or '.join(map(str, allowed))}")


def darkened(paths: list[Path], out: Path) -> None:
    """The same pictures as a camera with a failing lamp would take them: drift to be found."""
    out.mkdir(exist_ok=True)
    for number, path in enumerate(paths):
        with Image.open(path) as picture:
            ImageEnhance.Brightness(picture).enhance(0.55).save(out / f"{number:04}.jpg", quality=90)


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A headless Chromium with a profile of its own."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        sys.exit("needs chromium and chromedriver: make system")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), f"--user-data-dir={(WORK / 'chromium').resolve()}"):
        options.add_argument(flag)
    running = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield running
    finally:
        running.quit()


def sized(page: webdriver.Chrome, size: tuple[int, int]) -> None:
    """Width and height of what is seen, CSS pixels, on any machine alike."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = {"prefers-color-scheme": "light", "prefers-reduced-motion": "reduce"}  # no bar half way
    media = {"features": [{"name": name, "value": value} for name, value in features.items()]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def screenshot(page: webdriver.Chrome, path: Path, size: tuple[int, int]) -> bytes:
    """The upper part of a report's page, PNG."""
    sized(page, size)
    page.get(path.resolve().as_uri())
    return bytes(page.get_screenshot_as_png())


def ask(page: webdriver.Chrome, url: str, image: Path) -> bytes:
    """The web page with an answer, PNG."""
    sized(page, (760, 820))
    page.get(url)
    page.find_element(By.ID, "file").send_keys(str(image.resolve()))
    WebDriverWait(page, 60).until(lambda _: page.find_element(By.ID, "answer").is_displayed())
    return bytes(page.get_screenshot_as_png())


def save(name: str, png: bytes) -> None:
    """Write a picture as WebP."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    webp = io.BytesIO()
    picture.save(webp, "WEBP", quality=82, method=6)
    if len(webp.getvalue()) > MAX_BYTES:
        sys.exit(f"{name}: {len(webp.getvalue()):,} bytes, allowed {MAX_BYTES:,}")
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.webp").write_bytes(webp.getvalue())
    print(OUT / f"{name}.webp", f"{len(webp.getvalue()):,} bytes")


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    main()
