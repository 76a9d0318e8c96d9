"""Kills: a command's processes ended by SIGKILL somewhere, the command run again, and what is there then compared.

A parent with all libraries loaded forks each run, so that a kill costs the work itself and not the start of Keras. A kill
falls at a random moment, or, where strace is there, at a random system call that changes a file. What an undisturbed run
leaves is known from two of them: where these differ (seconds, ids, dates) nothing is compared but that it is there.
"""

import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import optuna
import psutil

from frostline.cli.presets import DEFAULT, apply_settings
from frostline.files import sha256_of
from frostline.images.generated.sets import write_target
from frostline.tracking.store import create_database

ROOT = Path(__file__).parents[1]
STRACE = shutil.which("strace")
# Calls that change what is on disk; those that only read cannot leave anything half.
CALLS = "write,writev,pwrite64,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,ftruncate"
CALLS += ",fallocate,link,symlink,copy_file_range,sendfile"
State = dict[str, str]

# Loads the modules in argv[1], then forks a process for each line of its input; says its id, and how it ended.
NURSERY = """
import importlib, json, os, runpy, signal, sys

for name in sys.argv[1].split(","):
    importlib.import_module(name)
print(len(os.listdir("/proc/self/task")), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    child = os.fork()
    if child:
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)
        continue
    os.setsid()
    os.chdir(task["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ.update(task["environment"])
    if task["stopped"]:
        os.kill(os.getpid(), signal.SIGSTOP)
    sys.argv = task["command"]
    if sys.argv[0] == "frostline":
        from frostline.cli import main
        main()
    else:
        # Whole, or its workers look for it below the folder in which the nursery was started.
        runpy.run_path(os.path.abspath(sys.argv[0]), run_name="__main__")
    sys.exit()
"""
LIGHT = "frostline.images.sources,frostline.images.preparation,frostline.images.views,frostline.evidence.figures.sheets"
HEAVY = (
    "keras,frostline.search.outcome,frostline.training.refit,frostline.registry.promotion,frostline.search.screening"
)
HEAVY += f",frostline.bases.pretraining,frostline.tracking.leftovers,{LIGHT}"


