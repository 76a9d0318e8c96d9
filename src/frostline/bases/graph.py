"""A functional network as a graph: where a single tensor crosses, and how a part of it is built anew."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from frostline import devices  # noqa: F401 (sets Keras's global settings before any layer is built)
from frostline.devices import keras, without_drawing
from frostline.errors import Refused

# Before the names of a user's layers, so that they never meet ours (`scaling`, `pixels`, `logits`), now or later.
OWN = "own__"

Tensor = Any  # a KerasTensor
Node = Any  # one call of an operation: keras.src.ops.node.Node
Operation = Any  # a layer, or an operation such as the sum that `x + y` makes


def nodes_of(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Node]:
    """The calls between `inputs` and `outputs`, each after the calls that it depends on."""
    known = {id(tensor) for tensor in inputs}
    order: list[Node] = []
    seen: set[int] = set()
    waiting = [(tensor, False) for tensor in reversed(outputs)]
    while waiting:
        tensor, ready = waiting.pop()
        if id(tensor) in known:
            continue
        node = _maker_of(tensor)
        if ready:
            if id(node) not in seen:
                seen.add(id(node))
                order.append(node)
        elif id(node) not in seen:
            if node.is_input:
                raise Refused(f"{tensor.name} is an input of its own: a base must have exactly one input, its image.")
            waiting.append((tensor, True))
            waiting += [(parent, False) for parent in reversed(node.input_tensors)]
    return order


def _maker_of(tensor: Tensor) -> Node:
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def find_crossings(model: keras.Model) -> list[Operation]:
    """Operations that every path from input to output passes with one tensor, from the input side to the output.

    In any order that respects dependence, a call's output is the only tensor that crosses its position exactly when
    no earlier output is used later. An operation that is called twice is none.
    """
    nodes = nodes_of(model.inputs, model.outputs)
    position = {id(node): index for index, node in enumerate(nodes)}
    calls: dict[int, int] = {}
    last_use = [0] * len(nodes)
    input_ends = 0
    for index, node in enumerate(nodes):
        calls[id(node.operation)] = calls.get(id(node.operation), 0) + 1
        for tensor in node.input_tensors:
            if any(tensor is given for given in model.inputs):
                input_ends = index
            else:
                last_use[position[id(_maker_of(tensor))]] = index
    crossings = []
    reach = input_ends
    for index, node in enumerate(nodes):
        if reach <= index and len(node.outputs) == 1 and calls[id(node.operation)] == 1:
            crossings.append(node.operation)
        reach = max(reach, last_use[index])
    return crossings


def is_feature_map(tensor: Tensor) -> bool:
    """Has this tensor the shape (batch, height, width, channels), all but the batch known?"""
    return len(tensor.shape) == 4 and None not in tensor.shape[1:]


def name_operations(model: keras.Model) -> dict[int, str]:
    """Names by operation id that do not depend on what else the process has built.

    A name that Keras made up (`conv2d_94`) is counted anew from the input side within its class.
    """
    counts: dict[str, int] = {}
    names = {}
    for node in nodes_of(model.inputs, model.outputs):
        operation = node.operation
        if id(operation) in names:
            continue
        names[id(operation)] = given = operation.name.removeprefix(OWN)
        made_up = snake_case(type(operation).__name__)
        if re.fullmatch(rf"{made_up}(_\d+)?", given):
            rank = counts.get(made_up, 0)
            counts[made_up] = rank + 1
            names[id(operation)] = f"{made_up}_{rank}" if rank else made_up
    return names


def safe_name(name: str) -> str:
    """A layer's name with what TensorFlow allows in a scope; it may begin with anything once OWN stands before it.

    >>> safe_name("_Lögits/a b")
    '_L_gits_a_b'
    """
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)


def snake_case(name: str) -> str:
    """A class name as Keras writes it in layer names and weights files: BatchNormalization -> batch_normalization."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def replay(
    inputs: Tensor, outputs: Sequence[Tensor], start: Tensor, operation_of: Callable[[Operation], Operation]
) -> list[Tensor]:
    """The tensors that stand for `outputs` when the graph above `inputs` is called again on `start`.

    operation_of: what takes the place of each operation, itself or a copy. Nested models are taken apart.
    """
    values = {id(inputs): start}
    for node in nodes_of([inputs], outputs):
        args, kwargs = node.arguments.fill_in(values)
        operation = node.operation
        if is_graph(operation):
            results = replay(operation.inputs[0], operation.outputs, args[0], operation_of)
        else:
            results = keras.tree.flatten(operation_of(operation)(*args, **kwargs))
        values |= {id(tensor): result for tensor, result in zip(node.outputs, results, strict=True)}
    return [values[id(tensor)] for tensor in outputs]


def is_graph(operation: Operation) -> bool:
    """Is this a model made of layers that can be called one by one?"""
    return isinstance(operation, keras.Sequential) or (
        isinstance(operation, keras.Model) and hasattr(operation, "operations")
    )


def copy_operation(operation: Operation, name: str, **changes: Any) -> Operation:
    """A new operation of the same configuration but for `changes`, trainable, with weights of its own still to be filled."""
    config = {**operation.get_config(), "name": name, **changes}
    if isinstance(operation, keras.Layer):
        # A layer made frozen registers its weights as not trainable for good.
        config["trainable"] = True
    return type(operation).from_config(config)


def copy_graph(
    inputs: Tensor, outputs: Sequence[Tensor], start: Tensor, *, prefix: str = "", trainable: bool = True
) -> list[Tensor]:
    """The graph between a tensor and others built anew above `start`: layers of its own with the same weights.

    prefix: of the copies' names, which it makes safe for TensorFlow; trainable: whether the copies are.
    """
    copies: dict[int, tuple[Operation, Operation]] = {}
    taken: set[str] = set()

    def operation_of(operation: Operation) -> Operation:
        if id(operation) not in copies:
            # Two models taken apart into one may use a name twice, which Keras refuses.
            wanted = prefix + safe_name(operation.name) if prefix else operation.name
            name = next(name for name in _names_like(wanted) if name not in taken)
            taken.add(name)
            copies[id(operation)] = (operation, copy_operation(operation, name))
        return copies[id(operation)][1]

    with without_drawing():
        results = replay(inputs, outputs, start, operation_of)
    for original, copy in copies.values():
        if isinstance(original, keras.Layer):
            copy_weights(original, copy)
            copy.trainable = trainable
    return results


def _names_like(name: str) -> Iterator[str]:
    yield name
    for number in itertools.count(1):
        yield f"{name}_copy_{number}"


def copy_weights(source: keras.Layer, target: keras.Layer) -> None:
    """Gives `target` the weights of `source`, a layer of the same configuration."""
    for variable, value in zip(target.variables, source.variables, strict=True):
        # JAX would share the array, and to predict with one of the two gives it away.
        variable.assign(keras.ops.copy(value))
    if isinstance(target, keras.layers.Normalization):
        target.finalize_state()
