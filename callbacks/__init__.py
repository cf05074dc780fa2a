"""Keras callbacks that survive a stage change and a restart.

Each works alone with a plain `model.fit` and keeps its state over several fits; `state_dict()`
gives that state as plain values and `load_state_dict()` takes it back. `Resume` saves all of it
with the model, and stands last in the list: the others have then counted the step it saves.
"""

from .base import Resumable
from .best import BestModel
from .early_stopping import EarlyStopping
from .ema import AverageWeights
from .followers import EventFiles
from .gradient_watch import GradientWatch
from .guards import StopOnDivergence, StopOnSignal, chance
from .history import History
from .lr_finder import LRFinder, Suggestion
from .monitor import Monitor, check_monitor
from .progress import Progress
from .resume import Resume
from .schedules import Constant, OneCycle, ReduceLROnPlateau, WarmupCosine, check_single_policy

__all__ = [
    "AverageWeights",
    "BestModel",
    "Constant",
    "EarlyStopping",
    "EventFiles",
    "GradientWatch",
    "History",
    "LRFinder",
    "Monitor",
    "OneCycle",
    "Progress",
    "ReduceLROnPlateau",
    "Resumable",
    "Resume",
    "StopOnDivergence",
    "StopOnSignal",
    "Suggestion",
    "WarmupCosine",
    "chance",
    "check_monitor",
    "check_single_policy",
]
