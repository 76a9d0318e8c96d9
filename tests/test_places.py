"""A study in PostgreSQL, from several machines; and what is refused where there is none."""

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from machine import EXPERIMENT, be_quick, make_tune, work
from optuna.trial import TrialState
from samples import make_trial
from servers import Cluster, cluster
from test_search import ABOUT, run, run_trained

from frostline.errors import Refused, redact
from frostline.search import places
from frostline.search.places import SIGNED, StudyFile, StudyServer, find_place, list_studies, require_server
from frostline.search.starts import find_starts
from frostline.search.study import (
    announce,
    close_stopped,
    draw,
    finish,
    list_killed,
    list_records,
    list_rungs,
    open_study,
    wait_for_all,
)
from frostline.tracking import postgres

MACHINE = Path(__file__).with_name("machine.py")


@pytest.fixture(scope="module")
def services() -> Iterator[Cluster]:
    with cluster("postgres") as made:
        yield made


@pytest.fixture
def database(services: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    for name, value in services.environment.items():
        monkeypatch.setenv(name, value)
    return services


@pytest.fixture
def place(database: Cluster, request: pytest.FixtureRequest) -> StudyServer:
    """A new study, named after the test."""
    made = StudyServer(EXPERIMENT, re.sub(r"\W", "-", request.node.name), 60.0)
    open_study(made, "c", "ask")
    return made


def numbers(place: StudyServer, num_trials: int = 1000) -> list[int]:
    return [record.number for record in place.read(lambda study: list_records(study, num_trials))]


class Machine:
    """Another machine's process."""

    def __init__(self, name: str, place: StudyServer, num_trials: int, seconds: float) -> None:
        command = [sys.executable, str(MACHINE), name, place.digest, str(num_trials), str(seconds)]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the process has ended
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, text=True)

    def begin(self) -> int:
        """The number of the next trial that it begins with."""
        return int(self.process.stdout.readline())

    def end(self) -> tuple[str, str]:
        """What it said since, until it ended by itself, and all that it said as errors."""
        said = self.process.stdout.read()  # not `communicate`, which leaves out what was read ahead
        self.process.wait(120)
        self.errors.seek(0)
        errors = self.errors.read()
        assert self.process.returncode == 0, errors
        return said, errors


