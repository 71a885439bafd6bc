"""The gallery in a real browser: it shows, filters and zooms, and asks nothing of the network."""

from __future__ import annotations

import base64
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from clsp.shards.__main__ import main
from clsp.shards.edit import write_set
from clsp.shards.gallery import gallery_html
from clsp.shards.reader import ShardSet
from clsp.shards.scores import save_hardness
from clsp.shards.store import open_set


@pytest.fixture
def scored(digit_set: ShardSet, tmp_path: Path) -> ShardSet:
    shutil.copytree(digit_set.folder, tmp_path / "set")
    shards = open_set(tmp_path / "set")
    values = np.linspace(0, 1, 80, dtype=np.float32).reshape(40, 2)
    save_hardness(shards, values, "0" * 64, "a test's")
    return shards


def test_it_renders_filters_and_zooms(scored: ShardSet, tmp_path: Path, open_page) -> None:
    out = tmp_path / "gallery.html"
    command = ["preview", str(scored.folder), "--out", str(out)]
    assert CliRunner().invoke(main, command).exit_code == 0
    with open_page(out) as (page, wrong):
        shown = page.locator("figure:visible")
        assert shown.count() == 40
        assert page.locator(".row button").count() == 120
        page.screenshot(path=str(tmp_path / "light.png"))
        page.select_option("#label", "3")
        assert shown.count() == 4
        page.select_option("#label", "")
        page.locator("#least").fill("50")
        assert shown.count() == 20
        page.locator("#most").fill("50")
        assert shown.count() == 0
        page.locator("#most").fill("100")
        button = page.locator(".row button:visible").first
        before = button.bounding_box()["width"]
        page.locator("#zoom").fill("112")
        assert (before, button.bounding_box()["width"]) == (56, 112)
        button.click()
        assert page.locator("dialog p").inner_text() == "digit-0020.anchor"
        assert page.locator("dialog div").bounding_box()["width"] > 300
        page.locator("dialog div").click()
        assert not page.locator("dialog").is_visible()
        page.click("#theme")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
        page.set_viewport_size({"width": 160, "height": 500})  # three images do not fit on a line
        assert page.evaluate("document.querySelector('main').scrollWidth") <= 160
        page.screenshot(path=str(tmp_path / "dark.png"))
        assert wrong == []


def test_a_label_cannot_run_anything(make_set, tmp_path: Path, open_page) -> None:
    shards = make_set(tmp_path / "set", sizes=(4,))
    evil = "</script><script>document.title = 'pwned'</script><img src=x onerror=alert(1)>"
    records = [replace(shards.record(n), meta={"label": evil}) for n in range(4)]
    hostile = write_set(tmp_path / "evil", shards.manifest, [records], evil)
    out = tmp_path / "evil.html"
    out.write_bytes(gallery_html(hostile))
    with open_page(out) as (page, wrong):
        assert page.locator("figure").count() == 4
        assert "pwned" not in page.title()
        assert page.locator("main img").count() == 0
        assert wrong == []


@pytest.mark.parametrize("side", [32, 64])
def test_five_hundred_anchors_stay_under_ten_megabytes(tmp_path: Path, make_set, side: int) -> None:
    """Noise is the worst case of any image: it is shrunk or loses detail, but not below half."""

    class Noise(ShardSet):
        def pixels(self, index, wanted):
            return np.random.default_rng(index).integers(
                0, 256, (len(wanted), side, side, 3), dtype=np.uint8
            )

    shards = make_set(tmp_path / "set", sizes=(500,), positives=8)
    noise = Noise(shards.folder, replace(shards.manifest, image_size=side))
    assert 5 * 10**6 < len(gallery_html(noise)) < 10**7


def test_what_fits_is_shown_without_loss(digit_set: ShardSet) -> None:
    page = gallery_html(digit_set).decode()
    data = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    for row, (key, _, _, strip) in enumerate(data["records"]):
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip))).convert("RGB"))
        assert key == digit_set.key(row)
        expected = np.concatenate(list(digit_set.pixels(row, ["anchor", "p0", "p1"])), axis=1)
        np.testing.assert_array_equal(picture, expected)


def test_without_anchors_and_in_other_formats(make_set, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set", sizes=(4,), anchors=False)
    for name in ("sheet.png", "page.html"):
        command = ["preview", str(shards.folder), "--out", str(tmp_path / name)]
        assert CliRunner().invoke(main, command).exit_code == 0
    refused = CliRunner().invoke(main, [*command[:-1], str(tmp_path / "x.gif")])
    assert (refused.exit_code, "neither in .png nor in .html" in refused.output) == (2, True)
