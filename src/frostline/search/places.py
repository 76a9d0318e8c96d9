"""Where a study is kept: a file of this project, or a database that several machines share."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import optuna
from optuna.trial import FrozenTrial, Trial

from frostline.errors import Refused
from frostline.files import digest_facts, load_json, remove_abandoned, replacing, require_complete
from frostline.params import Params
from frostline.process import lives, locked
from frostline.search.steady import load_steady
from frostline.tracking.owners import is_gone, is_own, owner_tags
from frostline.tracking.postgres import (
    CONNECT,
    advisory_lock,
    call_patiently,
    database_url,
    read_clock,
    refuse_unusable,
    shown_address,
)

SIGNED = "signed"  # of a trial: its number among those that count, and the process that works on it
BEAT = "beat"  # of a trial in a database: when its process last said that it works on it, by the database's clock
BEAT_S = 15.0
# After so long without a beat a trial is given to another. All beat again within this time of a restart of the database.
GRACE_S = 120.0
CODE = "code"  # of a study: the digest of its trials' code; the last thing that is written of a new one
T = TypeVar("T")


@dataclass(frozen=True)
class StudyFile:
    """A study on disk: one SQLite database, with a lock file beside it. Its processes are of this machine, their parent is `tune`."""

    path: Path
    digest: str
    timeout_s: float = 60.0

    def load(self) -> optuna.Study:
        """The study; several processes may hold it at once."""
        return load_steady(self.digest, _storage(self.path, self.timeout_s))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A short exclusive hold among the study's processes: drawing a trial depends on how many there are."""
        with locked(self.path.with_suffix(".lock")):
            yield

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns; a file is never away."""
        return function()

    def read(self, look: Callable[[optuna.Study], T]) -> T:
        """What a function says of the study."""
        return look(self.load())

    def prepare(self) -> None:
        """Makes the place for studies; what killed creations left goes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.path.parent)

    def exists(self) -> bool:
        return self.path.exists()

    def create(self, facts: Mapping[str, Any]) -> None:
        """A new study, whole or not at all, with these attributes."""
        # Two processes that create the tables at once kill each other, and a kill in between leaves half a schema.
        with replacing(self.path) as temporary:
            storage = _storage(temporary, self.timeout_s)
            study = optuna.create_study(study_name=self.digest, storage=storage, direction="maximize")
            for key, value in facts.items():
                study.set_user_attr(key, value)
            storage.engine.dispose()

    def put_aside(self) -> None:
        """Gives the study another name, under which nobody looks for it."""
        self.path.rename(self.path.with_name(f"{self.digest}.until-{int(self.path.stat().st_mtime)}.db"))

    def list_earlier(self) -> list["StudyFile"]:
        """The other studies, the one that was written to last first."""
        files = [path for path in self.path.parent.glob("*.db") if path.stem != self.digest and "." not in path.stem]
        files.sort(key=lambda path: (-path.stat().st_mtime_ns, path.name))
        return [StudyFile(path, path.stem) for path in files]

    def sign(self, trial: Trial, number: int) -> None:
        """Writes down which of the trials that count this is, and who works on it."""
        trial.set_user_attr(SIGNED, [number, os.getpid()])

    def beating(self, trial: Trial) -> AbstractContextManager[None]:
        """Nothing: whether a process of this machine lives can be seen."""
        return nullcontext()

    def judge(self, *, alone: bool = False) -> Callable[[FrozenTrial], bool]:
        """Tells of an open trial whether nobody works on it; `alone` says that nobody can."""
        return lambda trial: alone or not lives(trial.user_attrs.get(SIGNED, (0, -1))[1])


