"""The split as a property: disjoint, complete, every class everywhere, by content (pain 7)."""

import random
from collections import Counter

import pytest
from dlzoo.data.records import Record
from dlzoo.data.split import assign, split_records
from hypothesis import given, settings
from hypothesis import strategies as st

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
sizes = st.lists(st.integers(3, 60), min_size=2, max_size=6)


def groups_of(sizes):
    return {f"{k}-{i}": (f"class{k}",) for k, n in enumerate(sizes) for i in range(n)}


@settings(max_examples=60)
@given(sizes=sizes, seed=st.integers(0, 2**32), rng=st.randoms(use_true_random=False))
def test_pain_07_complete_stratified_and_independent_of_order(sizes, seed, rng):
    groups = groups_of(sizes)
    assigned = assign(groups, SHARES, seed)
    assert assigned.keys() == groups.keys()  # one split each: disjoint and complete
    for k, n in enumerate(sizes):
        counts = Counter(s for h, s in assigned.items() if groups[h] == (f"class{k}",))
        expected = max(1, int(n * 0.1 + 0.5))
        assert counts == {"val": expected, "test": expected, "train": n - 2 * expected}
    listed = list(groups.items())
    rng.shuffle(listed)
    assert assign(dict(listed), SHARES, seed) == assigned


@settings(max_examples=60)
@given(
    labels=st.lists(st.frozensets(st.sampled_from("abcde")), min_size=12, max_size=60),
    seed=st.integers(0, 99),
)
def test_several_labels_keep_their_shares_nearly(labels, seed):
    groups = {str(i): names for i, names in enumerate(labels)}
    assigned = assign(groups, SHARES, seed)
    assert assigned.keys() == groups.keys()
    assert assigned == assign(dict(reversed(groups.items())), SHARES, seed)
    counts = Counter(name for names in labels for name in names)
    for name, n in counts.items():
        train = sum(name in groups[h] for h, s in assigned.items() if s == "train")
        assert train >= 1 or n < 3


def test_every_label_is_everywhere_if_that_can_be():
    rng = random.Random(0)
    groups = {str(i): rng.sample("abcdefgh", rng.randint(1, 3)) for i in range(120)}
    assigned = assign(groups, SHARES, 0)
    for split in SHARES:
        assert {n for h, s in assigned.items() if s == split for n in groups[h]} == set("abcdefgh")


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_go_to_train_first(n):
    assigned = assign({str(i): ("a",) for i in range(n)}, SHARES, 0)
    assert "train" in assigned.values()


def test_seed_changes_the_split():
    groups = groups_of([50, 50])
    assert assign(groups, SHARES, 0) != assign(groups, SHARES, 1)


def records(hashes, splits=None):
    return [
        Record(f"k{i}", ("a",), None, splits[i] if splits else None, sha256=h)
        for i, h in enumerate(hashes)
    ]


def test_same_content_shares_a_split():
    found = records([f"h{i % 10}" for i in range(30)])
    split_records(found, 0.2, 0.2, 0)
    where = {}
    for record in found:
        assert where.setdefault(record.sha256, record.split) == record.split
    assert Counter(where.values()) == {"train": 6, "val": 2, "test": 2}


def test_given_splits_are_kept_and_missing_ones_cut_from_train():
    found = records([f"h{i}" for i in range(30)], ["train"] * 20 + ["test"] * 10)
    split_records(found, 0.1, 0.5, 0)
    assert [r.split for r in found[20:]] == ["test"] * 10
    assert Counter(r.split for r in found[:20]) == {"train": 18, "val": 2}


def test_a_fraction_of_zero_makes_no_split():
    found = records([f"h{i}" for i in range(30)])
    split_records(found, 0.0, 0.2, 0)
    assert Counter(r.split for r in found) == {"train": 24, "test": 6}
