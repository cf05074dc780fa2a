"""Bad input, by the numbers of the fault table: 1-15 and 44."""

import csv
import io
import os
import struct
import tarfile
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from dlzoo import load_data
from dlzoo.errors import DataError
from PIL import Image


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))


def photo(path, number, format="PNG", mode="RGB", **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (9, 8, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, format, **kwargs)
    return path


def folder(root, names=("daisy", "rose"), each=30, start=0):
    for k, name in enumerate(names):
        for i in range(each):
            photo(root / name / f"{i:02d}.png", start + 1000 * k + i)
    return root


def fails(id, source, code=3, **kwargs):
    with pytest.raises(DataError) as caught:
        load_data(source, **kwargs)
    assert caught.value.id == id and caught.value.exit_code == code
    return caught.value


def by_path(data):
    return {p.path: (p.reason, p.action) for p in data.problems}


def test_fault_01_missing(tmp_path):
    folder(tmp_path / "flower_photos", each=3)
    error = fails("data.not-found", tmp_path / "flower_photo")
    assert "did you mean 'flower_photos'" in error.message
    assert str(tmp_path) in error.where


def test_fault_01_a_file_where_a_folder_is_meant(tmp_path):
    path = photo(tmp_path / "rose" / "a.png", 0)
    assert "is a file" in fails("data.not-found", path).message
    fails("data.not-found", path / "inside")


def test_fault_02_flat_or_empty_folder(tmp_path):
    photo(tmp_path / "flat" / "a.png", 0)
    (tmp_path / "empty").mkdir()
    for name in ("flat", "empty"):
        error = fails("data.no-classes", tmp_path / name)
        assert f"{name}/\n" in error.hint and "daisy/   a.jpg" in error.hint


def test_fault_03_one_class(tmp_path):
    assert "'daisy'" in fails("data.one-class", folder(tmp_path / "p", ("daisy",))).message
    (tmp_path / "one.csv").write_text("path,label\np/daisy/00.png,x\np/daisy/01.png,x\n")
    fails("data.one-class", tmp_path / "one.csv")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fault_04_empty_or_small_class(tmp_path, count):
    root = folder(tmp_path / "p")
    (root / "tulips").mkdir()
    for i in range(count):
        photo(root / "tulips" / f"{i}.png", 5000 + i)
    error = fails("data.class-too-small", root)
    assert f"class 'tulips' has {count} readable image" in error.message
    assert error.where == str(root / "tulips") and "--ignore-class tulips" in error.hint
    assert load_data(root, ignore_classes=["tulips"]).classes == ("daisy", "rose")


def test_fault_04_copies_of_one_image_are_one(tmp_path):
    root = folder(tmp_path / "p")
    for i in range(5):
        photo(root / "tulips" / f"{i}.png", 7)
    assert "1 different images" in fails("data.class-too-small", root).message


def broken(root):
    """Three files that are no images, in different ways."""
    whole = photo(root / "rose" / "cut.jpg", 1, "JPEG").read_bytes()
    (root / "rose" / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (root / "rose" / "empty.jpg").write_bytes(b"")
    (root / "daisy" / "text.jpg").write_text("I am a rose")


def test_fault_05_broken_files_are_skipped_and_recorded(tmp_path):
    root = folder(tmp_path / "p")
    broken(root)
    data = load_data(root)
    assert len(data) == 60 and data.skipped == 3
    found = by_path(data)
    assert "truncated" in found["rose/cut.jpg"][0]
    assert "0 bytes" in found["rose/empty.jpg"][0]
    assert found["daisy/text.jpg"] == ("not an image of a known format", "skipped")
    data.write_problems(tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == set(found)
    assert by_path(load_data(root)) == found  # from the memory of the first scan
    error = fails("data.unreadable", root, on_bad_image="fail")
    assert error.where == "daisy/text.jpg"


def test_fault_05_too_many(tmp_path):
    root = folder(tmp_path / "p", each=10)
    broken(root)
    error = fails("data.too-many-bad", root)
    assert "3 of 23 images (13%)" in error.message and "rose/cut.jpg: truncated" in error.message
    assert len(load_data(root, max_bad=0.2)) == 20


def test_fault_06_content_decides(tmp_path):
    root = folder(tmp_path / "p")
    photo(root / "rose" / "png.jpg", 101)
    photo(root / "rose" / "gif.JPG", 102, "GIF")
    for i, format in enumerate(("WEBP", "TIFF", "BMP")):
        photo(root / "rose" / f"x.{format.lower()[:4]}", 103 + i, format)
    data = load_data(root)
    assert len(data) == 65 and data.skipped == 0
    assert by_path(data) == {
        "rose/png.jpg": ("wrong extension: PNG content in a .jpg file", "kept"),
        "rose/gif.JPG": ("wrong extension: GIF content in a .jpg file", "kept"),
    }
    [row] = data.summary()["problems"]
    assert (row["action"], row["reason"], row["count"]) == ("kept", "wrong extension", 2)


def test_pain_8_images_that_cannot_be_read_are_counted_by_kind_and_class(tmp_path, capsys):
    root = folder(tmp_path / "p")
    (root / "rose" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "daisy" / "raw.cr2").write_bytes(b"II*\0")
    (root / "daisy" / "list.txt").write_text("x")
    data = load_data(root)
    assert data.skipped == 2
    row = next(r for r in data.check()["problems"] if r["action"] == "skipped")
    assert row["extensions"] == {".cr2": 1, ".heic": 1} and row["folders"] == {
        "daisy": 1,
        "rose": 1,
    }
    assert "1 .cr2, 1 .heic; 1 in daisy, 1 in rose" in capsys.readouterr().out


def test_fault_07_every_mode_is_rgb(tmp_path):
    root = folder(tmp_path / "p")
    photo(root / "rose" / "cmyk.jpg", 1, "JPEG", "CMYK")
    photo(root / "rose" / "grey.png", 2, mode="L")
    photo(root / "rose" / "deep.png", 3, mode="I;16")
    photo(root / "rose" / "alpha.png", 4, mode="RGBA")
    photo(root / "rose" / "palette.png", 5, mode="P", transparency=0)
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(root / "rose" / "film.gif", save_all=True, append_images=frames[1:])
    data = load_data(root)
    assert len(data) == 66 and data.problems == []
    for split in data.splits:
        for i, key in enumerate(data.keys(split)):
            image = data.read(split, i)
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            if key.endswith("film.gif"):
                assert (image == (255, 0, 0)).all()


def test_fault_08_orientation(tmp_path):
    root = folder(tmp_path / "p")
    upright = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright)).save(root / "rose" / "turned.png", exif=exif)
    data = load_data(root)
    images = {k: (s, i) for s in data.splits for i, k in enumerate(data.keys(s))}
    np.testing.assert_array_equal(data.read(*images["rose/turned.png"]), upright)


def test_fault_09_giant_image(tmp_path):
    root = folder(tmp_path / "p")

    def chunk(name, body):
        crc = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(20_000_000))  # would decode for a while
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)
    (root / "rose" / "giant.png").write_bytes(png)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no remark of Pillow's either
        data = load_data(root)
    reason, action = by_path(data)["rose/giant.png"]
    assert "20000 x 20000 pixels, over the limit of 100,000,000" in reason and action == "skipped"
    error = fails("data.image-too-large", root, on_bad_image="fail")
    assert error.where == "rose/giant.png"
    # a limit that is lowered later is obeyed although the scan was remembered
    assert fails("data.too-many-bad", root, max_pixels=70)
    assert len(load_data(root, max_pixels=72)) == 60


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def tarred(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def link_in_zip():
    info = zipfile.ZipInfo("p/rose/link.png")
    info.external_attr = 0o120777 << 16
    return info


UNSAFE = {
    "up.zip": lambda p: zipped(p, [("p/../../canary", b"x")]),
    "absolute.zip": lambda p: zipped(p, [("/tmp/canary", b"x")]),
    "backslash.zip": lambda p: zipped(p, [("p\\..\\canary", b"x")]),
    "link.zip": lambda p: zipped(p, [(link_in_zip(), b"/etc/passwd")]),
    "bomb.zip": lambda p: zipped(p, [("p/rose/a.png", bytes(30_000_000))]),
    "up.tar.gz": lambda p: tarred(p, (tarfile.TarInfo("../canary"), b"x")),
    "link.tgz": lambda p: tarred(p, special("p/a", tarfile.SYMTYPE, "/etc")),
    "hard.tgz": lambda p: tarred(p, special("p/a", tarfile.LNKTYPE, "/etc/passwd")),
    "device.tgz": lambda p: tarred(p, special("p/null", tarfile.CHRTYPE)),
    "pipe.tgz": lambda p: tarred(p, special("p/pipe", tarfile.FIFOTYPE)),
    "bomb.tar.gz": lambda p: tarred(p, (tarfile.TarInfo("p/a.png"), bytes(30_000_000))),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_fault_10_unsafe_archives(tmp_path, name):
    path = UNSAFE[name](tmp_path / name)
    fails("data.unsafe-archive", path)
    assert not list((tmp_path / "home" / "archives").iterdir())
    assert not list(tmp_path.rglob("canary"))


def test_fault_10_good_archives_and_broken_ones(tmp_path):
    root = folder(tmp_path / "p", each=10)
    direct = load_data(root)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as archive:
        archive.add(root, "p")
    for name in ("photos.zip", "photos.tar.gz", "photos.zip"):
        data = load_data(tmp_path / name)
        assert data.name == "photos" and data.fingerprint == direct.fingerprint
    whole = (tmp_path / "photos.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.zip").write_text("no archive")
    for name in ("cut.tar.gz", "text.zip"):
        fails("data.archive", tmp_path / name)
    assert len(list((tmp_path / "home" / "archives").iterdir())) == 2


def test_fault_11_same_image_in_one_class(tmp_path):
    root = folder(tmp_path / "p", each=20)
    for i in range(20):  # every image twice
        (root / "rose" / f"copy{i:02d}.png").write_bytes(
            (root / "rose" / f"{i:02d}.png").read_bytes()
        )
    for seed in range(3):
        data = load_data(root, seed=seed, strict=True)
        where = {}
        for split in data.splits:
            for i, _ in enumerate(data.keys(split)):
                where.setdefault(data.read(split, i).tobytes(), set()).add(split)
        assert all(len(splits) == 1 for splits in where.values())
    [row] = data.summary()["problems"]
    assert row["count"] == 20 and "grouped into one split" in row["reason"]


def test_fault_11_two_labels(tmp_path):
    root = folder(tmp_path / "p")
    (root / "rose" / "same.png").write_bytes((root / "daisy" / "00.png").read_bytes())
    data = load_data(root)
    reason, action = by_path(data)["rose/same.png"]
    assert reason == "same image under two labels: as daisy/00.png (daisy)" and action == "kept"
    where = {key: split for split in data.splits for key in data.keys(split)}
    assert where["rose/same.png"] == where["daisy/00.png"]
    assert "'rose/same.png'" in fails("data.duplicates", root, strict=True).message


def test_fault_11_across_given_splits(tmp_path):
    folder(tmp_path / "d" / "train")
    folder(tmp_path / "d" / "test", each=3)  # the same images again
    data = load_data(tmp_path / "d")
    leaks = [p for p in data.problems if p.reason.startswith("same image in")]
    assert len(leaks) == 6 and data.splits["test"] == 6
    [row] = data.summary()["problems"][:1]
    assert row["count"] >= 4
    fails("data.duplicates", tmp_path / "d", strict=True)


def test_fault_12_names(tmp_path):
    names = ("Rose blanche \N{ROSE}", "new\nline", "日本 語", "x" * 200)
    root = folder(tmp_path / "p", names, each=4)
    deep = root / names[3] / ("y" * 200)
    photo(deep / ("z" * 100 + " \N{GRINNING FACE}.png"), 9999)
    raw = os.fsencode(root / names[0]) + b"/not-utf8-\xff.png"
    Path(os.fsdecode(raw)).write_bytes(photo(tmp_path / "one.png", 8888).read_bytes())
    data = load_data(root)
    assert data.classes == tuple(sorted(names)) and len(data) == 18
    data.check()
    data.write_manifest(tmp_path / "m.csv")
    again = load_data(root, split_file=tmp_path / "m.csv", seed=5)
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize(
    "pair", [("Rose", "rose"), ("caf\u00e9", "cafe\u0301"), ("STRASSE", "straße")]
)
def test_fault_12_case_clash(tmp_path, pair):
    (tmp_path / "t.csv").write_text(
        "path,label\n" + "".join(f"{i}.png,{pair[i % 2]}\n" for i in range(8)), "utf-8"
    )
    for i in range(8):
        photo(tmp_path / f"{i}.png", i)
    error = fails("data.class-name-clash", tmp_path / "t.csv")
    assert repr(pair[0]) in error.message and repr(pair[1]) in error.message


def test_fault_13_litter_is_ignored_with_a_note(tmp_path):
    root = folder(tmp_path / "p")
    (root / ".DS_Store").write_bytes(b"x")
    (root / "rose" / "Thumbs.db").write_bytes(b"x")
    photo(root / ".ipynb_checkpoints" / "a.png", 1)
    photo(root / "rose" / ".hidden" / "a.png", 1)
    (root / "readme.txt").write_text("x")
    (root / "rose" / "nothing").mkdir()
    (root / "rose" / "loop").symlink_to(root)
    (root / "rose" / "self").symlink_to(root / "rose" / "self")
    (root / "rose" / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "rose" / "pipe.png")
    started = time.monotonic()
    data = load_data(root)
    assert time.monotonic() - started < 20
    assert data.classes == ("daisy", "rose") and len(data) == 60 and data.skipped == 0
    found = by_path(data)
    assert {action for _, action in found.values()} == {"ignored"}
    assert found.keys() == {
        ".DS_Store",
        "rose/Thumbs.db",
        ".ipynb_checkpoints",
        "rose/.hidden",
        "readme.txt",
        "rose/nothing",
        "rose/loop",
        "rose/self",
        "rose/gone.png",
        "rose/pipe.png",
    }


def test_fault_14_unreadable_file(tmp_path, monkeypatch):
    root = folder(tmp_path / "p")
    read = Path.read_bytes

    def guarded(path):
        if path.name == "07.png" and path.parent.name == "rose":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    data = load_data(root)
    assert by_path(data) == {"rose/07.png": ("cannot be read: Permission denied", "skipped")}
    monkeypatch.setattr(Path, "read_bytes", read)
    assert load_data(root).problems == []  # that verdict is not remembered


def test_fault_14_unreadable_directory(tmp_path, monkeypatch):
    root = folder(tmp_path / "p")
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "rose":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert "'rose'" in fails("data.permission", root).message


def test_fault_15_a_file_vanishes_mid_epoch(tmp_path):
    from dlzoo.data.pipeline import batches, surfacing
    from dlzoo.zoo.spec import Preprocess

    root = folder(tmp_path / "p")
    data = load_data(root)
    dataset = iter(batches(data, "train", Preprocess(size=8), batch=4))
    next(dataset)
    gone = data.keys("train")[-1]
    whole = (root / gone).read_bytes()
    (root / gone).unlink()
    with pytest.raises(DataError) as caught, surfacing(data):
        for _ in dataset:
            pass
    error = caught.value
    assert error.id == "data.vanished" and error.exit_code == 75
    assert gone in error.message and error.where == str(root / gone)
    (root / gone).write_bytes(whole)  # and it can go on
    assert len(list(batches(data, "train", Preprocess(size=8), batch=4))) == 12


def test_fault_15_a_hiccup_is_survived(tmp_path, monkeypatch):
    from dlzoo.data.pipeline import batches
    from dlzoo.zoo.spec import Preprocess

    data = load_data(folder(tmp_path / "p", each=5))
    read, failed = Path.read_bytes, []

    def flaky(path):
        if path.name == "02.png" and failed.count(path) < 2:
            failed.append(path)
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", flaky)
    found = sum(len(x) for x, _, _ in batches(data, "train", Preprocess(size=8), batch=4))
    assert found == data.splits["train"] and len(failed) in (2, 4)


def test_fault_44_formulas_and_html(tmp_path):
    names = ('=HYPERLINK("http:x")', "@SUM(A1)", "+1", "<b>bold<", "-2")
    root = folder(tmp_path / "p", names, each=4)
    (root / names[0] / "=cmd.png").write_text("not an image")
    data = load_data(root, max_bad=0.1)
    data.write_manifest(tmp_path / "m.csv")
    data.write_problems(tmp_path / "r.csv")
    for name in ("m.csv", "r.csv"):
        with (tmp_path / name).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))]
    again = load_data(root, split_file=tmp_path / "m.csv", max_bad=0.1)
    assert again.fingerprint == data.fingerprint and set(again.classes) == set(names)
