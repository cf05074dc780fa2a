"""The numbers that the golden files were made with: weights and images from names and shapes.

`tools/make_golden.py` fills the reference networks with them and the tests fill ours, so that a
golden file needs to hold names, shapes and a few logits only. Everything comes from raw PCG64
output, which NumPy promises never to change.
"""

from __future__ import annotations

import math
import re
import zlib

import numpy as np

# Without this the sum over a hundred residual branches would grow beyond all bounds: the last norm
# of a branch is made small. In MobileNets the name does not say whether a block has a shortcut;
# made too small without one, the image would leave no trace.
_BRANCH_END = {
    re.compile(
        r"layer\d\.\d+\.bn[23]\.weight|_block\d+_[23]_bn/gamma"  # ResNet
        r"|trunk_output.*\.f\.c\.1\.weight|s\d\.b\d+\.conv3\.bn\.weight"  # RegNet
        r"|block\d[b-z]+_project_bn/gamma|blocks\.\d+\.[1-9]\d*\.bn[23]\.weight"  # EfficientNet
        r"|features\.\d+\.[1-9]\d*\.block\.[13]\.1\.weight"
    ): 0.25,
    re.compile(
        r"features\.\d+\.block\.[23]\.1\.weight|features\.\d+\.conv\.3\.weight"
        r"|expanded_conv_\d+_project_bn/gamma|block_\d+_project_(BN|bn)/gamma"
    ): 0.7,
}


def uniform(name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """Return float32 numbers that depend on `name` and `shape` only."""
    count = math.prod(shape)
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(-(-count // 4))
    steps = raw.view("<u2")[:count].reshape(shape).astype(np.float32)
    steps *= np.float32((high - low) / 65535)
    steps += np.float32(low)
    return steps


def kernel(name: str, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """Return a kernel that keeps the activations about as large as they are."""
    bound = math.sqrt((3 if len(shape) == 2 else 6) / fan_in)
    return uniform(name, shape, -bound, bound)


def norm(name: str, part: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return gamma, beta, mean or variance of a batch normalisation; the variance is positive."""
    if part == "gamma":
        scale = next((small for end, small in _BRANCH_END.items() if end.search(name)), 1.0)
        return uniform(name, shape, 0.6 * scale, 1.4 * scale)
    ranges = {"beta": (-0.3, 0.3), "mean": (-0.3, 0.3), "variance": (0.5, 1.5)}
    return uniform(name, shape, *ranges[part])


def state_dict(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return a torch state dict of these names and shapes."""
    tensors = {}
    for name, shape in shapes.items():
        prefix, part = name.rsplit(".", 1)
        normed = f"{prefix}.running_mean" in shapes
        if part == "num_batches_tracked":
            tensors[name] = np.zeros(shape, np.int64)
        elif normed:
            parts = {"weight": "gamma", "bias": "beta", "running_mean": "mean"}
            tensors[name] = norm(name, parts.get(part, "variance"), shape)
        elif part == "bias":
            tensors[name] = uniform(name, shape, -0.1, 0.1)
        else:
            tensors[name] = kernel(name, shape, math.prod(shape[1:]))
    return tensors


def fill(model) -> None:
    """Give every variable of a Keras model its numbers, by layer name and shape."""
    for layer in model.layers:
        if type(layer).__name__ == "Normalization":  # no weights, though Keras keeps them so
            continue
        for variable in layer.weights:
            part, shape = variable.name, tuple(variable.shape)
            name = f"{layer.name}/{part}"
            if part in ("gamma", "beta", "moving_mean", "moving_variance"):
                values = norm(name, part.removeprefix("moving_"), shape)
            elif part == "bias":
                values = uniform(name, shape, -0.1, 0.1)
            else:
                depthwise = part == "depthwise_kernel" or "Depthwise" in type(layer).__name__
                values = kernel(name, shape, math.prod(shape[: 2 if depthwise else -1]))
            variable.assign(values)


def tell_apart(model, images: np.ndarray) -> None:
    """Rescale the layer `logits`, so that over the images each class has mean 0 and deviation 1.

    As they are filled, some networks answer nearly the same for all images, or with probabilities
    of 0 and 1 alone: whatever an export computed, it would agree.
    """
    head = model.get_layer("logits")
    until = type(model)(model.inputs, head.output)  # SqueezeNet averages what this one gives
    made = np.asarray(until(images, training=False)).reshape(-1, head.units)
    scale, (kernel, bias) = 1 / made.std(axis=0), head.get_weights()
    head.set_weights([kernel * scale, (bias - made.mean(axis=0)) * scale])


def noise(height: int, width: int) -> np.ndarray:
    """Return a noisy image, whole numbers 0..255 as float32 `(height, width, 3)`."""
    return np.rint(uniform("noise", (height, width, 3), 0, 255))


def photo(height: int = 288, width: int = 320) -> np.ndarray:
    """Return a picture with what a photograph has: sky, soft light, edges, texture, one flower."""
    y, x = np.mgrid[0:height, 0:width] / height
    image = np.stack([0.35 + 0.3 * y, 0.55 + 0.1 * y, 0.9 - 0.6 * y], -1)  # sky to earth
    hill = y > 0.62 + 0.06 * np.sin(7 * x)
    image[hill] = np.stack([0.2 + 0.2 * y, 0.45 - 0.2 * y, 0.15 + 0 * y], -1)[hill]
    dy, dx = y - 0.45, x - 0.55
    radius, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
    petals = radius < 0.2 + 0.07 * np.cos(8 * angle)
    image[petals] = np.stack([0.95 - radius, 0.75 - 2 * radius, 0.15 + 0 * y], -1)[petals]
    image[radius < 0.07] = (0.35, 0.2, 0.1)
    light = 1 - 0.5 * np.hypot(y - 0.2, x - 0.2)[..., None]
    grain = uniform("grain", (height, width, 1), -0.05, 0.05)
    return np.rint(255 * np.clip(image * light + grain, 0, 1)).astype(np.uint8)
