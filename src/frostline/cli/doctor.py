"""`frostline doctor`: what works here, what does not, and what to do about it."""

import configparser
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from frostline.errors import Refused, redact
from frostline.files import COMPLETE, load_json, sha256_of
from frostline.params import Params, Storage, load_document, load_params
from frostline.planning.integrity import find_broken_databases, find_changed
from frostline.planning.settings import ignored_settings, settings_problems
from frostline.process import ask_git, project_root

# What is compared with the lock besides the libraries that change results.
ALSO_LOCKED = ("mlflow", "dvc")
SECRET = re.compile(r"^\s*(\w*(?:secret|password|token|access_key)\w*)\s*=\s*\S", re.IGNORECASE | re.MULTILINE)
GPU_LIBRARY = "nvidia-cudnn-cu12"


@dataclass(frozen=True)
class Finding:
    """One line of the report. level: ok, warn or fail; advice: what to do, "" where nothing is to be done."""

    level: str
    what: str
    advice: str = ""


@click.command()
@click.option(
    "--deep",
    is_flag=True,
    help="Also start Keras: its devices, and whether the base knows the images; read all outputs and ask DVC for changes (20 s and more).",
)
def command(deep: bool) -> None:
    """Check Python, libraries, devices, weights, tracking store, disk, DVC and git; change nothing.

    Exit code 1 where something does not work.
    """
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    failed = False
    for finding in examine(project_root(), deep=deep):
        failed |= finding.level == "fail"
        click.echo(f"{click.style(f'{finding.level:<4}', fg=colours[finding.level])}  {finding.what}")
        if finding.advice:
            click.echo(f"      {finding.advice}")
    sys.exit(int(failed))


def examine(root: Path, *, deep: bool = False) -> Iterator[Finding]:
    """The findings for the project at `root`, one after the other."""
    yield from examine_python()
    yield from examine_versions(root)
    yield from examine_devices(deep)
    try:
        params = load_params(root / "params.yaml")
        yield Finding("ok", "params.yaml can be read")
    except Refused as refusal:
        yield Finding(
            "fail", str(refusal).replace("\n", "\n      "), "Correct params.yaml; `frostline check` reads it again."
        )
        params = None
    yield from examine_settings()
    yield from examine_stale_store(root)
    if params:
        yield from guarded("the base's weights", examine_base, root, params)
        if deep:
            yield from guarded("the base on the images", examine_input, root, params)
        yield from guarded("the tracking store", examine_store, root, params)
        if params.scale.store:
            yield from guarded("the store of features", examine_depot, root, params)
        yield from examine_disk(root, params.storage)
    yield from examine_dvc(root, deep)
    if deep:
        yield from examine_bytes(root)
    yield from examine_git(root)


def guarded(
    name: str, look: Callable[[Path, Params], Iterator[Finding]], root: Path, params: Params
) -> Iterator[Finding]:
    """The findings of `look`; what it raises becomes a finding too, so that one broken part hides no other."""
    try:
        yield from look(root, params)
    except Exception as error:
        yield Finding("fail", f"{name}: {type(error).__name__}: {error}")


def examine_python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield Finding("fail", f"Python {version}", "Frostline needs 3.11 to 3.13: `make env PYTHON=python3.12`.")
    else:
        yield Finding("ok", f"Python {version} in {sys.prefix}")
    python = shutil.which("python")
    if python is None or Path(python).parent.resolve() != Path(sys.executable).parent.resolve():
        advice = f"DVC would start the stages with it. `source {Path(sys.prefix) / 'bin' / 'activate'}` first."
        yield Finding("warn", f"`python` on the PATH is {python or 'absent'}, not this environment's", advice)


def examine_versions(root: Path) -> Iterator[Finding]:
    lock = root / "locks" / "dev.txt"
    if not lock.is_file():
        yield Finding("warn", "locks/dev.txt is missing: versions cannot be compared", "git checkout locks")
        return
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock.read_text(encoding="utf-8"), flags=re.MULTILINE))
    results = list(load_document(root / "locks" / "results.yaml")["versions"])
    same = []
    for name in (*results, *ALSO_LOCKED):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("fail", f"{name} is not installed", "make env")
            continue
        if version == locked[name]:
            same.append(f"{name} {version}")
        else:
            changes = "its results may differ" if name in results else "it was not tried with this one"
            yield Finding("warn", f"{name} is {version}, the lock says {locked[name]}: {changes}", "make env")
    if same:
        yield Finding("ok", "as locked: " + ", ".join(same))


