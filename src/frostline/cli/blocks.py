"""`frostline blocks`: where a base can be cut, and what each cut costs."""

import sys
from typing import Any

import click

from frostline.errors import Refused


@click.command()
@click.argument("name", required=False)
@click.option(
    "--image-size", type=click.IntRange(16, 1024), help="Side of the images in pixels; default: the family's own."
)
@click.option("--options", multiple=True, metavar="KEY=VALUE", help="A constructor option, for instance alpha=0.35.")
@click.option("--output-layer", metavar="LAYER", help="Where the head sits, as base.output_layer.")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False), help="The .keras file of a custom base.")
def command(
    name: str | None, image_size: int | None, options: tuple[str, ...], output_layer: str | None, weights: str | None
) -> None:
    """Print where the base NAME can be cut and what each cut costs; without NAME, list the families."""
    from rich.console import Console

    # A pipe has no width: rows are not to be folded there.
    console = Console(width=None if sys.stdout.isatty() else 140)
    if name is None:
        console.print(_list_families())
        return
    from frostline.bases.families import CUSTOM, FAMILIES, check_base, parse_options

    chosen = parse_options(options)
    size = image_size or (FAMILIES[name].default_size if name in FAMILIES else 224)
    check_base(name, size, chosen)
    if name == CUSTOM and weights is None:
        raise Refused("A custom base is a .keras file: give --weights FILE.")
    _print_cuts(console, name, size, chosen, output_layer, weights)


def _list_families() -> Any:
    from rich.table import Table

    from frostline.bases.families import FAMILIES, cuts_of

    table = Table("family", "blocks", "scaling", "size", "smallest", "options", "real weights", box=None)
    for family in FAMILIES.values():
        cuts = cuts_of(family.name, {})
        blocks = "head only" if family.head_only_reason else str(len(cuts) - 1)
        tried = "tried" if family.tried else "untested"
        sizes = (str(family.default_size), str(family.min_size))
        table.add_row(family.name, blocks, family.scaling, *sizes, ", ".join(family.options), tried)
    return table


def _print_cuts(
    console: Any, name: str, size: int, options: dict[str, Any], output_layer: str | None, weights: str | None
) -> None:
    from pathlib import Path

    from rich.table import Table

    from frostline.bases.base import build_base
    from frostline.bases.cost import flops_of
    from frostline.bases.families import FAMILIES

    base = build_base(
        name, size, options=options, output_layer=output_layer, weights=Path(weights) if weights else None
    )
    cost = flops_of(base)
    table = Table("depth", "cut", "shape", "FLOPs below", "parameters above", "kB per image", box=None)
    for cut in base.cuts:
        height, width, channels = cut.shape
        table.add_row(
            str(cut.depth),
            cut.name,
            f"{height}x{width}x{channels}",
            f"{cost['prefix'][cut.depth] / cost['total']:7.1%}" if cost["total"] else "",
            f"{cost['parameters_above'][cut.depth]:,}",
            f"{height * width * channels * 2 / 1000:.1f}",
        )
    family = FAMILIES.get(name)
    mark = (
        ""
        if family is None
        else ", tried with real weights"
        if family.tried
        else ", untested: never tried with real weights"
    )
    console.print(
        f"{name} at {size} px: {cost['total'] / 1e9:.2f} GFLOPs per image, {cost['parameters']:,} parameters{mark}"
    )
    console.print(table)
    console.print(
        "depth = blocks unfrozen above the cut; kB = the stored float16 features of one image (depth 0 is stored pooled: "
        f"{base.cuts[0].shape[2] * 2 / 1000:.1f} kB)"
    )
    if family is not None and family.head_only_reason:
        console.print(f"{name} offers the head only: {family.head_only_reason}.")
