"""Shard sets that somebody made to do harm: a name, how to make it, and the error it must give.

Most keep to the name rules, and carry a manifest, an index and hashes that agree with what is in
them, so that nothing but the reader's own care can refuse them.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from clsp.shards.check import MOST_MEMBERS, Member, index_bytes, padding, tar_header
from clsp.shards.images import encode_image
from clsp.shards.manifest import file_sha256
from clsp.shards.record import Record, members

SHARD = "data/train-00000.tar"
PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
PNG = encode_image(PIXELS, "png")
Files = list[tuple[bytes, bytes]]  # (header block, content)


def files(*keys: str, image: bytes = PNG, **changed: bytes) -> Files:
    """Members of records with an anchor and two positives; `changed` replaces contents by field."""
    found: Files = []
    for key in keys or ("a", "b"):
        record = Record(key, PNG, (image, PNG), {"label": 0})
        for name, data in members(record):
            data = changed.get(name.split(".")[1], data)
            found.append((tar_header(name, len(data)), data))
    return found


def header(name: str, size: int, kind: bytes = b"0", **more: object) -> bytes:
    """A header block of any kind, with a right checksum."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode = size, kind, 0o644
    for attribute, value in more.items():
        setattr(info, attribute, value)
    return info.tobuf(tarfile.USTAR_FORMAT)


def patched(block: bytes, place: int, data: bytes, checksum: bool = True) -> bytes:
    """A header block with some bytes replaced and, unless told otherwise, the checksum redone."""
    block = block[:place] + data + block[place + len(data) :]
    if checksum:
        total = sum(block[:148]) + 8 * 32 + sum(block[156:])
        block = block[:148] + b"%06o\0 " % total + block[156:]
    return block


def write_tar(path: Path, contents: Files, end: bytes = bytes(1024)) -> list[Member]:
    position, found = 0, []
    with open(path, "wb") as file:
        for block, data in contents:
            name = block[:100].rstrip(b"\0").decode("latin-1")
            found.append(Member(name, position + 512, len(data)))
            position += file.write(block + data + bytes(padding(len(data))))
        file.write(end)
    return found


def seal(folder: Path, index: bytes, records: int = 2, **lies: object) -> None:
    """Write an index and a manifest that agree with the shard, but for `lies`."""
    tar, idx = folder / SHARD, (folder / SHARD).with_suffix(".idx")
    idx.write_bytes(index)
    shard = {
        "name": SHARD,
        "samples": records,
        "bytes": max(1, os.stat(tar).st_size if tar.is_file() else 1),
        "sha256": _sha256(tar),
        "idx_sha256": _sha256(idx),
    }
    manifest = {
        "format": "clsp-shards",
        "version": 1,
        "positives": 2,
        "image_format": "png",
        "image_size": 8,
        "samples": records,
        "shards": [shard],
        "anchors": True,
        "source": {},
        "plan_id": "",
        "plan": {},
        "classes": None,
        "fingerprints": [],
    }
    for name, lie in lies.items():
        (shard if name.startswith("shard_") else manifest)[name.removeprefix("shard_")] = lie
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _sha256(path: Path) -> str:
    # Of what would take long to hash a reader must not get as far as comparing it.
    if not path.is_file() or os.stat(path).st_size > 2**30:
        return "0" * 64
    return file_sha256(path)