def examine_devices(deep: bool) -> Iterator[Finding]:
    import psutil

    memory, cores = psutil.virtual_memory(), os.cpu_count()
    level, advice = ("ok", "") if memory.available > 4e9 else ("warn", "Close other programs; a search wants 4 GB.")
    yield Finding(
        level, f"{cores} cores, {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB memory free", advice
    )
    computes = ""
    if deep:
        from frostline.devices import BACKEND, describe_device, on_cpu

        computes = f"Keras computes with {BACKEND} on {describe_device()}"
        yield Finding("ok", computes)
    if shutil.which("nvidia-smi"):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        cards = re.sub(r" \(UUID.*?\)", "", listing.stdout).strip().replace("\n", "; ")
        if listing.returncode:
            yield Finding("warn", "nvidia-smi is there but answers with an error", "Look at the driver: nvidia-smi")
        elif computes and on_cpu():
            yield Finding("warn", f"{cards}, but {computes}", "make env GPU=1; docs/gpu.md")
        elif not _is_installed(GPU_LIBRARY):
            yield Finding("warn", f"{cards}, but TensorFlow is installed without CUDA", "make env GPU=1")
        else:
            yield Finding("ok", cards)


def examine_settings() -> Iterator[Finding]:
    for problem in settings_problems():
        yield Finding("fail", problem, "Correct that file, or remove it.")
    for line in ignored_settings():
        yield Finding("warn", line, "Nothing to do, unless it was meant for this project.")


def examine_base(root: Path, params: Params) -> Iterator[Finding]:
    folder = root / params.paths.base
    if not (folder / "card.json").is_file():
        yield Finding(
            "ok", f"no base fetched yet; `dvc repro` takes {params.base.name} with {params.base.weights} weights"
        )
        return
    card = load_json(folder / "card.json")
    if not card.get("file"):
        yield Finding("ok", f"base {card['name']}, {card['weights']} weights")
    elif not (folder / card["file"]).is_file():
        yield Finding("fail", f"{folder / card['file']} is missing", "dvc repro fetch")
    elif card["sha256"] and sha256_of(folder / card["file"]) != card["sha256"]:
        yield Finding(
            "fail", f"{folder / card['file']} is not what was fetched: its sha256 differs", "dvc repro -f fetch"
        )
    else:
        yield Finding("ok", f"base {card['name']}, {card['weights']} weights, sha256 as fetched")


def examine_input(root: Path, params: Params) -> Iterator[Finding]:
    base, prepared = root / params.paths.base, root / params.paths.prepared
    if params.base.weights == "random" or not ((base / COMPLETE).is_file() and (prepared / COMPLETE).is_file()):
        return
    from frostline.arrays import load_split
    from frostline.bases.base import load_base
    from frostline.bases.statistics import check_input

    try:
        lines = check_input(load_base(params.base, base), load_split(prepared / "train").images)
    except Refused as refusal:
        yield Finding("fail", str(refusal))
        return
    yield from (Finding("warn", line.removeprefix("WARNING: ")) for line in lines)
    if not lines:
        yield Finding("ok", "the base knows these images: its stored statistics fit them")


def examine_stale_store(root: Path) -> Iterator[Finding]:
    stale = [path for path in sorted((root / "mlruns").glob("*/meta.yaml")) if path.parent.name.isdigit()]
    if stale:
        names = ", ".join(str(path.parent.relative_to(root)) for path in stale)
        yield Finding(
            "fail",
            f"{names}: left by an old MLflow; with it, a plain `mlflow ui` takes mlruns/ for its store and refuses to start",
            "Move it away, or bring it over: mlflow migrate-filestore --help",
        )


def examine_store(root: Path, params: Params) -> Iterator[Finding]:
    from frostline.tracking.mending import refuse_unfit
    from frostline.tracking.owners import find_dead_runs
    from frostline.tracking.server import server_problems
    from frostline.tracking.store import open_store, tracking_uri

    uri = tracking_uri(params.tracking, root)
    shown = redact(uri)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        yield Finding("ok", f"no run yet: the first one makes {shown}")
        return
    if uri.startswith("http"):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
                pass
        except (OSError, ValueError) as error:
            yield Finding("fail", f"{shown} does not answer: {error}", "Start the server, or change tracking.uri.")
            return
    try:
        if uri.startswith("sqlite:///"):
            refuse_unfit(Path(uri.removeprefix("sqlite:///")), root, params.tracking.experiment)
    except Refused as refusal:
        yield Finding("fail", str(refusal), "Nothing runs before that: frostline mend")
        return
    try:
        store = open_store(params.tracking, root, create=False)
    except Refused as refusal:
        level = "ok" if "no run yet" in str(refusal) else "fail"
        yield Finding(level, str(refusal))
        return
    for problem in server_problems(store, params.register_.name) if uri.startswith("http") else []:
        yield Finding("fail", f"{shown}: {problem}", "Nothing runs to its end before that.")
    yield Finding("ok", f"tracking store {shown}, experiment {params.tracking.experiment}")
    if dead := find_dead_runs(store):
        advice = "The next `dvc repro tune` closes them; so does `frostline clean --yes`."
        yield Finding("warn", f"{len(dead)} runs are RUNNING although their process is gone", advice)


