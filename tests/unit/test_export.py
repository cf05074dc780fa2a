"""An exported model answers as the model did, anywhere, or says that it does not."""

import io
import json
import struct
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo import export, zoo
from dlzoo.data.decode import decode as pillow_decode
from dlzoo.data.pipeline import load_image
from dlzoo.errors import ExportError, UsageError
from dlzoo.export import decode as graph
from dlzoo.export import parity, serving
from dlzoo.transfer.classifier import Classifier
from dlzoo.zoo.spec import Preprocess
from PIL import Image, ImageDraw

L = keras.layers
SIZE = 24
RULE = Preprocess(size=SIZE, crop=0.8, interpolation="bicubic")
CLASSES = ("daisy", "rose é", "tulip")


def picture(width=70, height=50, seed=0):
    """Return a smooth RGB picture that is another one when turned or mirrored."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype("uint8")
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    ImageDraw.Draw(image).polygon([(3, 3), (width // 2, 5), (6, height // 2)], "black")
    return image


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(depth, colour, transparent=None):
    """Return a small PNG of random pixels of a kind that Pillow does not write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rng = np.random.default_rng(depth + colour)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    lines = [b"\0" + rng.bytes((13 * bits + 7) // 8) for _ in range(7)]
    header = struct.pack(">IIBBBBB", 13, 7, depth, colour, 0, 0, 0)
    palette = chunk(b"PLTE", rng.bytes(3 * 2**depth)) if colour == 3 else b""
    extra = chunk(b"tRNS", transparent) if transparent else b""
    pixels = chunk(b"IDAT", zlib.compress(b"".join(lines)))
    ends = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header), chunk(b"IEND", b"")
    return ends[0] + palette + extra + pixels + ends[1]


def files():
    """Return `{kind: content}` of every kind of file that the graph decodes."""
    image = picture()
    clear = image.convert("RGBA")
    ramp = np.linspace(0, 255, 70 * 50).reshape(50, 70)
    clear.putalpha(Image.fromarray(ramp.astype("uint8")))
    palette = image.quantize(64)
    turned = [palette.rotate(90), palette.rotate(20)]
    return {
        "jpeg": encoded(image, "JPEG"),
        "jpeg progressive": encoded(image, "JPEG", progressive=True, subsampling=0),
        "jpeg grey": encoded(image.convert("L"), "JPEG"),
        "jpeg cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "png": encoded(image, "PNG"),
        "png alpha": encoded(clear, "PNG"),
        "png grey alpha": encoded(clear.convert("LA"), "PNG"),
        "png palette": encoded(palette, "PNG"),
        "png palette transparent": encoded(palette, "PNG", transparency=3),
        "png palette alpha": encoded(palette, "PNG", transparency=bytes(range(0, 256, 4))),
        "png palette 4 bits": png(4, 3),
        "png palette 2 bits alpha": png(2, 3, b"\0\x40\x80"),
        "png 1 bit": png(1, 0),
        "png grey 2 bits": png(2, 0),
        "png grey transparent": png(8, 0, b"\0\x64"),
        "png grey 16 bits": encoded(Image.fromarray((ramp * 257).astype("uint16")), "PNG"),
        "png rgb 16 bits": png(16, 2),
        "png alpha 16 bits": png(16, 6),
        "png rgb transparent": encoded(image, "PNG", transparency=image.getpixel((3, 3))),
        "gif": encoded(palette, "GIF"),
        "gif transparent": encoded(palette, "GIF", transparency=3),
        "gif animated": encoded(
            palette, "GIF", save_all=True, append_images=turned, transparency=5, comment=b"hi"
        ),
        "bmp": encoded(image, "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "bmp grey": encoded(image.convert("L"), "BMP"),
        "bmp 32 bits": encoded(clear, "BMP"),
        "webp": encoded(image, "WEBP"),
        "webp alpha": encoded(clear, "WEBP"),
        "webp animated": encoded(clear, "WEBP", save_all=True, append_images=[clear.rotate(40)]),
    }


FILES = files()
in_graph = tf.function(
    graph.decode, input_signature=[tf.TensorSpec((), tf.string)], autograph=False
)


def network(outputs, task="multiclass", create=None):
    keras.utils.set_random_seed(1)
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = L.Rescaling(1 / 127.5, -1, name="normalize")(image)
    x = L.Conv2D(8, 5, strides=3, use_bias=False, name="conv")(x)
    x = L.BatchNormalization(name="bn")(x)
    x = L.Activation("relu", name="relu")(x)
    x = L.Dropout(0.5, name="dropout")(L.Flatten(name="flatten")(x))
    model = keras.Model(image, L.Dense(outputs, name="logits")(x))
    return Classifier(model, CLASSES[: max(outputs, 2)], task, RULE, {})


@pytest.fixture(scope="module")
def classifier():
    return network(3)


@pytest.fixture(scope="module")
def images():
    """Seven images of different sizes and kinds, one so large that it is averaged first."""
    photos = [encoded(picture(40 + 9 * i, 90 - 8 * i, i), "JPEG") for i in range(5)]
    return [*photos, encoded(picture(401, 303), "JPEG"), FILES["png alpha"]]


@pytest.fixture(scope="module")
def exported(classifier, images, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "savedmodel"
    figures = export.export(classifier, path, images=[*images, encoded(picture(), "TIFF")])
    return path, figures, tf.saved_model.load(str(path))


@pytest.fixture(scope="module")
def expected(classifier, images):
    return classifier.probabilities(np.stack([load_image(image, RULE) for image in images]))


@pytest.mark.parametrize("kind", FILES)
def test_the_graph_decodes_as_training_does(kind):
    ours, theirs = in_graph(FILES[kind]).numpy().astype(int), pillow_decode(FILES[kind])
    assert ours.shape == theirs.shape
    # The way from CMYK to RGB is rounded differently.
    assert np.abs(ours - theirs).max() <= (1 if kind == "jpeg cmyk" else 0)


def exif(orientation, order, entries=1):
    """Return an EXIF block with `entries` entries, the orientation being the last."""
    rows = [struct.pack(order + "HHII", 0x0100 + i, 4, 1, 6) for i in range(entries - 1)]
    rows.append(struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0))
    mark = b"II" if order == "<" else b"MM"
    start = mark + struct.pack(order + "HIH", 42, 8, entries)
    return b"Exif\0\0" + start + b"".join(rows) + b"\0\0\0\0"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_orientation_is_applied(format, order):
    upright = picture()
    seen = set()
    for orientation in range(10):
        options = {"lossless": True} if format == "WEBP" else {}
        block = exif(orientation, order, entries=1 + orientation % 3)
        data = encoded(upright, format, exif=block, **options)
        ours = in_graph(data).numpy()
        assert np.array_equal(ours, pillow_decode(data)), orientation
        seen.add(ours.tobytes())
    assert len(seen) == 8  # 0 and 9 mean nothing, as 1 does


def test_exif_behind_other_segments_is_found():
    data = encoded(picture(), "JPEG", exif=exif(6, ">"))
    comment = b"\xff\xfe" + struct.pack(">H", 3000) + b"\xff\xe1Exif\0\0 it is not".ljust(2998)
    data = data[:2] + comment + b"\xff" + data[2:]
    assert np.array_equal(in_graph(data).numpy(), pillow_decode(data))
    assert in_graph(data).shape[:2] == (70, 50)


CUT = exif(6, "<", entries=2)
BROKEN_EXIF = {
    "ends in the header": CUT[:11],
    "ends before its entries": CUT[:16],
    "ends in an entry": CUT[:-10],
    "points behind the file": CUT[:10] + b"\xff\xff\xff\x7f" + CUT[14:],
    "has too many entries": CUT[:14] + b"\xff\xff" + CUT[16:],
}


@pytest.mark.parametrize("kind", BROKEN_EXIF)
def test_broken_exif_does_no_harm(kind):
    data, block = encoded(picture(), "JPEG"), BROKEN_EXIF[kind]
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
    assert in_graph(data).shape in ((50, 70, 3), (70, 50, 3))


REFUSED = {
    "tiff": encoded(picture(), "TIFF"),
    "bmp of 1 bit": encoded(picture().convert("1"), "BMP"),
    "bmp said to be compressed": FILES["bmp palette"][:30] + b"\1" + FILES["bmp palette"][31:],
    "truncated jpeg": FILES["jpeg"][:600],
    "truncated gif": FILES["gif"][:40],
    "empty": b"",
    "text": b"no image",
    "gif that its first frame does not fill": FILES["gif"].replace(
        b"\x2c\0\0\0\0" + FILES["gif"][6:10], b"\x2c\1\0\0\0" + FILES["gif"][6:10]
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_decoded_alike_is_an_error(kind):
    with pytest.raises(tf.errors.InvalidArgumentError):
        in_graph(REFUSED[kind])


def test_parity_is_measured_and_written(exported, images):
    path, figures, _ = exported
    assert figures["passed"] and figures["max_difference"] < 1e-5
    assert figures["top1_agreement"] == 1 and figures["n"] == len(images) + 1
    # The TIFF, which the graph refuses.
    assert figures["unreadable"] == {"bytes": 1, "pixels": 0}
    assert figures["ways"]["bytes"]["n"] == len(images)
    assert figures["ways"]["pixels"]["n"] == len(images) + 1
    extra = path / "assets.extra"
    assert json.loads((extra / "parity.json").read_text("utf-8")) == figures
    about = json.loads((extra / "dlzoo.json").read_text("utf-8"))
    assert about["classes"] == list(CLASSES) and about["task"] == "multiclass"
    assert about["preprocess"]["interpolation"] == "bicubic"
    assert about["versions"]["tensorflow"] == tf.__version__
    assert [p.name for p in path.parent.iterdir()] == ["savedmodel"]


def test_a_batch_of_files_of_different_sizes(exported, images, expected):
    *_, model = exported
    np.testing.assert_allclose(model(tf.constant(images)).numpy(), expected, atol=1e-5)
    answer = model.signatures["bytes"](image_bytes=tf.constant(images))
    np.testing.assert_allclose(answer["probabilities"].numpy(), expected, atol=1e-5)
    assert answer["index"].numpy().tolist() == expected.argmax(1).tolist()
    labels = [CLASSES[i].encode() for i in expected.argmax(1)]
    assert answer["label"].numpy().tolist() == labels


def test_raw_pixels_of_any_size_and_both_types(exported, images, expected):
    *_, model = exported
    for image, row in zip(images, expected, strict=True):
        pixels = pillow_decode(image)[None]
        scaled = pixels.astype("float32")
        calls = [
            model(pixels),
            model(scaled),
            model.signatures["serving_uint8"](images=tf.constant(pixels))["probabilities"],
            model.signatures["serving_default"](images=tf.constant(scaled))["probabilities"],
        ]
        for found in calls:
            np.testing.assert_allclose(found.numpy()[0], row, atol=1e-5)


def test_class_names_are_in_the_model(exported):
    *_, model = exported
    names = [name.encode() for name in CLASSES]
    assert model.class_names().numpy().tolist() == names
    assert model.signatures["class_names"]()["class_names"].numpy().tolist() == names


def test_nothing_random_and_no_python_is_in_the_graph(exported):
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path, *_ = exported
    saved = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    library = saved.meta_graphs[0].graph_def.library.function
    ops = {node.op for function in library for node in function.node_def}
    assert "Conv2D" in ops and "DecodeJpeg" in ops
    assert not [op for op in ops if "Random" in op or "PyFunc" in op]
    # The network is stored once, whatever the number of signatures.
    assert sum(node.op == "Conv2D" for f in library for node in f.node_def) == 1


def test_it_answers_in_a_process_without_dlzoo_and_keras(exported, images, expected, tmp_path):
    path, *_ = exported
    (tmp_path / "image.jpg").write_bytes(images[0])
    program = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
class Without:
    def find_spec(self, name, *more):
        missing = name.split(".")[0] in ("dlzoo", "keras", "tf_keras")
        return None if missing else PathFinder.find_spec(name, *more)
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Without()]
import json
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
file = tf.constant([open(sys.argv[2], "rb").read()])
answer = model.signatures["bytes"](image_bytes=file)
assert "keras" not in sys.modules and "dlzoo" not in sys.modules
print(json.dumps(answer["probabilities"].numpy().tolist()))
"""
    command = [sys.executable, "-c", program, str(path), str(tmp_path / "image.jpg")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(json.loads(result.stdout)[0], expected[0], atol=1e-5)


@pytest.mark.parametrize(("outputs", "task"), [(1, "binary"), (3, "multilabel")])
def test_other_tasks(tmp_path, images, outputs, task):
    other = network(outputs, task)
    assert export.savedmodel(other, tmp_path / "m", images=images)["max_difference"] < 1e-5
    model = tf.saved_model.load(str(tmp_path / "m"))
    answer = model.signatures["bytes"](image_bytes=tf.constant(images))
    prepared = np.stack([load_image(image, RULE) for image in images])
    np.testing.assert_allclose(answer["probabilities"], other.probabilities(prepared), atol=1e-5)
    assert ("label" in answer) == (task == "binary")


def test_a_mixed_precision_model_is_exported_in_float32(tmp_path, images):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        create = {"name": "lenet5", "num_classes": 3, "input_shape": (SIZE, SIZE, 3)}
        model = zoo.create_model(**create, preprocess=RULE)
    finally:
        keras.config.set_dtype_policy(before)
    mixed = Classifier(model, CLASSES, "multiclass", RULE, {"create": create})
    export.savedmodel(mixed, tmp_path / "m", images=images)
    found = tf.saved_model.load(str(tmp_path / "m"))(tf.constant(images)).numpy()
    prepared = np.stack([load_image(image, RULE) for image in images])
    np.testing.assert_allclose(found, mixed.probabilities(prepared), atol=1e-2)
    np.testing.assert_allclose(found, mixed.float32().probabilities(prepared), atol=1e-5)


def test_an_export_that_answers_differently_is_rejected(classifier, images, tmp_path, monkeypatch):
    def mirrored(image, rule):
        return tf.reverse(resize_rule(image, rule), [1])

    resize_rule = serving.resize_rule
    monkeypatch.setattr(serving, "resize_rule", mirrored)
    with pytest.raises(ExportError) as caught:
        export.savedmodel(classifier, tmp_path / "m", images=images)
    assert caught.value.id == "export.parity" and caught.value.exit_code == 8
    assert "> 1e-03" in caught.value.message and str(tmp_path / "m.rejected") in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.rejected"]
    kept = json.loads((tmp_path / "m.rejected/assets.extra/parity.json").read_text("utf-8"))
    assert not kept["passed"] and kept["max_difference"] > 1e-3


@pytest.mark.parametrize(
    ("format", "told"),
    [("tflite", "yet"), ("onnx", "yet"), ("keras", "yet"), ("savemodel", "did you mean")],
)
def test_a_format_that_is_not_there(classifier, images, tmp_path, format, told):
    with pytest.raises(UsageError) as caught:
        export.export(classifier, tmp_path / "m", format, images=images)
    assert caught.value.id == "export.format"
    assert told in caught.value.message and "savedmodel" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(classifier, images, tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(UsageError) as caught:
        export.savedmodel(classifier, tmp_path / "m", images=images)
    assert caught.value.id == "export.exists" and not list((tmp_path / "m").iterdir())


def test_without_images_there_is_no_export(classifier, tmp_path):
    with pytest.raises(UsageError) as caught:
        export.savedmodel(classifier, tmp_path / "m", images=[])
    assert caught.value.id == "export.no-images" and not list(tmp_path.iterdir())


def test_an_export_that_reads_no_image_is_no_success():
    with pytest.raises(ExportError) as caught:
        parity.check(np.eye(3)[:1], {"bytes": lambda image: None}, [b""], "multiclass", 1e-3)
    assert caught.value.id == "export.parity"


@pytest.mark.parametrize(
    ("expected", "found", "task", "passed", "agreement"),
    [
        ([[0.5, 0.5]], [[0.4999, 0.5001]], "multiclass", True, 0),  # a tie, turned
        ([[0.53, 0.47]], [[0.49, 0.51]], "multiclass", False, 0),  # turned, and it was no tie
        ([[0.90, 0.10]], [[0.86, 0.14]], "multiclass", True, 1),
        ([[0.90, 0.10]], [[0.84, 0.16]], "multiclass", False, 1),  # too far
        ([[0.90, 0.10]], [[np.nan, 0.10]], "multiclass", False, 1),
        ([[0.51, 0.9]], [[0.49, 0.9]], "multilabel", True, 0.5),
    ],
)
def test_what_passes(expected, found, task, passed, agreement):
    tolerance = 0.05 if expected[0][0] != 0.53 else 0.045
    figures = parity.compare(np.array(expected), np.array(found), task, tolerance)
    assert figures["passed"] is passed and figures["top1_agreement"] == agreement
