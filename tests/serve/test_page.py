"""The page in headless Chromium: by mouse and keyboard, light and dark, on a phone, with markup in titles."""

import shutil
from collections.abc import Iterator

import pytest

from tests.serve.services import TITLES, Slow, served

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")]
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """One browser for all tests; it reaches this machine alone."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that must neither ask other servers for anything nor say an error."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:"))] == []
    assert [text for text in said if "status of 422" not in text] == []  # which the page tells in words
    context.close()


@pytest.fixture(scope="module")
def url(run_folder, open_folder):
    with served({"teacher": open_folder(run_folder), "student": open_folder(run_folder / "student")}) as url:
        yield url


def open_page(page, url):
    page.goto(url)
    sync_api.expect(page.locator("#about")).to_contain_text("items", timeout=60_000)


def test_a_test_user_is_answered_by_both_side_by_side(page, url):
    open_page(page, url)
    page.get_by_label("A test user").select_option(index=1)
    assert "What was really chosen next:" in page.locator("#history-note").inner_text()
    page.get_by_label("How the teacher searches").select_option("step_beam")
    page.get_by_label("Reasonings (n)").fill("2")
    page.get_by_role("button", name="Recommend").click()
    sync_api.expect(page.locator("#status")).to_contain_text("Answered", timeout=60_000)
    for name in ("teacher", "student"):
        card = page.locator("article", has_text=name).first
        assert card.locator("tbody tr").count() == 10
        assert "was really chosen: rank" in card.inner_text()
    page.get_by_text("The tree:").click()
    assert page.locator(".tree li").count() >= 1
    assert page.locator(".tree .leaf").count() >= 1


def test_a_history_is_built_and_asked_about_by_keyboard_alone(page, url):
    open_page(page, url)
    page.get_by_label("Add an item to the history").focus()
    for _ in range(2):
        page.keyboard.type("oak")
        page.wait_for_selector("#found button")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("#query")).to_be_focused()
    assert page.locator("#history li").count() == 2
    assert page.locator("#query-hint").inner_text().startswith("Added ")
    page.locator("#history button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#history li").count() == 1
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Remove ")
    page.get_by_role("button", name="Recommend").focus()
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#status")).to_contain_text("Answered", timeout=60_000)
    assert page.evaluate("document.activeElement.id") == "answers-title"


def test_problems_stand_on_the_page(page, url):
    open_page(page, url)
    page.get_by_role("button", name="Recommend").click()
    page.wait_for_selector("article .bad")
    assert "the history is empty" in page.locator("article .bad").first.inner_text()


def test_every_field_has_a_name(page, url):
    open_page(page, url)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, button')].filter(e => !(e.labels && e.labels.length) "
        "&& !e.getAttribute('aria-label') && !e.textContent.trim()).map(e => e.outerHTML)"
    )
    assert unnamed == []
    assert page.locator("[aria-live=polite], [role=status], [role=alert]").count() >= 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_runs_over_and_text_can_be_read(browser, url, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    open_page(page, url)
    page.get_by_label("A test user").select_option(index=1)
    page.get_by_role("button", name="Recommend").click()
    sync_api.expect(page.locator("#status")).to_contain_text("Answered", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("body", ".soft", ".main", "tr.chosen td, td"):
        assert contrast(page, selector) >= 4.5
    context.close()


def contrast(page, selector):
    """WCAG's contrast of the text of an element with the first ground behind it that is no glass."""
    return page.evaluate(
        """(selector) => {
          const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
          const light = (rgb) => [.2126, .7152, .0722].reduce((sum, part, at) => {
            const c = rgb[at] / 255;
            return sum + part * (c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
          }, 0);
          let at = document.querySelector(selector);
          const ink = light(numbers(getComputedStyle(at).color));
          while (at && numbers(getComputedStyle(at).backgroundColor)[3] === 0) at = at.parentElement;
          const ground = light(numbers(getComputedStyle(at || document.body).backgroundColor));
          return (Math.max(ink, ground) + .05) / (Math.min(ink, ground) + .05);
        }""",
        selector,
    )


def test_markup_in_titles_is_shown_and_not_run(page, student):
    slow = Slow(student)
    slow.go.set()
    page.on("dialog", lambda dialog: pytest.fail("a title was run"))
    with served({"student": slow}) as url:
        open_page(page, url)
        page.get_by_label("A test user").select_option(index=1)
        assert TITLES in page.locator("#history").inner_text()
        page.get_by_role("button", name="Recommend").click()
        sync_api.expect(page.locator("#status")).to_contain_text("Answered", timeout=60_000)
        assert f"{TITLES} (really chosen)" in page.locator("article").inner_text()
        assert page.locator("img").count() == 0
