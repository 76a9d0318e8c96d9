"""The same Keras code on JAX: the tests of the training step, run again in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_training_step_holds_on_jax_too(root: Path) -> None:
    files = ["tests/test_training.py", "tests/test_optimizers.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=root,
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