class Nursery:
    """A process that has loaded these modules and forks others; between kills it waits while one of `pauses` is there."""

    def __init__(self, modules: str, pauses: Sequence[Path] = ()) -> None:
        self.pauses = pauses
        # A fork keeps one thread of all: others' locks would be held for ever.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT / "src")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, modules],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.threads = int(self.process.stdout.readline())

    def start(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], *, stopped: bool) -> int:
        """The id of a new process, which leads a session of its own."""
        task = {"command": command, "folder": str(folder), "log": str(log_of(folder)), "environment": dict(environment)}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({**task, "stopped": stopped}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait_for_quiet(self) -> None:
        """Returns when none of `pauses` is there, so that others can measure on this machine."""
        while any(path.exists() for path in self.pauses):
            time.sleep(1)

    def wait(self) -> int:
        """How the process that was started last ended: its exit code, or minus the signal."""
        assert self.process.stdout is not None
        return os.waitstatus_to_exitcode(int(self.process.stdout.readline()))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def log_of(folder: Path) -> Path:
    """Beside the project, where nobody compares it."""
    return folder.with_name(f"{folder.name}.log")


@dataclass(frozen=True)
class Victim:
    """What is run, killed and run again.

    outs: what DVC removes before it; loose: several workers decide the order, so only the shape of what is there counts;
    calls: is it one process, of which strace tells a call that it can be killed at?
    """

    name: str
    command: tuple[str, ...]
    outs: tuple[str, ...] = ()
    loose: bool = False
    calls: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kill:
    """One kill: where it fell, what the rerun ended with, and each difference from an undisturbed run."""

    victim: str
    where: str
    fell: bool
    code: int
    differences: tuple[str, ...]


class Slaughter:
    """Kills one victim again and again, from one state of a project."""

    def __init__(self, nursery: Nursery, victim: Victim, template: Path, folder: Path, *, calls: bool = True) -> None:
        self.nursery, self.victim, self.template, self.folder = nursery, victim, template, folder
        self.seconds, self.grown, states = math.inf, 0, []
        for _ in range(2):
            self._restore()
            held = _held_by(folder)
            began = time.monotonic()
            assert self._run() == 0, log_of(folder).read_text()[-3000:]
            self.seconds = min(self.seconds, time.monotonic() - began)
            self.grown = _held_by(folder) - held
            states.append(state_of(folder))
        self.expected = states[0]
        self.volatile = {key for key in {*states[0], *states[1]} if states[0].get(key) != states[1].get(key)}
        # Under strace several processes with all their threads would take minutes.
        self.calls = self._list_calls() if STRACE and calls and victim.calls else []

    def kill(self, generator: random.Random, *, by_call: bool) -> Kill:
        """One kill, the rerun and the comparison."""
        self._restore()
        if by_call and self.calls:
            place = generator.randrange(len(self.calls))
            # strace counts each kind of call on its own.
            call, number = self.calls[place], self.calls[: place + 1].count(self.calls[place])
            where, fell = f"call {place + 1} of {len(self.calls)} ({call})", self._kill_at_call(call, number)
        else:
            moment = generator.uniform(0, self.seconds)
            where, fell = f"{moment:.2f} of {self.seconds:.2f} s", self._kill_after(moment)
        code = self._run()
        return Kill(self.victim.name, where, fell, code, tuple(self._differences(state_of(self.folder))))

    def _differences(self, state: State) -> list[str]:
        found = []
        for key in sorted({*self.expected, *state}):
            want, got = self.expected.get(key), state.get(key)
            if want == got or key.startswith("killed/") or FREE.search(key):  # what is said of killed runs is no loss
                continue
            # Of what differs anyway it counts that it is there.
            if (key in self.volatile or self.victim.loose) and (want is None) == (got is None):
                continue
            found.append(f"{key}: {want} -> {got}")
        return found

    def fill(self, share: float) -> tuple[int, str, list[str]]:
        """One run on a disk with room for this share of what it writes, and with more room another one; the folder is a mount.

        Exit code and words of the first, and what differs after the second.
        """
        resize_disk(self.folder, ROOM)
        self._restore()
        held = _held_by(self.folder)
        resize_disk(self.folder, held + int(share * self.grown))
        code = self._run()
        said = log_of(self.folder).read_text(errors="replace")
        resize_disk(self.folder, ROOM)
        log_of(self.folder).unlink()
        again = self._run()
        assert again == 0, log_of(self.folder).read_text()[-3000:]
        return code, said, self._differences(state_of(self.folder))

    def lock(self) -> tuple[int, str]:
        """Exit code and words of a run on a disk that may only be read; the folder is a mount."""
        self._restore()
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        try:
            code = self._run()
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(self.folder)], check=True)
        return code, log_of(self.folder).read_text(errors="replace")

    def _restore(self) -> None:
        self.nursery.wait_for_quiet()
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():  # it may be a mount
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(self.template, self.folder, symlinks=True, dirs_exist_ok=True)
        log_of(self.folder).unlink(missing_ok=True)

    def _begin(self, *, stopped: bool = False) -> int:
        for out in self.victim.outs:  # as DVC does
            path = self.folder / out
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return self.nursery.start(self.victim.command, self.folder, self.victim.environment, stopped=stopped)

    def _run(self) -> int:
        self._begin()
        return self.nursery.wait()

    def _kill_after(self, seconds: float) -> bool:
        process = self._begin()
        time.sleep(seconds)
        end_session(process)
        return self.nursery.wait() == -signal.SIGKILL

    def _kill_at_call(self, call: str, number: int) -> bool:
        process = self._begin(stopped=True)
        with traced(process, "-e", f"inject={call}:signal=KILL:when={number}"):
            code = self.nursery.wait()
            end_session(process)
        return code == -signal.SIGKILL

    def _list_calls(self) -> list[str]:
        """The calls of the busiest thread of an undisturbed run, in order."""
        self._restore()
        log = self.folder.with_name(f"{self.folder.name}.calls")
        process = self._begin(stopped=True)
        with traced(process, "-o", str(log)):
            self.nursery.wait()
        found: dict[str, list[str]] = {}
        for thread, call in re.findall(r"^(\d+) +(\w+)\(", log.read_text(errors="replace"), re.MULTILINE):
            found.setdefault(thread, []).append(call)
        return max(found.values(), key=len, default=[])