def test_a_killed_machine_and_a_database_that_restarts_lose_nothing_and_double_nothing(
    place: StudyServer, services: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_quick(monkeypatch.setattr)
    victim, other = (Machine(f"node-{number}", place, 8, seconds) for number, seconds in enumerate((60.0, 0.5)))
    lost = victim.begin()
    victim.process.send_signal(signal.SIGKILL)
    victim.process.wait()
    begun = [other.begin()]
    services.down("postgres")
    time.sleep(1)
    services.up("postgres")
    said, errors = other.end()
    begun += map(int, said.split())
    # As `tune` does at the end.
    while not wait_for_all(place, 8):
        work(place, 8, 0.0)
    assert numbers(place) == list(range(8))
    assert len(begun) == len(set(begun)) and set(begun) | {lost} == set(range(8))
    killed = [trial for trial in place.read(list_killed) if trial.params]  # the others broke off before they had begun
    assert [trial.user_attrs[SIGNED][0] for trial in killed] == [lost]
    (again,) = (trial for trial in place.load().get_trials() if trial.params == killed[0].params and trial.values)
    assert again.user_attrs[SIGNED][0] == lost  # with what it had drawn
    assert {trial.state for trial in place.load().get_trials()} == {TrialState.COMPLETE, TrialState.FAIL}
    assert "does not answer" in errors and "is back after" in errors and "Traceback" not in errors
    assert services.environment["FROSTLINE_STUDY_URL"].split("@")[0] not in errors


def test_who_is_taken_for_dead_while_it_lives_gives_its_result_up(
    place: StudyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune, study = make_tune(3), place.load()
    old, number = draw(place, study, tune, 7) or pytest.fail()
    old.set_user_attr(SIGNED, [number, {"frostline.boot": "of another machine"}])
    assert draw(place, study, tune, 7)[1] == 1  # it has just said that it works
    with monkeypatch.context() as patch:
        patch.setattr(places, "GRACE_S", -1.0)
        new, again = draw(place, study, tune, 7) or pytest.fail()
    assert again == number == 0
    assert not finish(place, old, make_trial(0, score=0.1))
    assert finish(place, new, make_trial(0, score=0.9)) and finish(place, new, make_trial(0, score=0.9))
    assert [(record.number, record.score) for record in list_records(study, 3)] == [(0, 0.9)]
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        old.report(0.5, 1)


def test_two_that_drew_one_number_leave_one_record(place: StudyServer) -> None:
    """As where the database restarts in the moment in which one draws: the lock is lost then."""
    tune, study = make_tune(3), place.load()
    drawn = []
    for _ in range(2):
        trial, _ = draw(place, study, tune, 7) or pytest.fail()
        trial.set_user_attr(SIGNED, [0, {"frostline.boot": "of another machine"}])
        drawn.append(trial)
    one, two = drawn
    assert finish(place, two, make_trial(0, score=0.2))
    assert not finish(place, one, make_trial(0, score=0.1))
    assert [record.score for record in list_records(study, 3)] == [0.2]


def test_after_a_restart_of_the_database_nobody_is_taken_for_dead_at_once(
    place: StudyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, _ = draw(place, place.load(), make_tune(3), 7) or pytest.fail()
    trial.set_user_attr(SIGNED, [0, {"frostline.boot": "of another machine"}])
    frozen = place.load().get_trials()[0]
    later = postgres.read_clock()[0] + 10 * places.GRACE_S
    monkeypatch.setattr(places, "read_clock", lambda: (later, later - 1))
    assert not place.judge()(frozen)
    monkeypatch.setattr(places, "read_clock", lambda: (later, 0.0))
    assert place.judge()(frozen)


def test_what_an_attempt_left_that_broke_off_is_drawn_again(place: StudyServer) -> None:
    study, tune = place.load(), make_tune(3)
    study.ask()  # the connection went before it was signed
    draw(place, study, tune, 7)  # and this one's answer was lost
    trial, number = draw(place, study, tune, 7) or pytest.fail()
    assert number == 0 and trial.number == 2
    assert [trial.state.name for trial in study.get_trials()] == ["FAIL", "FAIL", "RUNNING"]
    close_stopped(place)
    assert study.get_trials()[2].state == TrialState.FAIL


def test_killed_and_gone_on_with_a_study_in_a_database_has_the_trials_of_one_on_disk(
    place: StudyServer, tmp_path: Path
) -> None:
    file, tune = open_study(StudyFile(tmp_path / "d.db", "d"), "c", "ask"), make_tune(9)
    run(file, tune)
    run(place, tune, die_at=4)
    open_study(place, "c", "ask")
    run(place, tune)
    assert list_records(place.load(), 9) == list_records(file.load(), 9)
    run(place, make_tune(11))
    assert numbers(place) == list(range(11)) and numbers(place, 9) == list(range(9))


def test_changed_code_is_asked_about_and_an_old_study_put_aside(place: StudyServer) -> None:
    run(place, make_tune(3))
    with pytest.raises(Refused, match="when_code_changed"):
        open_study(place, "new", "ask")
    open_study(place, "new", "keep")
    assert numbers(place) == [0, 1, 2]
    trial, _ = draw(place, place.load(), make_tune(5), 7) or pytest.fail()
    trial.set_user_attr(SIGNED, [3, {"frostline.boot": "of another machine"}])
    with pytest.raises(Refused, match="1 of its trials run elsewhere"):
        open_study(place, "newer", "restart")
    trial.set_user_attr(SIGNED, [3, {}])
    finish(place, trial, make_trial(3))
    open_study(place, "newer", "restart")
    assert numbers(place) == []
    aside = [name for name in optuna.get_all_study_names(place._storage) if name.startswith(f"{place.name}.until-")]
    assert len(aside) == 1 and len(list_records(optuna.load_study(study_name=aside[0], storage=place._storage), 9)) == 4


def test_a_study_begins_with_the_best_of_the_last_one_of_its_project(place: StudyServer) -> None:
    tune = make_tune(6, epochs=4)
    first, other = StudyServer("mine", "a" * 16, 60.0), StudyServer("theirs", "f" * 16, 60.0)
    for earlier in (first, other):
        open_study(earlier, "c", "ask", about=ABOUT)
        run_trained(earlier, tune)
    second = StudyServer("mine", "b" * 16, 60.0)
    (start,) = find_starts(second, ABOUT, tune.space, 1)
    assert start.origin.startswith("a" * 16)
    assert find_starts(StudyServer("nobody's", "c" * 16, 60.0), ABOUT, tune.space, 1) == []


def test_halving_judges_a_trial_by_those_of_other_machines_that_came_so_far(place: StudyServer) -> None:
    """Nobody waits for a rung to be full."""
    tune = make_tune(12, pruning="halving", epochs=8)
    stopped = []
    for score in (0.5, 0.6, 0.4, 0.9, 0.3):
        study = place.load()  # another process's
        trial, number = draw(place, study, tune, 7) or pytest.fail()
        trial.set_user_attr(SIGNED, [number, {"frostline.boot": "of another machine"}])
        trial.report(score, list_rungs(tune)[0])
        stopped.append(trial.should_prune())
    assert stopped == [False, False, True, False, True]
    assert len(place.load().get_trials(states=(TrialState.RUNNING,))) == 5


# --- without one, or with a wrong one ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["sqlite:///x.db", "postgresql://", "postgresql://me:hunter2@host:port/db", "hunter2"]
)
def test_what_is_no_address_is_refused_without_being_quoted(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(postgres.VARIABLE, address)
    with pytest.raises(Refused, match="FROSTLINE_STUDY_URL is no address") as refusal:
        postgres.database_url()
    assert "hunter2" not in str(refusal.value)


def test_a_password_is_taken_out_of_every_text_however_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(postgres.VARIABLE, "postgresql://me:hun/ter2%40home@host:5433/studies")
    assert postgres.shown_address() == "postgresql://host:5433/studies"
    assert redact("no hun/ter2%40home, no hun/ter2@home; postgresql://me:hun/ter2%40home@host") == (
        "no ***, no ***; postgresql://host"
    )


def test_a_machine_without_the_address_of_the_database_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(postgres.VARIABLE, raising=False)
    with pytest.raises(Refused, match=r"not set here.* environment of `ray start`"):
        StudyServer("e", "d", 1.0).load()


def test_a_database_that_does_not_answer_is_refused_before_any_work(
    tmp_path: Path, params_document: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frostline.params import parse_params

    monkeypatch.setenv(postgres.VARIABLE, "postgresql://me:hunter2-hunter2@127.0.0.1:9/studies")
    began = time.monotonic()
    with pytest.raises(Refused, match=r"postgresql://127\.0\.0\.1:9/studies cannot be used: .*Start it") as refusal:
        open_study(find_place(tmp_path, "d", parse_params(params_document)), "c", "ask")
    assert "hunter2" not in str(refusal.value) and "\n" not in str(refusal.value)
    assert time.monotonic() - began < 3 * postgres.ANSWER_S


def test_a_worker_without_a_study_is_told_what_is_missing(
    database: Cluster, params_document: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frostline.params import parse_params

    params = parse_params(params_document)
    with pytest.raises(Refused, match="has no study frostline/feed"):
        require_server("feed", params)
    place = StudyServer("frostline", "beef", 60.0)
    open_study(place, "c", "ask")
    announce(place, 5, "a run", ("a sha256", 7))
    job = {"num_trials": 5, "parent_run_id": "a run", "manifest": ["a sha256", 7]}
    assert require_server("beef", params).load().user_attrs["job"] == job
    open_study(StudyServer("frostline", "cafe", 60.0), "c", "ask")
    open_study(StudyServer("another", "f00d", 60.0), "c", "ask")
    assert [(digest, facts.get("job")) for digest, facts in list_studies(params)] == [("cafe", None), ("beef", job)]
    monkeypatch.delenv(postgres.VARIABLE)
    with pytest.raises(Refused, match="set FROSTLINE_STUDY_URL"):
        require_server("beef", params)
    with pytest.raises(Refused, match="set FROSTLINE_STUDY_URL"):
        list_studies(params)
