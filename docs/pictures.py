"""Look at every page in Chromium: at a desktop's and a phone's width, light and dark.

    python docs/pictures.py build/docs build/docs-pictures

Writes a screenshot of each. Exits with 1 if something overflows the page, a picture is missing, or
the console has an error. Needs playwright, and the system's Chromium: `apt install chromium`.
"""

from __future__ import annotations

import shutil
import sys
from itertools import product
from pathlib import Path

from playwright.sync_api import ConsoleMessage, Error, Page, sync_playwright

WIDTHS = {"desktop": 1280, "phone": 390}
SCHEMES = ("light", "dark")

# What reaches beyond the window, but for what lies in an element that scrolls by itself. Menus that
# wait outside the window are fixed.
OVERFLOWING = """() => {
    const width = document.documentElement.clientWidth;
    const scrolls = (element) => {
        for (let each = element; each && each !== document.body; each = each.parentElement) {
            const style = getComputedStyle(each);
            const clips = ["auto", "scroll", "hidden"].includes(style.overflowX);
            if (clips || style.position === "fixed") return true;
        }
        return false;
    };
    const found = [...document.querySelectorAll("article *, header *, footer *")].filter(
        (element) => element.getBoundingClientRect().right > width + 1 && !scrolls(element)
    );
    const text = (element) => `${element.tagName} ${element.textContent.slice(0, 60)}`;
    const wide = document.documentElement.scrollWidth;
    return found.slice(0, 3).map(text).concat(wide > width ? [`the page is ${wide} px wide`] : []);
}"""
MISSING = (
    """() => [...document.images].filter((each) => !each.naturalWidth).map((each) => each.src)"""
)


def look(window: Page, page: Path, picture: Path) -> list[str]:
    """Takes the screenshot of a page, and returns what is wrong with it."""
    said: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            said.append(f"{message.type} in the console: {message.text}")

    def on_error(error: Error) -> None:
        said.append(f"JavaScript: {error}")

    window.on("console", on_console)
    window.on("pageerror", on_error)
    window.goto(page.resolve().as_uri())
    overflowing = [f"overflows: {each}" for each in window.evaluate(OVERFLOWING)]
    missing = [f"missing picture: {each}" for each in window.evaluate(MISSING)]
    window.screenshot(path=picture, full_page=True)
    window.remove_listener("console", on_console)
    window.remove_listener("pageerror", on_error)
    return overflowing + missing + said


def main(site: Path, pictures: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("there is no chromium: apt install chromium")
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    pages = sorted(set(site.rglob("*.html")) - {site / "genindex.html", site / "search.html"})
    wrong = []
    with sync_playwright() as playwright:
        # In a container, Chromium's own sandbox cannot be set up. The pages are ours.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for device, scheme in product(WIDTHS, SCHEMES):
            window = browser.new_page(
                viewport={"width": WIDTHS[device], "height": 900}, color_scheme=scheme
            )
            for page in pages:
                name = "-".join(page.relative_to(site).with_suffix("").parts)
                name = f"{name}-{device}-{scheme}"
                wrong += [
                    f"{name}: {each}" for each in look(window, page, pictures / f"{name}.png")
                ]
            window.close()
        browser.close()
    print("\n".join(wrong))
    print(f"{len(pages)} pages, {4 * len(pages)} screenshots in {pictures}, {len(wrong)} problems")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
