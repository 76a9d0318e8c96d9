"""The command `frostline`: one module per command, imported only when it is called."""

import importlib
import sys

import click

from frostline.errors import redact

# Command -> one line for --help. The command stands in `frostline.cli.<name>` as `command`.
COMMANDS: dict[str, str] = {
    "train": "From a folder of images to a registered model.",
    "use": "Set params.yaml from a preset; without a name, list the presets.",
    "check": "Read params.yaml and name every problem in it.",
    "screen": "Judge bases and sizes on a sample of your images.",
    "plan": "What each stage will store and take, before anything runs.",
    "worker": "Join a running search from another machine; needs FROSTLINE_STUDY_URL.",
    "doctor": "What works here, what does not, and what to do.",
    "mend": "Bring mlflow.db to this MLflow and to this place; with a backup.",
    "blocks": "Where a base can be cut, and what each cut costs.",
    "summary": "The last result: best trial, test accuracy, registered version.",
    "review": "Labels that look wrong: keep, change or drop them, with a record of who did.",
    "report": "All of a result on one page; or two versions side by side.",
    "ui": "MLflow's pages on this project's store.",
    "compare": "All trials and finals as a table.",
    "promote": "Make the challenger the champion, if the gate passes.",
    "rollback": "Make the champion before this one champion again.",
    "history": "Every decision about the champion: who, when, what, why.",
    "trace": "Where a version comes from, or what came of a run.",
    "predict": "Label images with the champion.",
    "monitor": "Whether new images still suit the champion: familiarity, shares, accuracy.",
    "serve": "The champion behind MLflow's scoring server.",
    "export": "The champion as SavedModel, LiteRT (TFLite) or ONNX, each compared with it.",
    "diff": "The test images on which two runs give different answers.",
    "pretrain": "Train a base of your own on a large source set.",
    "clean": "List and remove old runs, studies and unfinished work; registered versions stay.",
}


class LazyGroup(click.Group):
    """A group that knows its commands' one-line help and imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"frostline.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup)
@click.version_option(package_name="frostline")
def group() -> None:
    """Fine-tune a pre-trained image network on your own images, and promote the best on evidence."""


def main() -> None:
    """Runs the command; a refusal, also by the disk or for want of memory, is one line on stderr and exit code 2."""
    try:
        group(prog_name="frostline")
    except Exception as error:
        from frostline.process import describe_refusal

        said = describe_refusal(error)
        if said is None:
            raise
        click.echo(f"frostline: {redact(said)}", err=True)
        sys.exit(2)
