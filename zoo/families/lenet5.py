"""LeNet-5: the convolutional net for handwritten digits, with its tanh and average pooling."""

from ..blocks import L
from ..registry import family
from ..spec import Preprocess


def body(x):
    x = L.Conv2D(6, 5, padding="same", activation="tanh", name="conv1")(x)
    taps = {"C0": x}
    x = L.AveragePooling2D(2, name="pool1")(x)
    x = L.Conv2D(16, 5, activation="tanh", name="conv2")(x)
    taps["C1"] = x
    return taps | {"C2": L.AveragePooling2D(2, name="pool2")(x)}


def head(taps, dropout):
    x = L.Flatten(name="flatten")(taps["C2"])
    x = L.Dense(120, activation="tanh", name="fc1")(x)
    return L.Dense(84, activation="tanh", name="fc2")(x)


add = family("lenet5", body, head=head, paper="LeCun et al. 1998, doi:10.1109/5.726791", year=1998)
add(
    "lenet5",
    size=28,
    min_size=16,
    in_chans=1,
    num_classes=10,
    params=61_706,
    gmacs=0.0004,
    taps={"C0": 6, "C1": 16, "C2": 16},
    preprocess=Preprocess((0.0,), (255.0,), size=28, crop=1.0),
)
