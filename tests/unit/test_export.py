"""An exported model answers as the model did, anywhere, or says that it does not."""

import functools
import io
import json
import os
import runpy
import struct
import subprocess
import sys
import types
import zipfile
import zlib
from importlib import util
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo import export, load_data, zoo
from dlzoo.data.decode import decode as pillow_decode
from dlzoo.data.pipeline import load_image
from dlzoo.errors import ExportError, UsageError
from dlzoo.export import Options, parity, serving, snippets, tflite
from dlzoo.export import decode as graph
from dlzoo.transfer.classifier import Classifier
from dlzoo.zoo.spec import Preprocess
from PIL import Image, ImageDraw

L = keras.layers
SIZE = 24
RULE = Preprocess(size=SIZE, crop=0.8, interpolation="bicubic")
CLASSES = ("daisy", "rose é", "tulip")
HAS_ONNX = all(util.find_spec(name) for name in ("tf2onnx", "onnxruntime"))


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


def animated(size, format="WEBP", **options):
    """Return an animation of two frames without alpha."""
    frames = [picture(*size, seed) for seed in range(2)]
    options |= {"lossless": True} if format == "WEBP" else {}
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)


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
        "webp animated without alpha": animated((2, 1)),
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


@pytest.mark.parametrize("format", ["WEBP", "PNG", "GIF"])
def test_an_animation_as_large_as_a_photo(format):
    """TensorFlow 2.21 ends the process where it is given such a WebP without alpha.

    Of one as small as that in `FILES` it spoils a few pixels only, and no memory.
    """
    small = FILES["webp animated without alpha"]
    assert np.array_equal(in_graph(small).numpy(), pillow_decode(small))
    turned = {} if format == "GIF" else {"exif": exif(6, "<")}
    data = animated((320, 240), format, **turned)
    assert np.array_equal(in_graph(data).numpy(), pillow_decode(data))


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
    why = "JPEG, PNG, GIF, BMP or WebP" if kind in ("tiff", "empty", "text") else None
    with pytest.raises(tf.errors.InvalidArgumentError, match=why):
        in_graph(REFUSED[kind])


def test_pain_02_parity_is_measured_and_written(exported, images):
    path, figures, _ = exported
    assert figures["passed"] and figures["max_difference"] < 1e-5
    assert figures["top1_agreement"] == 1 and figures["n"] == len(images) + 1
    # The TIFF, which the graph refuses.
    assert figures["unreadable"] == {"bytes": 1, "pixels": 0}
    assert figures["ways"]["bytes"]["n"] == len(images)
    assert figures["ways"]["pixels"]["n"] == len(images) + 1
    known = json.loads((path.parent / "parity.json").read_text("utf-8"))
    assert known == {"savedmodel": figures | {"path": "savedmodel"}}
    assert figures["bytes"] == sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    assert figures["latency_ms"] > 0 and figures["path"] == str(path)
    beside = {"savedmodel", "savedmodel.json", "use_savedmodel.py", "parity.json"}
    assert {p.name for p in path.parent.iterdir()} == beside


def about_of(path):
    """Return the description inside an artefact."""
    if path.is_dir():
        return json.loads((path / "assets.extra/dlzoo.json").read_text("utf-8"))
    if path.suffix == ".onnx":
        meta = pytest.importorskip("onnxruntime").InferenceSession(path).get_modelmeta()
        return json.loads(meta.custom_metadata_map["dlzoo.json"])
    return json.loads(zipfile.ZipFile(path).read("dlzoo.json"))


@pytest.fixture(scope="module")
def written(classifier, images, exported, tmp_path_factory):
    """Give `written(format, **options) -> (path, figures)`, each made once."""

    @functools.cache
    def made(format, **options):
        if format == "savedmodel" and not options:
            return exported[:2]
        asked = Options(**options)
        path = tmp_path_factory.mktemp(format) / export.file_name(format, asked)
        return path, export.export(classifier, path, format, images=images, options=asked)

    return made


EVERY = [
    "savedmodel",
    "keras",
    "tflite",
    pytest.param("onnx", marks=pytest.mark.skipif(not HAS_ONNX, reason="the extra onnx")),
]


