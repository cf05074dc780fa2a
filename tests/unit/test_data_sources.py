"""Every source gives the same kind of catalogue (pains 2-4, 7-9, 38, 42)."""

import csv
import json
import os
import socket

import numpy as np
import pytest
from dlzoo import load_data
from dlzoo.data.load import fetch
from dlzoo.errors import DataError, UsageError
from PIL import Image


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))


def photo(path, number, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


def folder(root, names=("daisy", "rose", "tulip"), each=10, start=0):
    for k, name in enumerate(names):
        for i in range(each):
            photo(root / name / f"{i:02d}.png", start + 1000 * k + i)
    return root


def splits_of(data):
    return {key: split for split in data.splits for key in data.keys(split)}


def test_folder(tmp_path):
    data = load_data(folder(tmp_path / "photos"))
    assert (data.name, data.task) == ("photos", "multiclass")
    assert data.classes == ("daisy", "rose", "tulip")
    assert data.splits == {"train": 24, "val": 3, "test": 3} and len(data) == 30
    assert data.read("val", 0).shape == (12, 10, 3) and data.read("val", 0).dtype == np.uint8
    for split in data.splits:
        hot = data.labels(split)
        assert hot.dtype == np.float32 and (hot.sum(1) == 1).all()
        names = [data.classes[k] for k in hot.argmax(1)]
        assert names == [key.split("/")[0] for key in data.keys(split)]
    with pytest.raises(DataError, match="did you mean 'train'"):
        data.labels("trian")


def test_split_depends_on_content_only(tmp_path):
    first = load_data(folder(tmp_path / "a"))
    second = folder(tmp_path / "b")
    for i in range(10):  # other names, other order, another place
        (second / "rose" / f"{i:02d}.png").rename(second / "rose" / f"z{9 - i}.PNG")
    again = load_data(second)

    def contents(data, split):
        return {data.read(split, i).tobytes() for i in range(data.splits[split])}

    for split in first.splits:
        assert contents(first, split) == contents(again, split)
    assert splits_of(load_data(tmp_path / "a", seed=1)) != splits_of(first)
    assert load_data(tmp_path / "a").fingerprint == first.fingerprint != again.fingerprint


def test_two_classes_are_binary_unless_asked(tmp_path):
    root = folder(tmp_path / "p", ("cat", "dog"))
    data = load_data(root)
    assert data.task == "binary" and data.labels("train").shape == (16, 1)
    dogs = [key.startswith("dog") for key in data.keys("train")]
    np.testing.assert_array_equal(data.labels("train")[:, 0], dogs)
    assert load_data(root, task="multiclass").labels("train").shape == (16, 2)
    with pytest.raises(UsageError, match="did you mean 'binary'"):
        load_data(root, task="binray")


def test_pain_03_given_splits_are_kept_by_name(tmp_path):
    # val lacks the first class, and lists the others in its own order
    folder(tmp_path / "d" / "train", each=6)
    folder(tmp_path / "d" / "validation", ("tulip", "rose"), each=3, start=50)
    folder(tmp_path / "d" / "Test", each=4, start=90)
    data = load_data(tmp_path / "d")
    assert data.splits == {"train": 18, "val": 6, "test": 12}
    assert data.classes == ("daisy", "rose", "tulip")
    names = [data.classes[k] for k in data.labels("val").argmax(1)]
    assert names == [key.split("/")[1] for key in data.keys("val")]
    assert [p.reason for p in data.problems] == ["no images of this class in val"]


def test_pain_03_unknown_class_in_val_is_named(tmp_path):
    folder(tmp_path / "d" / "train")
    folder(tmp_path / "d" / "val", ("daisy", "roze"), each=3, start=70)
    with pytest.raises(DataError, match="'roze' is in val but not in train; did you mean 'rose'"):
        load_data(tmp_path / "d")


@pytest.mark.parametrize("name", ["val", "valid", "dev", "test"])
def test_a_missing_split_is_cut_out_of_train(tmp_path, name):
    folder(tmp_path / "d" / "train")
    folder(tmp_path / "d" / name, each=3, start=70)
    (tmp_path / "d" / "train" / "classes.txt").write_text("daisy\nrose\ntulip\n")  # no photo
    data = load_data(tmp_path / "d")
    own, cut = ("test", "val") if name == "test" else ("val", "test")
    assert data.splits == {"train": 27, own: 9, cut: 3}


def test_train_alone_and_a_class_called_train(tmp_path):
    folder(tmp_path / "d" / "train")
    assert load_data(tmp_path / "d").splits == {"train": 24, "val": 3, "test": 3}
    data = load_data(folder(tmp_path / "vehicles", ("train", "plane", "car")))
    assert data.classes == ("car", "plane", "train")
    photo(tmp_path / "vehicles" / "train" / "steam" / "0.png", 7)  # of a class, to any depth
    assert len(load_data(tmp_path / "vehicles")) == 31
    (tmp_path / "d" / "unlabelled").mkdir()
    with pytest.raises(DataError, match=r"beside 'train' .* 'unlabelled', which is no split"):
        load_data(tmp_path / "d")
    (tmp_path / "d" / "unlabelled").rmdir()
    (tmp_path / "d" / "val").mkdir()
    (tmp_path / "d" / "valid").mkdir()
    with pytest.raises(DataError, match="several folders stand for one split"):
        load_data(tmp_path / "d")


def test_a_wrapping_folder_is_looked_through(tmp_path):
    folder(tmp_path / "download" / "flower_photos")
    data = load_data(tmp_path / "download")
    assert data.name == "download" and data.classes == ("daisy", "rose", "tulip")


def test_csv(tmp_path):
    folder(tmp_path / "p")
    rows = [(f"p/{n}/{i:02d}.png", n) for n in ("daisy", "rose", "tulip") for i in range(10)]
    table = tmp_path / "list.csv"
    table.write_text("\ufeffPath;Label\r\n" + "".join(f"{p};{n}\r\n" for p, n in rows), "utf-8")
    data = load_data(table)
    assert data.name == "list" and data.splits == {"train": 24, "val": 3, "test": 3}
    assert splits_of(data) == {f"p/{k}": s for k, s in splits_of(load_data(tmp_path / "p")).items()}
    table.write_text(
        "".join(f"{p},{n}\n" for p, n in [("path", "label"), *rows[1:], ("p/x.png", "")])
    )
    with pytest.raises(DataError, match=r"1 rows have no label, such as 'p/x\.png'"):
        load_data(table)
    table.write_text("file,label\na,b\n")
    with pytest.raises(DataError, match="no column 'path'"):
        load_data(table)


@pytest.mark.parametrize("separator", [",", "\t"])
def test_tables_as_spreadsheets_write_them(tmp_path, separator):
    """Excel's Unicode text is UTF-16; a split file may be that, too."""
    data = load_data(folder(tmp_path / "p"))
    rows = [("path", "label", "split")]
    for key, split in splits_of(data).items():
        rows.append((key, key.split("/")[0].replace("rose", "Röslein"), split))
    text = "".join(separator.join(row) + "\r\n" for row in rows)
    (tmp_path / "p" / "t.csv").write_text(text, "utf-16", newline="")
    again = load_data(tmp_path / "p" / "t.csv")
    assert again.classes == ("Röslein", "daisy", "tulip") and splits_of(again) == splits_of(data)
    assert splits_of(load_data(tmp_path / "p", split_file=tmp_path / "p" / "t.csv", seed=9)) == (
        splits_of(data)
    )


def test_tables_that_would_be_read_wrongly_are_refused(tmp_path):
    """A cell in the wrong column would be another photo or another label, without a word."""
    folder(tmp_path / "p")
    rows = [f"p/{n}/{i:02d}.png,{n}" for n in ("daisy", "rose") for i in range(10)]
    table = tmp_path / "list.csv"
    for lines, words in (
        (["path,label", *rows, "p/rose/00, b.png,rose"], "row 22 has 3 cells, the first line 2"),
        (["path,label,label", *(f"{row},x" for row in rows)], "2 columns are called 'label'"),
        (["path,label", *rows, "", ",tulip"], "row 23 has no path"),
        (["path,label", *rows, "", "", "p/tulip/00.png,"], "1 rows have no label"),
    ):
        table.write_text("\n".join(lines) + "\n")
        with pytest.raises(DataError, match=words) as caught:
            load_data(table)
        assert caught.value.id == "data.csv"
    table.write_text("\n".join(["path,label,", *(f"{row},," for row in rows)]))
    assert len(load_data(table)) == 20
    for content in ("path,label\n".encode("utf-16-le"), b"PAR1\0\1\0", b"\xff\xfep\0a"):
        table.write_bytes(content)
        with pytest.raises(DataError, match=r"not text in UTF-8|not whole UTF-16"):
            load_data(table)


@pytest.mark.parametrize("name", ["labels.json", "labels.parquet", "labels.xlsx"])
def test_other_tables_are_told_from_photos(tmp_path, name):
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(DataError, match=r"a CSV file or an archive is needed") as caught:
        load_data(tmp_path / name)
    assert caught.value.hint.startswith("a table is .csv or .tsv")


def test_csv_with_splits_and_several_labels(tmp_path):
    folder(tmp_path / "p")
    kinds = ["red", "red|round", "", "round|red|big", "big"]
    with (tmp_path / "many.csv").open("w") as file:
        print("path,label,split", file=file)
        for i in range(10):
            for n in ("daisy", "rose", "tulip"):
                split = "training" if i < 7 else "valid" if i < 8 else "test"
                print(f"p/{n}/{i:02d}.png,{kinds[i % 5]},{split}", file=file)
    data = load_data(tmp_path / "many.csv")
    assert data.task == "multilabel" and data.classes == ("big", "red", "round")
    assert data.splits == {"train": 21, "val": 3, "test": 6}
    np.testing.assert_array_equal(
        data.labels("train")[:12:3], [[0, 1, 0], [0, 1, 1], [0] * 3, [1] * 3]
    )
    with pytest.raises(DataError, match="none or several labels"):
        load_data(tmp_path / "many.csv", task="multiclass")


def test_digits():
    data = load_data("digits")
    assert data.name == "digits" and data.classes == tuple("0123456789") and len(data) == 1797
    assert data.flip is False and data.read("test", 0).shape == (32, 32, 3)


def test_arrays():
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    y = np.arange(40) % 4
    data = load_data((x, y))
    assert data.classes == ("0", "1", "2", "3") and data.read("train", 0).shape == (8, 8, 3)
    i = int(data.keys("train")[5].split("/")[1])
    np.testing.assert_array_equal(data.read("train", 5)[..., 1], x[i])
    assert data.labels("train")[5].argmax() == y[i]
    named = load_data((x, np.array(list("dcba"))[y]))
    assert named.classes == tuple("abcd")
    hot = load_data((x[..., None].astype(np.float32), np.eye(4)[y]), classes=["w", "z", "y", "x"])
    assert hot.task == "multiclass" and hot.classes == ("w", "z", "y", "x")
    assert hot.labels("train").sum() == hot.splits["train"]
    many = load_data((x, (np.arange(40)[:, None] >> np.arange(3)) & 1), classes=["a", "b", "c"])
    assert many.task == "multilabel" and many.classes == ("a", "b", "c")
    parts = load_data({"train": (x[:24], y[:24]), "validation": (x[24:], y[24:])})
    assert parts.splits["val"] == 16 and parts.splits["test"] == 4


def test_arrays_that_are_scaled_already_are_refused():
    x = np.random.default_rng(0).random((20, 8, 8, 3))
    y = np.arange(20) % 2
    with pytest.raises(DataError, match="already scaled"):
        load_data((x, y))
    with pytest.raises(DataError, match=r"-1\.\.|lie in -"):
        load_data((x * 2 - 1, y))
    with pytest.raises(DataError, match="20 images but 19 labels"):
        load_data((x * 255, y[1:]))
    with pytest.raises(DataError, match="all pixels are 0 or 1"):
        load_data((x.round().astype("uint8"), y))
    with pytest.raises(DataError, match="complex64 are not numbers"):
        load_data((x.astype("complex64"), y))
    with pytest.raises(DataError, match="cannot read data from int"):
        load_data(7)


def test_labels_of_arrays_are_all_there_and_of_one_kind():
    """What a table holds in an empty cell is no class, and bytes are names."""
    x = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8)
    names = list("abc") * 10
    assert load_data((x, np.array(names, "S"))).classes == tuple("abc")
    assert load_data((x, [name.encode() for name in names])).classes == tuple("abc")
    for none in (None, float("nan"), np.float32("nan")):
        for labels in ([*names[:-1], none], np.array([*names[:-1], none], object)):
            with pytest.raises(DataError, match="1 images have no label, such as image 29"):
                load_data((x, labels))
    with pytest.raises(DataError, match="labels are names, class numbers, or rows"):
        load_data((x, [("a", "b"), ("a",)] * 15))


