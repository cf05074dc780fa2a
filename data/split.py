"""The split: stratified, seeded, and a function of the images' content alone.

It does not matter where the images lie, how they are called or in which order they are
listed. Images of equal content always share a split.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

from .records import SPLITS, Record


def assign(
    groups: Mapping[str, Iterable[str]], shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Return a split for each group of identical images.

    Every label gets its share of each split, counted in groups and rounded, but at least one
    group if it has as many as there are splits. With several labels to an image (iterative
    stratification, Sechidis et al. 2011: the rarest label first) that holds as nearly as the
    labels allow.

    Args:
        groups: content hash -> labels of its images.
        shares: split -> fraction; they sum to 1. Splits of fraction 0 get nothing.
        seed: another seed, another split.
    """
    labels = {hash: frozenset(names) for hash, names in groups.items()}
    splits = [split for split in SPLITS if shares.get(split, 0) > 0]
    order = sorted(labels, key=lambda hash: _rank(seed, hash))
    counts = Counter(name for names in labels.values() for name in names)
    need = {name: _quota(count, splits, shares) for name, count in counts.items()}
    room = _quota(len(labels), splits, shares)
    left = Counter(counts)  # groups of each label that wait for a split
    waiting: dict[str, list[str]] = {name: [] for name in counts}
    for hash in order:
        for name in labels[hash]:
            waiting[name].append(hash)
    assigned: dict[str, str] = {}

    def put(hash: str, wanted: Mapping[str, int]) -> None:
        split = max(splits, key=lambda s: (wanted[s], room[s]))
        assigned[hash] = split
        room[split] -= 1
        for name in labels[hash]:
            need[name][split] -= 1
            left[name] -= 1

    while waiting:
        name = min(waiting, key=lambda n: (left[n], n))
        for hash in waiting.pop(name):
            if hash not in assigned:
                put(hash, need[name])
    for hash in order:  # images without any label
        if hash not in assigned:
            put(hash, room)
    _repair(assigned, labels, counts, splits, order)
    return assigned


def _rank(seed: int, hash: str) -> bytes:
    return hashlib.sha256(f"{seed}:{hash}".encode()).digest()


def _quota(count: int, splits: list[str], shares: Mapping[str, float]) -> dict[str, int]:
    """Return how many of `count` go where; `train` takes what rounding leaves."""
    quota = {split: int(count * shares[split] + 0.5) for split in splits if split != "train"}
    while any(quota.values()) and sum(quota.values()) >= count:
        quota[max(quota, key=lambda split: quota[split])] -= 1
    return quota | {"train": count - sum(quota.values())}


def _repair(
    assigned: dict[str, str],
    labels: Mapping[str, frozenset[str]],
    counts: Mapping[str, int],
    splits: list[str],
    order: list[str],
) -> None:
    """Move single groups until no label that could be everywhere lacks in a split."""
    have = Counter((name, assigned[hash]) for hash in order for name in labels[hash])
    for name in sorted(counts):
        for split in splits:
            if have[name, split] or counts[name] < len(splits):
                continue
            for hash in order:
                old = assigned[hash]
                if name in labels[hash] and all(have[n, old] > 1 for n in labels[hash]):
                    assigned[hash] = split
                    have.update((n, split) for n in labels[hash])
                    have.subtract((n, old) for n in labels[hash])
                    break


def split_records(records: list[Record], val: float, test: float, seed: int) -> None:
    """Give every record its split; the splits that some records have already are kept.

    A missing `val` or `test` is cut out of `train` (out of everything, if there is no split
    yet), by the fractions `val` and `test` of what it is cut out of.
    """
    given = {record.split for record in records} - {None}
    free = [record for record in records if record.split in (None, "train")]
    shares = {
        "val": 0.0 if "val" in given else val,
        "test": 0.0 if "test" in given else test,
    }
    shares["train"] = 1 - sum(shares.values())
    groups: dict[str, set[str]] = {}
    for record in free:
        groups.setdefault(record.sha256, set()).update(record.labels)
    assigned = assign(groups, shares, seed)
    for record in free:
        record.split = assigned[record.sha256]
