"""Rows 12 and 15 with torch in the room: its own files, its own decoding and resizing.

Runs where torch and torchvision are installed (the extra `reference`).
"""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from dlzoo import zoo
from dlzoo.data.pipeline import load_image
from equality import GOLDEN
from golden import random_weights as rw
from PIL import Image

torch = pytest.importorskip("torch")
if "+cpu" in torch.__version__ or not torch.cuda.is_available():
    # torch's CPU builds lack an operator that torchvision registers when it is imported
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("stub"))
torchvision = pytest.importorskip("torchvision")

NAMES = ["squeezenet1_1", "resnet18", "densenet121", "regnet_y_400mf", "efficientnet_b0_tv"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_of_torch_save_answers_as_torchvision_from_a_jpeg(name, zipped, tmp_path):
    variant = zoo.variants()[name]
    theirs = torchvision.models.get_model(variant.torchvision, weights=None).eval()
    state = theirs.state_dict()
    filled = rw.state_dict({key: tuple(tensor.shape) for key, tensor in state.items()})
    for key, tensor in state.items():
        tensor.copy_(torch.from_numpy(filled[key]))
    path = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=zipped)

    rows = torchvision.models.get_model_weights(variant.torchvision)
    checkpoint = next(row for row in variant.weights if row.reader == "torch")
    rule = next(row for row in rows if row.url == checkpoint.uri).transforms()
    photo = Image.open(GOLDEN / "photo.jpg").convert("RGB")
    with torch.inference_mode():
        expected = theirs(rule(photo)[None]).numpy()

    model = zoo.create_model(f"{name}.{checkpoint.tag}", weights=path)
    pixels = load_image(GOLDEN / "photo.jpg", zoo.graph.built(model).preprocess)
    off = np.abs(np.asarray(model(pixels[None], training=False)) - expected).max() / expected.std()
    print(f"{name}: off by {off:.1e} from the file")
    assert off < 0.02  # of the resizing: Pillow rounds between its two passes
