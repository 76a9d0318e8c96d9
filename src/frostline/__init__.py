"""Frostline: search how deep to unfreeze a pre-trained image network, and promote on evidence."""

import os
import sys
from types import TracebackType

# Nobody is called: telemetry and update checks of the libraries are off before any of them is imported.
for _name, _value in {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": "tensorflow",
}.items():
    os.environ.setdefault(_name, _value)

# What a user has set for other work, and would change results or break a stage here. `frostline check` and `doctor` say so.
BACKENDS = ("tensorflow", "jax")
IGNORED = (
    # Keras would train so many epochs or steps, and no more.
    *("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "KERAS_NNX_ENABLED"),
    # JAX would compute in other types, or without compiling.
    *("JAX_ENABLE_X64", "JAX_DEFAULT_DTYPE_BITS", "JAX_NUMPY_DTYPE_PROMOTION", "JAX_DISABLE_JIT", "JAX_DEBUG_NANS"),
    # Runs would be written later, elsewhere, or refused for a long value.
    *("MLFLOW_ENABLE_ASYNC_LOGGING", "MLFLOW_TRUNCATE_LONG_VALUES", "MLFLOW_REGISTRY_URI"),
    *("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"),
    # OpenCV would refuse images that prepare.max_megapixels allows.
    *("OPENCV_IO_MAX_IMAGE_PIXELS", "OPENCV_IO_MAX_IMAGE_WIDTH", "OPENCV_IO_MAX_IMAGE_HEIGHT"),
)
# Kept for the processes that this one starts: they see an environment that is clean already.
TOLD = "FROSTLINE_IGNORED"
_dropped = [f"{_name}={os.environ.pop(_name)}" for _name in IGNORED if _name in os.environ]
if os.environ["KERAS_BACKEND"] not in BACKENDS:
    _dropped.append(f"KERAS_BACKEND={os.environ['KERAS_BACKEND']}")
    os.environ["KERAS_BACKEND"] = BACKENDS[0]
if _dropped:
    os.environ[TOLD] = "; ".join([*filter(None, [os.environ.get(TOLD)]), *_dropped])

_before = sys.excepthook


def _say_stopped(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while libraries load, which takes seconds, is no error of anybody's: one line instead of a traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("frostline: ended by SIGINT.", file=sys.stderr)
    else:
        _before(kind, error, trace)


sys.excepthook = _say_stopped

__version__ = "0.1.0"
