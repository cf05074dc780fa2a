"""Real processes, as those of tests/resume."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "resume"))  # for `nursery`