def test_what_is_no_label_and_no_image_is_told():
    x = np.random.default_rng(0).integers(0, 256, (30, 8, 9, 3), np.uint8)
    y = np.arange(30) % 3
    for data, id, words in (
        ((iter(x), y), "data.source", "not "),
        ((x.transpose(0, 3, 1, 2), y), "data.shape", "put the channels last"),
        ((["rose.jpg"] * 30, y), "data.shape", "a file where pixels are needed"),
        ((list((x > 128).astype("uint8")), y), "data.range", "all pixels are 0 or 1"),
        ((x, None), "data.labels", "labels are names"),
        ((x, [{"a"}, {"b"}, {"a", "b"}] * 10), "data.labels", "labels are names"),
        ((x, y.astype("M8[Y]")), "data.labels", "labels are names"),
        ((x, np.where(y, y, np.inf)), "data.labels", "class numbers"),
        ((x, ["a", "b", " "] * 10), "data.labels", "10 images have no label, such as image 2"),
        ({"val": (x, y), "validation": (x, y), "train": (x, y)}, "data.split", "one split"),
        ({}, "data.no-classes", "no images"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            load_data(data)
        assert caught.value.id == id
    with pytest.raises(DataError, match="two classes have one name: c, c, a"):
        load_data((x, y), classes=["c", "c", "a"])


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr", "LA", "HSV"])
def test_images_of_pillow_are_what_they_show(mode):
    """Not what numpy.asarray makes of them, such as the indices of a palette."""
    x = np.random.default_rng(0).integers(0, 256, (9, 8, 9, 3), np.uint8)
    images = [Image.fromarray(each).convert("L" if mode == "LA" else "RGB") for each in x]
    images = [each.convert(mode) for each in images]
    data = load_data((images, list("abc") * 3))
    for i, key in enumerate(data.keys("train")):
        shown = images[int(key.split("/")[1])].convert("RGB")
        np.testing.assert_array_equal(data.read("train", i), shown)


def test_an_image_of_pillow_is_turned_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif.tobytes())
    images = [Image.open(tmp_path / "a.png"), *np.random.default_rng(1).integers(0, 9, (8, 9, 8))]
    data = load_data((images, list("abc") * 3), val_split=0, test_split=0)
    np.testing.assert_array_equal(data.read("train", 0), np.rot90(pixels, -1))


def test_manifest_reads_back_as_split_file(tmp_path):
    root = folder(tmp_path / "p", ("=1+1", "-rose", "'=x", "@a b"))
    photo(root / "@a b" / 'comma, "quote"\nline \N{ROSE}.png', 99)
    data = load_data(root, seed=3)
    data.write_manifest(tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "sha256", "label", "split"] and len(rows) == 41
    assert not [cell for row in rows for cell in row.values() if cell[0] in "=+-@\t\r"]
    again = load_data(root, split_file=tmp_path / "m.csv", seed=99)
    assert splits_of(again) == splits_of(data) and again.fingerprint == data.fingerprint
    assert again.classes == ("'=x", "-rose", "=1+1", "@a b")


def test_split_file_must_fit(tmp_path):
    root = folder(tmp_path / "p")
    data = load_data(root)
    lines = [f"{key},{split}" for key, split in splits_of(data).items()]

    def error(*rows):
        (tmp_path / "s.csv").write_text("\n".join(["path,split", *rows]))
        with pytest.raises(DataError) as caught:
            load_data(root, split_file=tmp_path / "s.csv")
        assert caught.value.id == "data.split-file"
        return caught.value.message

    assert "1 images are not listed, such as 'daisy/" in error(*lines[1:])
    assert "1 listed paths are not in the data, such as 'rose/xx.png'" in error(
        *lines, "rose/xx.png,val"
    )
    assert "listed twice" in error(*lines, lines[0].split(",")[0] + ",nope"[:0] + ",test", lines[0])
    assert "'hold' is no split" in error(*lines[:-1], lines[-1].rsplit(",", 1)[0] + ",hold")
    with pytest.raises(DataError, match="there is no") as caught:
        load_data(root, split_file=tmp_path / "absent.csv")
    assert "path and split" in caught.value.hint and "digits" not in caught.value.hint


def test_a_split_file_may_list_classes_that_are_left_out(tmp_path):
    root = folder(tmp_path / "p")
    load_data(root).write_manifest(tmp_path / "m.csv")
    data = load_data(root, split_file=tmp_path / "m.csv", ignore_classes=["rose"])
    whole = splits_of(load_data(root))
    assert splits_of(data) == {k: s for k, s in whole.items() if not k.startswith("rose/")}


def test_second_scan_is_remembered_and_safe(tmp_path, monkeypatch):
    root = folder(tmp_path / "p")
    first = load_data(root)
    from dlzoo.data import decode

    def forbidden(*args, **kwargs):
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode, "probe", forbidden)
    assert load_data(root).fingerprint == first.fingerprint
    monkeypatch.undo()
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))
    [memory] = (tmp_path / "home" / "scan").glob("*.json")
    for text in ("", "{", "[]", '{"version": 1}', json.dumps({"version": "x", "verdicts": 3})):
        memory.write_text(text)
        assert load_data(root).fingerprint == first.fingerprint
    stored = json.loads(memory.read_text())
    stored["verdicts"] = {key: [1, None] for key in stored["verdicts"]}
    memory.write_text(json.dumps(stored))
    assert load_data(root).fingerprint == first.fingerprint
    photo(root / "rose" / "00.png", 4711)  # same size in bytes or not: the time differs
    os.utime(root / "rose" / "00.png", ns=(1, 1))
    assert load_data(root).fingerprint != first.fingerprint