@pytest.mark.parametrize("format", EVERY)
def test_pain_04_24_25_every_format_answers_alike_and_tells_what_it_is(written, images, format):
    path, figures = written(format)
    assert figures["passed"] and figures["max_difference"] < 1e-5
    assert figures["top1_agreement"] == 1
    about = about_of(path)
    assert about == json.loads(path.with_name(f"{path.name}.json").read_text("utf-8"))
    assert about["classes"] == list(CLASSES) and about["task"] == "multiclass"
    rule = {"size": SIZE, "crop": RULE.crop, "interpolation": "bicubic"}
    assert about["size"] == SIZE and about["preprocess"] == rule  # no more is left to do
    assert about["format"] == format and about["versions"]["tensorflow"] == tf.__version__
    assert set(about) == set(about_of(written("savedmodel")[0]))  # one shape for all
    assert about["input"]["shape"] == [None, *([None] * 2 if path.is_dir() else [SIZE] * 2), 3]


@pytest.mark.parametrize("format", EVERY)
def test_pain_30_a_fixed_batch(written, classifier, images, tmp_path, format):
    path, figures = written(format, batch=2)
    assert figures["max_difference"] < 1e-5 and figures["batch"] == 2
    assert path.stem.endswith("-batch2") and about_of(path)["input"]["shape"][0] == 2
    if not path.is_dir():
        assert list(figures["ways"]) == ["batch 2"]
        assert list(written(format)[1]["ways"]) == ["batch 1", "batch 3"]


WITHOUT = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
class Without:
    def find_spec(self, name, *more):
        missing = name.split(".")[0] in sys.argv[1].split(",")
        return None if missing else PathFinder.find_spec(name, *more)
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Without()]
import runpy, types
import tensorflow as tf
sys.modules["ai_edge_litert"] = types.ModuleType("ai_edge_litert")
sys.modules["ai_edge_litert.interpreter"] = tf.lite
while "--" in sys.argv[2:]:
    end = sys.argv.index("--")
    rest = sys.argv[:2] + sys.argv[end + 1 :]
    sys.argv = sys.argv[2:end]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.argv = rest
