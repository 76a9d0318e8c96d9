"""`frostline worker`: one process more for a search that runs on another machine."""

import click


@click.command()
def command() -> None:
    """Train trials of the search that `dvc repro tune` runs elsewhere, until none is left to draw; then end with 0.

    It keeps nothing here and may be started and ended at any time, by any launcher. It needs the project's folder with what `tune`
    reads, FROSTLINE_STUDY_URL, and MLflow's server as `tune` has it; docs/scale.md has recipes.
    """
    from frostline.process import ending_in_words

    with ending_in_words("worker"):  # from here on a launcher's SIGTERM gives the trial back
        from frostline.cli.project import open_project
        from frostline.planning.closure import code_of
        from frostline.search.worker import join

        project = open_project()
        join(project.params, project.store, code_of("search/worker.py"))
