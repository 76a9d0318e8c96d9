"""Frostline: search how deep to unfreeze a pre-trained image network, and promote on evidence."""

import os

# Nobody is called: telemetry and update checks of the libraries are off before any of them is imported.
for _name, _value in {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": "tensorflow",
}.items():
    os.environ.setdefault(_name, _value)

__version__ = "0.1.0"
