"""What SIGKILL costs: every stage and command killed somewhere, run again, and compared with an undisturbed run.

A kill ends all processes of the run, at a random moment or, where strace is there, at a random system call that changes a
file. tests/killing.py says how, and what is compared; of a search by two workers that is all but the values, because the
order in which trials end decides what is drawn. Linux only.
"""

import argparse
import itertools
import math
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import results

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

# Of all kills, so many parts fall on each: more where more is written, fewer where a start takes long.
WEIGHTS = {
    "promote": 1,
    "tune": 3,
    "tune, two workers": 2,
    "refit": 3,
    "register": 3,
    "pretrain": 2,
    "screen": 1,
    "train": 1,
}


def main() -> None:
    from killing import HEAVY, LIGHT, LIGHT_STAGES, PROJECT, STAGES, VICTIMS, Nursery, Slaughter, log_of, make_templates

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="of all victims together")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of all victims together; fewer kills then")
    parser.add_argument("--only", nargs="+", choices=list(VICTIMS), default=list(VICTIMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--add",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="lines that `--json` wrote before; with --kills 0 they alone",
    )
    parser.add_argument(
        "--pause-while",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="wait before each kill while one is there",
    )
    parser.add_argument(
        "--keep-different",
        type=Path,
        metavar="FOLDER",
        help="the project and the log of each rerun that failed or differs",
    )
    results.add_options(parser)
    given = parser.parse_args()

    earlier = list(itertools.chain.from_iterable(map(results.load_lines, given.add)))
    if not given.kills:
        results.keep("kills", earlier, given, make_table)
        print(make_table(earlier))
        return
    parts = {name: WEIGHTS.get(name, 2) for name in given.only}
    generator = random.Random(given.seed)
    lines: results.Lines = []
    nursery = Nursery(LIGHT if {*given.only} <= {*LIGHT_STAGES} else HEAVY, given.pause_while)
    with tempfile.TemporaryDirectory() as folder:
        templates = make_templates(nursery, Path(folder), given.only)
        for name in given.only:
            slaughter = Slaughter(nursery, VICTIMS[name], templates[name], Path(folder) / PROJECT)
            began = time.monotonic()
            kills: list[Any] = []
            share = parts[name] / sum(parts.values())
            wanted, end = round(given.kills * share), began + 60 * given.minutes * share
            while sum(kill.fell for kill in kills) < wanted and time.monotonic() < end:
                kill = slaughter.kill(generator, by_call=bool(len(kills) % 2))
                kills.append(kill)
                print(f"{name}\t{kill.where}\t{kill.fell}\t{kill.code}\t{list(kill.differences)}", flush=True)
                if kill.code or kill.differences:  # of both runs; a line of the table tells nothing of it
                    print(log_of(slaughter.folder).read_text(errors="replace")[-20_000:], file=sys.stderr, flush=True)
                    if given.keep_different:
                        log = log_of(slaughter.folder)
                        _keep([slaughter.folder, log], given.keep_different / f"{name}-{len(kills)}", kill.differences)
            lines.append(
                {
                    "victim": name,
                    "is_stage": name in STAGES,
                    "seconds": slaughter.seconds,
                    "kills": sum(kill.fell for kill in kills),
                    "at_calls": sum(kill.fell and kill.where.startswith("call") for kill in kills),
                    "failed": sum(kill.code != 0 for kill in kills),
                    "different": sum(bool(kill.differences) for kill in kills),
                    "compared": len(slaughter.expected),
                    "volatile": len(slaughter.volatile),
                    "minutes": (time.monotonic() - began) / 60,
                    **_describe_call(),
                }
            )
            results.keep("kills", [*earlier, *lines], given, make_table)  # what comes may take hours
    nursery.close()
    print(make_table([*earlier, *lines]))


def _keep(found: list[Path], folder: Path, differences: tuple[str, ...]) -> None:
    """A project and its log, in which a cause is looked for, before the next kill makes the project anew."""
    folder.mkdir(parents=True)
    subprocess.run(["cp", "-a", *found, folder], check=True)
    (folder / "differences.txt").write_text("\n".join(differences), encoding="utf-8")


def _describe_call() -> dict[str, str]:
    """Lines of several calls stand in one table, so each says what made it."""
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=results.ROOT, text=True).strip()
    options = [argument for argument in sys.argv[1:] if argument != "--write"]
    return {
        "command": shlex.join(["python", "benchmarks/kills.py", *options]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit,
    }


def make_table(lines: results.Lines) -> str:
    """Kills, reruns that failed, and differences, of each victim at each commit, and in all; and the calls that made them."""
    rows = [_row(line["victim"], f"`{line['commit']}`", [line]) for line in lines]
    columns = ["what was killed", "commit", "kills", "at a system call", "reruns that failed", "different afterwards"]
    table = results.draw_table(columns, [*rows, _row("all", "", lines)])
    calls = dict.fromkeys(f"* `{line['command']}`, {line['date']}, commit {line['commit']}" for line in lines)
    return "\n".join([table, "", "Made by", "", *calls])


def _row(name: str, commit: str, lines: results.Lines) -> list[object]:
    return [name, commit, *(sum(line[key] for line in lines) for key in ("kills", "at_calls", "failed", "different"))]


if __name__ == "__main__":
    main()