def test_a_photo_that_is_another_one_by_now_is_not_read(tmp_path):
    """Its features would be kept under the hash of the photo that was there."""
    root = folder(tmp_path / "p")
    data = load_data(root)
    path = root / data.keys("train")[0]
    before = data.read("train", 0)
    os.utime(path, ns=(1, 1))  # touched only
    np.testing.assert_array_equal(data.read("train", 0), before)
    photo(path, 4711)
    with pytest.raises(DataError, match="has changed since it was scanned") as caught:
        data.read("train", 0)
    assert caught.value.id == "data.vanished"
    assert (load_data(root).read("train", 0) != before).any()


def test_progress_check_show_and_problems(tmp_path, capsys):
    root = folder(tmp_path / "p")
    (root / "rose" / "notes.txt").write_text("not an image")
    photo(root / "rose" / "picture.dat", 5)
    (root / "rose" / ".DS_Store").write_bytes(b"x")
    seen = []
    data = load_data(root, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (32, 32) and len(seen) == 32 and len(data) == 31
    summary = data.check()
    printed = capsys.readouterr().out
    assert "p: multiclass, 31 images, 3 classes, 0 skipped" in printed and "rose" in printed
    assert summary["classes"]["rose"]["train"] == 9 and summary["images"] == 31
    assert {(p.path, p.action) for p in data.problems} == {
        ("rose/notes.txt", "ignored"),
        ("rose/.DS_Store", "ignored"),
        ("rose/picture.dat", "kept"),
    }
    data.write_problems(tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text().startswith("path,reason,action\nrose/.DS_Store,")
    figure = data.show(6)
    assert sum(bool(axis.images) for axis in figure.axes) == 6


def test_ignore_classes(tmp_path):
    root = folder(tmp_path / "p")
    photo(root / "thorn" / "only.png", 77)
    assert load_data(root, ignore_classes=["thorn"]).classes == ("daisy", "rose", "tulip")
    with pytest.raises(UsageError, match=r"usage\.classes"):  # not ignored without a word
        load_data(root, classes=["tulip", "rose", "daisy"])
    with pytest.raises(UsageError, match="did you mean 'thorn'"):
        load_data(root, ignore_classes=["thorns"])


@pytest.mark.parametrize("bad", [{"val_split": 0.6, "test_split": 0.4}, {"val_split": -0.1}])
def test_fractions_must_leave_something(tmp_path, bad):
    with pytest.raises(UsageError, match="leave nothing to train on"):
        load_data("digits", **bad)


def test_tf_data(tmp_path):
    import tensorflow as tf

    x = np.random.default_rng(0).integers(0, 256, (30, 8, 9, 3), np.uint8)
    y = np.arange(30) % 3
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    data = load_data(dataset.batch(7), classes=["a", "b", "c"])
    assert data.classes == ("a", "b", "c") and len(data) == 30
    i = int(data.keys("test")[0].split("/")[1])
    np.testing.assert_array_equal(data.read("test", 0), x[i])
    names = tf.constant([b"a", b"b", b"c"])
    assert load_data((x, tf.gather(names, y))).classes == ("a", "b", "c")
    named, other = dataset.take(21), dataset.skip(21)
    named.class_names, other.class_names = ["a", "b", "c"], ["a", "c"]  # as Keras does
    assert load_data(named).classes == ("a", "b", "c")
    with pytest.raises(DataError, match="different class_names"):
        load_data({"train": named, "test": other})
    parts = load_data({"train": dataset.take(21), "test": dataset.skip(21)})
    assert parts.splits["test"] == 9 and parts.fingerprint != data.fingerprint

    def broken(image, label):
        return tf.io.decode_jpeg(tf.where(label < 2, "", "no")), label

    slices = tf.data.Dataset.from_tensor_slices
    for other, words in (
        (dataset.repeat(), "never ends"),
        (slices((x, y, y)), "not 3 things"),
        (slices((x, {"label": y})), "cannot read data from .*'label'"),
        (slices(({"image": x}, y)), "cannot read data from .*'image'"),
        (iter(dataset), "cannot read data from"),
        (dataset.map(broken), "image 0 of the dataset cannot be computed"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            load_data(other)
        assert caught.value.id == "data.source"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tiny TFDS dataset, prepared as `mini`."""
    import tensorflow_datasets as tfds

    place = tmp_path_factory.mktemp("tfds")

    class Mini(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.3")
        url_infos = {}  # nothing to download

        def _info(self):
            label = tfds.features.ClassLabel(names=["zebra", "ant", "cow"])
            features = {"image": tfds.features.Image(encoding_format="png"), "label": label}
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {"train": self._examples(0, 24), "test": self._examples(24, 33)}

        def _generate_examples(self, *args):
            raise NotImplementedError

        def _examples(self, start, stop):
            for i in range(start, stop):
                pixels = np.random.default_rng(i).integers(0, 256, (6, 5, 3), np.uint8)
                yield i, {"image": pixels, "label": i % 3}

    class Half(Mini):  # its test images are not labelled, and there are more that are no split
        def _split_generators(self, dl_manager):
            return {"train": self._examples(0, 24), "test": self._secret(), "extra": self._secret()}

        def _secret(self):
            yield from ((i, example | {"label": -1}) for i, example in self._examples(24, 33))

    class Odd(Mini):
        def _split_generators(self, dl_manager):
            return {"whole": self._examples(0, 24)}

    for kind in (Mini, Half, Odd):
        kind(data_dir=str(place)).download_and_prepare()
    return place


def test_pain_38_tfds_prepared_opens_no_socket(prepared, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    assert fetch("tfds:mini").is_relative_to(prepared)
    data = load_data("tfds:mini")
    assert data.name == "mini" and data.classes == ("zebra", "ant", "cow")
    assert data.splits == {"train": 21, "val": 3, "test": 9}
    pixels = {
        np.random.default_rng(i).integers(0, 256, (6, 5, 3), np.uint8).tobytes(): i
        for i in range(33)
    }
    for split in data.splits:
        for i, row in enumerate(data.labels(split)):
            assert pixels[data.read(split, i).tobytes()] % 3 == row.argmax()


def test_tfds_images_without_a_label_are_of_no_class(prepared, monkeypatch):
    """TFDS writes -1 for a label that is secret: not the last class."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    data = load_data("tfds:half")
    assert data.classes == ("zebra", "ant", "cow") and len(data) == 24
    assert data.splits == {"train": 18, "val": 3, "test": 3}
    assert not [key for key in splits_of(data) if not key.startswith("half/train/")]
    reasons = {p.path.rsplit("/", 1)[0]: p.reason for p in data.problems if "/0" in p.path}
    assert reasons == {"half/test": "an image without a label"}
    assert data.problems[0].path == "half/extra" and len(data.problems) == 10
    with pytest.raises(DataError, match=r"'tfds:odd' has no split called train, only whole"):
        load_data("tfds:odd")


def test_tfds_versions_that_are_not_there(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    monkeypatch.setenv("DLZOO_OFFLINE", "1")
    for version in ("/x", "9.9.9", "["):
        with pytest.raises(DataError, match="is not on this machine"):
            load_data(f"tfds:mini:{version}")


def test_flowers_absent_and_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("DLZOO_OFFLINE", "1")
    with pytest.raises(DataError) as caught:
        load_data("flowers")
    assert caught.value.id == "data.offline" and caught.value.exit_code == 3
    assert "dlzoo finetune --data PATH_TO_FOLDER" in caught.value.hint
    assert str(tmp_path / "none" / "tf_flowers") in caught.value.where


def test_a_folder_called_as_a_data_set_is_told_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("DLZOO_OFFLINE", "1")
    for name in ("digits", "flowers"):
        folder(tmp_path / name, each=3)
    data = load_data("digits")
    assert len(data) == 1797 and [p.path for p in data.problems] == ["digits"]
    assert len(load_data("./digits")) == 9
    with pytest.raises(DataError) as caught:
        load_data("flowers")
    assert "--data ./flowers;" in caught.value.hint


def test_tfds_that_cannot_be_fetched(tmp_path, monkeypatch):
    import requests
    import tensorflow_datasets as tfds

    class Builder:
        url_infos = {"http://nowhere.invalid/flowers.tgz": None}

        def download_and_prepare(self):
            raise AssertionError("tried without a connection")

    def no_network(*args, **kwargs):
        raise requests.ConnectionError("no route")

    def unknown(name, **kwargs):
        raise tfds.core.registered.DatasetNotFoundError(name)

    monkeypatch.delenv("DLZOO_OFFLINE", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(requests, "head", no_network)
    monkeypatch.setattr(tfds, "builder", lambda name, **kwargs: Builder())
    with pytest.raises(DataError, match="no connection") as caught:
        load_data("flowers")
    assert caught.value.id == "data.offline"
    monkeypatch.setattr(tfds, "builder", unknown)
    with pytest.raises(DataError, match="did you mean 'tf_flowers'") as caught:
        load_data("tfds:tf_flower")
    assert caught.value.id == "data.not-found"
