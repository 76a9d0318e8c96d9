"""Where a run comes from: commit, changes to it, params, data, device and versions."""

import contextlib
import getpass
import os
import platform
import re
import sys
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from frostline import __version__
from frostline.params import load_lock
from frostline.process import ask_git

# What is written about each library, because it can change results.
LIBRARIES = ("keras", "tensorflow", "jax", "numpy", "optuna", "albumentations", "opencv-python-headless", "mlflow")
# Settings that may change a result in its last digits, and are a user's to choose.
RECORDED = (
    *("TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "TF_XLA_FLAGS", "XLA_FLAGS", "NVIDIA_TF32_OVERRIDE"),
    *("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "JAX_DEFAULT_MATMUL_PRECISION", "OMP_NUM_THREADS"),
    *("KERAS_BACKEND", "NPY_DISABLE_CPU_FEATURES", "OPENCV_IPP", "OPENBLAS_CORETYPE", "FROSTLINE_IGNORED"),
)


def lineage_tags(params_text: str, root: Path, *, device: str = "", workspace: Path | None = None) -> dict[str, str]:
    """Where a run comes from: commit, changes to it, params, data, device and versions.

    Args:
        params_text: the text of `params.yaml`.
        root: the project's root, for programs that run outside a workspace.
        workspace: where `dvc.lock` and the checked-out files are; the working directory unless given (inside
            `dvc exp run --temp` it is not the root).
    """
    workspace = workspace or (Path.cwd() if Path("dvc.yaml").is_file() else root)
    # Outputs are ignored by git already; dvc.lock changes while the line runs.
    status, said = ask_git(workspace, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    commit = (ask_git(workspace, "rev-parse", "HEAD")[0] or "").strip()
    if status is None:
        changes = f"unknown: {said}"
    else:
        changes = ", ".join(line[2:].strip() for line in status.splitlines()) or "none"
    # Only the seed is needed here; the whole file was checked by whoever started the run.
    seed = re.search(r"^seed:\s*(\d+)", params_text, re.MULTILINE)
    tags = {
        "frostline.git.commit": commit or "none",
        "frostline.git.changes": changes,
        "frostline.params.sha256": sha256(params_text.encode()).hexdigest(),
        "frostline.seed": seed.group(1) if seed else "",
        "frostline.device": device or f"cpu, {os.cpu_count()} cores, {platform.machine()}",
        "frostline.versions": _versions(),
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user_name(),
    }
    if commit:
        tags["mlflow.source.git.commit"] = commit
    for path, digest in load_lock(workspace / "dvc.lock").items():
        if path.startswith("data/"):
            tags[f"frostline.md5.{path.removeprefix('data/')}"] = digest
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name in RECORDED]
    if settings:
        tags["frostline.environment"] = ", ".join(settings)
    for variable in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        if os.environ.get(variable):
            tags[f"frostline.{variable.lower()}"] = os.environ[variable]
    return tags


def _versions() -> str:
    found = [f"frostline {__version__}", f"python {platform.python_version()}"]
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{library} {metadata.version(library)}")
    return ", ".join(found)


def user_name() -> str:
    """Who runs this, for tags and the history."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
