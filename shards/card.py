"""What people need beside the shards: a card, a description for machines, a citation, a licence.

The card is a Hugging Face dataset card, croissant.json the MLCommons Croissant format 1.0. None
of these files is part of the set's id, and all are covered by SHA256SUMS.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .check import ShardError
from .files import write_atomic
from .manifest import Manifest, save_sums
from .preview import preview_png
from .reader import ShardSet
from .record import fields

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,60}")
# The source's terms let nobody but its makers pass images on.
FORBIDDING = {
    "imagenet": "ImageNet's terms of access do not allow passing its images on",
    "no-redistribution": "the source's licence does not allow passing its images on",
}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_PAPER = "https://arxiv.org/abs/2408.16965"


def check_may_share(manifest: Manifest, source_license: str, may_redistribute: bool) -> None:
    """Raise ShardError for a set with anchors whose source forbids passing them on.

    may_redistribute: the user says that they hold the right to.
    """
    if manifest.anchors and source_license in FORBIDDING and not may_redistribute:
        raise ShardError(
            f"{FORBIDDING[source_license]}, and the set carries its anchors: push what "
            "`clsp shards strip` makes of it, or say --i-may-redistribute-anchors"
        )


def prepare_to_share(
    shards: ShardSet,
    name: str,
    *,
    license: str,
    source_license: str,
    may_redistribute_anchors: bool = False,
) -> list[Path]:
    """Write card, croissant.json, CITATION.cff, preview.png and SHA256SUMS into a set's folder.

    name: of the data set; license: of the positives, source_license: of the anchors' source, as
    ids such as cc-by-4.0, or imagenet and no-redistribution for sources that forbid passing on.
    An existing README.md is kept when it is not one of clsp's. Returns what was written.
    Raises ShardError for licences that are none, and for anchors that must not be shared.
    """
    for option, value in (("--license", license), ("--source-license", source_license)):
        if not _LICENSE.fullmatch(value):
            raise ShardError(f"{option} {value!r} is no licence id such as cc-by-4.0, mit or other")
    if shards.manifest.names is not None:
        raise ShardError(
            f"{shards.address} has shards that another wrote, which clsp's card does not describe; "
            "share them as they came"
        )
    check_may_share(shards.manifest, source_license, may_redistribute_anchors)
    folder = shards.folder
    files = {
        "preview.png": preview_png(shards),
        "croissant.json": croissant_json(shards.manifest, name, license),
        "CITATION.cff": _citation(name, shards.id),
    }
    card = folder / "README.md"
    if not card.exists() or _MARK in card.read_text("utf-8", "replace"):
        files["README.md"] = card_text(shards.manifest, name, license, source_license).encode()
    for file, data in files.items():
        write_atomic(folder / file, data)
    save_sums(folder, shards.manifest)
    return [folder / file for file in files]


def licenses(folder: Path) -> tuple[str, str] | None:
    """Return the licences of the set and of its source as its card says; None when it does not."""
    path = folder / "README.md"
    if not path.is_file() or path.stat().st_size > 2**20:
        return None
    text = path.read_text("utf-8", "replace")
    found = [
        re.search(rf'^{name}: "?({_LICENSE.pattern})"?$', text, re.MULTILINE)
        for name in ("license", "source_license")
    ]
    return (found[0][1], found[1][1]) if found[0] and found[1] else None


_MARK = "<!-- written by clsp -->"


def card_text(manifest: Manifest, name: str, license: str, source_license: str) -> str:
    """Return a Hugging Face dataset card: YAML for the Hub, then text for people."""
    config, kind = manifest.plan.get("config", {}), str(manifest.source.get("kind", "unknown"))
    model = str(manifest.plan.get("model", {}).get("sha256", "unknown"))
    size = next((words for most, words in _SIZES if manifest.samples < most), "1M<n<10M")
    splits = sorted(
        {shard.name.removeprefix("data/").rpartition("-")[0] for shard in manifest.shards}
    )
    # Every JSON scalar is a YAML scalar.
    head = ["---", f"license: {license}", f"pretty_name: {json.dumps(name)}"]
    head += ["size_categories:", f"- {size}", "task_categories:", "- image-feature-extraction"]
    head += ["tags:", "- webdataset", "- contrastive-learning", "- synthetic", "- clsp"]
    head += ["source_datasets:", f"- {json.dumps(kind)}", f"source_license: {source_license}"]
    head += [
        f"generator: {json.dumps(model)}",
        "configs:",
        "- config_name: default",
        "  data_files:",
    ]
    for split in splits:
        head += [f"  - split: {split or 'train'}", f'    path: "data/{split}-*.tar"']
    head += ["---", _MARK, ""]
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
{manifest.positives} images by mixing bottleneck features ([Zeng et al., ECCV 2024]({_PAPER})).
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

The positives: {license}. The source of the anchors: {source_license}.
"""
    return "\n".join(head) + body


def croissant_json(manifest: Manifest, name: str, license: str) -> bytes:
    """Return the set's description in the Croissant format 1.0 of MLCommons."""
    names = fields(manifest.positives, manifest.image_format, manifest.anchors)[:-1]
    shards: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject",
            "@id": shard.name,
            "name": shard.name,
            "contentUrl": shard.name,
            "contentSize": f"{shard.bytes} B",
            "encodingFormat": "application/x-tar",
            "sha256": shard.sha256,
        }
        for shard in manifest.shards
    ]
    sets = [
        {
            "@type": "cr:FileSet",
            "@id": n,
            "name": n,
            "containedIn": [{"@id": shard.name} for shard in manifest.shards],
            "encodingFormat": f"image/{manifest.image_format}",
            "includes": f"*.{n}",
        }
        for n in names
    ]
    records = [
        {
            "@type": "cr:RecordSet",
            "@id": f"{n.partition('.')[0]}_images",
            "name": f"{n.partition('.')[0]}_images",
            "field": {
                "@type": "cr:Field",
                "@id": f"{n.partition('.')[0]}_images/image",
                "name": "image",
                "dataType": "sc:ImageObject",
                "source": {"fileSet": {"@id": n}, "extract": {"fileProperty": "content"}},
            },
        }
        for n in names
    ]
    values = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": re.sub(r"[^A-Za-z0-9_-]", "-", name),
        "description": f"{manifest.samples} records of {manifest.positives} synthetic positives",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": license,
        "version": "1.0.0",
        "identifier": manifest.id,
        "citeAs": _PAPER,
        "distribution": shards + sets,
        "recordSet": records,
    }
    return (json.dumps(values, indent=2) + "\n").encode()


def _citation(name: str, set_id: str) -> bytes:
    return f"""cff-version: 1.2.0
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
  url: {_PAPER}
""".encode()


# The names that the format gives to what it borrows from schema.org and adds itself.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "recordSet": "cr:recordSet",
    "sc": "https://schema.org/",
    "source": "cr:source",
}
