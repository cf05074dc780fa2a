"""AlexNet, in the one-column form of "One weird trick" that torchvision has."""

from ..blocks import L, average_to
from ..registry import family, torchvision


def body(x):
    def conv(x, filters, kernel, name, strides=1, pad=None):
        if pad:
            x = L.ZeroPadding2D(pad, name=f"{name}_pad")(x)
        padding = "valid" if pad else "same"
        x = L.Conv2D(filters, kernel, strides, padding, activation="relu", name=name)(x)
        return x

    x = taps_c2 = conv(x, 64, 11, "conv1", strides=4, pad=2)
    x = taps_c3 = conv(L.MaxPooling2D(3, 2, name="pool1")(x), 192, 5, "conv2")
    x = conv(L.MaxPooling2D(3, 2, name="pool2")(x), 384, 3, "conv3")
    x = conv(x, 256, 3, "conv4")
    x = taps_c4 = conv(x, 256, 3, "conv5")
    x = L.MaxPooling2D(3, 2, name="pool5")(x)
    return {"C2": taps_c2, "C3": taps_c3, "C4": taps_c4, "C5": x}


def head(taps, dropout):
    x = L.Flatten(name="flatten")(average_to(taps["C5"], 6, name="avgpool"))
    x = L.Dropout(dropout, name="fc1_drop")(x)
    x = L.Dense(4096, activation="relu", name="fc1")(x)
    x = L.Dropout(dropout, name="fc2_drop")(x)
    return L.Dense(4096, activation="relu", name="fc2")(x)


TORCH = {
    "conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8",
    "conv5": "features.10", "fc1": "classifier.1", "fc2": "classifier.4", "logits": "classifier.6",
}  # fmt: skip

add = family(
    "alexnet",
    body,
    head=head,
    dropout=0.5,
    paper="arXiv:1404.5997",
    year=2012,
    torch_name=TORCH.__getitem__,
)
add(
    "alexnet",
    min_size=63,
    params=61_100_840,
    gmacs=0.714,
    taps={"C2": 64, "C3": 192, "C4": 256, "C5": 256},
    torchvision="alexnet",
    weights=[torchvision("alexnet-owt-7be5be79.pth", 56.522, 79.066)],
)
