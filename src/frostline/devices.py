"""The backend and its devices: gradients and compiled functions for TensorFlow and JAX. The one home of both."""

import contextlib
import importlib
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.process import count_cores

Tensor = Any  # a tensor of the active backend


@contextlib.contextmanager
def _lean(names: Sequence[str]) -> Iterator[None]:
    """Within the block these libraries, if nobody has loaded them, seem not to be installed.

    Keras and TensorFlow load them where they find them, for wrappers and converters that nothing here calls; that is
    nearly half of the seconds that a stage starts in.
    """
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: "not found", by the import system's rules
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextlib.contextmanager
def _without_lines(words: Sequence[bytes]) -> Iterator[None]:
    """Holds back what the block writes to file descriptor 2, and lets it go without the lines that contain such words."""
    standard = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(standard, 2)
            os.close(standard)
            held.seek(0)
            for line in held:
                if not any(word in line for word in words):
                    os.write(2, line)


_UNUSED = ("sklearn", "pandas", "matplotlib", *(["jax"] if os.environ.get("KERAS_BACKEND") != "jax" else []))
# TensorFlow's C++ says these before any setting reaches it; nobody has to do anything about them.
_GREETING = (b"before absl::InitializeLog()", b"Could not find cuda drivers", b"oneDNN custom operations are on")
# A later version that cannot do without those libraries loads them below.
with _without_lines(_GREETING), contextlib.suppress(ImportError), _lean(_UNUSED):
    importlib.import_module("keras")
import keras as keras  # noqa: E402 - the others take it from here
from keras import layers as layers  # noqa: E402
from keras import ops as ops  # noqa: E402
from keras import tree as tree  # noqa: E402


class _NoRetracing(logging.Filter):
    """Drops TensorFlow's advice on retracing: each model and each batch size is traced once, on purpose."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "triggered tf.function retracing" not in record.getMessage()


logging.getLogger("tensorflow").addFilter(_NoRetracing())

# Eigen's forward pass on the CPU is bound by memory, and the activations of a small batch stay in the cache.
CPU_BATCH = 8
# Eigen multiplies matrices in blocks of 3 registers of 8 floats (AVX) or 4 (NEON), and what is left over in another way.
EIGEN_ROWS = 24

# Whatever ~/.keras/keras.json says for other work: the layers and their weights are of this layout and these types.
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")
keras.config.set_epsilon(1e-7)
keras.config.set_dtype_policy("float32")

BACKEND: str = keras.backend.backend()
# float32 is float32. By default a GPU rounds the factors of its products to 10 bits (TensorFloat-32): features then differ by
# half a percent from a CPU's, and gradients by two (docs/gpu.md).
if BACKEND == "tensorflow":
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
elif BACKEND == "jax":
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
else:
    raise ImportError(f"KERAS_BACKEND is {BACKEND!r}; Frostline runs on tensorflow (the default) and on jax.")


def value_and_grad(
    function: Callable[..., tuple[Tensor, Any]],
) -> Callable[..., tuple[tuple[Tensor, Any], list[Tensor]]]:
    """`function(params, *args) -> (loss, aux)` turned into `(params, *args) -> ((loss, aux), gradients)`.

    `params` is a list of tensors; the gradients come in the same order and shapes, zeros where the loss does not
    depend on a parameter.
    """
    if BACKEND == "jax":
        return jax.value_and_grad(function, has_aux=True)  # type: ignore[no-any-return]

    def differentiated(params: Sequence[Tensor], *args: Any) -> tuple[tuple[Tensor, Any], list[Tensor]]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(params)
            loss, aux = function(params, *args)
        gradients = tape.gradient(loss, params, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return (loss, aux), gradients

    return differentiated


def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` traced once per combination of argument shapes and dtypes."""
    if BACKEND == "jax":
        return jax.jit(function)  # type: ignore[no-any-return]
    return tf.function(function, autograph=False)  # type: ignore[no-any-return]


@contextlib.contextmanager
def without_drawing() -> Iterator[None]:
    """Within the block the weights of new layers are zeros; for layers that get theirs from elsewhere.

    JAX compiles the drawing of random numbers anew for each shape: of a network's weights that takes longer than reading them.
    """
    kinds = [kind for kind in vars(keras.initializers).values() if isinstance(kind, type) and "__call__" in vars(kind)]
    drawn = [(kind, kind.__call__) for kind in kinds if issubclass(kind, keras.initializers.Initializer)]

    def make_zeros(_: Any, shape: Sequence[int], dtype: Any = None, **__: Any) -> NDArray[Any]:
        return np.zeros(shape, dtype or "float32")

    for kind, _ in drawn:
        kind.__call__ = make_zeros  # type: ignore[method-assign]
    try:
        yield
    finally:
        for kind, draw in drawn:
            kind.__call__ = draw  # type: ignore[method-assign]


def compile_frozen(model: keras.Model) -> Callable[[Any], list[Tensor]]:
    """The model's forward pass in inference mode with its weights as constants: uint8 or float batch -> list of outputs.

    Constants let the compiler make one kernel of a convolution, its bias and the activation behind it.
    """

    def forward(batch: Tensor) -> list[Tensor]:
        outputs = model(batch, training=False)
        return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]

    if BACKEND == "jax":
        return jax.jit(forward)  # type: ignore[no-any-return]
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    tensor = model.inputs[0]
    traced = tf.function(forward, autograph=False).get_concrete_function(tf.TensorSpec(tensor.shape, tensor.dtype))
    return convert_variables_to_constants_v2(traced, lower_control_flow=False)  # type: ignore[no-any-return]