def examine_depot(root: Path, params: Params) -> Iterator[Finding]:
    from frostline.search.depot import open_depot

    try:
        open_depot(params)
    except Refused as refusal:
        yield Finding(
            "fail",
            str(refusal),
            "Start it, or change scale.store; its keys and endpoint are AWS_... of the environment.",
        )
        return
    yield Finding("ok", f"store of features {params.scale.store}")


def examine_disk(root: Path, storage: Storage) -> Iterator[Finding]:
    free = shutil.disk_usage(root).free / 1e9
    said = f"{free:.1f} GB free at {root}"
    if free < 2:
        yield Finding("fail", said, "A run needs at least 2 GB. `frostline clean` shows what can go.")
    elif free < storage.budget_gb:
        advice = f"Views and features may take {storage.budget_gb:g} GB (storage.budget_gb). `frostline clean` shows what can go."
        yield Finding("warn", said, advice)
    else:
        yield Finding("ok", said)


def examine_dvc(root: Path, deep: bool) -> Iterator[Finding]:
    if shutil.which("dvc") is None:
        yield Finding("fail", "`dvc` is not on the PATH", f"source {Path(sys.prefix) / 'bin' / 'activate'}")
        return
    config = configparser.ConfigParser()
    config.read([root / ".dvc" / "config", root / ".dvc" / "config.local"], encoding="utf-8")
    links = config.get("cache", "type", fallback="reflink,copy").strip('"')
    # By the first one that DVC knows: where a copy is as good as it, as with reflink, it replaces no copy.
    if links.split(",")[0].strip() not in ("hardlink", "symlink") and not _can_reflink(root):
        yield Finding("warn", f"cache.type is {links}: data is stored twice", "dvc config cache.type hardlink,copy")
    else:
        yield Finding("ok", f"DVC links its cache by {links}")
    tracked = root / ".dvc" / "config"
    if tracked.is_file() and (found := SECRET.search(tracked.read_text(encoding="utf-8"))):
        advice = "Git tracks this file. `dvc remote modify --local …` keeps secrets out of it; then change the secret."
        yield Finding("fail", f".dvc/config holds {found.group(1)}", advice)
    if deep:
        status = subprocess.run(["dvc", "status", "--json"], cwd=root, capture_output=True, text=True, check=False)
        if status.returncode:
            yield Finding("fail", f"`dvc status` ends with: {_last_line(status.stderr)}", "Mend what it says.")
        elif stale := stale_stages(json.loads(status.stdout or "{}")):
            advice = "`dvc status` says why, `dvc repro` runs them."
            yield Finding("warn", f"DVC sees stages that are not up to date: {', '.join(stale)}", advice)
        else:
            yield Finding("ok", "all stages are up to date")


def examine_bytes(root: Path) -> Iterator[Finding]:
    changed, number = find_changed(root)
    for file in changed:
        what = f"{file.path} is not what stage {file.stage} wrote: its md5 differs from the one in dvc.lock"
        yield Finding("fail", what, file.remedy)
    if number and not changed:
        yield Finding("ok", f"{number} files of the stages' outputs are what was written, byte for byte")
    for path, reason in find_broken_databases(root):
        yield Finding("fail", f"{path} is damaged: {reason}", "Bring back a copy of it from a backup.")


def stale_stages(status: Mapping[str, Any]) -> list[str]:
    """The stages that `dvc status` has a reason to run again; `source` runs each time by design."""
    return [name for name, reasons in status.items() if [reason for reason in reasons if reason != "always changed"]]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing"])[-1]


def examine_git(root: Path) -> Iterator[Finding]:
    found, said = ask_git(root, "rev-parse", "--git-dir")
    if not found and (root / ".git").exists():
        advice = f"Neither DVC nor lineage works without it. Of another owner: git config --global --add safe.directory {root}"
        yield Finding("fail", f"git refuses this repository: {said}", advice)
    elif not found:
        advice = "git init; or, to go on without git and without `dvc exp`: dvc config --local core.no_scm true"
        yield Finding("warn", "this is no git repository", advice)
    elif not (commit := ask_git(root, "rev-parse", "--short", "HEAD")[0]):
        yield Finding("warn", "the repository has no commit: `dvc exp` and lineage need one", "git add . && git commit")
    else:
        changed = [
            line[3:] for line in (ask_git(root, "status", "--porcelain", "--untracked-files=no")[0] or "").splitlines()
        ]
        code = [name for name in changed if name.endswith((".py", ".yaml"))]
        if code:
            yield Finding(
                "ok", f"git: {len(code)} changed files, which each run's tags will name ({', '.join(code[:3])})"
            )
        else:
            yield Finding("ok", f"git: at {commit.strip()}, no changes to code or params")


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _can_reflink(root: Path) -> bool:
    """True where the file system copies by reference (btrfs, XFS, APFS): `cp` is asked, on a small file."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        source = Path(folder) / "a"
        source.write_bytes(b"x")
        flags = ["-c"] if sys.platform == "darwin" else ["--reflink=always"]
        return not subprocess.run(
            ["cp", *flags, source, Path(folder) / "b"], capture_output=True, check=False
        ).returncode
