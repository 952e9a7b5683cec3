"""What a run is: its settings, and its folder on disk. Nothing here imports Keras before a model is asked for."""

import importlib.util
from pathlib import Path

try:
    from experiment.config import Config
    from experiment.folder import create, held
    from experiment.run import Run
except (ImportError, AttributeError) as error:
    here = Path(__file__).resolve().parents[1]
    for room in ("runtime", "models", "data"):
        spec = importlib.util.find_spec(room)
        found = spec and Path(spec.origin or next(iter(spec.submodule_search_locations)))
        if found and here not in found.resolve().parents:
            mend = f"start Python again with sys.path.insert(0, {str(here)!r}) before other imports"
            raise ImportError(f"module {room} is {found}, and not that of {here}: {mend}") from error
    raise

load = Run
__all__ = ["Config", "Run", "create", "held", "load"]
