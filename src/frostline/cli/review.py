"""`frostline review`: labels that look wrong, and what people decide about them."""

import csv
import getpass
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from frostline.errors import Refused

if TYPE_CHECKING:
    from frostline.evidence.suspicion import Suspect
    from frostline.images.decisions import Decision
    from frostline.params import Params
    from frostline.serving.review import Review


@click.command()
@click.option("--limit", type=click.IntRange(1), help="So many, the most suspicious first. [all that look wrong]")
@click.option("--again", is_flag=True, help="Those, too, that were decided about before.")
@click.option("--list", "as_list", is_flag=True, help="Only print them, one a line.")
@click.option("--who", help="Who decides. [user.name of git]")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the page. [a free one]")
@click.option("--no-open", is_flag=True, help="Only print the address; open no browser.")
def command(limit: int | None, again: bool, as_list: bool, who: str | None, port: int, no_open: bool) -> None:
    """Look at images whose labels the others contradict, and keep, change or drop them; Ctrl-C ends it.

    A page on this machine alone, which calls nobody. Decisions go to decisions.csv, which belongs into git; the next
    `dvc repro` follows them. Without a browser: --list, and rows written into decisions.csv by hand.
    """
    from frostline.evidence.suspicion import load_suspects
    from frostline.images.decisions import load_decisions
    from frostline.params import load_params

    params, decisions = load_params(), load_decisions()
    suspects = load_suspects(Path(params.paths.evaluation) / "suspicious.csv")
    waiting = [each for each in suspects if again or each.file not in decisions]
    chosen = waiting[:limit] if limit else [each for each in waiting if each.looks_wrong]
    intro = describe(suspects, sum(each.looks_wrong and each.file in decisions for each in suspects), len(chosen))
    click.echo(intro)
    if as_list:
        for each in chosen:
            click.echo(f"{each.file}\t{each.label} {each.p_label:.3f}\t{each.suggested} {each.p_suggested:.3f}")
    elif chosen:
        serve(make_review(params, chosen, decisions, who or find_name()), intro, port, no_open)


def describe(suspects: "Sequence[Suspect]", decided: int, shown: int) -> str:
    """The state of the review in a few sentences."""
    wrong = sum(each.looks_wrong for each in suspects)
    unlikely = sum(each.p_suggested > each.p_label for each in suspects)
    return (
        f"{wrong} of {len(suspects)} labels look wrong, {decided} of them were decided about. Of {unlikely} images another class is "
        f"likelier than the label; --limit {max(unlikely, 1)} shows them all. Shown: {shown}."
    )


def find_name() -> str:
    """Who works here, as git knows them, or the system."""
    from frostline.process import ask_git

    return (ask_git(Path(), "config", "user.name")[0] or "").strip() or getpass.getuser()


def make_review(
    params: "Params", suspects: "Sequence[Suspect]", decisions: "dict[str, Decision]", who: str
) -> "Review":
    """The review of these images; Refused where they are not those that are prepared."""
    from frostline.arrays import load_split
    from frostline.files import load_json
    from frostline.serving.review import Card, Review

    prepared = Path(params.paths.prepared)
    if not (prepared / "manifest.csv").is_file():
        raise Refused(f"{prepared} is not here. `dvc checkout` or `dvc repro` brings it.")
    with (prepared / "manifest.csv").open(encoding="utf-8", newline="") as file:
        facts = {row["image_id"]: row for row in csv.DictReader(file)}
    if any(each.file not in facts or facts[each.file]["class_name"] != each.label for each in suspects):
        raise Refused("The images were prepared anew since they were judged. Run `dvc repro` first.")
    splits = {name: load_split(prepared / name) for name in {each.split for each in suspects}}
    places = {name: {image_id: row for row, image_id in enumerate(split.ids)} for name, split in splits.items()}

    def load_prepared(row: int) -> Any:
        each = suspects[row]
        return splits[each.split].images[places[each.split][each.file]]

    cards = []
    for each in suspects:
        before, path = decisions.get(each.file), Path(params.paths.raw) / each.file
        was = before.was if before else each.label
        cards.append(Card(each, was, facts[each.file]["sha256"], path if path.is_file() else None))
    return Review(cards, load_json(prepared / "classes.json"), who, load_prepared)


def serve(review: "Review", intro: str, port: int, no_open: bool) -> None:
    """Serves the page until Ctrl-C, then says what to do with what was decided."""
    from frostline.cli.project import free_port
    from frostline.serving.review import ReviewServer

    server = ReviewServer(review, intro, free_port(port))
    click.echo(f"{server.address} (Ctrl-C ends it)")
    sys.stdout.flush()
    if not no_open:
        webbrowser.open(server.address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    click.echo(f"\n{len(review.decided)} decided, in {review.table}. Next: git add {review.table}; dvc repro")
