"""What a run needs of its server is asked before anything is trained."""

from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException

from frostline.errors import Refused
from frostline.tracking import server
from frostline.tracking.server import artifact_problems, check_writing, refuse_server


class Client:
    """A server's client: its experiment, its registered model, and whether it knows logged models."""

    def __init__(self, location="mlflow-artifacts:/1", *, old=False, experiment="frostline", tags=(), model=None):
        self.old, self.model, self.written = old, model, []
        self.experiment = SimpleNamespace(name=experiment, artifact_location=location, tags=dict(tags))

    def search_logged_models(self, **options):
        if self.old:
            raise MlflowException(
                "API request to endpoint /api/2.0/mlflow/logged-models/search failed with error code 404\nHTML" * 9
            )
        return []

    def get_experiment(self, identifier):
        return self.experiment

    def set_experiment_tag(self, identifier, key, value):
        self.experiment.tags[key] = value

    def get_registered_model(self, name):
        if self.model is None:
            raise MlflowException("there is none")
        return SimpleNamespace(tags=self.model)

    def log_text(self, run_id, text, name):
        if self.old:
            raise OSError("no rights\n" + "x" * 1000)
        self.written.append(name)


def store_of(client, tmp_path, uri="http://server:5000"):
    return SimpleNamespace(client=client, uri=uri, shown_uri=uri, experiment_id="1", root=tmp_path)


def test_a_server_with_all_that_is_needed_passes_and_is_claimed(tmp_path):
    client = Client()
    refuse_server(store_of(client, tmp_path), "frostline")
    refuse_server(store_of(client, tmp_path), "frostline")
    assert client.experiment.tags == {"frostline.project": server.project_id(tmp_path)}


def test_an_old_server_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_server_version", lambda _: "2.22.0")
    with pytest.raises(Refused, match=r"MLflow 2\.22\.0.*Upgrade") as refusal:
        refuse_server(store_of(Client(old=True), tmp_path), "frostline")
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    ("location", "uri", "words"),
    [
        ("/srv/mlruns/1", "http://server:5000", "a folder of the server's machine"),
        ("file:///srv/mlruns/1", "http://server:5000", "--no-serve-artifacts"),
        ("./mlruns/1", "http://127.0.0.1:5000", "cannot be written"),
        ("s3://bucket/1", "http://server:5000", "needs the package"),
        ("mlflow-artifacts:/1", "http://server:5000", None),
        ("{tmp}/mlruns/1", "http://127.0.0.1:5000", None),
    ],
)
def test_artifacts_that_could_not_be_written_are_found(tmp_path, monkeypatch, location, uri, words):
    monkeypatch.setattr(server, "_is_missing", lambda _: True)
    problems = artifact_problems(location.format(tmp=tmp_path), uri)
    assert len(problems) == (words is not None)
    assert words is None or words in problems[0]


def test_two_projects_do_not_meet_under_the_default_names(tmp_path):
    client = Client(model={})
    refuse_server(store_of(client, tmp_path / "one"), "frostline")
    with pytest.raises(Refused, match=r"tracking\.experiment.*name of its own"):
        refuse_server(store_of(client, tmp_path / "two"), "cats")
    client = Client(experiment="cats", model={"frostline.project": "another's"})
    with pytest.raises(Refused, match=r"register\.name"):
        refuse_server(store_of(client, tmp_path / "two"), "frostline")
    # Under a name of its own, all copies of a project share what is there.
    client = Client(
        experiment="cats", model={"frostline.project": "another's"}, tags={"frostline.project": "another's"}
    )
    refuse_server(store_of(client, tmp_path / "two"), "cats")


def test_rights_are_tried_and_a_refusal_is_short(tmp_path):
    client = Client()
    check_writing(store_of(client, tmp_path), "1")
    assert client.written == ["write-check.txt"]
    with pytest.raises(Refused, match="not their files: no rights") as refusal:
        check_writing(store_of(Client(old=True), tmp_path), "1")
    assert len(str(refusal.value)) < 400


def test_a_database_beside_the_project_lacks_nothing(tmp_path):
    refuse_server(store_of(None, tmp_path, "sqlite:///x.db"), "frostline")
