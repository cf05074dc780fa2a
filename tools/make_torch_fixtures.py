"""Write the small files of tests/golden that only torch itself can vouch for.

Run it with torch installed: `python tools/make_torch_fixtures.py`. The values are those that
tests/unit/test_checkpoints.py expects.
"""

from collections import OrderedDict
from pathlib import Path

import torch

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"


def state():
    base = torch.arange(24.0).reshape(4, 6)
    tensors = OrderedDict(
        base=base,
        view=base[1:3, ::2],
        transposed=base.t(),
        half=torch.tensor([0.5, -2.0]).half(),
        bfloat16=torch.tensor([1.5, -3.0]).bfloat16(),
        double=torch.tensor([1e-300], dtype=torch.float64),
        parameter=torch.nn.Parameter(torch.ones(2, 1)),
        empty=torch.zeros(0, 3),
        flags=torch.tensor([True, False]),
        count=torch.tensor(7),
    )
    tensors._metadata = OrderedDict(version=1)  # as state_dict() adds
    return tensors


def main():
    for name, zipped in (("torch_zip.pth", True), ("torch_legacy.pth", False)):
        content = {"state_dict": state(), "epoch": 3}
        torch.save(content, GOLDEN / name, _use_new_zipfile_serialization=zipped)


if __name__ == "__main__":
    main()
