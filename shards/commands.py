"""The commands of `clsp shards` that make a set, a view or a picture out of another set."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .images import open_images
from .reader import ShardSet
from .remote import is_remote
from .store import open_set

Command = TypeVar("Command", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)
_SET = click.argument("address", metavar="SET")
_OUT = click.argument("out", metavar="OUT", type=_PATH)
_SEED = click.option("--seed", default=0, show_default=True, help="Seed of the draw.")


def _says_errors(command: Command) -> Command:
    """Make a set's, an image's or the disk's error the command's message, without a trace."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error

    return run  # type: ignore[return-value]


def _say(shards: ShardSet) -> None:
    click.echo(
        f"{shards.address}: {len(shards):,} records in {len(shards.shard_sizes)} shards, "
        f"set {shards.id[:12]}"
    )


@click.command()
@_SET
@_OUT
@_says_errors
def strip(address: str, out: Path) -> None:
    """Write SET without its anchors, which others may not get from you, as OUT."""
    from .edit import strip as strip_set

    _say(strip_set(open_set(address), out))


@click.command()
@_SET
@click.option("--anchors", required=True, help="Your images of the source, e.g. folder:PATH.")
@click.option("--out", required=True, type=_PATH, help="Folder of the joined view.")
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["missing", "wrong-version"]),
    help="Leave such anchors' records out instead of failing; may be repeated.",
)
@_says_errors
def join(address: str, anchors: str, out: Path, allow: tuple[str, ...]) -> None:
    """Pair SET, which carries no anchors, with your own copy of them.

    OUT is a view that holds no image: `clsp train --set OUT` reads positives from SET and anchors
    from your files, each compared with its hash.
    """
    from .join import JOINED, save_joined
    from .pairing import pair_anchors

    if out.exists() and any(out.iterdir()) and not (out / JOINED).exists():
        raise click.ClickException(f"{out} is not empty, and no joined view; give a new folder")
    shards = open_set(address)
    if shards.manifest.anchors:
        raise click.ClickException(f"{address} carries its anchors already")
    kind, _, place = anchors.partition(":")
    spec = f"{kind}:{os.path.abspath(place)}" if kind != "digits" else anchors
    pairing = pair_anchors(shards, open_images(spec))
    click.echo(f"{address}: {pairing.describe()}")
    pairing.check(allow)
    save_joined(
        out, address if is_remote(address) else os.path.abspath(address), spec, shards, pairing
    )
    _say(open_set(out))


@click.command()
@_SET
@_OUT
@click.option("--per-class", required=True, type=click.IntRange(min=1), help="Records a class.")
@_SEED
@_says_errors
def subset(address: str, out: Path, per_class: int, seed: int) -> None:
    """Write N records of each class of SET as OUT."""
    from .edit import subset as subset_of

    _say(subset_of(open_set(address), out, per_class, seed))


@click.command()
@_SET
@_OUT
@click.option("--part", "parts", multiple=True, required=True, metavar="NAME=SHARE")
@_SEED
@_says_errors
def split(address: str, out: Path, parts: tuple[str, ...], seed: int) -> None:
    """Write disjoint parts of SET as OUT/NAME, e.g. --part train=0.9 --part val=0.1."""
    from .edit import split as split_set

    shares: dict[str, float] = {}
    for part in parts:
        name, _, share = part.partition("=")
        if not name.isidentifier() or name in shares:
            raise click.BadParameter(f"{part!r} is not a new NAME=SHARE", param_hint="--part")
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise click.BadParameter(f"{share!r} is no number", param_hint="--part") from error
    for shards in split_set(open_set(address), out, shares, seed):
        _say(shards)


@click.command()
@click.argument("addresses", metavar="SET...", nargs=-1, required=True)
@click.option("--out", required=True, type=_PATH, help="Folder of the new set.")
@_says_errors
def merge(addresses: tuple[str, ...], out: Path) -> None:
    """Write several sets as one: other anchors, or more positives of the same anchors."""
    from .edit import merge as merge_sets

    if len(addresses) < 2:
        raise click.UsageError("merging takes at least two sets")
    _say(merge_sets([open_set(address) for address in addresses], out))


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@_says_errors
def diff(first: str, second: str) -> None:
    """Say in what two sets differ; the exit status is 1 when they do."""
    from .edit import diff as difference

    found = difference(open_set(first), open_set(second))
    for line in found.made:
        click.echo(line)
    for what, keys in (
        (f"only in {first}", found.only_first),
        (f"only in {second}", found.only_second),
        ("other images", found.changed),
    ):
        if keys:
            more = f" and {len(keys) - 5:,} more" if len(keys) > 5 else ""
            click.echo(f"{what}: {len(keys):,} records: {', '.join(keys[:5])}{more}")
    raise SystemExit(1 if found else 0)


