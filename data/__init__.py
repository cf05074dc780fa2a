"""Data: any source of labelled images to checked splits and a deterministic pipeline."""

from .catalogue import Data
from .load import load_data
from .records import Problem

__all__ = ["Data", "Problem", "load_data"]
