"""What a run is: its settings, and its folder on disk. Nothing here imports Keras before a model is asked for."""

from experiment.config import Config
from experiment.folder import create, held
from experiment.run import Run

load = Run
__all__ = ["Config", "Run", "create", "held", "load"]
