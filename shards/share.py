"""A set to where others find it, and from there: shards first, the manifest last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .cache import Cache
from .card import check_may_share, prepare_to_share, read_card
from .check import ShardError
from .download import download
from .files import write_atomic
from .manifest import (
    COMPANIONS,
    Manifest,
    ShardFile,
    file_sha256,
    load_manifest,
    save_manifest,
    save_sums,
)
from .reader import ShardSet
from .remote import Missing, Source, open_source
from .store import fetch_manifest, make_reader, open_set
from .targets import Upload, in_threads, open_target
from .writer import write_shard

_MOST_COMPANION_BYTES = 1 << 32
_LEGAL = ("LICENSE", "CITATION.cff")  # what holds for a part of a set as well
_UNFINISHED = ".pull"  # what a pull keeps in the folder until it is done


def push(
    folder: Path,
    target: str,
    done: Callable[[], object] = lambda: None,
    *,
    source_license: str | None = None,
    may_redistribute_anchors: bool = False,
) -> Manifest:
    """Copy a set to a path, `s3://BUCKET/PREFIX` or `hf://datasets/OWNER/NAME@BRANCH`.

    Shards go first, each compared with the manifest, and the manifest last: whoever finds it finds
    all. Broken off, the same call goes on. `done` is called after each file.
    source_license: of the anchors' source, for a set whose card does not name it; a card's own word
    stands. may_redistribute_anchors: you hold the right to, whatever that licence.
    Returns the manifest. Raises ShardError for a damaged set, for a source without a licence, for
    anchors that must not be passed on, and for a target that holds another set: nothing that others
    may be reading is replaced.
    """
    shards = open_set(folder)
    source_license = read_card(open_source(folder)).source_license or source_license
    if source_license is None:
        raise ShardError(
            f"{folder}/README.md does not name the licence of the set's source: write a card with "
            "prepare_to_share, or give source_license, such as cc-by-4.0, imagenet or other"
        )
    check_may_share(shards, source_license, may_redistribute_anchors)
    manifest, opened = shards.manifest, open_target(target)
    found = _manifest_at(target)
    if found is not None and found.id != manifest.id:
        raise ShardError(
            f"{target} holds set {found.id[:12]}, not {manifest.id[:12]}; push to another place"
        )
    save_sums(folder, manifest)
    files = [
        Upload(name, folder / name, sha256)
        for shard in manifest.shards
        for name, sha256 in ((shard.name, shard.sha256), (shard.index_name, shard.idx_sha256))
    ]
    beside = [name for name in (*COMPANIONS, "SHA256SUMS") if (folder / name).is_file()]
    opened.put(files, False, done)
    opened.put([_upload(folder, name) for name in beside], True, done)
    opened.put([_upload(folder, "manifest.json")], True, done)
    return manifest


def _upload(folder: Path, name: str) -> Upload:
    return Upload(name, folder / name, file_sha256(folder / name))


def _manifest_at(target: str) -> Manifest | None:
    try:
        return fetch_manifest(open_source(target))[0]
    except Missing:
        return None


def pull(
    address: str,
    folder: Path,
    *,
    split: str | None = None,
    positives: int | None = None,
    done: Callable[[], object] = lambda: None,
) -> ShardSet:
    """Bring a set, or a part of it, into a folder; every byte is compared with the manifest.

    split: only shards named `data/SPLIT-NUMBER.tar`; positives: only the first that many of each
    anchor's (the shards are fetched whole and written anew). A part is a set of its own, whose
    manifest says of which set it is one, with a card by the licences of the whole. Broken off, the
    same call goes on; on a finished set it brings again what was damaged since. `done` is called
    after each shard.
    Raises ShardError when the source is damaged, or the folder holds something else.
    """
    source = open_source(address)
    manifest, sums = fetch_manifest(source)
    chosen = [shard for shard in manifest.shards if split in (None, shard.split)]
    if not chosen:
        known = sorted({shard.split for shard in manifest.shards})
        raise ShardError(f"{address} has no split {split!r}; it has {', '.join(known)}")
    if positives is not None and not 1 <= positives <= manifest.positives:
        raise ShardError(f"{address} has {manifest.positives} positives, not {positives}")
    if positives == manifest.positives:
        positives = None
    part = {"set": manifest.id, "split": split, "positives": positives}
    is_part = split is not None or positives is not None
    finished = _claim(folder, part, None if is_part else manifest.id)

    known_shards = {shard.name: shard for shard in (finished.shards if finished else ())}
    kept: dict[str, ShardFile] = {}

    def bring(shard: ShardFile) -> None:
        if positives is None:
            bring_shard(source, folder, shard)
            kept[shard.name] = shard
        else:
            kept[shard.name] = _bring_part(
                source, folder, manifest, shard, positives, known_shards.get(shard.name)
            )
        done()

    in_threads(bring, chosen)
    result = manifest
    if is_part:
        result = replace(
            manifest,
            positives=positives or manifest.positives,
            samples=sum(shard.samples for shard in chosen),
            shards=tuple(kept[shard.name] for shard in chosen),
            source={**manifest.source, "part": part},
            plan_id="",  # not a folder that generation could go on in
            names=manifest.names if positives is None else None,  # written anew by clsp's
        )
    for name, sha256 in sums.items():
        if not is_part or name in _LEGAL:
            _bring(source, folder, name, sha256, _MOST_COMPANION_BYTES, exact=False)
    save_manifest(folder, result)
    shards, card = open_set(folder), read_card(source)
    if is_part and result.names is None and card.license and card.source_license:
        prepare_to_share(
            shards,
            card.pretty_name or folder.resolve().name,
            license=card.license,
            source_license=card.source_license,
            model_license=card.generator_license or "unknown",
            may_redistribute_anchors=True,  # it is only asked of who shares it
        )
    shutil.rmtree(folder / _UNFINISHED)
    return shards


def _claim(folder: Path, part: dict[str, Any], whole: str | None) -> Manifest | None:
    """Mark the folder as this pull's; return its manifest if such a pull was finished before.

    whole: the set's id, when all of it is pulled.
    Raises ShardError for a folder that holds another set, an unfinished pull of one, or no set.
    """
    mark, finished = folder / _UNFINISHED / "part.json", None
    if (folder / "manifest.json").exists():
        finished = load_manifest(folder)
        if finished.id != whole and finished.source.get("part") != part:
            raise ShardError(f"{folder} holds another set, {finished.id[:12]}")
    elif mark.exists():
        if json.loads(mark.read_bytes()) != part:
            raise ShardError(f"{folder} holds an unfinished pull of another set, or part of one")
    elif folder.exists() and any(folder.iterdir()):
        raise ShardError(f"{folder} is not empty, and holds no set")
    mark.parent.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    write_atomic(mark, json.dumps(part).encode())
    return finished


def bring_shard(source: Source, folder: Path, shard: ShardFile) -> None:
    """Fetch a shard and its index into a set's folder, unless they are there and whole."""
    index_bytes = shard.most_index_bytes
    _bring(source, folder, shard.index_name, shard.idx_sha256, index_bytes, exact=False)
    _bring(source, folder, shard.name, shard.sha256, shard.bytes)


