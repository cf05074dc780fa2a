"""Reference models of keras.applications, and a file of their weights as it is published."""

from __future__ import annotations

from collections.abc import Callable

import h5py
import keras
import numpy as np
from dlzoo.zoo.load import keras_model
from golden import random_weights as rw

IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def reference(call: str, size: int) -> tuple[keras.Model, Callable]:
    """Return the model that `MobileNet(alpha=0.25)` means, filled, and its preprocessing.

    Args:
        call: as in `Variant.keras`. size: of the image in pixels.
    """
    model = keras_model(call, weights=None, input_shape=(size, size, 3), classifier_activation=None)
    rw.fill(model)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            # what the published files of EfficientNet hold, with the division that Keras adds
            # for them: all in all, ImageNet's mean and standard deviation
            layer.set_weights([IMAGENET_MEAN, IMAGENET_STD**2, np.int32(0)][: len(layer.weights)])
            layer.finalize_state()
    constructor = getattr(keras.applications, call.partition("(")[0])
    module = constructor.__module__.rpartition(".")[2]
    return model, getattr(keras.applications, module).preprocess_input


def write(model, path) -> None:
    """Write a file of the very layout of the published ones, which Keras 1 and 2 saved."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([layer.name for layer in model.layers], "S")
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.0.6"
        for layer in model.layers:
            group = file.create_group(layer.name)
            inner = getattr(layer, "layers", [layer])  # a model inside the model is one layer
            weights = {f"{la.name}/{v.name}:0": v.numpy() for la in inner for v in la.weights}
            group.attrs["weight_names"] = np.array(list(weights), "S")
            for name, values in weights.items():
                group.create_dataset(name, data=values)
