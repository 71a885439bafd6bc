"""What people need beside the shards: a card, a description for machines, a citation, a licence.

The card is a Hugging Face dataset card. None of these files is part of the set's id, and all are
covered by SHA256SUMS.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from .check import ShardError
from .croissant import croissant_json
from .download import fetch
from .files import write_atomic
from .join import JoinedSet
from .manifest import PAPER, Manifest, save_sums
from .preview import preview_png
from .reader import ShardSet
from .record import fields
from .remote import Source

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,60}")
# The source's terms let nobody but its makers pass images on.
FORBIDDING = {
    "imagenet": "ImageNet's terms of access do not allow passing its images on",
    "no-redistribution": "the source's licence does not allow passing its images on",
}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


def check_may_share(shards: ShardSet, source_license: str, may_redistribute: bool) -> None:
    """Raise ShardError for a set with anchors whose source forbids passing them on.

    For a joined view too, whose shards are those of another set. source_license: an id, or
    ShardError is raised. may_redistribute: the user says that they hold the right to.
    """
    check_license("the source's licence", source_license)
    if isinstance(shards, JoinedSet):
        raise ShardError(
            f"{shards.address} is a view that holds no shard of its own; push the set that it "
            f"joins, {shards.base.address}"
        )
    if shards.manifest.anchors and source_license in FORBIDDING and not may_redistribute:
        raise ShardError(
            f"{FORBIDDING[source_license]}, and the set carries its anchors: push what "
            "`clsp shards strip` makes of it, or say --i-may-redistribute-anchors"
        )


def check_license(what: str, value: str) -> None:
    """Raise ShardError for what is no licence id; `what` it is, for the message."""
    if not _LICENSE.fullmatch(value):
        raise ShardError(f"{what} {value!r} is no licence id such as cc-by-4.0, mit or other")


def prepare_to_share(
    shards: ShardSet,
    name: str,
    *,
    license: str,
    source_license: str,
    model_license: str = "unknown",
    may_redistribute_anchors: bool = False,
) -> list[Path]:
    """Write card, LICENSE, croissant.json, CITATION.cff, preview.png and SHA256SUMS into a set.

    name: of the data set; license: of the positives, source_license: of the anchors' source,
    model_license: of the model that made the positives, as ids such as cc-by-4.0, or imagenet and
    no-redistribution for sources that forbid passing on. An existing README.md, LICENSE or
    CITATION.cff is kept when it is not one of clsp's. Returns what was written.
    Raises ShardError for licences that are none, and for anchors that must not be shared.
    """
    for option, value in (
        ("--license", license),
        ("--source-license", source_license),
        ("--model-license", model_license),
    ):
        check_license(option, value)
    if shards.manifest.names is not None:
        raise ShardError(
            f"{shards.address} has shards that another wrote, which clsp's card does not describe; "
            "share them as they came"
        )
    check_may_share(shards, source_license, may_redistribute_anchors)
    folder = shards.folder
    files = {
        "preview.png": preview_png(shards),
        "croissant.json": croissant_json(shards.manifest, name, license),
    }
    texts = {
        "README.md": card_text(shards.manifest, name, license, source_license, model_license),
        "LICENSE": license_text(name, shards.manifest.anchors, license, source_license),
        "CITATION.cff": _citation(name, shards.id),
    }
    for file, text in texts.items():
        path = folder / file
        if path.exists() and not path.is_file():
            raise ShardError(f"{path} is not a file")
        if not path.exists() or _MARK in path.read_text("utf-8", "replace"):
            files[file] = text.encode()
    for file, data in files.items():
        write_atomic(folder / file, data)
    save_sums(folder, shards.manifest)
    return [folder / file for file in files]


class Known(NamedTuple):
    """What a card says: the licences of set, source and model, and a name. None: it does not."""

    license: str | None = None
    source_license: str | None = None
    generator_license: str | None = None
    pretty_name: str | None = None


def read_card(source: Source) -> Known:
    """Return what the card of a set says, whoever wrote it; nothing where there is no card."""
    try:
        text = fetch(source, "README.md", lambda data: data.decode("utf-8", "replace"), most=2**20)
    except ShardError:  # no card, or one that is none
        return Known()
    kinds = (*(_LICENSE.pattern,) * 3, r'[^"\\\n]{1,200}')
    found = [
        re.search(rf'^{name}: "?({kind})"?$', text, re.MULTILINE)
        for name, kind in zip(Known._fields, kinds, strict=True)
    ]
    return Known(*(match and match[1] for match in found))


_MARK = "written by clsp"
# By the id that a card has, the name that SPDX has for it.
_SPDX = {name.lower(): name for name in (
    "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-NC-ND-4.0",
    "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-SA-4.0", "CC0-1.0", "CDLA-Permissive-2.0", "MIT",
    "ODC-By-1.0", "ODbL-1.0", "PDDL-1.0", "Unlicense",
)} | {"odc-by": "ODC-By-1.0", "odbl": "ODbL-1.0", "pddl": "PDDL-1.0"}  # fmt: skip


def license_text(name: str, anchors: bool, license: str, source_license: str) -> str:
    """Return the text of LICENSE: what is under which licence, and where that is to be read."""

    def words(licence: str) -> str:
        spdx = _SPDX.get(licence)
        return f"{spdx}, https://spdx.org/licenses/{spdx}.html" if spdx else f'"{licence}"'

    of_anchors = "are images of the source, under its" if anchors else "are not here; their"
    return f"""<!-- {_MARK} -->
{name}