@dataclass(frozen=True)
class StudyServer:
    """A study in the database of the environment, whose address is held by no object of ours.

    experiment: MLflow's, so that copies of one project share their studies and others do not; patience_s: how long the database is
    waited for while it is away.
    """

    experiment: str
    digest: str
    patience_s: float

    @property
    def name(self) -> str:
        return f"{self.experiment}/{self.digest}"

    def load(self) -> optuna.Study:
        """The study; KeyError where there is none."""
        return load_steady(self.name, self._storage)

    @property
    def _storage(self) -> optuna.storages.RDBStorage:
        if (url := database_url()) is None:
            raise Refused(
                "FROSTLINE_STUDY_URL is not set here, and the study is in PostgreSQL. Every machine needs it in its environment; of Ray's "
                "nodes that is the environment of `ray start`."
            )
        return _server_storage(url)

    def locked(self) -> AbstractContextManager[None]:
        """A short exclusive hold among all machines' processes."""
        return advisory_lock(f"study {self.name}")

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns, called again while the database is away: it may have been done in part before."""
        return call_patiently(function, self.patience_s)

    def read(self, look: Callable[[optuna.Study], T]) -> T:
        """What a function says of the study, asked again while the database is away."""
        return self.call(lambda: look(self.load()))

    def prepare(self) -> None:
        """Makes Optuna's tables, unless they are there. Refused where the database cannot be used."""
        refuse_unusable()
        # As with a file; but here what a kill left half is completed the next time.
        try:
            with advisory_lock("study tables"):
                optuna.storages.RDBStorage(_template_of(str(database_url())), _engine_options()).engine.dispose()
        except RuntimeError as error:  # the tables are of another Optuna; it says what to do
            raise Refused(f"{shown_address()}: {error}") from error

    def exists(self) -> bool:
        return self.name in optuna.get_all_study_names(self._storage) and CODE in self.load().user_attrs

    def create(self, facts: Mapping[str, Any]) -> None:
        """A new study with these attributes; the last of them, `code`, says that it is whole."""
        study = optuna.create_study(
            study_name=self.name, storage=self._storage, direction="maximize", load_if_exists=True
        )
        for key in sorted(facts, key=lambda key: key == CODE):
            study.set_user_attr(key, facts[key])

    def put_aside(self) -> None:
        """Copies the study to another name, under which nobody looks for it. Refused where trials of it run on other machines."""
        if running := self.load().get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            raise Refused(
                f"Study {self.digest} cannot be put aside (tune.when_code_changed: restart): {len(running)} of its trials run "
                "elsewhere. End those workers first."
            )
        aside = f"{self.name}.until-{int(time.time())}"
        optuna.copy_study(
            from_study_name=self.name, from_storage=self._storage, to_storage=self._storage, to_study_name=aside
        )
        optuna.delete_study(study_name=self.name, storage=self._storage)

    def list_earlier(self) -> list["StudyServer"]:
        """The other studies of this project, the one that began last first."""
        begun = [
            (study.datetime_start, digest)
            for digest, study in _list_summaries(self.experiment)
            if study.datetime_start and digest != self.digest
        ]
        return [StudyServer(self.experiment, digest, self.patience_s) for _, digest in sorted(begun, reverse=True)]

    def sign(self, trial: Trial, number: int) -> None:
        """Writes down which of the trials that count this is, and who works on it; locked."""
        trial.set_user_attr(BEAT, read_clock()[0])
        trial.set_user_attr(SIGNED, [number, owner_tags()])

    @contextmanager
    def beating(self, trial: Trial) -> Iterator[None]:
        """Says every BEAT_S seconds, while the block runs, that somebody works on the trial."""
        done = Event()

        def beat() -> None:
            while not done.wait(BEAT_S):
                # The database may be away, which the worker itself waits for, or the trial may be another's now.
                with suppress(Exception):
                    trial.storage.set_trial_user_attr(trial._trial_id, BEAT, read_clock()[0])

        Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def judge(self, *, alone: bool = False) -> Callable[[FrozenTrial], bool]:
        """Tells of an open trial whether nobody works on it; asked by a process that works on none, and locked."""
        now, since = read_clock()

        def is_abandoned(trial: FrozenTrial) -> bool:
            if SIGNED not in trial.user_attrs:  # whoever drew it held the lock, and was gone before it had signed
                return True
            owner = trial.user_attrs[SIGNED][1]
            return is_own(owner) or is_gone(owner) or now - max(trial.user_attrs[BEAT], since) > GRACE_S

        return is_abandoned


Place = StudyFile | StudyServer


def find_place(folder: Path, digest: str, params: Params) -> Place:
    """Where this project's studies are kept: in the database that the environment names, else in `folder`."""
    if database_url() is None:
        return StudyFile(folder / f"{digest}.db", digest)
    return StudyServer(params.tracking.experiment, digest, params.tracking.patience_s)


def list_studies(params: Params) -> list[tuple[str, Mapping[str, Any]]]:
    """(digest, attributes) of each study of this project in the database of the environment, the last made first.

    Refused where there is no database.
    """
    _require_database()
    with suppress(optuna.exceptions.StorageInternalError):  # a database without tables
        known = sorted(_list_summaries(params.tracking.experiment), key=lambda each: -each[1]._study_id)
        return [(digest, study.user_attrs) for digest, study in known]
    return []


def require_server(digest: str, params: Params) -> StudyServer:
    """The study that runs in the database of the environment. Refused where there is none."""
    _require_database()
    place = StudyServer(params.tracking.experiment, digest, params.tracking.patience_s)
    with suppress(KeyError, optuna.exceptions.StorageInternalError):  # of the latter kind is a database without tables
        if place.exists():
            return place
    raise Refused(
        f"{shown_address()} has no study {place.name} of what this folder holds. Start `dvc repro tune` first; data, features and "
        "params.yaml have to be the same here as there."
    )


def digest_of(params: Params) -> str:
    """The name of the study that these params and the data of this folder mean; their number and the code are not part of it."""
    paths = params.paths
    prepared, views = require_complete(Path(paths.prepared)), require_complete(Path(paths.views))
    require_complete(Path(paths.features))
    facts = {
        "prepared": prepared,
        "recipe": views,
        "features": load_json(Path(paths.features) / "features.json"),
        "base": load_json(Path(paths.base) / "card.json"),
        "tune": params.tune.model_dump(mode="json", exclude={"num_trials", "workers", "when_code_changed"}),
        "seed": params.seed,
    }
    return digest_facts(facts)


def _require_database() -> None:
    if database_url() is None:
        raise Refused(
            "A worker joins a study in PostgreSQL: set FROSTLINE_STUDY_URL as for `tune`. On one machine tune.workers starts more."
        )
    refuse_unusable()


def _list_summaries(experiment: str) -> list[tuple[str, optuna.study.StudySummary]]:
    """The digest and what Optuna says of each study of an experiment that nobody put aside."""
    known = optuna.get_all_study_summaries(_server_storage(str(database_url())), include_best_trial=False)
    parts = [(study.study_name.rpartition("/"), study) for study in known]
    return [(digest, study) for (name, _, digest), study in parts if name == experiment and "." not in digest]


def _storage(path: Path, timeout_s: float) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": timeout_s}})


@cache
def _server_storage(url: str) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(_template_of(url), _engine_options(), skip_table_creation=True)


def _template_of(url: str) -> str:
    return url.replace("{", "{{").replace("}", "}}")  # Optuna fills braces in


def _engine_options() -> dict[str, Any]:
    # One connection for each process, and one more while the beat's thread writes: a database takes a hundred by default.
    return {"pool_pre_ping": True, "pool_size": 1, "max_overflow": 2, "connect_args": CONNECT}