assert not set(sys.argv[1].split(",")) & set(sys.modules)
"""


@pytest.mark.parametrize(
    ("formats", "missing"),
    [
        pytest.param(["savedmodel"], "dlzoo,keras,tf_keras", marks=pytest.mark.full),
        (["keras", "tflite", "onnx"], "dlzoo"),
    ],
)
def test_pain_23_the_programs_answer_without_dlzoo(
    written, exported, images, expected, tmp_path, formats, missing
):
    """Also what the file needs: a Lambda or a custom object plain Keras would refuse."""
    photos = [tmp_path / f"{i}.jpg" for i in range(len(images))]
    for photo, image in zip(photos, images, strict=True):
        photo.write_bytes(image)
    formats = [name for name in formats if name != "onnx" or HAS_ONNX]
    calls = []
    for name in formats:
        path = exported[0] if name == "savedmodel" else written(name)[0]
        calls += [path.with_name(f"use_{name}.py"), path, *photos, "--"]
    command = [sys.executable, "-c", WITHOUT, missing, *calls]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(images) * len(formats)
    for i, line in enumerate(lines):
        shown, best, *_ = line.split("  ")
        name, _, share = best.rpartition(" ")
        row = expected[i % len(images)]
        assert shown == str(photos[i % len(images)]) and name == CLASSES[row.argmax()]
        # Pillow rounds the resized image to whole numbers; the SavedModel does it all itself.
        near = 6e-4 if formats == ["savedmodel"] else 5e-3
        assert float(share.rstrip("%")) / 100 == pytest.approx(row.max(), abs=near)


@pytest.mark.parametrize("format", EVERY)
def test_the_program_of_a_fixed_batch_takes_any_number_of_photos(
    written, images, expected, tmp_path, monkeypatch, capsys, format
):
    path = written(format, batch=2)[0]
    (photo := tmp_path / "one.jpg").write_bytes(images[0])
    monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", tf.lite)
    monkeypatch.setattr(sys, "argv", ["program", str(path), str(photo)])
    runpy.run_path(str(path.with_name(f"use_{format}.py")), run_name="__main__")
    assert f"one.jpg  {CLASSES[expected[0].argmax()]} " in capsys.readouterr().out


def apart(photo):
    """Return by how many levels on average a program reads a photo otherwise than training."""
    space = {"np": np}
    exec(snippets._READ, space)
    (read,) = space["read"](io.BytesIO(photo), {"preprocess": vars(RULE)})
    return np.abs(read - load_image(photo, RULE)).mean()


RAMP = np.linspace(0, 1, 60 * 40).reshape(40, 60)[:, ::-1]


@pytest.mark.parametrize(
    ("format", "values"),
    [
        ("PNG", (RAMP * 40_000).astype("uint16")),
        ("TIFF", (RAMP * 40_000).astype("uint16")),
        ("TIFF", (RAMP * 200).astype("int32")),
        ("TIFF", (RAMP * 70_000 - 5_000).astype("int32")),
        ("TIFF", RAMP.astype("float32")),
        ("TIFF", np.where(RAMP > 0.9, np.nan, RAMP * 3e5).astype("float32")),
    ],
)
def test_the_programs_read_deep_grey_as_training_does(format, values):
    assert apart(encoded(Image.fromarray(values), format)) < 0.5


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_programs_turn_a_photo_by_exif_alone(format):
    for note in ({"exif": exif(6, "<")}, {"xmp": b'<rdf:Description tiff:Orientation="6"/>'}):
        assert apart(encoded(picture(), format, **note)) < 0.5


def test_a_program_that_the_user_changed_stays(classifier, images, tmp_path):
    (tmp_path / "use_tflite.py").write_text("mine")
    export.export(classifier, tmp_path / "m.tflite", "tflite", images=images)
    assert (tmp_path / "use_tflite.py").read_text() == "mine"


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


@pytest.mark.parametrize(
    "spoil",
    [lambda x: x / 255, lambda x: x / 127.5 - 1, lambda x: x * np.nan, lambda x: x * 257],
    ids=["0..1", "-1..1", "nan", "16 bits"],
)
def test_pain_01_pixels_that_are_scaled_already_get_no_answer(exported, images, spoil):
    *_, model = exported
    pixels = pillow_decode(images[0])[None].astype("float32")
    for ask in (model, lambda x: model.signatures["serving_default"](images=tf.constant(x))):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"raw RGB in 0\.\.255 is needed"):
            ask(spoil(pixels))


def test_class_names_are_in_the_model(exported):
    *_, model = exported
    names = [name.encode() for name in CLASSES]
    assert model.class_names().numpy().tolist() == names
    assert model.signatures["class_names"]()["class_names"].numpy().tolist() == names


def test_pain_26_nothing_random_and_no_python_is_in_the_graph(exported):
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path, *_ = exported
    saved = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    library = saved.meta_graphs[0].graph_def.library.function
    ops = {node.op for function in library for node in function.node_def}
    assert "Conv2D" in ops and "DecodeJpeg" in ops
    assert not [op for op in ops if "Random" in op or "PyFunc" in op]
    # The network is stored once, whatever the number of signatures.
    assert sum(node.op == "Conv2D" for f in library for node in f.node_def) == 1


@pytest.mark.full
@pytest.mark.parametrize(("outputs", "task"), [(1, "binary"), (3, "multilabel")])
def test_other_tasks(tmp_path, images, outputs, task):
    other = network(outputs, task)
    for format in ("keras", "tflite"):
        figures = export.export(other, tmp_path / f"m.{format}", format, images=images)
        assert figures["max_difference"] < 1e-5
    assert export.export(other, tmp_path / "m", images=images)["max_difference"] < 1e-5
    model = tf.saved_model.load(str(tmp_path / "m"))
    answer = model.signatures["bytes"](image_bytes=tf.constant(images))
    prepared = np.stack([load_image(image, RULE) for image in images])
    np.testing.assert_allclose(answer["probabilities"], other.probabilities(prepared), atol=1e-5)
    assert ("label" in answer) == (task == "binary")


@pytest.mark.full
def test_pain_28_a_mixed_precision_model_is_exported_in_float32(tmp_path, images):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        create = {"name": "lenet5", "num_classes": 3, "input_shape": (SIZE, SIZE, 3)}
        model = zoo.create_model(**create, preprocess=RULE)
    finally:
        keras.config.set_dtype_policy(before)
    mixed = Classifier(model, CLASSES, "multiclass", RULE, {"create": create})
    export.export(mixed, tmp_path / "m", images=images)
    for format in ("keras", "tflite"):
        figures = export.export(mixed, tmp_path / f"m.{format}", format, images=images)
        assert figures["max_difference"] < 1e-5
    plain = keras.saving.load_model(tmp_path / "m.keras")
    assert {layer.compute_dtype for layer in plain.layers} == {"float32"}
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
        export.export(classifier, tmp_path / "m", images=images)
    assert caught.value.id == "export.parity" and caught.value.exit_code == 8
    assert "> 1e-03" in caught.value.message and str(tmp_path / "m.rejected") in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"m.rejected", "parity.json"}
    kept = json.loads((tmp_path / "parity.json").read_text("utf-8"))["m"]
    assert not kept["passed"] and kept["max_difference"] > 1e-3 and kept["path"] == "m.rejected"


def test_a_file_that_answers_differently_is_rejected(classifier, images, tmp_path, monkeypatch):
    """And the next good one does not touch it."""
    honest = tflite.answering

    def spoilt(classifier):
        model = honest(classifier)
        x = L.Rescaling(0.9, name="spoilt")(model.outputs[0])
        return keras.Model(model.inputs[0], x)

    monkeypatch.setattr(tflite, "answering", spoilt)
    with pytest.raises(ExportError) as caught:
        export.export(classifier, tmp_path / "m.tflite", "tflite", images=images)
    assert caught.value.id == "export.parity" and caught.value.exit_code == 8
    assert {p.name for p in tmp_path.iterdir()} == {"m.tflite.rejected", "parity.json"}
    monkeypatch.undo()
    export.export(classifier, tmp_path / "m.tflite", "tflite", images=images)
    known = json.loads((tmp_path / "parity.json").read_text("utf-8"))
    assert known["m.tflite"]["passed"] and (tmp_path / "m.tflite.rejected").exists()


def test_what_is_there_of_a_killed_export_lacks_nothing(classifier, images, tmp_path, monkeypatch):
    """For a run that goes on takes what is there as done."""
    complete = {"m.keras", "m.keras.json", "use_keras.py", "parity.json"}
    replace, rename, seen = os.replace, Path.rename, []

    def looking(done):
        def replaced(*args):
            found = done(*args)
            there = {p.name for p in tmp_path.iterdir()}
            seen.append("m.keras" not in there or there >= complete)
            return found

        return replaced

    monkeypatch.setattr(os, "replace", looking(replace))
    monkeypatch.setattr(Path, "rename", looking(rename))
    export.export(classifier, tmp_path / "m.keras", "keras", images=images)
    assert len(seen) >= 4 and all(seen)
    assert {p.name for p in tmp_path.iterdir()} == complete


def test_a_format_that_is_not_there(classifier, images, tmp_path):
    with pytest.raises(UsageError) as caught:
        export.export(classifier, tmp_path / "m", "savemodel", images=images)
    assert caught.value.id == "export.format" and "did you mean" in caught.value.message
    assert all(name in caught.value.hint for name in ("savedmodel", "keras", "tflite", "onnx"))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_the_pip_line(monkeypatch):
    """Fault 39."""
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "tf2onnx" else 1)
    with pytest.raises(UsageError) as caught:
        export.check_formats(["savedmodel", "onnx"])
    assert (caught.value.id, caught.value.exit_code) == ("export.package", 2)
    assert "tf2onnx" in caught.value.message and "onnxruntime" not in caught.value.message
    assert caught.value.hint == 'pip install "dlzoo[onnx]"'


@pytest.mark.parametrize("formats", [["savedmodel", "keras"], []])
def test_what_cannot_be_quantized_is_said(formats):
    with pytest.raises(UsageError, match=r"export\.quantize.*int8") as caught:
        export.check_formats(formats, "int8")
    assert "tflite" in caught.value.hint
    export.check_formats([*formats, "tflite"], "int8")


def test_float16_is_half_the_size(written):
    path, figures = written("tflite", quantize="fp16")
    whole, _ = written("tflite")
    assert path.name == "model-fp16.tflite" and figures["quantize"] == "fp16"
    assert 0 < figures["max_difference"] < 1e-2 and figures["tolerance"] == 1e-2
    assert path.stat().st_size < 0.9 * whole.stat().st_size
    assert about_of(path)["input"]["dtype"] == "float32"


@pytest.fixture(scope="module")
def photos():
    """Give labelled photos: three classes that differ in brightness."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 80, (60, 30, 30, 3)) + 80 * (np.arange(60) % 3)[:, None, None, None]
    pairs = pixels.astype("uint8"), np.arange(60) % 3
    return load_data(pairs, classes=list(CLASSES), val_split=0.3, test_split=0.2)


