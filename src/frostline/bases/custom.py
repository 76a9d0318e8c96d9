"""A `.keras` model of one's own as a base: its cuts are read from its graph alone."""

from pathlib import Path

from frostline.bases.graph import OWN, copy_graph, find_crossings, is_feature_map, is_graph, name_operations
from frostline.devices import keras, layers, without_drawing
from frostline.errors import Refused, first_line


def load_custom(path: Path, image_size: int) -> keras.Model:
    """The model in `path` as one flat graph on images (n, image_size, image_size, 3), float32.

    Loaded in Keras's safe mode. Models inside it are taken apart, so that one can cut within them. Raises Refused for
    what cannot be loaded, for more than one input, and for another image size than the model was made for.
    """
    try:
        with without_drawing():
            model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever the file provokes
        raise Refused(
            f"base.weights: {path} cannot be loaded in Keras's safe mode: {first_line(error)} "
            "Load it where it was made, and save it anew with this Keras; Lambda layers and classes of your own cannot be loaded."
        ) from error
    if not is_graph(model):
        raise Refused(
            f"base.weights: {path} holds a {type(model).__name__}; only functional and Sequential models can be cut."
        )
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or len(model.outputs) != 1:
        raise Refused(f"base.weights: {path} must take one image and give one output; its inputs are {shapes}.")
    if any(
        given not in (None, needed) for given, needed in zip(shapes[0][1:], (image_size, image_size, 3), strict=True)
    ):
        raise Refused(f"base.image_size: {path} takes images of shape {shapes[0][1:]}; given was {image_size}.")
    pixels = keras.Input((image_size, image_size, 3), name="scaled_pixels")
    return keras.Model(pixels, copy_graph(model.inputs[0], model.outputs, pixels, prefix=OWN), name="custom")


def choose_cuts(model: keras.Model) -> tuple[str, ...]:
    """Names of sensible block boundaries among the crossings, from the input side to the output.

    A block ends where branches meet or a pooling layer shrinks the map, with the activations that follow; in a plain
    chain without either, before each layer that shrinks the map. Every block holds at least one weight.
    """
    crossings = [operation for operation in find_crossings(model) if is_feature_map(operation.output)]
    names = name_operations(model)
    meets = [len(operation._inbound_nodes[0].input_tensors) > 1 for operation in crossings]
    pools = [isinstance(operation, layers.MaxPooling2D | layers.AveragePooling2D) for operation in crossings]
    heights = [operation.output.shape[1] for operation in crossings]
    ends = [index for index in range(len(crossings)) if meets[index] or pools[index]]
    if not ends:
        ends = [index for index in range(len(crossings) - 1) if heights[index + 1] < heights[index]]
    moved = [_after_activations(crossings, index) for index in ends]
    weighted = {id(operation): bool(getattr(operation, "weights", ())) for operation in model.operations}
    position = {id(operation): index for index, operation in enumerate(model.operations)}
    chosen: list[int] = []
    for index in sorted({*moved, len(crossings) - 1}):
        if chosen:
            between = model.operations[position[id(crossings[chosen[-1]])] + 1 : position[id(crossings[index])] + 1]
            if not any(weighted[id(operation)] for operation in between):
                chosen.pop()
        chosen.append(index)
    return tuple(names[id(crossings[index])] for index in chosen)


def _after_activations(crossings: list[keras.Layer], index: int) -> int:
    kinds = layers.Activation | layers.ReLU | layers.LeakyReLU | layers.Dropout
    while index + 1 < len(crossings) and isinstance(crossings[index + 1], kinds):
        index += 1
    return index
