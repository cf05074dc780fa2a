"""Writes a weights file as keras.applications publishes them."""

import h5py
import numpy as np


def write(model, path) -> None:
    """Write a file of the very layout of the published ones, which Keras 1 and 2 saved."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([layer.name for layer in model.layers], "S")
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.0.6"
        for layer in model.layers:
            group = file.create_group(layer.name)
            weights = {f"{layer.name}/{v.name}:0": v.numpy() for v in layer.weights}
            group.attrs["weight_names"] = np.array(list(weights), "S")
            for name, values in weights.items():
                group.create_dataset(name, data=values)
