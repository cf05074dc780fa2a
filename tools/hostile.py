"""Hostile files for every reader of foreign bytes, made here and not kept in the repository.

python tools/hostile.py FOLDER writes them all; the tests and benchmarks/fuzz.py take them from
`corpus`. Those whose name begins with `bomb` are small and ask for much time or memory. Any code in
them creates a canary file, so that it is seen if it runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
CORPUS = Path(__file__).parents[1] / "tests" / "faults" / "corpus"
Files = Iterator[tuple[str, bytes]]


class Payload:
    """Asks, where it is unpickled, for the canary to be made."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def zipped(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip file; a name may be anything."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# ---------------------------------------------------------------- checkpoints


def pth(canary: Path) -> Files:
    """torch's two formats."""
    zip_file = (GOLDEN / "torch_zip.pth").read_bytes()
    legacy = (GOLDEN / "torch_legacy.pth").read_bytes()
    yield "good.pth", zip_file
    yield "good-legacy.pth", legacy
    head = b"".join(
        pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    tuples = b"N" + b"".join(b"q%cq%ch%c\x86" % (i, i, i) for i in range(200))
    programs = {
        **{f"command-{n}": pickle.dumps({"w": Payload(canary)}, n) for n in range(6)},
        "command-inst": b"(S'touch %s'\nios\nsystem\n." % os.fsencode(canary),
        "no-end": b"\x80\x02}q\x00",
        "deep": b"\x80\x02" + b"](" * 100_000,
        "deep-tuples": b"\x80\x02N" + b"\x85" * 900_000 + b".",
        "tuples-of-tuples": b"\x80\x02}" + tuples + b"Ns.",
        "memo": b"\x80\x02Nr\xff\xff\xff\xff0.",
        "no-memo": b"\x80\x02h\x07.",
        "key-error": b"\x80\x02" + tuples + b"cos\nsystem\n.",
        "long-text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x",
        "long-bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x",
        "long-number": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"x",
        "negative": b"\x80\x02\x8b" + struct.pack("<i", -1) + b"x",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
        "marks": b"\x80\x02" + b"(" * 500_000 + b".",
        "bomb-instructions": b"\x80\x02(" + b"}" * 999_000 + b"t.",
    }
    for name, program in programs.items():
        yield f"{name}.pth", zipped({"net/data.pkl": program, "net/data/0": bytes(96)})
        yield f"{name}-legacy.pth", head + program
    yield "two-pickles.pth", zipped({"data.pkl": b"N.", "net/data.pkl": b"N."})
    yield "names.pth", zipped({"net/data.pkl": b"N.", f"../{canary.name}": b"x"})
    yield "many-members.pth", zipped({f"{n}": b"" for n in range(20_000)})
    yield "bomb-deflated.pth", zipped({"net/data.pkl": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    yield "bomb-bzip2.pth", zipped({"net/data.pkl": bytes(1 << 24)}, zipfile.ZIP_BZIP2)
    lying = bytearray(zip_file)
    entry = lying.rindex(b"PK\x01\x02")
    lying[entry + 20 : entry + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    yield "lying-size.pth", bytes(lying)


def safetensors(canary: Path) -> Files:
    """Headers that say what is not so."""

    def made(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)) -> dict:
        return {"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}

    two = json.dumps(entry())[1:-1]
    yield "good.safetensors", made(entry())
    several = {f"w{i}": entry(shape=[2], offsets=(8 * i, 8 * i + 8))["w"] for i in range(4)}
    yield "good-many.safetensors", made(several, bytes(32))
    yield "giant-header.safetensors", made(entry(), length=1 << 62)
    yield "header-of-100-mb.safetensors", made(entry(), length=100_000_000)
    for name, offsets in {
        "overlapping": (8, 24),
        "negative": (-16, 0),
        "overflow": (0, 1 << 64),
        "nearly": ((1 << 64) - 16, 1 << 64 - 1),
        "reversed": (16, 0),
        "floats": (0.0, 16.0),
        "outside": (16, 32),
        "one": (0,),
    }.items():
        yield f"offsets-{name}.safetensors", made(entry(offsets=offsets))
    for name, shape in {
        "vast": [1 << 32, 1 << 32],
        "wraps": [1 << 63, 2],
        "nothing": [0, 1 << 62, 1 << 62],
        "deep": [1] * 5000,
        "negative": [-2, -2],
        "text": ["2", "2"],
    }.items():
        yield f"shape-{name}.safetensors", made(entry(shape=shape))
    for dtype in ("F8_E4M3", "F4", "C64", "object", "", "I128", None):
        yield f"dtype-{dtype}.safetensors", made(entry(dtype=dtype))
    yield "duplicate.safetensors", made(b"{" + two.encode() + b"," + two.encode() + b"}")
    yield "nested.safetensors", made(b"[" * 200_000)
    yield "metadata.safetensors", made({"__metadata__": {"a": {"b": 1}}, **entry()})
    yield "not-utf8.safetensors", made(b'{"\xff\xfe":1}')
    yield "list.safetensors", made([entry()])
    yield "empty.safetensors", made({}, b"")
    yield "pickle.safetensors", pickle.dumps(Payload(canary), 2)
    yield (
        "bomb-names.safetensors",
        made(
            {
                f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                for i in range(100_000)
            },
            b"",
        ),
    )


def hdf5(fill: Callable[[h5py.File], object], **options) -> bytes:
    """Return an HDF5 file that `fill` fills."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", **options) as file:
        fill(file)
    return buffer.getvalue()


def legacy_layout(file: h5py.File) -> None:
    """The layout of keras.applications' files."""
    file.attrs["layer_names"] = [b"conv", b"dense"]
    for layer in ("conv", "dense"):
        group = file.create_group(layer)
        group.attrs["weight_names"] = [f"{layer}/kernel:0".encode(), f"{layer}/bias:0".encode()]
        group[f"{layer}/kernel:0"] = np.ones((2, 3), "f4")
        group[f"{layer}/bias:0"] = np.zeros(3, "f4")


def keras3_layout(file: h5py.File) -> None:
    """The layout of Keras 3's `.weights.h5`."""
    for layer in ("conv2d", "dense", "block/inner"):
        file[f"layers/{layer}/vars/0"] = np.ones((2, 3), "f4")
        file[f"layers/{layer}/vars/1"] = np.zeros(3, "f4")
    file["layers/dense/vars"].attrs["name"] = "logits"


def h5(canary: Path) -> Files:
    """Keras' HDF5 files whose arrays are not there, elsewhere, or far more than the file."""
    pipe = canary.with_suffix(".pipe")  # to open it would wait for ever
    other = canary.with_suffix(".h5")
    if not pipe.exists():
        os.mkfifo(pipe)

    def weight(make: Callable[[h5py.Group], object]) -> bytes:
        def fill(file: h5py.File) -> None:
            file.attrs["layer_names"] = [b"w"]
            file.create_group("w").attrs["weight_names"] = [b"k"]
            make(file["w"])

        return hdf5(fill)

    def layer(make: Callable[[h5py.Group], object]) -> bytes:
        return hdf5(lambda file: make(file.create_group("layers/w/vars")))

    def virtual(group: h5py.Group) -> None:
        layout = h5py.VirtualLayout((3,), "f4")
        layout[:] = h5py.VirtualSource(str(pipe), "k", (3,))
        group.create_virtual_dataset("k", layout)

    big, chunk = (1 << 20, 1 << 20), (1 << 10, 1 << 10)
    yield "good.h5", hdf5(legacy_layout)
    yield "good.weights.h5", hdf5(keras3_layout)
    yield "good-latest.h5", hdf5(keras3_layout, libver="latest")
    yield "good-inside.h5", hdf5(lambda f: legacy_layout(f.create_group("model_weights")))
    for place in (pipe, other, Path("/dev/zero"), Path("/etc/passwd")):
        link = h5py.ExternalLink(str(place), "/k")
        yield f"link-{place.name}.h5", weight(lambda g, link=link: g.update(k=link))
        yield f"link-{place.name}.weights.h5", layer(lambda g, link=link: g.update({"0": link}))
        yield (
            f"layers-{place.name}.weights.h5",
            hdf5(lambda f, link=link: f.update(layers=link)),
        )
        yield (
            f"storage-{place.name}.h5",
            weight(
                lambda g, at=str(place): g.create_dataset("k", (3,), "f4", external=[(at, 0, 12)])
            ),
        )
    yield "virtual.h5", weight(virtual)
    yield "soft-loop.h5", weight(lambda g: g.update(k=h5py.SoftLink("/w/k")))
    yield "soft-loop.weights.h5", layer(lambda g: g.update({"0": h5py.SoftLink("/layers")}))
    yield "hard-loop.weights.h5", hdf5(lambda f: f.create_group("layers/a").update(b=f["layers"]))
    yield "shape.h5", weight(lambda g: g.create_dataset("k", big, "f4", chunks=chunk))
    yield (
        "chunks.h5",
        weight(lambda g: g.create_dataset("k", (1 << 40,), "f4", chunks=((1 << 29) - 1,))),
    )
    yield "unwritten.h5", weight(lambda g: g.create_dataset("k", (1 << 28,), "f4"))
    yield (
        "packed.h5",
        weight(lambda g: g.create_dataset("k", data=np.zeros(1 << 22, "f4"), compression="gzip")),
    )
    yield "null.h5", weight(lambda g: g.create_dataset("k", data=h5py.Empty("f4")))
    yield "text.h5", weight(lambda g: g.create_dataset("k", data="text"))
    yield "references.h5", weight(lambda g: g.create_dataset("k", data=g.ref, dtype=h5py.ref_dtype))
    yield "opaque.h5", weight(lambda g: g.create_dataset("k", data=np.void(b"abc")))
    pair = [("a", "f4"), ("b", "i4")]
    yield "compound.h5", weight(lambda g: g.create_dataset("k", (3,), pair))
    yield (
        "enum.h5",
        weight(lambda g: g.create_dataset("k", (3,), h5py.enum_dtype({"a": 0}, basetype="i1"))),
    )
    yield "dense.h5", weight(lambda g: g.create_dataset("k", data=np.zeros(3, "f8")))
    yield "numbers-as-names.h5", hdf5(lambda f: f.attrs.update(layer_names=np.arange(5)))
    yield "no-layers.h5", hdf5(lambda f: f.create_group("layers"))
    yield "userblock.h5", hdf5(legacy_layout, userblock_size=512)
    yield (
        "control.weights.h5",
        hdf5(lambda f: f.create_dataset("layers/\x1b[2J\n/vars/0", data=np.zeros(3, "f4"))),
    )

    def cross(file: h5py.File) -> None:  # 4096 layers of 4096 weights that are all the same one
        file.attrs["layer_names"] = [b"w"] * 4000
        file.create_group("w").attrs["weight_names"] = [b"k"] * 4000
        file["w/k"] = np.zeros(0, "f4")

    def ladder(file: h5py.File) -> None:  # every name holds all those above it
        group = file.create_group("layers")
        for _ in range(150):
            group = group.create_group("n" * 30_000)
        group["vars/0"] = np.zeros(3, "f4")

    def deep(file: h5py.File) -> None:
        group = file.create_group("layers")
        for _ in range(2000):
            group = group.create_group("n")

    yield "bomb-cross.h5", hdf5(cross)
    yield "bomb-ladder.weights.h5", hdf5(ladder)
    yield "deep.weights.h5", hdf5(deep)
    for name in sorted(GOLDEN.glob("hdf5_*.h5.gz")):
        yield f"found-{name.name.split('.')[0]}.h5", zlib.decompress(name.read_bytes(), 31)


def keras_archive(canary: Path) -> Files:
    """`.keras` archives: only their weights may be looked at."""
    weights = hdf5(keras3_layout)
    code = {"class_name": "Lambda", "config": {"function": f"open({str(canary)!r}, 'w')"}}
    config = json.dumps(code).encode()
    yield "good.keras", zipped({"config.json": b"{}", "model.weights.h5": weights})
    yield "lambda.keras", zipped({"config.json": config, "model.weights.h5": weights})
    yield "names.keras", zipped({f"../{canary.name}": b"x", "model.weights.h5": weights})
    yield "absolute.keras", zipped({f"{canary}": b"x", "model.weights.h5": weights})
    yield "backslash.keras", zipped({"..\\x": b"x", "model.weights.h5": weights})
    yield "twice.keras", zipped({"model.weights.h5": weights}) + zipped({"model.weights.h5": b"x"})
    yield "no-weights.keras", zipped({"config.json": config})
    yield "empty.keras", zipped({})
    yield "pickle.keras", zipped({"model.weights.h5": pickle.dumps(Payload(canary))})
    for name, kind in {"deflated": 8, "bzip2": 12, "lzma": 14}.items():
        yield f"bomb-{name}.keras", zipped({"model.weights.h5": bytes(1 << 24)}, kind)
    for name, content in h5(canary):
        if name.endswith(".weights.h5") and not name.startswith("good"):
            yield f"{name}.keras", zipped({"model.weights.h5": content})


# ---------------------------------------------------------------- images


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(
    width: int, height: int, *chunks: tuple[bytes, bytes], kind: int = 2, depth: int = 8
) -> bytes:
    """Return a PNG with those chunks between its header and its end."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        crc = zlib.crc32(name + content)
        body += struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)
    return body


def zeros(size: int) -> bytes:
    """Return `size` zeros compressed, without ever holding them."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(size >> 20)]
    parts.append(packer.compress(bytes(size & ((1 << 20) - 1))))
    return b"".join(parts) + packer.flush()


def scans(count: int, width: int = 8000, height: int = 8000) -> bytes:
    """Return a progressive JPEG of `count` scans, each of a few bytes."""
    small = encoded(Image.new("L", (8, 8)), "JPEG", progressive=True)
    start = small.index(b"\xff\xc2")
    small = small[: start + 5] + struct.pack(">HH", height, width) + small[start + 9 :]
    last = small.rindex(b"\xff\xda")
    end = small.rindex(b"\xff\xd9")
    return small[:last] + small[last:end] * count + small[end:]


def tiff(*tags: tuple[int, int, int, int], data: bytes = bytes(64)) -> bytes:
    """Return a little-endian TIFF with one directory of (tag, type, count, value)."""
    body = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    body += b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return body + struct.pack("<I", 0) + data


def image(canary: Path) -> Files:
    """Image files that are larger than they look, lie, or ask for the impossible."""
    photo = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8).repeat(2, 0)
    )
    grey, palette, alpha = photo.convert("L"), photo.convert("P"), photo.convert("RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in (
        *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000"),
        *("PPM", "PCX", "TGA", "SGI", "QOI", "DDS"),
    ):
        yield f"good-{format}.img", encoded(photo, format)
    yield "good-MSP.img", encoded(photo.convert("1"), "MSP")
    yield "good-exif.img", encoded(photo, "JPEG", exif=exif)
    yield "good-progressive.img", encoded(photo, "JPEG", progressive=True)
    yield "good-cmyk.img", encoded(photo.convert("CMYK"), "JPEG")
    for format in ("PNG", "GIF", "TIFF", "BMP", "PCX", "TGA"):
        yield f"good-palette-{format}.img", encoded(palette, format)
    for format in ("PNG", "WEBP", "TIFF", "TGA", "DDS", "QOI", "AVIF", "JPEG2000"):
        yield f"good-alpha-{format}.img", encoded(alpha, format)
    for kind in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "tiff_ccitt", "group4"):
        made = grey.convert("1") if kind in ("tiff_ccitt", "group4") else photo
        yield f"good-{kind}.img", encoded(made, "TIFF", compression=kind)
    for name, values in {"I16": np.uint16, "F": np.float32, "I": np.int32}.items():
        deep = Image.fromarray(np.arange(64).reshape(8, 8).astype(values))
        yield f"good-{name}.img", encoded(deep, "TIFF")
    yield "rle.img", _rle_bmp(8, 8)
    yield "psd.img", _psd(8, 8)
    frames = [Image.new("P", (8, 8), i) for i in range(3)]
    for format in ("ICO", "ICNS"):
        yield f"{format}.img", encoded(photo, format)
    yield "frames-gif.img", encoded(frames[0], "GIF", save_all=True, append_images=frames * 300)
    yield "frames-webp.img", encoded(photo, "WEBP", save_all=True, append_images=[photo] * 50)
    yield "frames-apng.img", encoded(photo, "PNG", save_all=True, append_images=[alpha] * 50)

    row = zlib.compress(bytes(25))
    yield (
        "palette-out-of-range.img",
        png(
            8,
            8,
            (b"PLTE", bytes(3)),
            (b"IDAT", zlib.compress(b"\0\xff\xff\xff\xff\xff\xff\xff\xff" * 8)),
            kind=3,
        ),
    )
    yield "no-palette.img", png(8, 8, (b"IDAT", zlib.compress(bytes(9) * 8)), kind=3)
    yield "no-pixels.img", png(8, 8)
    yield "zero-width.img", png(0, 8, (b"IDAT", row))
    yield "vast-header.img", png(0x7FFFFFFF, 0x7FFFFFFF, (b"IDAT", row))
    yield "text-chunk.img", png(8, 8, (b"zTXt", b"a\0\0" + zeros(8 << 20)), (b"IDAT", row))
    yield (
        "text-chunks.img",
        png(8, 8, *[(b"zTXt", b"a\0\0" + zeros(1 << 20))] * 200, (b"IDAT", row)),
    )
    yield "icc-bomb.img", png(8, 8, (b"iCCP", b"a\0\0" + zeros(16 << 20)), (b"IDAT", row))
    yield "icc-giant.img", encoded(photo, "JPEG", icc_profile=bytes(8 << 20))
    yield (
        "exif-loop.img",
        encoded(photo, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(600)),
    )
    yield "exif-giant.img", encoded(photo, "PNG", exif=b"Exif\0\0" + tiff((0x112, 4, 1 << 30, 8)))
    yield (
        "tiff-vast-tile.img",
        tiff(
            *((256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)),
            *((277, 3, 1, 1), (322, 4, 1, 1 << 16), (323, 4, 1, 1 << 16), (324, 4, 1, 8)),
            (325, 4, 1, 64),
        ),
    )
    yield (
        "tiff-vast-strip.img",
        tiff(
            *((256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 5), (262, 3, 1, 1)),
            *((273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 0xFFFFFFFF), (279, 4, 1, 0x7FFFFFFF)),
        ),
    )
    yield "tiff-count.img", tiff((256, 4, 0xFFFFFFFF, 8), (257, 4, 1, 16), (273, 4, 1 << 28, 8))
    yield (
        "tiff-samples.img",
        tiff(
            *(
                (256, 4, 1, 16),
                (257, 4, 1, 16),
                (258, 3, 60_000, 8),
                (259, 3, 1, 1),
                (262, 3, 1, 2),
            ),
            *((273, 4, 1, 8), (277, 3, 1, 60_000)),
        ),
    )
    yield "dds-tiny.img", _dds(4000, 4000)


def image_bombs(canary: Path) -> Files:
    """Small files of many pixels."""
    turned = Image.Exif()
    turned[0x0112] = 6
    row = zlib.compress(bytes(25))
    yield "bomb-dds.img", _dds(10_000, 10_000)
    yield "bomb-rle.img", _rle_bmp(10_000, 10_000)
    yield "bomb-qoi.img", _qoi(10_000, 10_000)
    yield "bomb-psd.img", _psd(10_000, 10_000)
    yield "bomb-scans.img", scans(3000)
    yield "bomb-ico.img", _ico(png(13_000, 13_000, (b"IDAT", zeros(13_000 * 13_001)), kind=0))
    yield "bomb-icns.img", _icns(png(13_000, 13_000, (b"IDAT", zeros(13_000 * 13_001)), kind=0))
    for name, kind, depth, size in (
        *(("rgb", 2, 8, 3), ("rgba", 6, 8, 4), ("grey", 0, 8, 1), ("grey16", 0, 16, 2)),
        *(("la", 4, 8, 2), ("rgba16", 6, 16, 8)),
    ):
        for side in (10_000, 20_000):
            content = zeros(side * (side * size + 1)) if side == 10_000 else row
            yield (
                f"bomb-png-{name}-{side}.img",
                png(side, side, (b"IDAT", content), kind=kind, depth=depth),
            )
    for format, mode, options in (
        *(("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "CMYK", {})),
        *(("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("GIF", "P", {})),
        *(
            ("TIFF", "F", {"compression": "tiff_deflate"}),
            ("PNG", "RGBA", {"exif": turned.tobytes()}),
        ),
        *(("TIFF", "I;16", {"compression": "tiff_deflate"}), ("AVIF", "RGB", {"speed": 10})),
        ("JPEG2000", "RGB", {"num_resolutions": 1}),
    ):
        side = min(10_000, _side(format))
        name = "-".join((format, mode, *options)).replace(";", "")
        yield f"bomb-{name}.img", encoded(Image.new(mode, (side, side)), format, **options)


def _side(format: str) -> int:
    return {"AVIF": 6_000, "JPEG2000": 6_000}.get(format, 10_000)


def _dds(width: int, height: int) -> bytes:
    """A DDS header of uncompressed pixels, and none of them."""
    masks = struct.pack("<IIIIIIII", 32, 0x40, 0, 24, 0xFF0000, 0xFF00, 0xFF, 0)
    head = struct.pack("<IIIIIII", 124, 0x1007, height, width, 0, 0, 1) + bytes(44)
    return b"DDS " + head + masks + struct.pack("<IIIII", 0x1000, 0, 0, 0, 0)


def _rle_bmp(width: int, height: int) -> bytes:
    """A run-length coded BMP that jumps to its end."""
    palette, runs = bytes(1024), b"\xff\x01" * 8 + b"\0\0" * 8 + b"\0\1"
    at = 14 + 40 + len(palette)
    head = struct.pack("<2sIII", b"BM", at + len(runs), 0, at)
    about = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return head + about + palette + runs


def _qoi(width: int, height: int) -> bytes:
    return b"qoif" + struct.pack(">IIBB", width, height, 4, 0) + b"\xfd" * (width * height // 62)


def _psd(width: int, height: int) -> bytes:
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, height, width, 8, 3)
    counts = struct.pack(">H", 0) * min(3 * height, 60_000)
    return head + bytes(12) + b"\0\1" + counts


def _ico(inside: bytes) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def _icns(inside: bytes) -> bytes:
    return (
        b"icns"
        + struct.pack(">I", len(inside) + 16)
        + b"ic07"
        + struct.pack(">I", len(inside) + 8)
        + inside
    )


# ---------------------------------------------------------------- text


def config(canary: Path) -> Files:
    """Configurations in TOML."""
    yield "good.toml", b'backbone = "vgg16"\nlr = 1e-3\nsize = 96\nstages = "head:3,C5:5"\n'
    yield (
        "good-tables.toml",
        b'[[stages]]\nname = "a"\nunfreeze = "head"\nepochs = 2\n[[stages]]\nname = "b"\n',
    )
    yield (
        "good-all.toml",
        (
            b'data = "flowers"\ntask = "binary"\nval_split = 0.2\nignore_class = ["a"]\n'
            b'strict_data = true\ntime = "1.5h"\ntaps = ["C4"]\nname = "x"\nexport = ["keras"]\n'
            b'fail_under = 0.9\nresume = "auto"\ndevice = "gpu:0"\nflip = "on"\nmixup = 0.2\n'
        ),
    )
    yield "lists.toml", b"stages = " + b"[" * 100_000
    yield "lists-closed.toml", b"stages = " + b"[" * 500 + b"]" * 500
    yield "tables.toml", b"stages = " + b"{a=" * 100_000
    yield "bomb-dotted.toml", b"stages" + b".a" * 5_000 + b" = 1"
    yield "bomb-dotted-table.toml", b"[stages" + b".a" * 5_000 + b"]\nb = 1"
    yield "digits.toml", b"seed = " + b"9" * 5000
    yield "large.toml", b"lr = " + b"9" * 4000 + b"\nsize = " + b"9" * 4000
    yield "hex.toml", b"seed = 0x" + b"f" * 100_000
    yield "float.toml", b"lr = 1e999999\nmixup = nan\nl2 = inf\nval_split = -inf"
    yield "stage-digits.toml", b'stages = "head:' + b"9" * 5000 + b'"'
    yield "time.toml", b'time = "' + b"9" * 400 + b'h"'
    yield "time-text.toml", b'time = "nan"\nepochs = "infinity"'
    yield "dates.toml", b"stages = [{a=1979-05-27T00:32:00.999999-07:00}]\nlr = 23:59:59"
    yield "bad-date.toml", b"lr = 9999-99-99\nsize = 2024-02-31"
    yield "twice.toml", b"lr = 1\nlr = 2"
    yield "twice-spelt.toml", b"val-split = 0.1\nval_split = 0.2"
    yield "nul.toml", b'name = "a\x00b"'
    yield "nul-escaped.toml", b'name = "a\\u0000b"\ndata = "\\u0000"\nout = "\\u0000"'
    yield "not-utf8.toml", b'name = "\xff\xfe"'
    yield "surrogate.toml", b'name = "\\ud800"'
    yield "control.toml", b'"\\u001b[2J" = 1\nbackbone = "\\u001b]0;x\\u0007"'
    yield "empty-key.toml", b'"" = 1\n"a.b" = 2'
    yield "bom.toml", b"\xef\xbb\xbflr = 1"
    yield "command.toml", f'backbone = "$(touch {canary})"\nlr = "__import__(\'os\')"'.encode()
    yield "bomb-lines.toml", b"\n" * 200_000 + b"lr = 1"
    yield "bomb-keys.toml", b"".join(b"key%d = 1\n" % i for i in range(20_000))
    yield "bomb-text.toml", b'backbone = "' + b"a" * 20_000_000 + b'"'
    yield "bomb-wide.toml", b"stages = [" + b"{}," * 200_000 + b"]"


def table(canary: Path) -> Files:
    """Tables of images, and split files."""
    yield "good.csv", b"path,label,split\na.png,x,train\nb.png,y,val\n"
    yield "good-tabs.csv", b"path\tlabel\n'=a.png\tx|y\n"
    yield "good-split.csv", b"path,split\na.png,train\nb.png,test\n"
    yield "empty.csv", b""
    yield "blank.csv", b"\n\n\n"
    yield "separator.csv", b"\x1c\x1d\x85"
    yield "short-row.csv", b"label,path\nx\n"
    yield "short-split.csv", b"split,path\ntrain\n"
    yield "nul.csv", b"path,label\na\x00.png,x\nb.png,y\n"
    yield "nul-split.csv", b"path,split\na\x00.png,train\n"
    yield "not-utf8.csv", b"path,label\n\xff.png,\xfe\nb.png,y\n"
    yield "utf16.csv", "path,label\na.png,x\n".encode("utf-16")
    yield "quotes.csv", b'path,label\n"a.png,x\n'
    yield "quote-inside.csv", b'path,label\na"b"c.png,"x"y\n'
    yield "long-cell.csv", b"path,label\n" + b"a" * 200_000 + b",x\n"
    yield "long-name.csv", b"path,label\n" + b"a" * 5_000 + b",x\nb/" + b"c" * 300 + b",y\n"
    yield "elsewhere.csv", b"path,label\n/etc/passwd,x\n../../../../etc/shadow,y\n/dev/zero,y\n"
    yield "devices.csv", b"path,label\n/dev/stdin,x\n/dev/tty,y\n/proc/self/mem,y\n.,x\n"
    yield "pipe.csv", f"path,label\n{canary.with_suffix('.pipe')},x\nb.png,y\n".encode()
    yield "formula.csv", b"path,label\na.png,=cmd|' /C calc'!A0\nb.png,@SUM(1)\n"
    yield "twice.csv", b"path,path,label\na,b,c\n"
    yield "carriage.csv", b"path,label\ra.png,x\rb.png,y\n"
    yield "bomb-columns.csv", b"path" + b",label" * 200_000 + b"\na" + b",x" * 200_000
    yield "bomb-header.csv", b",".join(b"%d" % i for i in range(300_000))
    yield "bomb-rows.csv", b"path,label\n" + b"a,b\n" * 200_000


def tar(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w", **options) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:
        for info, content in members:
            info.size = len(content) if info.isreg() and not info.size else info.size
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str = "a/x.png", kind: bytes = tarfile.REGTYPE, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 15}


def archive(canary: Path) -> Files:
    """Archives that write elsewhere, or more than they hold."""

    good = [(member("a/x.png"), b"one"), (member("b/y.png"), b"two")]
    yield "good.zip", zipped({"a/x.png": b"one", "b/y.png": b"two"})
    yield "good-deflated.zip", zipped({"a/x.png": b"one" * 99}, zipfile.ZIP_DEFLATED)
    for mode, suffix in {
        "w": "tar",
        "w:gz": "tar.gz",
        "w:bz2": "tar.bz2",
        "w:xz": "tar.xz",
    }.items():
        yield f"good.{suffix}", tar(*good, mode=mode)
    yield "good-pax.tar", tar((member("é" * 120), b"x"), format=tarfile.PAX_FORMAT)
    yield "good-gnu.tar", tar((member("a" * 120), b"x"), format=tarfile.GNU_FORMAT)
    for number, name in enumerate(
        (f"../{canary.name}", f"{canary}", "a/../../x", "..\\x", "C:/x", "a\0b", "/", ".", "\n")
    ):
        yield f"name-{number}.zip", zipped({name: b"x"})
        yield f"name-{number}.tar", tar((member(name), b"x"))
    for number, kind in enumerate(
        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    ):
        yield f"kind-{number}.tar", tar((member("a/x", kind, linkname="/etc/passwd"), b""))
    link = zipfile.ZipInfo("a/x.png")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr(link, "/etc/passwd")
    yield "link.zip", buffer.getvalue()
    yield "file-as-folder.zip", zipped({"a": b"x", "a/b": b"y"})
    yield "folder-as-file.zip", zipped({"a/b": b"x", "a": b"y"})
    yield "file-as-folder.tar", tar((member("a"), b"x"), (member("a/b"), b"y"))
    yield "long-name.zip", zipped({"a/" + "n" * 300: b"x"})
    yield "deep.zip", zipped({"a/" * 3000 + "x": b"x"})
    yield "surrogate.tar", tar((member("a/\udcff.png"), b"x"))
    encrypted = bytearray(zipped({"a/x.png": b"one"}))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    yield "encrypted.zip", bytes(encrypted)
    method = bytearray(zipped({"a/x.png": b"one"}))
    method[8] = method[method.index(b"PK\x01\x02") + 10] = 99
    yield "method.zip", bytes(method)
    yield "gzip-of-nothing.tar.gz", zlib.compress(b"")
    yield "broken.tar.gz", tar(*good, mode="w:gz")[:-20] + b"\0" * 20
    yield "broken.tar.bz2", tar(*good, mode="w:bz2")[:40] + b"\0" * 20
    yield "broken.tar.xz", tar(*good, mode="w:xz")[:40] + b"\0" * 20
    yield (
        "sparse-map.tar",
        tar((member(pax_headers=SPARSE), b"9\n1\nx\n"), format=tarfile.PAX_FORMAT),
    )
    yield "pax-size.tar", tar((member(pax_headers={"size": "-1"}), b"x"), format=tarfile.PAX_FORMAT)
    yield (
        "pax-digits.tar",
        tar((member(pax_headers={"size": "9" * 5000}), b"x"), format=tarfile.PAX_FORMAT),
    )
    chain = b"".join(member("p", tarfile.XHDTYPE).tobuf() for _ in range(3000))
    yield "pax-chain.tar", chain + tar(*good)


def archive_bombs(canary: Path) -> Files:
    """Small archives of much content, or of headers that are."""
    header = member("p", tarfile.XHDTYPE, size=600 << 20).tobuf()
    yield "bomb-pax.tar.gz", _gzip(header, 600 << 20)
    header = member("p", tarfile.GNUTYPE_LONGNAME, size=600 << 20).tobuf()
    yield "bomb-longname.tar.gz", _gzip(header, 600 << 20)
    yield "bomb-file.tar.gz", _gzip(member(size=1 << 30).tobuf(), 1 << 30)
    sparse = member(pax_headers=SPARSE, size=400 << 20)
    yield (
        "bomb-sparse.tar.gz",
        _gzip(sparse.tobuf(tarfile.PAX_FORMAT) + b"99999999\n", 300 << 20, b"1\n"),
    )
    yield "bomb-files.tar.gz", _gzip(b"", 200 << 20, member("a/x.png").tobuf())
    yield "bomb-folders.tar.gz", _gzip(b"", 500 << 20, member("a/b", tarfile.DIRTYPE).tobuf())
    for name, kind in {"deflated": 8, "bzip2": 12, "lzma": 14}.items():
        yield f"bomb-{name}.zip", _zip_of_zeros(600 << 20, kind)
    yield "bomb-bz2.tar.bz2", tar((member(), bytes(1 << 28)), mode="w:bz2")


def _gzip(head: bytes, size: int, block: bytes = bytes(512)) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    piece = block * ((1 << 20) // len(block))
    parts = [packer.compress(head)] + [packer.compress(piece) for _ in range(size >> 20)]
    return b"".join(parts) + packer.flush()


def _zip_of_zeros(size: int, kind: int) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", kind) as archive,
        archive.open("a/x.png", "w", force_zip64=True) as file,
    ):
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return buffer.getvalue()


def run(canary: Path) -> Files:
    """model.json of a run, whose weights are those of `good_run`."""
    good = {
        "format": 1,
        "create": {"name": "lenet5", "num_classes": 3, "in_chans": 3},
        "preprocess": {"mean": [0, 0, 0], "std": [1, 1, 1]},
        "classes": ["a", "b", "c"],
        "task": "multiclass",
        "origin": {},
        "versions": {},
        "weights_sha256": "0" * 64,
        "variables_sha256": "0" * 64,
    }
    yield "good.json", json.dumps(good).encode()
    yield "empty.json", b""
    yield "nested.json", b"[" * 100_000
    yield "nested-inside.json", b'{"origin":' + b'{"a":' * 100_000
    yield "digits.json", b'{"format":' + b"9" * 5000 + b"}"
    yield "list.json", b"[]"
    yield "text.json", b'"weights_sha256"'
    yield "not-utf8.json", b'{"\xff": 1}'
    for key in good:
        for kind, value in {"null": None, "number": 7, "list": [[]], "text": "x"}.items():
            yield f"{key}-{kind}.json", json.dumps(good | {key: value}).encode()
        yield f"no-{key}.json", json.dumps({k: v for k, v in good.items() if k != key}).encode()
    for name, create in {
        "code": {"name": "lenet5", "activation": f"open({str(canary)!r},'w')"},
        "many": {"name": "lenet5", "num_classes": 1 << 30},
        "argument": {"name": "lenet5", "progress": 1, "x": 2},
        "weights": {"name": "lenet5", "weights": "/etc/passwd"},
        "hub": {"name": "hf://evil/x"},
        "preset": {"name": f"keras_hub:{canary.parent}"},
    }.items():
        yield f"create-{name}.json", json.dumps(good | {"create": create}).encode()


# ---------------------------------------------------------------- the readers

EXIT = {"config": 2, "image": 3, "archive": 3, "table": 3}  # of a refusal; of a checkpoint's 4


def reading(name: str, folder: Path) -> Callable[[Path], object]:
    """Return what reads a file as users' files are read."""
    from dlzoo.zoo import checkpoints

    if name in ("pth", "safetensors"):
        return checkpoints.read_torch
    if name in ("h5", "keras"):
        return checkpoints.read_keras
    if name == "config":
        from dlzoo.config import resolve
        from dlzoo.transfer.plan import make_plan

        def configure(path: Path) -> None:
            config = resolve(config_file=path).config
            make_plan(config.preset, stages=config.stages, epochs=config.epochs, overrides={})

        return configure
    if name == "image":
        from dlzoo.data import decode

        def look(path: Path) -> None:
            decode.claims_image(path)
            with contextlib.suppress(decode.DataError):
                decode.probe(path)
            decode.decode(path)

        return look
    if name == "archive":
        from dlzoo.data.archive import unpack

        def open_archive(path: Path) -> None:
            shutil.rmtree(unpack(path))

        return open_archive
    if name == "table":
        return tabulating(folder)
    raise SystemExit(f"no reader is called {name}")


def tabulating(folder: Path) -> Callable[[Path], None]:
    """Return what takes a file as a table of images, and as the split of some."""
    from dlzoo.data import load_data
    from dlzoo.errors import DlzooError
    from PIL import Image

    for i, name in enumerate(("a.png", "b.png", "x/a.png", "x/b.png", "y/a.png", "y/b.png")):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / "photos" / name)

    def tabulate(path: Path) -> None:
        beside = shutil.copy(path, folder / "photos" / "multilabel.csv")
        with contextlib.suppress(DlzooError):
            load_data(Path(beside))
        os.remove(beside)
        load_data(folder / "photos", split_file=path)

    return tabulate


BOMBS: dict[str, Callable[[Path], Files]] = {"image": image_bombs, "archive": archive_bombs}
READERS: dict[str, Callable[[Path], Files]] = {
    "pth": pth,
    "h5": h5,
    "keras": keras_archive,
    "safetensors": safetensors,
    "config": config,
    "image": image,
    "archive": archive,
    "table": table,
    "run": run,
}


def corpus(reader: str, canary: Path, *, bombs: bool = False) -> dict[str, bytes]:
    """Return the hostile files for a reader, and what fuzzing found, by name.

    Args:
        canary: what code in them makes. bombs: also those that take long to make.
    """
    found = dict(READERS[reader](canary))
    if bombs and reader in BOMBS:
        found |= BOMBS[reader](canary)
    return found | {path.name: path.read_bytes() for path in sorted((CORPUS / reader).glob("*"))}


def mutate(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Return `data` with some bytes, numbers or pieces changed, lost, repeated or of another."""
    for _ in range(1 << chance.randrange(4)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + (1 << chance.randrange(10)))
        match chance.randrange(8):
            case 0:
                data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
            case 1:
                data = (
                    data[:at]
                    + bytes([data[at] ^ 1 << chance.randrange(8)] if data[at:] else b"")
                    + data[at + 1 :]
                )
            case 2:
                data = data[:at] + data[end:]
            case 3:
                data = data[:at] + data[at:end] * chance.randrange(1, 9) + data[end:]
            case 4:
                width = chance.choice((1, 2, 4, 8))
                number = chance.choice(
                    (0, 1, -1, 1 << 8 * width - 1, chance.getrandbits(8 * width))
                )
                order = chance.choice(("little", "big"))
                number = (number % (1 << 8 * width)).to_bytes(width, order)
                data = data[:at] + number + data[at + width :]
            case 5:
                other = chance.choice(others)
                start = chance.randrange(len(other) + 1)
                data = data[:at] + other[start : start + end - at] + data[end:]
            case 6:
                data = data[:at] if chance.random() < 0.3 else data
            case 7:
                data = data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at:]
    return data


def main(folder: Path) -> None:
    for reader in READERS:
        (folder / reader).mkdir(parents=True, exist_ok=True)
        files = corpus(reader, folder.resolve() / "canary", bombs=True)
        for name, content in files.items():
            (folder / reader / name).write_bytes(content)
        print(f"{reader}: {len(files)} files")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="hostile-")))