def tar_of(contents: Callable[[], Files], end: bytes = bytes(1024), **lies: object):
    def make(folder: Path) -> None:
        found = write_tar(folder / SHARD, contents(), end)
        seal(folder, index_bytes(found), max(1, len(found) // 4), **lies)

    return make


def bytes_of(data: Callable[[], bytes]):
    def make(folder: Path) -> None:
        (folder / SHARD).write_bytes(data().ljust(65536, b"\0"))
        seal(folder, index_bytes([Member("a.p0.png", 512, 9)]), 1)

    return make


def image_of(data: Callable[[], bytes]):
    return tar_of(lambda: files(image=data()))


def lie(**lies: object):
    return tar_of(files, **lies)


def index_of(change: Callable[[bytes], bytes]):
    def make(folder: Path) -> None:
        found = write_tar(folder / SHARD, files())
        seal(folder, change(index_bytes(found)))

    return make


def manifest_of(data: Callable[[], bytes]):
    def make(folder: Path) -> None:
        tar_of(files)(folder)
        (folder / "manifest.json").write_bytes(data())

    return make


def instead_of(name: str, place: Callable[[Path], None]):
    """A whole set one of whose files is something else on the disk."""

    def make(folder: Path) -> None:
        tar_of(files)(folder)
        (folder / name).unlink()
        place(folder / name)

    return make


def second(block: Callable[[bytes], bytes]):
    """Records whose second header is changed; its content stays."""
    return tar_of(lambda: [files()[0], (block(files()[1][0]), PNG), *files()[2:]])


def of_kind(kind: bytes, **more: object):
    return second(lambda _: header("a.p0.png", len(PNG), kind, **more))


def named(name: str, number: int = 1):
    return tar_of(
        lambda: [
            (header(name, len(d)) if n == number else h, d) for n, (h, d) in enumerate(files())
        ]
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def saved(kind: str, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, kind)
    return buffer.getvalue()


def jpeg_claiming(side: int) -> bytes:
    data = bytearray(saved("JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def webp_canvas(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(buffer, "WEBP")
    data = bytearray(buffer.getvalue())
    assert data[12:16] == b"VP8X"
    data[24:30] = (side - 1).to_bytes(3, "little") * 2
    return bytes(data)


class _Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch /tmp/clsp-was-here",)


def payload() -> bytes:
    return pickle.dumps(_Payload())


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.p0.png", bytes(2**24))
    return buffer.getvalue()


def a_plain_tar() -> bytes:
    return b"".join(h + d + bytes(padding(len(d))) for h, d in files()) + bytes(1024)


def large_header(kind: bytes):
    """An extended header of 100 MB, which `tarfile` would read into memory; a hole on the disk."""

    def make(folder: Path) -> None:
        with open(folder / SHARD, "wb") as file:
            file.write(patched(header("a.p0.png", 100_000_000), 156, kind))
            file.truncate(100_001_024)
        seal(folder, index_bytes([Member("a.p0.png", 512, 9)]), 1)

    return make


def many_members(folder: Path) -> None:
    keys = [f"k{n}" for n in range(MOST_MEMBERS // 4 + 1)]
    contents = [
        (tar_header(f"{key}.{field}", 1), b"x")
        for key in keys
        for field in ("anchor.png", "p0.png", "p1.png", "json")
    ]
    found = write_tar(folder / SHARD, contents)
    seal(folder, index_bytes(found), len(keys))


def terabyte(folder: Path) -> None:
    found = write_tar(folder / SHARD, files())
    os.truncate(folder / SHARD, 2**40)
    seal(folder, index_bytes(found))


def interleaved() -> Files:
    one, two = files("a"), files("b")
    return [part for pair in zip(one, two, strict=True) for part in pair]


def entry(index: bytes, number: int, value: str) -> bytes:
    """The index with a word of its first record's first member replaced: 1 offset, 2 size."""
    first, record, *rest = index.decode().split("\n")
    words = record.split(" ")
    words[number] = value
    return "\n".join([first, " ".join(words), *rest]).encode()


def hole(size: int) -> Callable[[Path], None]:
    def place(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return place


DEEP = b"[" * 200_000
CASES: Mapping[str, tuple[Callable[[Path], None], str]] = {
    # The tar itself.
    "parent traversal": (named("../../a.p0.png"), r"'\.\./\.\./a\.p0\.png' has a key"),
    "absolute name": (named("/etc/a.p0.png"), r"'/etc/a\.p0\.png' has a key"),
    "folder in a name": (named("x/a.p0.png"), r"'x/a\.p0\.png' has a key"),
    "symbolic link": (of_kind(b"2", linkname="/etc/passwd"), "found a symbolic link, b'a.p0"),
    "hard link": (of_kind(b"1", linkname="a.anchor.png"), "found a hard link"),
    "character device": (of_kind(b"3", devmajor=1, devminor=5), "found a character device"),
    "block device": (of_kind(b"4", devmajor=8), "found a block device"),
    "named pipe member": (of_kind(b"6"), "found a named pipe"),
    "folder member": (of_kind(b"5"), "found a folder"),
    "contiguous file": (of_kind(b"7"), "found a contiguous file"),
    "sparse member": (of_kind(b"S"), "found a sparse file"),
    "continued volume": (of_kind(b"M"), "found a continued volume"),
    "volume label": (of_kind(b"V"), "found a volume label"),
    "old regular file": (
        second(lambda h: patched(h, 156, b"\0")),
        r"found b'\\x00.* instead of b'0",
    ),
    "pax header of 100 MB": (large_header(b"x"), "found a pax header"),
    "global pax header of 100 MB": (large_header(b"g"), "found a global pax header"),
    "GNU name of 100 MB": (large_header(b"L"), "found a GNU long name"),
    "GNU link name of 100 MB": (large_header(b"K"), "found a GNU long link name"),
    "gzip": (bytes_of(lambda: gzip.compress(a_plain_tar())), "found gzip data"),
    "xz": (bytes_of(lambda: lzma.compress(a_plain_tar())), "found xz data"),
    "bzip2": (bytes_of(lambda: b"BZh91AY&SY"), "found bzip2 data"),
    "zstd": (bytes_of(lambda: b"\x28\xb5\x2f\xfd"), "found zstd data"),
    "zip bomb": (bytes_of(zipped), "found a zip archive"),
    "pickle for a shard": (bytes_of(payload), "found a pickle"),
    "page for a shard": (bytes_of(lambda: b"<!doctype html>"), "found a page of HTML"),
    "script for a shard": (bytes_of(lambda: b"#!/bin/sh\nid"), "found a script"),
    "nothing but an end mark": (bytes_of(lambda: b""), "the end mark should be 1024"),
    "duplicate key": (tar_of(lambda: files("a", "a")), "record a comes twice"),
    "interleaved keys": (tar_of(interleaved), r"expected member a\.p0\.png, found b\.anchor"),
    "anchor last": (tar_of(lambda: files()[1:4] + files()[:1]), r"expected member a\.anchor"),
    "negative size": (second(lambda h: patched(h, 124, b"-0000000012")), "of -10 bytes; 1 to"),
    "base-256 size": (second(lambda h: patched(h, 124, b"\x80" + b"\xff" * 11)), r"size b'\\x80"),
    "size of 8 GiB": (second(lambda h: patched(h, 124, b"77777777777")), "8,589,934,591 bytes; 1"),
    "size with underscores": (second(lambda h: patched(h, 124, b"000_0000144")), "instead of b'0"),
    "empty member": (
        tar_of(lambda: [files()[0], (tar_header("a.p0.png", 0), b""), *files()[2:]]),
        "'a.p0.png' of 0 bytes; 1 to",
    ),
    "longer than the file": (
        tar_of(lambda: [*files()[:-1], (tar_header("b.json", 2**25), b"{}")]),
        "but the file ends 3",
    ),
    "members beyond number": (many_members, "more than 262,144 members"),
    "data behind the end": (tar_of(files, bytes(1024) + b"#!/bin/sh"), "found 513 more bytes"),
    "no end mark": (tar_of(files, b""), "the shard is cut off"),
    "half an end mark": (tar_of(files, bytes(512)), "found 0 more bytes"),
    "padding that holds data": (
        tar_of(lambda: [(files()[0][0], PNG + b"hidden"), *files()[1:]]),
        r"padding after 'a\.anchor\.png' is not zero",
    ),
    "NUL in a name": (second(lambda h: patched(h, 3, b"\0")), r"'a\.p\\x00\.png' is none"),
    "escape sequence in a name": (named("a\x1b[2J.p0.png"), r"'a\\x1b\[2J\.p0\.png' has a key"),
    "name in UTF-8": (named("ä.p0.png"), r"found the name b'\\xc3\\xa4"),
    "no name": (second(lambda h: patched(h, 0, bytes(100))), "byte [0-9]+: '' has a key"),
    "name prefix": (second(lambda h: patched(h, 345, b"../..")), r"found b'\.\./\.\.\\x00"),
    "wrong checksum": (second(lambda h: patched(h, 148, b"0000001", False)), "at byte 1"),
    "setuid": (of_kind(b"0", mode=0o4755), "b'4755"),
    "owner root": (of_kind(b"0", uname="root"), "b'root"),
    "owner 1000": (of_kind(b"0", uid=1000), r"b'1750\\x00"),
    "time": (of_kind(b"0", mtime=1), r"b'1\\x00"),
    "GNU magic": (second(lambda h: patched(h, 257, b"ustar  \0")), r"b'  \\x00"),
    "executable": (named("a.p0.exe"), r"'a\.p0\.exe' is none of"),
    "double extension": (named("a.p0.png.exe"), r"'a\.p0\.png\.exe' is none of"),
    "pickle by name": (named("a.p0.pkl"), r"'a\.p0\.pkl' is none of"),
    "key of 90 characters": (named("k" * 90 + ".p0.png"), r"k\.p0\.png' has a key"),
    "positive 01": (named("a.p01.png"), r"'a\.p01\.png' is none of"),
    "positive 99999": (named("a.p99999.png"), r"'a\.p99999\.png' is none of"),
    "no JSON": (tar_of(lambda: files()[:3]), "record a ends after 3 of 4 members"),
    "JSON twice": (tar_of(lambda: files()[:4] + files()[3:4]), r"record a comes twice"),
    # Images whose hashes are right.
    "PNG of 60,000 pixels a side": (image_of(lambda: png(60000, 60000)), "3600000000 pixels"),
    "PNG of 4,097 pixels a side": (
        image_of(lambda: png(4097, 4097, chunk(b"IDAT", zeros(4097 * (4097 * 3 + 1))))),
        "4097x4097 pixels is too large",
    ),
    "PNG of one row": (image_of(lambda: png(2**31 - 1, 1)), "pixels"),
    "PNG that inflates to 200 MB": (
        image_of(lambda: png(9, 8, chunk(b"IDAT", zeros(200_000_000)))),
        "9x8 pixels, the manifest",
    ),
    "PNG text of 200 MB": (
        image_of(lambda: png(8, 8, chunk(b"zTXt", b"k\0\0" + zeros(200_000_000)))),
        "PNG, JPEG or WebP image: ",
    ),
    "PNG profile of 200 MB": (
        image_of(lambda: png(8, 8, chunk(b"iCCP", b"k\0\0" + zeros(200_000_000)))),
        "too large for PngImagePlugin",
    ),
    "PNG of no pixel": (image_of(lambda: png(0, 0)), "record a: p0: not|p0|image"),
    "PNG without data": (image_of(lambda: png(8, 8)), "cannot load this image"),
    "PNG cut in half": (image_of(lambda: PNG[: len(PNG) // 2]), "not a whole PNG"),
    "PNG of another size": (image_of(lambda: saved("PNG", 9)), "p0 has 9x9 pixels"),
    "JPEG of 65,000 pixels a side": (image_of(lambda: jpeg_claiming(65000)), "4225000000 pixels"),
    "WebP of 16,383 pixels a side": (image_of(lambda: webp_canvas(16383)), "decoder|pixels"),
    "EPS": (image_of(lambda: saved("EPS")), "cannot identify image"),
    "PDF": (image_of(lambda: saved("PDF")), "cannot identify image"),
    "GIF": (image_of(lambda: saved("GIF")), "cannot identify image"),
    "TIFF": (image_of(lambda: saved("TIFF")), "cannot identify image"),
    "BMP": (image_of(lambda: saved("BMP")), "cannot identify image"),
    "SVG": (image_of(lambda: b"<svg onload='alert(1)'/>"), "cannot identify image"),
    "pickle for an image": (image_of(payload), "cannot identify image"),
    # The record's JSON.
    "deep JSON": (tar_of(lambda: files(json=DEEP)), "RecursionError"),
    "JSON of 2 MiB": (tar_of(lambda: files(json=b" " * 2**21)), "2,097,152 bytes, at most 1 MiB"),
    "pickle for JSON": (tar_of(lambda: files(json=payload())), "its JSON is not one of clsp's"),
    "JSON of a list": (tar_of(lambda: files(json=b"[1]")), "its JSON is not one of clsp's"),
    "JSON of a long number": (tar_of(lambda: files(json=b"9" * 9999)), "Exceeds the limit"),
    "hashes in a list": (tar_of(lambda: files(json=b'{"sha256":["a"]}')), "update sequence"),
    "JSON that lies": (tar_of(lambda: files(p0=saved("PNG"))), "p0 has sha256"),
    # The manifest.
    "shard outside": (lie(shard_name="../data/x.tar"), r"'\.\./data/x\.tar' is not data/NAME"),
    "shard at a URL": (lie(shard_name="https://x.org/x.tar"), "'https://x.org/x.tar' is not"),
    "shard by pipe": (lie(shard_name="pipe:id > /tmp/x"), "'pipe:id > /tmp/x' is not"),
    "shard at the root": (lie(shard_name="/etc/passwd"), "'/etc/passwd' is not"),
    "10^12 positives": (lie(positives=10**12), "positives is 1000000000000, expected 1 to 4096"),
    "negative positives": (lie(positives=-1), "positives is -1"),
    "positives in words": (lie(positives="2"), "positives is '2'"),
    "pixels by the billion": (lie(image_size=10**9), "image_size is 1000000000"),
    "an unknown format": (lie(image_format="eps"), "image_format is 'eps'"),
    "10^15 records": (lie(samples=10**15, shard_samples=10**15), "records do not fit in"),
    "a negative count": (lie(shard_samples=-2), "a count is -2"),
    "a true count": (lie(shard_samples=True), "a count is True"),
    "samples that do not add up": (lie(samples=3), "its shards hold 2 records, it says 3"),
    "shards in a dict": (lie(shards={"name": SHARD}), "is not a manifest of a shard set"),
    "a hash that is a path": (lie(shard_sha256="../" * 21 + "x"), "is not a sha256 in hex"),
    "a field too many": (lie(__reduce__="os.system"), "unexpected keyword argument '__reduce__'"),
    "no word on anchors": (
        lie(anchors=None),
        "anchors is None, plan_id ''; expected true or false",
    ),
    "five anchors": (lie(anchors=5), "anchors is 5, plan_id"),
    "a plan of numbers": (lie(plan_id=5), "plan_id 5; expected"),
    "classes of numbers": (lie(classes=[1]), "a class has a name that is no text"),
    "a source in a list": (lie(source=["x"]), r"source is \['x'\], expected an object"),
    "a fingerprint in words": (lie(fingerprints=["x"]), "a fingerprint is no object"),
    "version 99": (lie(version=99), "format and version are"),
    "K that is not so": (lie(positives=1), r"has 4 members, expected 3|expected member"),
    "anchors that are not so": (lie(anchors=False), "has 4 members, expected 3|expected member"),
    "a format that is not so": (lie(image_format="jpeg"), r"expected member a\.anchor\.jpeg"),
    "a hash that is not so": (lie(shard_sha256="0" * 64), "its sha256 is"),
    "a size that is not so": (lie(shard_bytes=2**41), "bytes, expected 2199023255552"),
    "deep manifest": (manifest_of(lambda: DEEP), "is not a manifest of a shard set: Recursion"),
    "pickle for a manifest": (
        manifest_of(payload),
        "is not a manifest of a shard set: 'utf-8' codec",
    ),
    "a long number": (manifest_of(lambda: b"9" * 9999), "Exceeds the limit"),
    "manifest of 1 TiB": (instead_of("manifest.json", hole(2**40)), "1,099,511,627,776 bytes"),
    "manifest by named pipe": (instead_of("manifest.json", os.mkfifo), r"has no manifest\.json"),
    "manifest that is a folder": (instead_of("manifest.json", os.mkdir), r"has no manifest\.json"),
    "manifest without end": (
        instead_of("manifest.json", lambda path: path.symlink_to("/dev/zero")),
        r"has no manifest\.json",
    ),
    # Indexes, and files that are none.
    "offset outside": (index_of(lambda i: entry(i, 1, "999999")), "from byte 999999, but the"),
    "negative offset": (index_of(lambda i: entry(i, 1, "-512")), "bytes from byte -512"),
    "offset beyond 64 bits": (index_of(lambda i: entry(i, 1, "9" * 40)), "bytes from byte 9{40}"),
    "size beyond memory": (index_of(lambda i: entry(i, 2, "9" * 12)), "has 9{12} bytes"),
    "another member's place": (index_of(lambda i: entry(i, 1, "2048")), "does not describe it"),
    "index of one record": (
        index_of(lambda i: b"v1.2 1\n" + i.split(b"\n")[1] + b"\n"),
        "1 records",
    ),
    "index with a word too many": (index_of(lambda i: i[:-1] + b" x\n"), r"index train-00000\.idx"),
    "index of a name outside": (
        index_of(lambda i: i.replace(b" a.anchor.png", b" ../a.anchor.png")),
        r"idx: '\.\./a\.anchor\.png'|does not describe it",
    ),
    "index that is a pickle": (index_of(lambda i: payload()), r"index train-00000\.idx"),
    "index of 1 TiB": (instead_of("data/train-00000.idx", hole(2**40)), "idx"),
    "index by named pipe": (instead_of("data/train-00000.idx", os.mkfifo), r"idx is missing"),
    "index without end": (
        instead_of("data/train-00000.idx", lambda path: path.symlink_to("/dev/zero")),
        r"idx is missing",
    ),
    "shard by named pipe": (instead_of(SHARD, os.mkfifo), r"train-00000\.tar is missing"),
    "shard without end": (
        instead_of(SHARD, lambda path: path.symlink_to("/dev/zero")),
        r"train-00000\.tar is missing",
    ),
    "shard of 1 TiB": (terabyte, "the end mark should be 1024 zero bytes"),
}