def test_int8_takes_pixels_as_they_are(written, photos, classifier, images):
    path, figures = written("tflite", quantize="int8", data=photos, max_drop=100)
    assert path.name == "model-int8.tflite" and figures["tolerance"] is None
    accuracy = figures["accuracy"]
    n = photos.splits["val"]
    labels = photos.labels("val").argmax(1)
    right = (classifier.answers(photos, "val").argmax(1) == labels).mean()
    assert accuracy["n"] == n and accuracy["float"] == pytest.approx(right)
    run = tflite.ask(path)
    pixels = np.stack([load_image(photos.read("val", i), RULE) for i in range(n)])
    now = (run(pixels).argmax(1) == labels).mean()
    assert accuracy["quantized"] == pytest.approx(now)
    assert accuracy["drop"] == pytest.approx(100 * (right - now)) and accuracy["passed"]
    model = tf.lite.Interpreter(str(path))
    source, target = model.get_input_details()[0], model.get_output_details()[0]
    assert source["dtype"] == np.uint8 and source["quantization"] == (1.0, 0)
    assert target["dtype"] == np.float32
    kinds = {str(t["dtype"]) for t in model.get_tensor_details() if t["index"] != target["index"]}
    assert not [kind for kind in kinds if "float" in kind]  # whole numbers all the way