The positives: {words(license)}
The anchors {of_anchors} licence: {words(source_license)}

A licence in quotation marks is named as the makers of this data set named it; ask them for its
terms.
"""


def card_text(
    manifest: Manifest, name: str, license: str, source_license: str, model_license: str
) -> str:
    """Return a Hugging Face dataset card: YAML for the Hub, then text for people."""
    config, kind = manifest.plan.get("config", {}), str(manifest.source.get("kind", "unknown"))
    model = str(manifest.plan.get("model", {}).get("sha256", "unknown"))
    size = next((words for most, words in _SIZES if manifest.samples < most), "1M<n<10M")
    splits: defaultdict[str, list[str]] = defaultdict(list)
    for shard in manifest.shards:
        splits[shard.split].append(shard.name)
    # Every JSON scalar is a YAML scalar.
    head = ["---", f"license: {license}", f"pretty_name: {json.dumps(name)}"]
    head += ["size_categories:", f"- {size}", "task_categories:", "- image-feature-extraction"]
    head += ["tags:", "- webdataset", "- contrastive-learning", "- synthetic", "- clsp"]
    head += ["source_datasets:", f"- {json.dumps(kind)}", f"source_license: {source_license}"]
    head += [
        f"generator: {json.dumps(model)}",
        f"generator_license: {model_license}",
        "configs:",
        "- config_name: default",
        "  data_files:",
    ]
    for split, names in sorted(splits.items()):
        numbered = all(name.startswith(f"data/{split}-") for name in names)
        path: str | list[str] = f"data/{split}-*.tar" if numbered else names
        head += [f"  - split: {split.replace('-', '_')}", f"    path: {json.dumps(path)}"]
    head += ["---", f"<!-- {_MARK} -->", ""]
    members = ", ".join(
        f"`{n}`" for n in fields(manifest.positives, manifest.image_format, manifest.anchors)
    )
    how = ", ".join(f"{n} {v}" for n, v in sorted(config.items())) or "not recorded"
    if manifest.anchors:
        anchors = "The anchors, images of the source, are in the set."
    else:
        anchors = (
            "The anchors are not in the set. Each record names its own by path and sha256, and "
            "`clsp shards join SET --anchors folder:YOUR/COPY --out VIEW` pairs them."
        )
    first = f"p0.{manifest.image_format}"
    body = f"""# {name}

{manifest.samples:,} records of {manifest.positives} synthetic positives each,
{manifest.image_size}x{manifest.image_size} pixels, for contrastive learning.

![Rows of an anchor and its positives](preview.png)

## How it was made

For each anchor image of the source ({kind}), a diffusion model (sha256 `{model}`) sampled
{manifest.positives} images by mixing bottleneck features ([Zeng et al., ECCV 2024]({PAPER})).
Settings: {how}.
{anchors}

## How to load it

With clsp:

```python
from clsp.shards.store import open_set
shards = open_set("PATH OR ADDRESS")
shards.record(0).positives
```

With webdataset:

```python
import glob, webdataset
data = webdataset.WebDataset(sorted(glob.glob("SET/data/*.tar")), shardshuffle=False).decode("pil")
next(iter(data))["{first}"]
```

With datasets:

```python
import datasets
data = datasets.load_dataset("webdataset", data_files="SET/data/*.tar", split="train")
data[0]["{first}"]
```

A record has the members {members}. Its JSON holds the sha256 of every image.

## What it is, to the byte

Set `{manifest.id}`. `sha256sum -c SHA256SUMS` compares every file, `clsp shards verify --deep`
every image too.

## Licence

The positives: {license}. The source of the anchors: {source_license}. The model that made the
positives: {model_license}. LICENSE says where to read them.
"""
    return "\n".join(head) + body


def _citation(name: str, set_id: str) -> str:
    return f"""# {_MARK}; a file of your own is kept
cff-version: 1.2.0
message: Please cite this data set and the paper of its method.
type: dataset
title: {json.dumps(name)}
identifiers:
- type: other
  value: {set_id}
  description: sha256 of the set's manifest
authors:
- name: {json.dumps("The makers of " + name)}
references:
- type: conference-paper
  title: Contrastive Learning with Synthetic Positives
  authors:
  - family-names: Zeng
    given-names: Dewen
  year: 2024
  url: {PAPER}
"""
