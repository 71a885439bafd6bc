"""A set described for machines: MLCommons Croissant, version 1.0, which mlcroissant reads."""

from __future__ import annotations

import json
import re
from typing import Any

from .manifest import PAPER, Manifest
from .record import fields

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
    "regex": "cr:regex",
    "sc": "https://schema.org/",
    "source": "cr:source",
    "transform": "cr:transform",
}


def croissant_json(manifest: Manifest, name: str, license: str) -> bytes:
    """Return the set's description; a record set for each image of a record, with key and pixels.

    license: its id, such as cc-by-4.0.
    """
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
            "field": [
                {
                    "@type": "cr:Field",
                    "@id": f"{n.partition('.')[0]}_images/key",
                    "name": "key",
                    "dataType": "sc:Text",
                    "source": {
                        "fileSet": {"@id": n},
                        "extract": {"fileProperty": "filename"},
                        "transform": {"regex": r"([^.]+)\..*"},
                    },
                },
                {
                    "@type": "cr:Field",
                    "@id": f"{n.partition('.')[0]}_images/image",
                    "name": "image",
                    "dataType": "sc:ImageObject",
                    "source": {"fileSet": {"@id": n}, "extract": {"fileProperty": "content"}},
                },
            ],
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
        "citeAs": PAPER,
        "distribution": shards + sets,
        "recordSet": records,
    }
    return (json.dumps(values, indent=2) + "\n").encode()