def test_pain_12_int8_that_loses_too_much_is_rejected(
    photos, classifier, images, tmp_path, monkeypatch
):
    honest = tflite.ask
    monkeypatch.setattr(tflite, "ask", lambda path: lambda x: np.roll(honest(path)(x), 1, axis=1))
    asked = Options(quantize="int8", data=photos, max_drop=-1e9)
    with pytest.raises(ExportError) as caught:
        export.export(classifier, tmp_path / "m.tflite", "tflite", images=images, options=asked)
    assert (caught.value.id, caught.value.exit_code) == ("export.accuracy", 8)
    assert (tmp_path / "m.tflite.rejected").exists() and not (tmp_path / "m.tflite").exists()


def test_int8_needs_photos_to_calibrate_on(classifier, images, tmp_path):
    asked = Options(quantize="int8")
    with pytest.raises(UsageError) as caught:
        export.export(classifier, tmp_path / "m.tflite", "tflite", images=images, options=asked)
    assert caught.value.id == "export.no-calibration" and not list(tmp_path.iterdir())


def strange(function):
    """Return a classifier with a step of its own between the network and the logits."""
    plain = network(3)
    x = function(plain.model.get_layer("flatten").output)
    model = keras.Model(plain.model.input, L.Dense(3, name="logits")(x))
    return Classifier(model, CLASSES, "multiclass", RULE, {})


def test_pain_29_flex_operations_are_named_and_need_permission(images, tmp_path):
    odd = strange(keras.ops.tan)
    with pytest.raises(ExportError) as caught:
        export.export(odd, tmp_path / "m.tflite", "tflite", images=images)
    assert (caught.value.id, caught.value.exit_code) == ("export.flex", 8)
    assert "Tan" in caught.value.message and "--allow-flex" in caught.value.hint
    assert not list(tmp_path.iterdir())
    with pytest.raises(ExportError, match=r"export\.failed.*Digamma"):
        odd = strange(keras.layers.Lambda(tf.math.digamma, output_shape=lambda shape: shape))
        export.export(odd, tmp_path / "m.tflite", "tflite", images=images)
    path, asked = tmp_path / "m.tflite", Options(allow_flex=True)
    try:
        assert export.export(strange(keras.ops.tan), path, "tflite", images=images, options=asked)
    except ExportError as error:  # an interpreter without Flex cannot check it
        path = tmp_path / "m.tflite.rejected"
        assert error.id == "export.flex" and error.where == str(path)
    assert b"FlexTan" in path.read_bytes()


@keras.saving.register_keras_serializable()
class Twice(L.Layer):
    def call(self, x):
        return 2 * x


@pytest.mark.parametrize("layer", [Twice, lambda: L.Lambda(lambda x: 2 * x)])
def test_pain_23_a_keras_file_that_plain_keras_could_not_open_is_refused(images, tmp_path, layer):
    with pytest.raises(ExportError) as caught:
        export.export(strange(layer()), tmp_path / "m.keras", "keras", images=images)
    assert caught.value.id == "export.custom-object"
    assert "Twice" in caught.value.message or "Lambda" in caught.value.message
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(classifier, images, tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(UsageError) as caught:
        export.export(classifier, tmp_path / "m", images=images)
    assert caught.value.id == "export.exists" and not list((tmp_path / "m").iterdir())


def test_without_images_there_is_no_export(classifier, tmp_path):
    with pytest.raises(UsageError) as caught:
        export.export(classifier, tmp_path / "m", images=[])
    assert caught.value.id == "export.no-images" and not list(tmp_path.iterdir())


def test_an_export_that_reads_no_image_is_no_success():
    with pytest.raises(ExportError) as caught:
        photos = parity.Photos([b""], np.zeros((1, 4, 4, 3)), np.eye(3)[:1])
        parity.check(photos, {"bytes": lambda photos: iter([None])}, "multiclass", 1e-3)
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
