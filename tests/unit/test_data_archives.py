"""Archives as people make them: names from macOS, passwords, tables beside the photos."""

import zipfile

import pytest
from dlzoo import load_data
from dlzoo.errors import DataError, ResourceError
from photos import folder


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))


class Unmarked(zipfile.ZipInfo):
    """A member whose name is written in an encoding of our choice, and nothing says in which."""

    encoding = "utf-8"

    def _encodeFilenameFlags(self):  # as zipfile calls it
        return self.filename.encode(self.encoding), self.flag_bits & ~0x800


class OldCodePage(Unmarked):
    encoding = "cp437"


@pytest.mark.parametrize("kind", [zipfile.ZipInfo, Unmarked, OldCodePage])
def test_names_of_classes_are_read_as_they_were_written(tmp_path, kind):
    root = folder(tmp_path / "p", ("daisy", "rose"), each=3)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            name = f"p/{path.parent.name.replace('daisy', 'Gänseblümchen')}/{path.name}"
            archive.writestr(kind(name), path.read_bytes())
    assert load_data(tmp_path / "photos.zip").classes == ("Gänseblümchen", "rose")


def packed(path, root, *others):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, file.relative_to(root.parent))
        for name, content in others:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("above", ["", "download/"])
def test_a_table_at_the_top_gives_the_labels(tmp_path, above):
    """Not the folders, which are called by something else."""
    root = folder(tmp_path / above / "p", ("part1", "part2"), each=6)
    rows = [f"p/{p.parent.name}/{p.name},{p.name[1]}" for p in sorted(root.rglob("*.png"))]
    rows = [row[:-1] + "ab"[int(row[-1]) % 2] for row in rows]
    path = packed(tmp_path / "photos.zip", root if not above else root.parent,
                  (f"{above}labels.csv", "\n".join(["path,label", *rows])),
                  (f"{above}notes.csv", "a,b\n"))  # fmt: skip
    data = load_data(path)
    assert (data.name, data.classes, len(data)) == ("photos", ("a", "b"), 12)
    for split in data.splits:
        labels = [data.records(split)[i].labels[0] for i in range(data.splits[split])]
        assert labels == ["ab"[int(key[-5]) % 2] for key in data.keys(split)]
    assert [p.reason for p in data.problems] == ["the labels are those of this table"]


def test_a_table_in_an_archive_names_no_file_outside(tmp_path):
    root = folder(tmp_path / "p", each=3)
    for row in (f"{root}/rose/00.png,x", "../../p/rose/00.png,x"):
        path = packed(tmp_path / "photos.zip", root, ("labels.csv", f"path,label\n{row}\n"))
        with pytest.raises(DataError, match="its table names a file outside") as caught:
            load_data(path)
        assert caught.value.id == "data.unsafe-archive"


def test_an_archive_that_holds_no_photos_is_named_by_its_own_name(tmp_path):
    inner = packed(tmp_path / "inner.zip", folder(tmp_path / "p", each=3))
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(inner, "inner.zip")
    with pytest.raises(DataError, match=r"'outer' has no class folders") as caught:
        load_data(tmp_path / "outer.zip")
    _, _, path = caught.value.hint.partition("give the archive inside: ")
    assert len(load_data(path)) == 6
    with zipfile.ZipFile(tmp_path / "none.zip", "w"):
        pass
    with pytest.raises(DataError, match=r"(?s)'none' has no class folders.*none/train/daisy"):
        load_data(tmp_path / "none.zip")


def test_an_encrypted_archive_is_told(tmp_path):
    path = packed(tmp_path / "photos.zip", folder(tmp_path / "p", each=3))
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flags of a member, in both places
        place = content.find(mark)
        while place >= 0:
            content[place + at] |= 1
            place = content.find(mark, place + 1)
    path.write_bytes(content)
    with pytest.raises(DataError, match="it is encrypted") as caught:
        load_data(path)
    assert "with its password" in caught.value.hint


def test_a_place_that_takes_no_folders_is_no_bug(tmp_path):
    path = packed(tmp_path / "photos.zip", folder(tmp_path / "p", each=3))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "archives").write_text("in the way")
    with pytest.raises((DataError, ResourceError), match="cannot"):
        load_data(path)