def run_saved_model(folder: Path, images: NDArray[np.uint8]) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """What the SavedModel in `folder` answers to `images`, by output, and the endpoint, input and outputs it names; TensorFlow only."""
    endpoint = "serving_default"
    loaded = tf.saved_model.load(str(folder))
    call = loaded.signatures[endpoint]
    ((given, taken),) = call.structured_input_signature[1].items()
    described = [
        {"name": name, "dtype": spec.dtype.name, "shape": spec.shape.as_list()}
        for name, spec in ((given, taken), *call.structured_outputs.items())
    ]
    facts = {"endpoint": endpoint, "input": described[0], "outputs": described[1:]}
    return {name: answer.numpy() for name, answer in call(**{given: tf.constant(images)}).items()}, facts


def run_litert(file: Path, images: NDArray[np.uint8]) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """What the `.tflite` file answers to `images`, by output, and the signature, input and outputs it names; TensorFlow only."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="(?s).*tf.lite.Interpreter is deprecated"
        )  # it moves to a package of its own
        interpreter = tf.lite.Interpreter(str(file))
    (endpoint,) = interpreter.get_signature_list()
    call = interpreter.get_signature_runner(endpoint)
    ((given, taken),) = call.get_input_details().items()
    described = [
        {
            "name": name,
            "dtype": np.dtype(spec["dtype"]).name,
            "shape": [None if size < 0 else int(size) for size in spec["shape_signature"]],
        }
        for name, spec in ((given, taken), *call.get_output_details().items())
    ]
    return call(**{given: images}), {"endpoint": endpoint, "input": described[0], "outputs": described[1:]}


def choose_streams(batch_size: int, areas: Collection[int]) -> tuple[int, int]:
    """How many batches of a forward pass to compute at a time, and their size.

    areas: pixels of each map that the network makes of an image. The size is at most `batch_size`, but where Eigen computes:
    there it is the least that is about CPU_BATCH and fills Eigen's blocks whatever the area, because the rows of a matrix that
    are left over are summed in another order, and an image's features would depend on its place in the batch.

    Never two at a time where oneDNN computes (TensorFlow's default on CPUs with AVX512_VNNI or newer): the kernel that fuses a
    convolution with a residual sum keeps that sum's memory in itself (`MklFusedConvOp::fuse_add_src_` in TensorFlow's
    mkl_conv_ops.cc), so that two calls of one function at once crash or mix their images. It fills the cores alone.
    """
    if not on_cpu():
        return 2, batch_size
    if uses_onednn():
        return 1, batch_size
    unit = math.lcm(*(EIGEN_ROWS // math.gcd(EIGEN_ROWS, area) for area in areas))
    return count_cores(), unit * math.ceil(CPU_BATCH / unit)


def uses_onednn() -> bool:
    """Do oneDNN's kernels compute TensorFlow's convolutions? By the CPU, or by TF_ENABLE_ONEDNN_OPTS."""
    if BACKEND == "jax":
        return False
    from tensorflow.python.util import _pywrap_util_port

    return bool(_pywrap_util_port.IsMklEnabled())


def measure_speed_up(dtype: str) -> float:
    """How many times as fast as in float32 a convolution in `dtype` is on this device, by a short trial."""
    batch = 8 if on_cpu() else 256

    def seconds(kind: str) -> float:
        pixels, kernel = ops.ones((batch, 32, 32, 64), kind), ops.ones((3, 3, 64, 64), kind)
        run = compile_function(lambda x, k: ops.sum(ops.cast(ops.conv(x, k, padding="same"), "float32")))
        taken = []
        for _ in range(6):  # the first one compiles
            started = time.perf_counter()
            float(run(pixels, kernel))
            taken.append(time.perf_counter() - started)
        return min(taken)

    return seconds("float32") / seconds(dtype)


def on_cpu() -> bool:
    """Does the backend compute on the CPU?"""
    if BACKEND == "jax":
        return bool(jax.devices()[0].platform == "cpu")
    return not tf.config.list_physical_devices("GPU")


def list_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES gives them."""
    if BACKEND == "jax":
        number = len([device for device in jax.devices() if device.platform == "gpu"])
    else:
        number = len(tf.config.list_physical_devices("GPU"))
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or [str(place) for place in range(number)])[:number]


def describe_device() -> str:
    """The device that the backend computes on, for people: "GPU NVIDIA H200" or "CPU, 2 cores"."""
    if BACKEND == "jax":
        device = jax.devices()[0]
        if device.platform != "cpu":
            return f"{device.platform.upper()} {device.device_kind}"
    else:
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            return f"GPU {tf.config.experimental.get_device_details(gpus[0]).get('device_name', gpus[0].name)}"
    return f"CPU, {count_cores()} cores"


def share_memory() -> None:
    """Lets a worker share a GPU with the process that began it: memory is taken as it is needed. Call before the first computation.

    JAX reads XLA_PYTHON_CLIENT_PREALLOCATE at its own start; `trials` sets it for the workers.
    """
    if BACKEND == "tensorflow":
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
