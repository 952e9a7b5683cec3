"""train.py without training, which grids start in its place: how a run ends depends on its learning rate.

0.5 and 1 finish, 2 is killed once and 3 always, 4 fails, 5 takes half a minute. What each process saw is written to
RUNS_DIR/seen.
"""

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import train
from experiment.record import FORMAT
from training import start

VAL_ELBO = {0.5: -200.0, 1.0: -7.0, 2.0: -5.0}


def fit(config, args, run=None):
    """In the place of `training.start.fit`: writes the folder of a finished run."""
    seen = Path(config.runs_dir, "seen")
    before = seen.read_text() if seen.exists() else ""
    threads, cores = os.environ.get("OMP_NUM_THREADS"), len(os.sched_getaffinity(0))
    with seen.open("a") as file:
        told = {"memory": os.environ.get("VAMPVAE_MEMORY"), "threads": threads, "cores": cores}
        print(json.dumps({"lr": config.lr, "overwrite": args.overwrite} | told), file=file)
    print("lr", config.lr, flush=False)
    if (config.lr == 2.0 and '"lr": 2.0' not in before) or config.lr == 3.0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30 if config.lr == 5.0 else 0)
    if config.lr == 4.0:
        raise RuntimeError("no luck")
    config.path.mkdir(parents=True)
    record = {"format": FORMAT, "config": dataclasses.asdict(config), "backend": "tensorflow"}
    (config.path / "config.json").write_text(json.dumps(record | {"versions": {}, "data_sha256": {}}))
    status = {"state": "finished", "best_val_elbo": VAL_ELBO[config.lr], "best_epoch": 4, "note": config.note}
    (config.path / "status.json").write_text(json.dumps(status))
    return config.path


if __name__ == "__main__":
    start.fit = fit
    sys.exit(train.main())
