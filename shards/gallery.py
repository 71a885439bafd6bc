"""A set as one HTML file with its pictures inside, to filter by label and hardness, and to zoom."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from .check import ShardError
from .reader import ShardSet
from .record import check_hashes
from .scores import load_hardness

MOST_BYTES = 9 * 10**6
# Pixels of a shown image, and WebP's quality, None without loss: the first at which all fit.
_LARGEST = 128
_TRIES = (
    *((_LARGEST, quality) for quality in (None, 90, 80)),
    *((side, 80) for side in (96, 64, 48, 32)),
    *((side, 40) for side in (32, 16)),
)


def gallery_html(shards: ShardSet, samples: int = 500) -> bytes:
    """Return a page of `samples` records spread evenly over the set, under 10 MB.

    A row is an anchor, where the set has them, and its positives. Images are compressed and shrunk
    until all fit. Raises ShardError for a damaged set.
    """
    rows = np.unique(
        np.linspace(0, len(shards) - 1, min(samples, len(shards))).astype(int)
    ).tolist()
    names = ["anchor"] * shards.manifest.anchors + [f"p{n}" for n in range(shards.positives)]
    try:
        hardness = load_hardness(shards)[0].mean(axis=1)
    except ShardError:
        hardness = None
    pixels = [shards.pixels(row, names) for row in rows]
    labels = [_label(shards, row) for row in rows]
    strips = _strips(pixels)
    keys = [shards.key(row) for row in rows]
    scores = [None if hardness is None else round(float(hardness[row]), 4) for row in rows]
    records = [list(item) for item in zip(keys, labels, scores, strips, strict=True)]
    values = {"count": len(names), "anchors": shards.manifest.anchors, "records": records}
    # A label may hold anything: "<" must not end the script.
    data = json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")
    title = f"{len(rows):,} of {len(shards):,} records of set {shards.id[:12]}"
    return _PAGE.replace("TITLE", escape(title)).replace("DATA", data).encode()


def _label(shards: ShardSet, row: int) -> str:
    meta, _ = check_hashes(shards.read(row, ["json"]))
    label, classes = meta.get("label"), shards.manifest.classes
    if type(label) is int and classes and 0 <= label < len(classes):
        return classes[label]
    return "" if label is None else str(label)


def _strips(pixels: list[np.ndarray]) -> list[str]:
    """Return a picture of each record, as sharp as all of them together may be."""
    side, sample = pixels[0].shape[1], pixels[:: max(1, len(pixels) // 16)]
    tries = [(most, quality) for most, quality in _TRIES if most == _LARGEST or most < side]
    for most, quality in tries:
        if (most, quality) != tries[-1]:  # A few say whether it is worth trying all.
            few = sum(len(_strip(images, most, quality)) for images in sample)
            if few / len(sample) * len(pixels) > 1.1 * MOST_BYTES:
                continue
        strips = [_strip(images, most, quality) for images in pixels]
        if sum(map(len, strips)) < MOST_BYTES:
            break
    return strips


def _strip(images: np.ndarray, most: int, quality: int | None) -> str:
    """Return images side by side as one WebP in base64, each of at most so many pixels a side."""
    picture = Image.fromarray(np.concatenate(list(images), axis=1))
    if most < picture.height:
        picture = picture.resize((most * len(images), most))
    options: dict[str, Any] = {"lossless": True} if quality is None else {"quality": quality}
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", **options)
    return base64.b64encode(buffer.getvalue()).decode()


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { color-scheme: light dark; --back: #fff; --ink: #1b1f24; --line: #d8dee4; --dim: #57606a; }
:root.dark { color-scheme: dark; --back: #14171b; --ink: #e6e9ed; --line: #343b43; --dim: #9aa4af; }
:root.light { color-scheme: light; }
@media (prefers-color-scheme: dark) { :root:not(.light) {
  --back: #14171b; --ink: #e6e9ed; --line: #343b43; --dim: #9aa4af; } }
body { margin: 0; font: 15px/1.4 system-ui, sans-serif; color: var(--ink);
  background: var(--back); }
header { position: sticky; top: 0; padding: .8rem 1.2rem; background: var(--back);
  border-bottom: 1px solid var(--line); display: flex; flex-wrap: wrap; gap: .5rem 1.4rem;
  align-items: center; }
h1 { font-size: 1rem; margin: 0; flex-basis: 100%; }
label { display: flex; gap: .4rem; align-items: center; }
main { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; padding: 1.2rem; }
figure { margin: 0; }
figure[hidden], .scored[hidden] { display: none; }
figcaption { color: var(--dim); font-size: .8rem; }
.row { display: flex; flex-wrap: wrap; gap: 3px; }
.row button { padding: 0; border: 0; cursor: zoom-in; width: var(--side); height: var(--side);
  background-size: auto 100%; image-rendering: pixelated; }
.row button.anchor { margin-right: 9px; }
dialog { border: 1px solid var(--line); background: var(--back); color: var(--ink); }
dialog div { width: min(70vw, 70vh); height: min(70vw, 70vh); background-size: auto 100%;
  image-rendering: pixelated; cursor: zoom-out; }
dialog p { margin: .6rem 0 0; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  header { position: static; padding: .6rem .8rem; }
  main { padding: .8rem; gap: .8rem; }
  dialog div { width: 82vw; height: 82vw; }
}
</style>
<header><h1>TITLE</h1>
<label>Label <select id="label"><option value="">all</option></select></label>
<label class="scored">Hardness from
<input id="least" type="range" min="0" max="100" value="0"></label>
<label class="scored">to
<input id="most" type="range" min="0" max="100" value="100"></label>
<label>Zoom <input id="zoom" type="range" min="24" max="160" value="56"></label>
<button id="theme">Dark or light</button> <span id="shown"></span></header>
<main></main>
<dialog><div></div><p></p></dialog>
<script id="data" type="application/json">DATA</script>
<script>
"use strict";
const {count, anchors, records} = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id), main = document.querySelector("main");
const dialog = document.querySelector("dialog"), large = dialog.querySelector("div");
const scores = records.map(r => r[2]).filter(s => s !== null);
const low = Math.min(...scores), high = Math.max(...scores);
const figures = records.map(([key, label, score, strip]) => {
  const figure = document.createElement("figure"), row = document.createElement("div");
  row.className = "row";
  const image = `url(data:image/webp;base64,${strip})`;
  for (let n = 0; n < count; n++) {
    const button = document.createElement("button");
    const name = anchors ? (n ? `p${n - 1}` : "anchor") : `p${n}`;
    button.className = name === "anchor" ? "anchor" : "";
    button.title = `${key}.${name}`;
    button.setAttribute("aria-label", button.title);
    button.style.backgroundImage = image;
    button.style.backgroundPositionX = count > 1 ? `${100 * n / (count - 1)}%` : "0";
    button.onclick = () => {
      large.style.backgroundImage = image;
      large.style.backgroundPositionX = button.style.backgroundPositionX;
      dialog.querySelector("p").textContent = button.title;
      dialog.showModal();
    };
    row.append(button);
  }
  const caption = document.createElement("figcaption");
  const hardness = score === null ? "" : `hardness ${score.toPrecision(3)}`;
  caption.textContent = [key, label, hardness].filter(Boolean).join(" · ");
  figure.append(row, caption);
  main.append(figure);
  return figure;
});
for (const label of [...new Set(records.map(r => r[1]))].filter(Boolean).sort()) {
  at("label").append(new Option(label, label));
}
for (const part of document.querySelectorAll(".scored")) part.hidden = !scores.length;
function filter() {
  const wanted = at("label").value, span = high - low || 1;
  let shown = 0;
  records.forEach(([key, label, score], n) => {
    const place = score === null ? 50 : 100 * (score - low) / span;
    const keep = (!wanted || label === wanted) && place >= at("least").value - 1e-9
      && place <= +at("most").value + 1e-9;
    figures[n].hidden = !keep;
    shown += keep;
  });
  at("shown").textContent = `${shown} shown`;
}
for (const id of ["label", "least", "most"]) at(id).oninput = filter;
at("zoom").oninput = () => main.style.setProperty("--side", at("zoom").value + "px");
at("theme").onclick = () => {
  const dark = getComputedStyle(document.body).backgroundColor !== "rgb(255, 255, 255)";
  document.documentElement.className = dark ? "light" : "dark";
};
dialog.onclick = () => dialog.close();
at("zoom").oninput();
filter();
</script></html>
"""