ROOM = 2 << 30  # bytes: more than any of it needs


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of its own at `folder`, in memory; OSError where this user, or this container, may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)], capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise OSError("there is no `mount`") from error
    if done.returncode:
        raise OSError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize_disk(folder: Path, size: int) -> None:
    """Gives the disk at `folder` so many bytes, in whole pages."""
    subprocess.run(["mount", "-o", f"remount,size={max(size, 4096)}", str(folder)], check=True)


def _held_by(folder: Path) -> int:
    facts = os.statvfs(folder)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


@contextlib.contextmanager
def traced(process: int, *options: str) -> Iterator[None]:
    """strace on a process that has stopped itself, and on all that it starts; the process goes on."""
    end = time.monotonic() + 30
    while "State:\tT" not in Path(f"/proc/{process}/status").read_text() and time.monotonic() < end:
        time.sleep(0.005)  # a signal to go on that came before the stop would be lost
    given = options if "-o" in options else (*options, "-o", os.devnull)
    tracer = subprocess.Popen([str(STRACE), "-f", "-qq", "-e", f"trace={CALLS}", *given, "-p", str(process)])
    try:
        while "TracerPid:\t0\n" in Path(f"/proc/{process}/status").read_text() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(process, signal.SIGCONT)
        yield
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            tracer.wait(10)
        tracer.kill()
        tracer.wait()


def end_session(leader: int) -> None:
    """Kills all processes of a session, and returns when they are gone."""
    end = time.monotonic() + 60
    while members := [process for process in psutil.pids() if _session_of(process) == leader]:
        for process in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        assert time.monotonic() < end, members
        time.sleep(0.01)
    # DVC takes a dead process whose new parent has not asked for it yet for one that runs, and its lock for held.
    end = time.monotonic() + 10
    while any(_session_of(process, dead=True) == leader for process in psutil.pids()) and time.monotonic() < end:
        time.sleep(0.01)


def _session_of(process: int, *, dead: bool = False) -> int:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] == "Z" and not dead else int(fields[3])


# --- what is there ----------------------------------------------------------------------------------------------------

# Code, a memory that only saves a look, and what is kept of earlier runs under the digest of its contents: by DVC, and by `source`, which
# finds nothing to keep in a run that nothing went before.
LEFT_OUT = re.compile(
    r"^(src|pipelines|\.git|\.dvc/cache|\.dvc/tmp|\.frostline/earlier)/|(^|/)__pycache__/|\.pyc$|^\.frostline/mlflow-revision\.json$"
)
# Only their names are compared: locks, times, memories, and databases, whose rows are looked at instead.
# How long something took is known of what this very process did.
# A promotion that was broken off has used the test split, too, and says so.
FREE = re.compile(r"seconds|\.phases\.|achieved_over_limit|trials_per_minute|test_uses$|split_uses$")
NAMES_ALONE = re.compile(r"\.(lock|owner|db)$|^\.frostline/(runs/.*\.json|survey\.json|project)$|^mlflow\.db")


def state_of(folder: Path) -> State:
    """All that is in a project, as short texts by name: files, values of records, runs, versions, aliases and trials."""
    state: State = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if not LEFT_OUT.search(name) and not name.startswith("mlruns/"):
            state |= {f"file/{name}": ""} if NAMES_ALONE.search(name) else _content_of(f"file/{name}", path)
    state |= {f"folder/{path.relative_to(folder)}": "" for path in (folder / ".frostline").glob("unfinished/*")}
    if (folder / "mlflow.db").is_file():
        state |= _store_of(folder)
    for path in sorted((folder / "studies").glob("*.db")):
        state |= _study_of(path)
    return state


