"""`frostline review`: the list, the page on the loopback, and the decisions that it writes."""

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from servers import running
from zoo import encode, make_image

from frostline.cli.review import make_review
from frostline.errors import Refused
from frostline.evidence.suspicion import Suspect, load_suspects, save_suspects
from frostline.files import sha256_of
from frostline.images.decisions import Decision, add_decisions, load_decisions, load_history
from frostline.images.preparation import prepare_images
from frostline.params import Prepare, load_params
from frostline.serving.review import ReviewServer

CLASSES = ("birds", "cats", "dogs")


@pytest.fixture
def project(tmp_path, root, monkeypatch):
    """A project after `evaluate`, as far as a review reads it; the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((root / "presets" / "default.yaml").read_text())
    (tmp_path / "dvc.yaml").touch()
    raw = tmp_path / "data/raw"
    for number, name in enumerate(CLASSES):
        (raw / name).mkdir(parents=True)
        for seed in range(20):
            (raw / name / f"{seed}.png").write_bytes(encode(make_image(100 * number + seed, 48, 40), "PNG"))
    prepare_images(raw, tmp_path / "data/prepared", Prepare(), size=32, seed=7, work=tmp_path / "w/x/y")
    names = {file: split for split in ("train", "val", "test") for file in _ids(tmp_path / "data/prepared" / split)}
    suspects = [
        Suspect(f"cats/{seed}.png", names[f"cats/{seed}.png"], "cats", "dogs", 0.01 * seed, 0.9, 0.1 * seed, seed < 3)
        for seed in range(5)
    ]
    save_suspects(tmp_path / "reports/evaluation/suspicious.csv", suspects)
    return tmp_path


def _ids(folder):
    return json.loads((folder / "ids.json").read_text())


def serving(review):
    return running(ReviewServer(review, "3 of 60 labels look wrong.", 0))


def ask(server, path, body=None, **headers):
    place = urlsplit(server.address)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
    if body is not None:
        headers = {"Content-Type": "application/json", **headers}
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer, text


def load_review(who="anna", count=3):
    suspects = load_suspects(Path("reports/evaluation/suspicious.csv"))
    return make_review(load_params(), suspects[:count], load_decisions(), who)


def test_the_list_has_what_looks_wrong_and_nobody_decided_about(project, run_cli):
    answer = run_cli("review", "--list")
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    assert lines[0] == (
        "3 of 5 labels look wrong, 0 of them were decided about. Of 5 images another class is likelier than the label; "
        "--limit 5 shows them all. Shown: 3."
    )
    assert lines[1] == "cats/0.png\tcats 0.000\tdogs 0.900" and len(lines) == 4
    add_decisions([Decision("cats/0.png", "keep")])
    answer = run_cli("review", "--list")
    assert "1 of them were decided about" in answer.out and "cats/0.png" not in answer.out
    assert "cats/0.png" in run_cli("review", "--list", "--again").out
    assert len(run_cli("review", "--list", "--limit", "4").out.splitlines()) == 5


def test_without_an_evaluation_it_says_what_to_do(project, run_cli):
    (project / "reports/evaluation/suspicious.csv").unlink()
    answer = run_cli("review")
    assert answer.code == 2 and "dvc repro" in answer.err


def test_the_page_shows_the_images_and_writes_decisions_by_whom(project):
    with serving(load_review()) as server:
        base = urlsplit(server.address).path
        answer, text = ask(server, base)
        assert answer.status == 200 and answer.headers["Referrer-Policy"] == "no-referrer"
        page = text.decode()
        assert (
            "3 of 60 labels look wrong." in page
            and page.count('class="card"') == 3
            and "http" not in page.replace("http-equiv", "")
        )
        answer, data = ask(server, f"{base}image/0")
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert answer.headers["Content-Type"] == "image/jpeg" and image.shape == (448, 448, 3)
        for row, kind, label in ((0, "relabel", "dogs"), (1, "drop", ""), (2, "keep", ""), (0, "relabel", "birds")):
            answer, text = ask(server, f"{base}decide", {"row": row, "decision": kind, "label": label})
            assert answer.status == 200, text
        assert '"decision": "drop"' in ask(server, base)[1].decode()  # a page that is loaded again knows
    rows = load_history()
    assert [(row.image_id, row.decision, row.label, row.was) for row in rows] == [
        ("cats/0.png", "relabel", "dogs", "cats"),
        ("cats/1.png", "drop", "", "cats"),
        ("cats/2.png", "keep", "", "cats"),
        ("cats/0.png", "relabel", "birds", "cats"),
    ]
    assert {row.who for row in rows} == {"anna"} and all(row.when.endswith("Z") for row in rows)
    assert rows[0].sha256 == sha256_of(project / "data/raw/cats/0.png")


def test_an_image_that_is_not_here_is_shown_as_it_was_prepared(project):
    (project / "data/raw/cats/0.png").unlink()
    with serving(load_review()) as server:
        answer, data = ask(server, f"{urlsplit(server.address).path}image/0")
    assert answer.status == 200
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (32, 32, 3)


def test_strangers_are_not_answered(project):
    with serving(load_review()) as server:
        base = urlsplit(server.address).path
        decision = {"row": 0, "decision": "drop", "label": ""}
        for path, headers in (
            ("/", {}),
            ("/image/0", {}),
            ("/AAAAAAAAAAAAAAAAAAAAAA/", {}),
            (base.rstrip("/"), {}),
            (base, {"Host": "evil.example"}),  # a page that lets its own name mean this machine
            (f"{base}image/../../params.yaml", {}),
            (f"{base}image/7", {}),
        ):
            assert ask(server, path, **headers)[0].status == 404, path
        assert ask(server, "/decide", decision)[0].status == 404
        assert ask(server, f"{base}decide", decision, **{"Content-Type": "text/plain"})[0].status == 404
        assert ask(server, f"{base}decide", b"x" * 20_000)[0].status == 413
    assert load_history() == []


@pytest.mark.parametrize(
    "given",
    [
        b"no json",
        [],
        {},
        {"row": 7, "decision": "drop", "label": ""},
        {"row": -1, "decision": "drop", "label": ""},
        {"row": 0, "decision": "burn", "label": ""},
        {"row": 0, "decision": "relabel", "label": "horses"},
        {"row": 0, "decision": "relabel", "label": None},
    ],
)
def test_what_is_no_decision_is_refused_and_not_written(project, given):
    with serving(load_review()) as server:
        answer, text = ask(server, f"{urlsplit(server.address).path}decide", given)
        assert answer.status == 400 and text
    assert load_history() == []


def test_an_image_that_was_relabelled_before_is_decided_about_by_its_first_class(project):
    """The table speaks of the source's classes, whatever `prepare` made of them."""
    suspect = Suspect("dogs/0.png", "train", "cats", "dogs", 0.01, 0.9, 0.1, True)
    before = {"dogs/0.png": Decision("dogs/0.png", "relabel", "cats", "dogs")}
    manifest = project / "data/prepared/manifest.csv"
    text = manifest.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("dogs/0.png,"))
    manifest.write_text(text.replace(line, line.replace(",dogs,", ",cats,", 1)))
    review = make_review(load_params(), [suspect], before, "anna")
    for kind, label in (("keep", ""), ("relabel", "dogs"), ("relabel", "birds")):
        review.decide({"row": 0, "decision": kind, "label": label})
    assert [(row.decision, row.label, row.was) for row in load_history()] == [
        ("relabel", "cats", "dogs"),
        ("keep", "", "dogs"),
        ("relabel", "birds", "dogs"),
    ]


