"""TensorFlow Datasets. A dataset that is prepared is read from its folder: no socket is opened."""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ..errors import DataError, nearest
from ..zoo.weights import is_offline
from .records import Problem, Record, Source, Spill, as_pixels, split_name


def data_dir() -> Path:
    """Return where TFDS keeps datasets: `TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def read_tfds(name: str, alias: str | None = None) -> Source:
    """Return the catalogue of a TFDS image classification dataset.

    Its own train, validation and test splits are kept. The encoded images are set aside on
    disk and decoded by dlzoo's decoder.

    Args:
        name: `NAME` or `NAME/CONFIG`, perhaps with `:VERSION`.
        alias: what the user called it.

    Raises:
        DataError: `data.offline` (not prepared, and it cannot be fetched), `data.not-found`
            (TFDS knows no such dataset), `data.tfds-features` (no image with class labels),
            `data.split` (no training part).
    """
    folder = _prepared(name)
    builder = _fetch(name, alias) if folder is None else _builder(folder)
    image, label, names, many = _features(builder)
    raw = alias or name.replace("/", "-").replace(":", "-")
    have = _splits(builder, alias or f"tfds:{name}")
    spill, records = Spill(), list[Record]()
    problems = [
        Problem(f"{raw}/{split}", "a split that is none of train, val and test", "ignored")
        for split in builder.info.splits
        if split not in have
    ]
    for split, part in sorted(have.items()):
        for i, example in enumerate(_examples(builder, split, image)):
            key, pixels, found = f"{raw}/{split}/{i:06d}", example[image], example[label]
            indices = found.tolist() if many else [int(found)]
            if min(indices, default=0) < 0:  # so TFDS marks test images whose labels are secret
                problems.append(Problem(key, "an image without a label", "ignored"))
                continue
            if not isinstance(pixels, bytes):
                pixels = as_pixels(pixels, f"{split} {i}")
            labels = tuple(names[k] for k in indices)
            records.append(Record(key, labels, spill.add(pixels), part))
    if {record.split for record in records} == {"train"}:
        for record in records:
            record.split = None
    return Source(raw, records, classes=tuple(names), multilabel=many, problems=problems)


def fetch_tfds(name: str, alias: str | None = None) -> Path:
    """Return the folder of a dataset, prepared now if it was not; raises as `read_tfds` does."""
    return _prepared(name) or Path(_fetch(name, alias).data_dir)


def _splits(builder: Any, shown: str) -> dict[str, str]:
    """Return which of a dataset's splits are train, val and test."""
    have = {split: part for split in builder.info.splits if (part := split_name(split))}
    if "train" not in have.values():
        raise DataError(
            "data.split",
            f"{shown!r} has no split called train, only {', '.join(builder.info.splits)}",
            fix="write its images into folders, or load them with tfds.load and give the datasets "
            "to dlzoo.load_data as {'train': ...}",
        )
    return have


def _prepared(name: str) -> Path | None:
    """Return the folder of the newest prepared version, or None."""
    path, _, version = name.partition(":")
    base = data_dir() / path
    versions = []
    for folder in base.glob("*.*.*"):
        wanted = fnmatch.fnmatchcase(folder.name, version or "*")
        known = re.fullmatch(r"\d+\.\d+\.\d+", folder.name)
        if wanted and known and (folder / "dataset_info.json").is_file():
            versions.append(folder)
    return max(versions, key=lambda f: tuple(map(int, f.name.split("."))), default=None)


def _builder(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(str(folder))
    except Exception as error:  # whatever a damaged folder makes it raise
        raise DataError(
            "data.tfds",
            f"the prepared dataset cannot be read: {error}",
            where=folder,
            fix="remove the folder and let TFDS prepare it again",
        ) from error


def _fetch(name: str, alias: str | None) -> Any:
    """Let TFDS download and prepare the dataset."""
    shown = alias or f"tfds:{name}"
    if is_offline():
        raise _offline(shown, name, "DLZOO_OFFLINE is set")
    import requests
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=str(data_dir()), try_gcs=False)
        for url in list(builder.url_infos)[:1]:  # TFDS itself would try for minutes
            requests.head(url, timeout=10)
        with redirect_stdout(sys.stderr):  # its progress
            builder.download_and_prepare()
        return builder
    except ImportError as error:
        raise DataError(
            "data.tfds",
            f"{shown!r} cannot be prepared: {error}",
            fix=f"pip install {error.name or 'tensorflow-datasets'}",
        ) from error
    except tfds.core.registered.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = nearest(name.partition("/")[0], known)
        raise DataError("data.not-found", f"TFDS knows no {name!r}{near}") from error
    except requests.RequestException as error:
        raise _offline(shown, name, f"no connection: {type(error).__name__}") from error
    except Exception as error:  # a changed file, a full disk, a dataset to be fetched by hand
        raise _offline(
            shown, name, (str(error).splitlines() or [type(error).__name__])[0]
        ) from error


def _offline(shown: str, name: str, reason: str) -> DataError:
    place = data_dir() / name.partition(":")[0]
    own = f"./{shown}" if os.path.isdir(shown) else "PATH_TO_FOLDER"
    return DataError(
        "data.offline",
        f"{shown!r} is not on this machine and cannot be fetched ({reason})",
        where=f"{place} (looked for a prepared version; TFDS_DATA_DIR changes the place)",
        fix=f"use photographs of your own: dlzoo finetune --data {own}; or run this once "
        "with network access, or copy a prepared folder to that place",
    )


def _features(builder: Any) -> tuple[str, str, list[str], bool]:
    """Return the names of image and label, the class names, and whether there are many labels."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    kinds = dict(features.items()) if hasattr(features, "items") else {}
    images = [key for key, kind in kinds.items() if isinstance(kind, tfds.features.Image)]
    single = [key for key, kind in kinds.items() if isinstance(kind, tfds.features.ClassLabel)]
    several = [
        key
        for key, kind in kinds.items()
        if isinstance(kind, tfds.features.Sequence)
        and isinstance(kind.feature, tfds.features.ClassLabel)
    ]
    preferred = builder.info.supervised_keys or ()
    for keys in (images, single, several):
        keys.sort(key=lambda key: key not in preferred)
    if not images or not (single or several):
        raise DataError(
            "data.tfds-features",
            f"{builder.info.full_name!r} is not an image classification dataset: it has "
            + ", ".join(kinds),
        )
    many = not single
    label = (single or several)[0]
    kind = kinds[label].feature if many else kinds[label]
    return images[0], label, list(kind.names), many


def _examples(builder: Any, split: str, image: str) -> Any:
    """Yield the examples of a split in their stored order, images still encoded."""
    import tensorflow_datasets as tfds

    from .pipeline import untuned

    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        read_config=config,
        decoders={image: tfds.decode.SkipDecoding()},
    )
    return untuned(dataset).as_numpy_iterator()
