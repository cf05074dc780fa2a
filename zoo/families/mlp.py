"""The dense net of a first lesson: flatten the digit, two hidden layers. It has no taps."""

from ..blocks import L
from ..registry import family
from ..spec import Preprocess


def body(x, widths):
    return {}


def head(x, dropout, widths):
    x = L.Flatten(name="flatten")(x)
    for i, width in enumerate(widths, start=1):
        x = L.Dense(width, activation="relu", name=f"fc{i}")(x)
        x = L.Dropout(dropout, name=f"fc{i}_drop")(x)
    return x


add = family(
    "mlp",
    body,
    head=head,
    dropout=0.2,
    paper="Rumelhart, Hinton and Williams 1986, doi:10.1038/323533a0",
    year=1986,
)
add(
    "mlp",
    widths=(512, 512),
    size=28,
    min_size=1,
    in_chans=1,
    num_classes=10,
    params=669_706,
    gmacs=0.0007,
    taps={},
    preprocess=Preprocess((0.0,), (255.0,), size=28, crop=1.0),
)
