"""Check the layout of every page in Chromium: as on a desktop and a phone, light and dark.

    python docs/pictures.py build/docs build/docs-pictures

The arguments are the folder of the site, and a folder for the screenshots, which is emptied first.
Exits with 1 if something overflows a page, a picture is missing, or the console has an error or a
warning. Needs playwright, and the system's Chromium: `apt install chromium`.
"""

from __future__ import annotations

import shutil
import sys
from itertools import product
from pathlib import Path

from playwright.sync_api import ConsoleMessage, Error, Page, sync_playwright

WIDTHS = {"desktop": 1280, "phone": 390}
SCHEMES = ("light", "dark")

# Gives up to three elements that reach beyond the right edge of the window, and the width of the
# page if it is wider than the window. Elements inside one that scrolls are left out, and so are
# those with a fixed position: these are menus that are hidden outside the window.
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
# Gives the addresses of pictures that could not be loaded.
MISSING = (
    """() => [...document.images].filter((each) => !each.naturalWidth).map((each) => each.src)"""
)


def look(window: Page, page: Path, picture: Path) -> list[str]:
    """Take a screenshot of a page, and return its problems.

    Arguments:
        page: the HTML file.
        picture: where to write the screenshot.
    """
    logged: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            logged.append(f"{message.type} in the console: {message.text}")

    def on_error(error: Error) -> None:
        logged.append(f"JavaScript: {error}")

    window.on("console", on_console)
    window.on("pageerror", on_error)
    window.goto(page.resolve().as_uri())
    overflowing = [f"overflows: {each}" for each in window.evaluate(OVERFLOWING)]
    missing = [f"missing picture: {each}" for each in window.evaluate(MISSING)]
    window.screenshot(path=picture, full_page=True)
    window.remove_listener("console", on_console)
    window.remove_listener("pageerror", on_error)
    return overflowing + missing + logged


def main(site: Path, pictures: Path) -> None:
    """Look at every page of a site, print the problems, and exit."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("there is no chromium: apt install chromium")
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    pages = sorted(set(site.rglob("*.html")) - {site / "genindex.html", site / "search.html"})
    problems = []
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work in containers. It is not needed, because the pages are
        # our own.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for device, scheme in product(WIDTHS, SCHEMES):
            window = browser.new_page(
                viewport={"width": WIDTHS[device], "height": 900}, color_scheme=scheme
            )
            for page in pages:
                name = "-".join(page.relative_to(site).with_suffix("").parts)
                name = f"{name}-{device}-{scheme}"
                found = look(window, page, pictures / f"{name}.png")
                problems += [f"{name}: {each}" for each in found]
            window.close()
        browser.close()
    print("\n".join(problems))
    print(f"{len(pages)} pages, {4 * len(pages)} screenshots in {pictures}")
    print(f"{len(problems)} problems")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
