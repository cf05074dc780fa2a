"""The run that was never interrupted, which all others are compared with."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `nursery`, also in the fork server

import nursery


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Give what a run came to that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    assert nursery.run(out) == 0, nursery.said(out)
    return nursery.result(out)