def _bring(
    source: Source, folder: Path, name: str, sha256: str, size: int, *, exact: bool = True
) -> None:
    path = folder / name
    if path.exists():
        if file_sha256(path) == sha256:
            return
        path.unlink()
    download(source, name, path, sha256, size, exact=exact)


def _bring_part(
    source: Source,
    folder: Path,
    manifest: Manifest,
    shard: ShardFile,
    positives: int,
    known: ShardFile | None,
) -> ShardFile:
    """Write a shard with the first positives of each record; return what was written.

    known: what was written before, by the manifest; else by a note of an unfinished pull.
    """
    path, own = folder / shard.name, folder / _UNFINISHED / shard.name.removesuffix(".tar")
    note = own.with_suffix(".json")
    if known is None and note.exists():
        known = ShardFile(**json.loads(note.read_bytes()))
    if known is not None and path.exists() and file_sha256(path) == known.sha256:
        return known
    one = replace(manifest, shards=(shard,), samples=shard.samples)
    whole = make_reader(Cache(own, source, limit=2 * shard.bytes), one)
    records = (whole.record(row) for row in range(shard.samples))
    shortened = (replace(r, positives=r.positives[:positives]) for r in records)
    written = write_shard(path, shortened, positives)
    write_atomic(note, json.dumps(asdict(written)).encode())
    shutil.rmtree(own)
    return written
