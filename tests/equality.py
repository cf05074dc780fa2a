"""How far our outputs are from those of the reference implementations with the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
from dlzoo import zoo
from dlzoo.data.decode import decode
from golden import random_weights as rw
from keras_writer import reference, write
from safetensors.numpy import save_file

GOLDEN = Path(rw.__file__).parent
# Of the standard deviation of the logits. Most are below 1e-5; with 80 blocks of random numbers
# (EfficientNetV2-L) rounding alone grows to 3e-4. A wrong pad or epsilon makes 1e-2 and more.
TOLERANCE = 5e-4
# Their heads are built for one size of the image.
FIXED = {"vgg16": 224, "vgg19": 224}


def golden_of(name: str) -> str:
    """Return what the golden file of a variant was made of: `torchvision vgg16`."""
    variant = zoo.variants()[name]
    return f"torchvision {variant.torchvision}" if variant.torchvision else f"timm {variant.timm}"


def summary(worst: dict[str, float]) -> str:
    """Return one line on the largest difference of each model."""
    last = max(worst, key=lambda name: worst[name])
    small = sum(off <= 1e-4 for off in worst.values())
    return (
        f"{len(worst)} models, {small} within 1e-4; the largest difference is "
        f"{worst[last]:.1e} ({last})."
    )


def images(size: str) -> np.ndarray:
    """Return the noise and the photo, raw RGB `(2, height, width, 3)`."""
    height, width = map(int, size.split("x"))
    photo = decode(GOLDEN / "photo.jpg")[:height, :width]
    return np.stack([rw.noise(height, width), photo.astype("float32")])


def read(name: str) -> tuple[dict, dict]:
    """Return the tensor shapes by name, and `{size: (logits, moments)}`, of a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        shapes = json.loads(file["tensors"].tobytes()) if "tensors" in file else []
        sizes = [key.removeprefix("logits_") for key in file if key.startswith("logits_")]
        expected = {size: (file[f"logits_{size}"], file[f"moments_{size}"]) for size in sizes}
    return {tensor: tuple(shape) for tensor, shape in shapes}, expected


def off_by(logits: np.ndarray, expected: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the largest difference to a golden entry, in standard deviations of its logits."""
    kept, moments = expected
    ours = np.stack([logits.mean(1), logits.std(1)], 1)
    far = max(np.abs(logits[:, : kept.shape[1]] - kept).max(), np.abs(ours - moments).max())
    return float(far / moments[:, 1].mean())


def check_sight(logits: np.ndarray) -> None:
    """Fail if the answers to the two images are too alike for an error to be seen in them."""
    assert np.isfinite(logits).all()
    apart = np.abs(logits[0] - logits[1]).max() / logits.std()
    assert apart > 0.02, f"the two images differ by {apart:.1e} of the spread only"


def to_golden(name: str, folder: Path, only: str | None = None) -> float:
    """Return how far a variant is from torchvision's or timm's answers, weights from a file.

    Args:
        folder: for the file, of up to 2.6 GB, which is deleted again.
        only: one of the image sizes of the golden file, `224x224`; default all.
    """
    shapes, expected = read(name)
    for logits, _ in expected.values():
        check_sight(logits)
    path = folder / f"{name}.safetensors"
    save_file(rw.state_dict(shapes), path)
    try:
        if not zoo.variants()[name].family.head:  # any size will do, and one model for all
            model = zoo.create_model(name, weights=path, input_shape=(None, None))
        worst = 0.0
        for size in [only] if only else expected:
            if zoo.variants()[name].family.head:
                shape = tuple(map(int, size.split("x")))
                model = zoo.create_model(name, weights=path, input_shape=shape)
            logits = np.asarray(model(images(size), training=False))
            worst = max(worst, off_by(logits, expected[size]))
        return worst
    finally:
        path.unlink()


def to_keras(name: str, model: keras.Model, preprocess, path: Path) -> float:
    """Return how far a variant is from its model of keras.applications, whose weights are read."""
    size = size_for_keras(name)
    x = images(f"{size}x{size}")
    expected = np.asarray(model(preprocess(np.copy(x)), training=False))
    check_sight(expected)
    ours = zoo.create_model(name, weights=path, input_shape=size)
    return float(np.abs(np.asarray(ours(x, training=False)) - expected).max() / expected.std())


def keras_case(name: str, folder: Path):
    """Return the filled reference, its preprocessing, and the file of its weights."""
    model, preprocess = reference(zoo.variants()[name].keras, size_for_keras(name))
    write(model, path := folder / f"{name}.h5")
    return model, preprocess, path


def size_for_keras(name: str) -> int:
    return FIXED.get(name, max(zoo.variants()[name].min_size, 75))


def to_numpy(name: str) -> float:
    """Return how far the first nets of a course are from their few lines of NumPy."""
    model = zoo.create_model(name)
    rw.fill(model)
    x = images("28x28")[..., :1]
    w = {layer.name: [v.numpy() for v in layer.weights] for layer in model.layers}

    def dense(x, layer):
        return x @ w[layer][0] + w[layer][1]

    def convolve(x, layer, pad):
        kernel, bias = w[layer]
        x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
        return np.tanh(np.einsum("nhwcij,ijco->nhwo", windows, kernel) + bias)

    def halve(x):
        n, height, width, channels = x.shape
        return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))

    x = x.astype("float64") / 255
    if name == "lenet5":
        x = halve(convolve(halve(convolve(x, "conv1", 2)), "conv2", 0)).reshape(2, -1)
        x = np.tanh(dense(np.tanh(dense(x, "fc1")), "fc2"))
    else:
        x = np.maximum(dense(np.maximum(dense(x.reshape(2, -1), "fc1"), 0), "fc2"), 0)
    expected = dense(x, "logits")
    check_sight(expected)
    ours = np.asarray(model(images("28x28")[..., :1], training=False))
    return float(np.abs(ours - expected).max() / expected.std())
