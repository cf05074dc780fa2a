"""docs/RELIABILITY.md is true: every number has a test or a reason, every test it names exists."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("reliability", ROOT / "tools" / "reliability.py")
reliability = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reliability)


@pytest.mark.parametrize(
    ("kind", "titles"), [("fault", reliability.FAULTS), ("pain", reliability.PAINS)]
)
def test_every_number_has_a_test_or_a_reason(kind, titles):
    tested = {n for of, n in reliability.tests() if of == kind}
    gaps = {n for of, n in reliability.GAPS if of == kind}
    assert list(titles) == list(range(1, len(titles) + 1))
    assert tested | gaps == set(titles), "neither a test nor a reason"
    assert not tested & gaps, "tested now: take it out of GAPS in tools/reliability.py"


def test_the_page_names_the_tests_there_are():
    """If not: python tools/reliability.py."""
    named = set(re.findall(r"`(test_\w+)`", reliability.PAGE.read_text("utf-8")))
    assert named == {t.partition("::")[2] for many in reliability.tests().values() for t in many}


def test_names_claim_numbers():
    assert reliability.numbers("test_fault_05_pain_37_x") == [("fault", 5), ("pain", 37)]
    assert reliability.numbers("test_08_pain_05_06_x_20_y") == [("pain", 5), ("pain", 6)]