@click.command()
@click.argument("folder", metavar="SET", type=_PATH)
@click.option("--from", "copy", metavar="ADDRESS", help="Where the same set lies whole.")
@_says_errors
def repair(folder: Path, copy: str | None) -> None:
    """Make a damaged SET whole: only its damaged shards are fetched again.

    Without --from, indexes are made again, and the `clsp generate` that made SET will make its
    damaged shards again, and no other, when it is run again.
    """
    from .repair import repair as repair_set

    found = repair_set(folder, copy)
    for name in found.repaired:
        click.echo(f"{name}: repaired")
    if found.damaged:
        raise click.ClickException(
            f"{', '.join(found.damaged)}: damaged; give --from, or run again the `clsp generate` "
            "that made the set"
        )
    open_set(folder)
    click.echo(f"{folder}: whole")


@click.command()
@_SET
@click.option("--out", required=True, type=_PATH, help="A .png contact sheet or a .html gallery.")
@click.option("--samples", default=500, show_default=True, type=click.IntRange(min=1))
@_says_errors
def preview(address: str, out: Path, samples: int) -> None:
    """Show SET: a contact sheet, or a gallery to filter and zoom, in one file."""
    from .files import write_atomic
    from .gallery import gallery_html
    from .preview import preview_png

    makers = {".png": preview_png, ".html": gallery_html}
    if out.suffix not in makers:
        raise click.BadParameter(f"{out} ends neither in .png nor in .html", param_hint="--out")
    write_atomic(out, makers[out.suffix](open_set(address), samples))
    click.echo(str(out))


@click.command("import")
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@_OUT
@click.option("--anchors", help="Of a .npy: its images in the same order, e.g. cifar10:ROOT.")
@click.option("--anchor", help="Of a WebDataset: the anchor's member, e.g. jpg.")
@click.option("--positive", "positives", multiple=True, help="A positive's member; repeat for K.")
@click.option("--label", default="", help="A member with an integer: cls, or json:FIELD.")
@click.option(
    "--image-size", type=click.IntRange(min=1), help="Fit its images to so many pixels a side."
)
@click.option("--shard-size", default=1000, show_default=True, type=click.IntRange(min=1))
@_says_errors
def import_(
    path: Path,
    out: Path,
    anchors: str | None,
    anchor: str | None,
    positives: tuple[str, ...],
    label: str,
    image_size: int | None,
    shard_size: int,
) -> None:
    """Write a set of PATH: a .npy (N, K, H, W, 3) uint8, a .parquet, or a folder per anchor.

    Or of any WebDataset, a .tar or a folder of them, by the names of a record's members, that is
    what follows a key and its dot: --anchor jpg --positive syn0.png --positive syn1.png.
    """
    from .convert import import_folders, import_npy, import_parquet, import_webdataset
    from .manifest import Names

    if bool(anchor) != bool(positives) or ((label or image_size) and not anchor):
        raise click.UsageError("a WebDataset needs --anchor and at least one --positive")
    if anchor:
        names = Names(anchor.lower(), tuple(name.lower() for name in positives), label)
        _say(import_webdataset(path, out, names, image_size, shard_size))
    elif path.suffix == ".npy":
        if anchors is None:
            raise click.UsageError("a .npy holds positives only: --anchors gives their anchors")
        _say(import_npy(path, out, open_images(anchors), shard_size))
    elif path.is_dir():
        _say(import_folders(path, out, shard_size=shard_size))
    else:
        _say(import_parquet(path, out, shard_size=shard_size))


@click.command()
@_SET
@_OUT
@_says_errors
def export(address: str, out: Path) -> None:
    """Write SET as OUT: positives as a .npy, all as a .parquet, or a folder for each anchor."""
    from .convert import export_folders, export_npy, export_parquet

    out.parent.mkdir(parents=True, exist_ok=True)
    makers = {".npy": export_npy, ".parquet": export_parquet}
    makers.get(out.suffix, export_folders)(open_set(address), out)
    click.echo(str(out))
