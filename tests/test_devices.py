"""What loading the backend costs and says."""

import os
import subprocess
import sys

LOADED = (
    "import sys, frostline.devices\n"
    "frostline.devices.ops.ones((2,))\n"
    "print({'jax', 'sklearn', 'pandas', 'matplotlib'} & set(sys.modules))\n"
    "import pandas, matplotlib, sklearn\n"  # whoever needs them still gets them
    "print(all(map(callable, (pandas.DataFrame, sklearn.clone))))\n"
)


def test_tensorflow_is_loaded_without_what_nobody_calls_and_without_a_word():
    environment = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", LOADED], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["set()", "True"]
    assert done.stderr == ""
