import subprocess
import sys
from pathlib import Path

import pytest

from frostline import cli


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name, run_cli):
    answer = run_cli(name, "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"Usage: frostline {name}")
    # One sentence of what it does, beyond usage and options.
    assert len(answer.out.splitlines()[2].strip()) > 20


def test_every_command_stands_in_the_help_with_one_line(run_cli):
    out = run_cli("--help").out
    for name, line in cli.COMMANDS.items():
        assert f"  {name} " in out
        assert line.endswith(".") and len(line) < 90


def test_every_module_of_a_command_is_listed():
    texts = {path.stem: path.read_text(encoding="utf-8") for path in Path(cli.__file__).parent.glob("*.py")}
    modules = {name for name, text in texts.items() if "\ndef command(" in text}
    assert modules == set(cli.COMMANDS)


def test_an_unknown_command_is_refused(run_cli):
    answer = run_cli("promte")
    assert answer.code == 2
    assert "No such command 'promte'" in answer.err


def test_no_command_loads_a_network_library_to_explain_itself():
    script = (
        "import importlib, sys\n"
        "from frostline import cli\n"
        "for name in cli.COMMANDS: importlib.import_module(f'frostline.cli.{name}')\n"
        "assert not {'tensorflow', 'keras', 'mlflow', 'optuna', 'matplotlib'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_full_disk_is_one_line_also_from_a_command(run_cli, monkeypatch):
    def write(**_: object) -> None:
        raise OSError(28, "No space left on device", "own/base.keras")

    monkeypatch.setattr(cli, "group", write)
    answer = run_cli("pretrain")
    assert answer.code == 2 and answer.err.count("\n") == 1
    assert answer.err.startswith("frostline: own/base.keras: No space left on device. Free space")
