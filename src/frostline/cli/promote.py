"""`frostline promote`: the challenger becomes champion, if the gate passes."""

import sys
from pathlib import Path

import click

from frostline.cli.project import COPIES, open_project

REPORT = Path("reports/promotion.json")


@click.command()
@click.option("--version", "number", type=int, help="Judge this version instead of the workspace's own.")
@click.option("--dry-run", is_flag=True, help="Judge and report, but move nothing; the use of the test split counts.")
@click.option("--force", is_flag=True, help="Move the alias whatever the gate says; needs --reason.")
@click.option("--reason", default="", help="Why; recorded in the history.")
def command(number: int | None, dry_run: bool, force: bool, reason: str) -> None:
    """Score the challenger and the champion on the same untouched test split, in a fresh process, and decide.

    Exits with 0 when the challenger is champion now, with 1 when the gate refused. The verdict with all its numbers goes
    to the version's tags and to reports/promotion.json. docs/promotion.md explains every check.
    """
    from frostline.errors import Refused
    from frostline.files import save_json
    from frostline.registry.moves import finish_move, load_verdict, move_champion, record_refusal, record_verdict
    from frostline.registry.promotion import find_challenger, judge
    from frostline.registry.versions import CHAMPION, describe_wear, number_at

    if force and not reason.strip():
        raise Refused('--force needs --reason "why": it is written to the history.')
    project = open_project(write=True)
    params, store = project.params, project.store
    challenger = find_challenger(store, params, number)
    name = f"{challenger.name} version {challenger.number}"
    finish_move(store, challenger.name)
    if number_at(store, challenger.name, CHAMPION) == challenger.number:
        if record := load_verdict(challenger):  # a killed promotion may not have come to that
            save_json(REPORT, record)
        click.echo(f"{name} is the champion already.")
        return
    click.echo(f"Scoring {name} in a fresh process ...", err=True)
    judgement = judge(store, params, challenger, COPIES)

    verdict = judgement.verdict
    outcome = "accepted" if verdict.accepted else "forced" if force else "refused"
    failed = [check.name for check in verdict.checks if not check.passed]
    why = reason or ("every check passed" if verdict.accepted else f"failed: {', '.join(failed)}")
    against = f"champion version {judgement.champion.number}" if judgement.champion else "no champion yet"
    click.echo(f"{name} against {against}")
    for check in verdict.checks:
        mark = click.style("pass", fg="green") if check.passed else click.style("FAIL", fg="red", bold=True)
        click.echo(f"  {mark}  {check.name:<12} {check.message}")
    if params.promote.budget == "split":
        click.echo(f"  note  {judgement.budget.describe(params.promote.significance)}")
    elif wear := describe_wear(judgement.split_uses):
        click.echo(f"  note  {wear}")
    if dry_run:
        click.echo(
            f"Dry run: the verdict would be {outcome!r}. Nothing was moved; the use of the test split was counted."
        )
        sys.exit(0 if outcome != "refused" else 1)

    before = judgement.champion.number if judgement.champion else None
    record = {"outcome": outcome, "reason": why, **judgement.to_record()}
    if outcome != "refused":
        # Refused when another was promoted meanwhile: this verdict was against the wrong champion.
        record["at"] = move_champion(store, challenger, before, outcome, why, record).at
    else:
        record["at"] = record_refusal(store, challenger, before, why).at
        record_verdict(store, challenger, outcome, why, record)
    save_json(REPORT, record)
    if outcome == "refused":
        click.echo(f"Refused ({', '.join(failed)}). The champion stays; all numbers are in {REPORT}.")
        sys.exit(1)
    click.echo(
        f"{name} is the champion now{' (forced)' if outcome == 'forced' else ''}. `frostline rollback` undoes this."
    )
