"""Secrets are planted wherever they could be; what the stages write is looked through."""

import io
import os
import sqlite3
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from planted import ENVIRONMENT, MARK, STUDY, find_planted, plant
from servers import serving
from test_line import SMALL, start_project
from zoo import encode, make_image

from frostline.errors import find_secret, redact

SIGNED = f"/signed.zip?X-Amz-Signature={MARK}-signature"
LIGHT = ("source", "fetch", "prepare", "augment")  # these start no Keras; `test_line.py` looks at the others


class Bucket(BaseHTTPRequestHandler):
    """Asks for a token, and leads to a signed address."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == f"/images.zip?v=1&token={ENVIRONMENT['DATA_TOKEN']}":
            self.send_response(302)
            self.send_header("Location", f"{SIGNED}&X-Amz-Expires=60")
            self.end_headers()
        elif self.path.startswith(SIGNED):
            self.send_response(200)
            self.send_header("Content-Type", "application/zip")
            self.send_header("Content-Length", str(len(self.server.data)))
            self.end_headers()
            self.wfile.write(self.server.data)
        else:
            self.send_error(403)

    def log_message(self, *_: object) -> None:
        pass


def make_archive() -> bytes:
    """Two classes of ten images."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(20):
            archive.writestr(f"set/{'cats' if number % 2 else 'dogs'}/{number}.png", encode(make_image(number), "PNG"))
    return buffer.getvalue()


def test_what_is_planted_is_found(tmp_path):
    (tmp_path / "text").write_text(f"a token: {MARK}-x")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", 100 * " " + f"{MARK}-y" + 100 * " ")
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("create table runs (name text)")
        # So long that it lies on several pages.
        database.execute("insert into runs values (?)", ("-" * 4050 + f"{MARK}-z" + "-" * 9000,))
    np.save(tmp_path / "clean.npy", np.zeros(9))
    assert {found.split(":")[0].rsplit("/", 1)[1] for found in find_planted(tmp_path)} == {"text", "a.zip", "a.db"}


def test_no_stage_without_a_network_writes_a_secret(tmp_path: Path) -> None:
    project = start_project(tmp_path / "project")
    with serving(Bucket) as server:
        server.data = make_archive()
        address = server.url + "/images.zip?v=1&token=${DATA_TOKEN}"
        project.set({**SMALL, "fetch.source": address, "fetch.allow_private": True, "base.name": "MobileNetV2"})
        project.set({"base.weights": "random", "base.options": {"alpha": 0.35}})
        project.run("git", "add", "--all")
        project.run("git", "commit", "--quiet", "-m", "start")
        plant(project.folder)
        project.environment |= ENVIRONMENT | STUDY | {"DATA_TOKEN": f"{MARK}-wrong-token"}
        said = project.run("dvc", "repro", "augment", code=255)
        assert "the server answered 403" in said
        project.environment |= ENVIRONMENT
        said += project.run("dvc", "repro", "augment")
        said += project.frostline("check") + project.frostline("plan")
    assert [path.split("?")[0] for path in server.asked] == ["/images.zip", "/images.zip", "/signed.zip"]
    lock = (project.folder / "dvc.lock").read_text(encoding="utf-8")
    assert all(f"  {stage}:\n" in lock for stage in LIGHT) and "token=${DATA_TOKEN}" in lock
    assert MARK not in said
    assert find_planted(project.folder) == []


@pytest.mark.parametrize("query", ["apikey=x", "authtoken=x", "%74oken=x", "subscription-key=x", "v=1;sig=x"])
def test_secrets_under_other_names_are_seen(query):
    assert find_secret(f"https://host/a.zip?{query}")
    assert find_secret(f"https://host/a.zip#{query}")


@pytest.mark.parametrize("query", ["tokenizer=x", "monkey=x", "keyboard=x", "v=token", "expires=1"])
def test_other_words_are_no_secrets(query):
    assert find_secret(f"https://host/a.zip?{query}") is None


def test_the_environments_own_secrets_are_taken_out_of_every_text(monkeypatch):
    for name, value in {"SHOP_TOKEN": "f00-f00-f00", "SHORT_KEY": "abc", "SSH_KEY": "/home/me/key"}.items():
        monkeypatch.setenv(name, value)
    assert redact("401 for f00-f00-f00, abc, /home/me/key") == "401 for ***, abc, /home/me/key"


def test_a_mistake_of_ours_quotes_no_secret(tmp_path):
    script = tmp_path / "fetch.py"
    script.write_text(
        "import os\n"
        "from frostline.process import run_stage\n"
        "def main():\n"
        "    raise RuntimeError(' '.join(value for name, value in os.environ.items() if name != 'PATH'))\n"
        "run_stage('fetch', main)\n"
    )
    planted = {**os.environ, **ENVIRONMENT, **STUDY}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=planted, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "somebody" in done.stderr
    assert MARK not in done.stderr and "AKIA" not in done.stderr