def test_suspects_of_other_prepared_images_are_refused(project):
    suspects = [Suspect("cats/0.png", "train", "dogs", "cats", 0.1, 0.9, 0.1, True)]
    with pytest.raises(Refused, match="prepared anew"):
        make_review(load_params(), suspects, {}, "anna")


def test_of_very_many_classes_one_is_written_by_name(project):
    review = load_review()
    review.classes = [f"class {number}" for number in range(1000)]
    page = review.page("")
    assert page.count("<select") == 0 and page.count('<input list="classes"') == 3 and page.count("<option") == 1000


def test_what_a_file_is_called_is_no_markup(project):
    review = load_review()
    review.cards[0].suspect.__dict__["file"] = "<script>alert(1)</script>.png"
    assert "<script>alert" not in review.page("")


def test_the_command_serves_until_it_is_interrupted(project):
    code = "from frostline.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "review", "--no-open", "--who", "bo"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout.readline().startswith("3 of 5 labels look wrong")
        address = process.stdout.readline().split()[0]
        place = urlsplit(address)
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
        body = json.dumps({"row": 1, "decision": "drop", "label": ""})
        connection.request("POST", f"{place.path}decide", body, {"Content-Type": "application/json"})
        assert connection.getresponse().read() == b"cats/1.png: dropped"
        connection.close()
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=20)[0]
    finally:
        process.kill()
    assert process.returncode == 0 and "1 decided, in decisions.csv. Next: git add decisions.csv; dvc repro" in rest
    assert load_decisions()["cats/1.png"].who == "bo"
