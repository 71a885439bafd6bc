"""Pictures of a set for people to look at."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .images import decode_image
from .reader import ShardSet

_GAP, _TILE = 4, 48  # pixels: space between images, and the least side of a tile


def enlarge(images: np.ndarray) -> np.ndarray:
    """Return images (..., H, W, 3) without smoothing at a scale that people can see."""
    scale = max(1, -(-_TILE // max(images.shape[-3:-1])))
    return images.repeat(scale, axis=-3).repeat(scale, axis=-2)


def contact_sheet(anchors: np.ndarray, positives: np.ndarray) -> bytes:
    """Return a PNG in which each row is an anchor, a gap, and its positives.

    anchors: (N, H, W, 3) uint8, or (0,) of a set without them; positives: (N, K, H, W, 3) uint8.
    Rows are laid out in as many columns as make the sheet about square; small images are enlarged
    without smoothing.
    """
    positives = enlarge(positives)
    anchors = enlarge(anchors) if len(anchors) else anchors
    count, per_anchor, height, width, _ = positives.shape
    tile_h, tile_w = height + _GAP, width + _GAP
    row_w = tile_w * (per_anchor + 1) + 8 * _GAP
    columns = max(1, min(count, round((count * tile_h / row_w) ** 0.5)))
    rows = -(-count // columns)
    sheet = np.full((rows * tile_h + _GAP, columns * row_w + _GAP, 3), 255, np.uint8)
    for index in range(count):
        column, row = divmod(index, rows)
        top, left = row * tile_h + _GAP, column * row_w + _GAP
        anchor = anchors[index] if len(anchors) else np.full_like(positives[index, 0], 255)
        for slot, image in enumerate([anchor, *positives[index]]):
            x = left + slot * tile_w + (2 * _GAP if slot else 0)
            sheet[top : top + height, x : x + width] = image
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG")
    return buffer.getvalue()


def read_tuples(shards: ShardSet, rows: range) -> tuple[np.ndarray, np.ndarray]:
    """Return anchors (N, H, W, 3) and positives (N, K, H, W, 3), uint8, of some records."""
    records = [shards.record(row) for row in rows]
    anchors = [decode_image(r.anchor) for r in records if r.anchor is not None]
    positives = [[decode_image(image) for image in record.positives] for record in records]
    return np.array(anchors), np.array(positives)


def preview_png(shards: ShardSet, samples: int = 32) -> bytes:
    """Return the contact sheet of records spread evenly over the first shard."""
    first = shards.shard_sizes[0]
    rows = range(0, first, max(1, first // samples))[:samples]
    return contact_sheet(*read_tuples(shards, rows))