def _content_of(name: str, path: Path) -> State:
    if path.suffix == ".json":
        return {f"{name}:{key}": value for key, value in _leaves_of(json.loads(path.read_text(encoding="utf-8")))}
    return {name: sha256_of(path)}


def _leaves_of(record: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(record, dict) and record:
        for key, value in record.items():
            yield from _leaves_of(value, f"{place}.{key}")
    elif isinstance(record, list) and record and isinstance(record[0], (dict, list)):
        for index, value in enumerate(record):
            yield from _leaves_of(value, f"{place}[{index}]")
    else:
        yield place, json.dumps(record)


def _store_of(folder: Path) -> State:
    """Runs by kind and name, with all that they hold; versions and aliases; files of the store that nothing leads to."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        ask = database.execute
        state = {"mlflow.db/integrity": ask("pragma integrity_check").fetchone()[0]}
        known: list[Path] = []
        seen: Counter[str] = Counter()
        rows = ask("select run_uuid, name, status, lifecycle_stage, artifact_uri from runs order by start_time")
        for run_id, name, status, stage, uri in rows.fetchall():
            if stage == "active":
                known.append(_place_of(uri).parent)
                facts = {f"tag/{key}": value for key, value in _pairs(ask, "tags", run_id)}
                facts |= {f"param/{key}": value for key, value in _pairs(ask, "params", run_id)}
                facts |= {f"metric/{key}": str(value) for key, value in _pairs(ask, "latest_metrics", run_id)}
                kind = "killed" if status == "KILLED" and "tag/frostline.trial" not in facts else "run"
                label = f"{kind}/{facts.get('tag/frostline.kind')}/{name}"
                seen[label] += 1
                steps = "select key, count(*) from metrics where run_uuid = ? and key like 'epoch/%' group by key"
                facts |= {f"steps/{key}": str(count) for key, count in ask(steps, (run_id,)).fetchall()}
                facts |= {
                    "datasets": str(ask("select count(*) from inputs where destination_id = ?", (run_id,)).fetchone())
                }
                facts |= {"status": status, **_files_of(_place_of(uri))}
                state |= {f"{label}/{seen[label]}/{key}": value for key, value in facts.items()}
        rows = ask("select name, status, lifecycle_stage, artifact_location, model_id from logged_models")
        for name, status, stage, uri, model_id in rows.fetchall():
            if stage == "active":  # of a deleted one MLflow keeps the row, and we nothing
                known.append(_place_of(uri).parent)
                seen[f"model/{name}/{status}"] += 1
                tags = ask("select tag_key, tag_value from logged_model_tags where model_id = ?", (model_id,))
                state |= {f"model/{name}/{status}/tag/{key}": str(value) for key, value in tags.fetchall()}
        state |= {label: str(number) for label, number in seen.items() if label.startswith("model/")}
        for alias, version, name in ask("select alias, version, name from registered_model_aliases"):
            state[f"alias/{name}/{alias}"] = str(version)
        for name, version, status in ask("select name, version, status from model_versions"):
            state[f"version/{name}/{version}"] = str(status)
        for number, (key, value, name) in enumerate(
            ask("select key, value, name from registered_model_tags order by key")
        ):
            moved = json.loads(value) | {"at": "", "who": ""} if key.startswith("frostline.mov") else value
            state[f"model/{name}/{number}/{re.sub('[0-9]{20}', '', key)}"] = str(moved)
        for key, value, name, version in ask("select key, value, name, version from model_version_tags"):
            state[f"version/{name}/{version}/{key}"] = str(value)
    for path in (folder / "mlruns").rglob("*"):
        if path.is_file() and path.name != ".gitkeep" and not any(path.is_relative_to(place) for place in known):
            state[f"stray/{path.relative_to(folder)}"] = ""
    return state


def _pairs(ask: Callable[..., sqlite3.Cursor], table: str, run_id: str) -> list[tuple[str, Any]]:
    return ask(f"select key, value from {table} where run_uuid = ?", (run_id,)).fetchall()


def _files_of(place: Path) -> State:
    found: State = {}
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        found |= _content_of(f"artifact/{path.relative_to(place)}", path)
    return found


def _place_of(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def _study_of(path: Path) -> State:
    """The trials of a study that count, by their number; how many of each state there are."""
    state: State = {}
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{path}")
    for trial in study.get_trials(deepcopy=False):
        if "record" in trial.user_attrs:
            record = json.loads(trial.user_attrs["record"])
            label = f"study/{path.stem}/trial {record['number']}"
            assert f"{label}.number" not in state, f"{label} is there twice"
            state |= {f"{label}{key}": value for key, value in _leaves_of(record)}
        elif trial.state.name in ("RUNNING", "WAITING"):
            state[f"study/{path.stem}/{trial.state.name}"] = str(trial.number)
    return state


# --- the victims, from one small line -----------------------------------------------------------------------------------

OUTS = {
    "source": (),
    "fetch": (),
    "prepare": ("data/prepared",),
    "augment": ("data/views",),
    "extract": ("data/features",),
    "tune": ("reports/tune",),
    "refit": ("models",),
    "evaluate": ("reports/evaluation",),
    "register": ("reports/registration.json",),
}
PROJECT = "project"
LIGHT_STAGES = ("source", "fetch", "prepare", "augment")
STAGES = {name: Victim(name, (f"pipelines/{name}.py",), outs) for name, outs in OUTS.items()}
JAX = {"KERAS_BACKEND": "jax"}  # of the processes that a command starts itself; it is up in a fifth of the time
PRETRAIN = (
    "pretrain generated --out own --option alpha=0.35 --image-size 32 --epochs 2 --classes 4 --images-per-class 12"
)
SCREEN = "screen --candidate MobileNetV2,weights=random,alpha=0.35 --size 32 --sample 50"
# More minutes than it takes, or its pace would choose what is searched.
TRAIN = "train photos --candidate custom,weights=tiny.keras --minutes 600"
COMMANDS = {
    "tune, two workers": Victim(
        "tune, two workers", STAGES["tune"].command, OUTS["tune"], loose=True, calls=False, environment=JAX
    ),
    "promote": Victim("promote", ("frostline", "promote", "--force", "--reason", "a test"), environment=JAX),
    "clean": Victim("clean", ("frostline", "clean", "--older-than", "0", "--yes")),
    "pretrain": Victim("pretrain", ("frostline", *PRETRAIN.split(), "--batch-size", "8")),
    "screen": Victim("screen", ("frostline", *SCREEN.split())),
    "monitor": Victim("monitor", ("frostline", "monitor", "new", "--version", "1")),
    "train": Victim("train", ("frostline", *TRAIN.split()), calls=False, environment=JAX),
}
VICTIMS = {**STAGES, **COMMANDS}
SMALL: dict[str, Any] = {
    "fetch": {"source": "generated", "images_per_class": 12},
    "base": {"name": "custom", "weights": "tiny.keras", "image_size": 32, "output_layer": None, "options": {}},
    "augment": {"views": 3},
    "tune": {"num_trials": 4, "epochs": 2, "pruning": "none"},
    "refit": {"folds": 2, "candidates": 1},
    "evaluate": {"resamples": 100, "worst_mistakes": 4, "explained": 2},
    "promote": {"min_test_images": 5, "max_latency_ms": 1e6, "max_ece": 1.0},
    "tracking": {"uri": None},
}


def make_project(folder: Path, **changes: Any) -> None:
    """A project with the code of this repository, small params and a base of three convolutions."""
    from ruamel.yaml import YAML

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("src", "pipelines"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "locks", folder / "locks")
    shutil.copy(ROOT / "dvc.yaml", folder)
    document = YAML(typ="safe", pure=True).load(ROOT / "presets" / "default.yaml")
    for section, values in SMALL.items():
        document[section] |= values
    document["tune"]["space"]["unfrozen_blocks"] = [0, 1]
    save_params(folder, document)
    make_base(folder / "tiny.keras")


def save_params(folder: Path, document: Mapping[str, Any]) -> None:
    (folder / "params.yaml").write_text(json.dumps(document), encoding="utf-8")  # which is YAML, too


def change_params(folder: Path, section: str, **values: Any) -> None:
    document = json.loads((folder / "params.yaml").read_text(encoding="utf-8"))
    document[section] |= values
    save_params(folder, document)


def make_base(path: Path) -> None:
    """A `.keras` file with three convolutions, each after the first a block of its own."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((32, 32, 3))
    for block, filters in enumerate((8, 16, 32)):
        options = {"padding": "same", "activation": "relu", "kernel_initializer": "he_normal"}
        x = layers.MaxPooling2D(name=f"pool{block}")(layers.Conv2D(filters, 3, name=f"conv{block}", **options)(x))
    keras.Model(inputs, x).save(path)


def make_templates(nursery: Nursery, folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The project as it is before each victim runs, which is to be in `folder / PROJECT`, as MLflow's rows say.

    The line runs as far as these need it.
    """
    line, order = folder / PROJECT, list(STAGES)
    ran = {name: order.index(name) for name in order} | {"tune, two workers": order.index("tune")}
    ran |= {"pretrain": order.index("prepare"), "screen": order.index("prepare")}
    ran |= {"promote": len(order), "clean": len(order), "monitor": len(order), "train": 0}
    templates = {name: folder / "templates" / re.sub(r"\W+", "-", name) for name in names}

    def run(stage: str) -> None:
        nursery.wait_for_quiet()
        nursery.start(STAGES[stage].command, line, {}, stopped=False)
        assert nursery.wait() == 0, log_of(line).read_text()[-3000:]

    make_project(line)
    create_database(line / "mlflow.db", line)  # that takes seconds, and a kill of it has tests of its own
    for place in range(max(ran[name] for name in names) + 1):
        for name in (name for name in names if ran[name] == place):
            if name == "clean":
                _leave_behind(line, run)
            if name == "train":
                _make_clone(templates[name])
                shutil.copy(line / "mlflow.db", templates[name])
            else:
                shutil.copytree(line, templates[name], symlinks=True)
        if place < max(ran[name] for name in names):
            run(order[place])
    if monitored := templates.get("monitor"):
        write_target(monitored / "new", 4, 48, 8)
    if two := templates.get("tune, two workers"):
        change_params(two, "tune", workers=2, num_trials=6)
    return templates


def _make_clone(folder: Path) -> None:
    """All that git knows, as `dvc repro` needs it, with small defaults and a folder of images, on which nothing has run."""
    from test_line import start_project

    project = start_project(folder)
    default = folder / DEFAULT
    small = {"base.image_size": 32, "evaluate.resamples": 100, "evaluate.worst_mistakes": 4, "evaluate.explained": 2}
    text = apply_settings(default.read_text(encoding="utf-8"), {**small, "tracking.uri": None})
    for path in (default, folder / "params.yaml"):
        path.write_text(text, encoding="utf-8")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "-m", "start")
    make_base(folder / "tiny.keras")
    write_target(folder / "photos", 12, 48, 7)


def _leave_behind(line: Path, run: Callable[[str], None]) -> None:
    """A study that nothing leads to, and work that was not finished."""
    for epochs in (1, 3):
        change_params(line, "tune", epochs=epochs)
        run("tune")
    work = line / ".frostline" / "unfinished" / "extract-0000"
    work.mkdir(parents=True)
    (work / "view-000.npy").write_bytes(bytes(1000))
