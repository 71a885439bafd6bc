"""`clsp shards`: index, verify, describe, push and pull shard sets."""

from __future__ import annotations

from pathlib import Path

import click

from ..lazy import LazyGroup
from ..recipes import progress
from . import share
from .card import prepare_to_share, read_card
from .check import ShardError
from .foreign import index_foreign
from .manifest import Manifest, Names
from .reader import ShardSet
from .remote import Interrupted, Source
from .store import index_folder, open_set

_SET = click.argument("folder", metavar="SET", type=click.Path(path_type=Path))
_ADDRESS = click.argument("address", metavar="SET")


def _describe(shards: ShardSet) -> str:
    manifest = shards.manifest
    config = manifest.plan.get("config", {})
    how = ", ".join(
        f"{name} {config[name]}"
        for name in ("scheduler", "steps", "w", "eta", "seed")
        if name in config
    )
    size = sum(shard.bytes for shard in manifest.shards)
    lines = {
        "set": shards.id,
        "records": f"{len(shards):,} in {len(manifest.shards)} shards, {size / 1e6:,.1f} MB",
        "record": _record(manifest),
        "images": f"{manifest.image_format}, {manifest.image_size}x{manifest.image_size}",
        "source": manifest.source.get("kind", "unknown"),
        "licence": "{}; of the source: {}".format(
            *(licence or "unknown" for licence in read_card(shards.origin)[:2])
        ),
        "picture": _picture(shards.origin),
        "classes": ", ".join(manifest.classes) if manifest.classes else "none",
        "sampling": how or "unknown",
        "model": manifest.plan.get("model", {}).get("sha256", "unknown"),
        "plan": manifest.plan_id or "none",
        "derived": "; ".join(manifest.plan.get("derived", [])) or "no",
        "made on": "; ".join(
            ", ".join(f"{name} {value}" for name, value in sorted(print_.items()))
            for print_ in manifest.fingerprints
        )
        or "unknown",
    }
    # The words may be a stranger's: none of them may move the cursor or paint the screen.
    return "\n".join(f"{name:<10}{_printable(value)}" for name, value in lines.items())


def _picture(source: Source) -> str:
    try:
        source.open("preview.png")
    except (Interrupted, ShardError):
        return "none; `clsp shards preview` makes one"
    return f"{source.address.rstrip('/')}/preview.png"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _record(manifest: Manifest) -> str:
    if manifest.names is None:
        return f"{'anchor, ' if manifest.anchors else ''}{manifest.positives} positives, json"
    label = f", label {manifest.names.label}" if manifest.names.label else ""
    return f"anchor {manifest.names.anchor}, positives {' '.join(manifest.names.positives)}{label}"


_MORE = {
    "diff": "Say in what two sets differ.",
    "export": "Write a set as .npy, Parquet or folders.",
    "import": "Write a set of a .npy, Parquet, folders or any WebDataset.",
    "join": "Pair a set that carries no anchors with your own.",
    "merge": "Write several sets as one.",
    "preview": "Show a set: a contact sheet, or a gallery to filter and zoom.",
    "repair": "Fetch or make again what is damaged.",
    "split": "Write disjoint parts of a set.",
    "strip": "Write a set without its anchors.",
    "subset": "Write N records of each class.",
}


@click.group(
    cls=LazyGroup,
    lazy={
        name: ("clsp.shards.commands", name.replace("import", "import_"), line)
        for name, line in _MORE.items()
    },
)
def main() -> None:
    """Check, describe, edit and share shard sets."""


