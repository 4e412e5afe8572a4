"""The report in headless Chromium, from a disk: on a phone and a desktop, light and dark."""

import json
import shutil

import pytest

from anyo_rl.evaluation.report.page import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")]
WIDTHS = (360, 1280)


def value(mean):
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02, "n": 50}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A run with long names, all plots of training and many slices."""
    folder = tmp_path_factory.mktemp("runs") / "a-run-with-a-name-that-is-much-too-long-for-a-phone"
    folder.mkdir()
    stages = {
        "sft": {"greedy": {"ndcg@10": value(0.3)}},
        "grpo": {"greedy": {"ndcg@10": value(0.4)}, "mixture": {"ndcg@10": value(0.42)}},
        "direct": {"plain": {"ndcg@10": value(0.35)}},
        "oracle": {"plain": {"ndcg@10": value(0.6)}},
    }
    slices = {"grpo": {"mixture": {f"popularity={name}": {"n": 7, "ndcg@10": value(0.2)} for name in "abcdefgh"}}}
    evaluation = {"dataset": "toy", "split": "test", "n_users": 50, "n_items": 504, "stages": stages, "slices": slices}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    metrics = [
        {"stage": stage, "step": step, "flops": 1e12 * (step + 1), "eval_ndcg@10": 0.2 + step / 100, "reward": 0.1}
        for stage in ("sft", "grpo", "direct")
        for step in range(8)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return write_report(folder)


def test_it_fits_phone_and_desktop_light_and_dark_and_asks_nobody(report):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        colours = set()
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                context = browser.new_context(
                    viewport={"width": width, "height": 800},
                    color_scheme=scheme,
                )
                page = context.new_page()
                asked, said = [], []
                page.on("request", lambda request, asked=asked: asked.append(request.url))
                page.on("console", lambda message, said=said: said.append(message.text))
                page.on("pageerror", lambda error, said=said: said.append(str(error)))
                page.goto(report.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.locator("#results svg").first.bounding_box()["width"] <= width
                # The forest plot stands above the table, and slices are folded.
                plot, table = page.locator("#results svg").first, page.locator("#results table").first
                assert plot.bounding_box()["y"] < table.bounding_box()["y"]
                assert not page.locator("#slices table").is_visible()
                page.locator("#slices summary").click()
                assert page.locator("#slices tbody tr").count() == 8
                assert page.locator("#slices table").is_visible()
                assert (asked, said) == ([report.as_uri()], [])
                colours.add((scheme, page.evaluate("getComputedStyle(document.body).backgroundColor")))
                page.screenshot(path=report.parent / f"{width}-{scheme}.png", full_page=True)
                context.close()
        browser.close()
    assert len(colours) == 2  # a scheme has one colour, whatever the width