@main.command()
@_ADDRESS
def info(address: str) -> None:
    """Say what a set is, how it was made, and by which model.

    SET is a path, http(s)://HOST/PATH, s3://BUCKET/PREFIX or hf://datasets/OWNER/NAME@REVISION; of
    one that is not here only the manifest and the card are read.
    """
    try:
        click.echo(_describe(open_set(address)))
    except (ShardError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except (TypeError, AttributeError) as error:
        raise click.ClickException(
            f"{address}: the plan in its manifest is none: {error}"
        ) from error


@main.command()
@_ADDRESS
@click.option("--deep", is_flag=True, help="Also walk every tar and decode every image.")
def verify(address: str, deep: bool) -> None:
    """Compare every byte of a set with its manifest.

    SET is a path or an address, as of `info`; the shards of one that is not here are fetched.
    """
    try:
        shards = open_set(address)
        shards.verify(deep)
    except (ShardError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{address}: {len(shards):,} records in {len(shards.shard_sizes)} shards are whole")


@main.command()
@_SET
@click.option("--anchor", help="Of others' shards: the anchor's member, e.g. jpg.")
@click.option("--positive", "positives", multiple=True, help="A positive's member; repeat for K.")
@click.option("--label", default="", help="A member with an integer: cls, or json:FIELD.")
@click.option(
    "--image-size", type=click.IntRange(min=1), help="Fit others' images to so many pixels a side."
)
def index(
    folder: Path, anchor: str | None, positives: tuple[str, ...], label: str, image_size: int | None
) -> None:
    """Write the indexes and the manifest of a folder whose data/*.tar are complete shards.

    Shards that another wrote need the names of a record's members, that is what follows a key and
    its dot: --anchor jpg --positive syn0.png --positive syn1.png --label cls. They stay as they
    are.
    """
    if bool(anchor) != bool(positives) or ((label or image_size) and not anchor):
        raise click.UsageError("others' shards need --anchor and at least one --positive")
    try:
        if anchor:
            images = anchor.lower(), tuple(name.lower() for name in positives)
            shards: ShardSet = index_foreign(folder, Names(*images, label), image_size)
        else:
            shards = index_folder(folder)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(_describe(shards))


@main.command()
@_SET
@click.argument("target")
@click.option("--license", help="Licence of the positives, e.g. cc-by-4.0; asked for if missing.")
@click.option("--source-license", help="Licence of the anchors' source; imagenet forbids sharing.")
@click.option(
    "--model-license",
    help="Licence of the model that made the positives; default: its card's, or unknown.",
)
@click.option("--name", help="Name of the data set; default: its card's, or the folder's.")
@click.option(
    "--i-may-redistribute-anchors",
    "may",
    is_flag=True,
    help="You hold the right, whatever it says.",
)
def push(
    folder: Path,
    target: str,
    license: str | None,
    source_license: str | None,
    model_license: str | None,
    name: str | None,
    may: bool,
) -> None:
    """Copy a set to TARGET: a path, s3://BUCKET/PREFIX or hf://datasets/OWNER/NAME@BRANCH.

    A card, a description and a citation are written into SET first, by its licences. Shards go
    first and the manifest last. Broken off, the same command goes on.
    """
    try:
        shards = open_set(folder)
        known = read_card(shards.origin)
        license = license or known.license or click.prompt("Licence of the positives (--license)")
        source_license = (
            source_license
            or known.source_license
            or click.prompt("Licence of the source (--source-license)")
        )
        prepare_to_share(
            shards,
            name or known.pretty_name or folder.resolve().name,
            license=license,
            source_license=source_license,
            model_license=model_license or known.generator_license or "unknown",
            may_redistribute_anchors=may,
        )
        with progress(2 * len(shards.shard_sizes), "push", "file") as bar:
            manifest = share.push(
                folder,
                target,
                bar.update,
                source_license=source_license,
                may_redistribute_anchors=may,
            )
    except (ShardError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{target}: set {manifest.id}")


@main.command()
@click.argument("source")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--split", help="Only the shards of this split: data/SPLIT-NUMBER.tar.")
@click.option("--positives", type=click.IntRange(min=1), help="Only the first so many of the K.")
def pull(source: str, folder: Path, split: str | None, positives: int | None) -> None:
    """Bring a set from SOURCE into DIR and compare every byte with its manifest.

    SOURCE is a path, http(s)://HOST/PATH, s3://BUCKET/PREFIX or hf://datasets/OWNER/NAME@REVISION.
    Broken off, the same command goes on; on a whole set it brings again what was damaged.
    """
    try:
        with progress(0, "pull", "shard") as bar:
            shards = share.pull(source, folder, split=split, positives=positives, done=bar.update)
    except (ShardError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{folder}: set {shards.id}, {len(shards):,} records are whole")


if __name__ == "__main__":
    main()
