"""Train a variational auto-encoder, or a grid of them: python train.py --model hvae --prior vamp --latent_dim 2"""

import argparse
import dataclasses
import json
import os
import sys

import data
import models
from experiment import Config, own
from experiment.flags import add_backend, add_code, add_settings, is_one_value
from experiment.presets import preset, preset_names
from experiment.sources import OF_REFITS
from grids import launch
from grids.configs import configs_of, lists_of
from runtime import backend
from runtime.command import Parser, command, end_with_parent, number, path, whole
from runtime.errors import UserError
from runtime.rules import Rule, check, excludes, is_given, needs
from training import processes, start

SEVERAL = ("jobs", "cluster", "search")  # flags that train several runs
# what may change when a run is resumed; another value of any other setting makes another run
CHANGEABLE = ("epochs", "patience", "data_dir", *start.HERE)
FIXED = [field.name for field in dataclasses.fields(Config) if field.name not in CHANGEABLE]
REFUSED = f"cannot be given with --resume; only --{', --'.join(CHANGEABLE)} can"
KEPT = ["init_from", *[field.name for field in dataclasses.fields(Config)
                       if field.metadata["tag"] is not None and field.name not in OF_REFITS]]  # fmt: skip
RULES = [
    *[Rule(name, lambda args: is_given(args, "resume"), REFUSED)
      for name in (*FIXED, "overwrite", "preset", "refit_prior", *SEVERAL)],
    *[Rule(name, lambda args: is_given(args, "refit_prior"), "cannot be given with --refit_prior, which keeps all of "
           "the run but its prior and how it is trained") for name in (*KEPT, "preset", *SEVERAL)],
    *[Rule(name, lambda args, name=name, one=one: is_given(args, one) and not is_one_value(getattr(args, name)),
           f"is more than the one value that --{one} takes")
      for one, names in (("resume", CHANGEABLE), ("refit_prior", FIXED + list(CHANGEABLE))) for name in names],
    *[needs(name, "cluster") for name in ("cpus_per_run", "gpus_per_run")],
    needs("trials", "search"),
    Rule("data_dir", lambda args: not set(getattr(args, "data_set", ())) <= set(data.DATA_SETS), "does not go with "
         "--data_set folder:PATH, whose images are at PATH; with --resume it says where they have moved"),
    *[needs(name, "distribute", "processes") for name in processes.VARIABLES],
    *[Rule(name, lambda args: getattr(args, "distribute", "none") != "none",
           "does not go with --distribute, which trains one run at a time on all devices") for name in SEVERAL],
    *[Rule(name, lambda args: not is_given(args, "gs_key"), "is for a grid, which needs a name: add --gs_key NAME")
      for name in SEVERAL],
    Rule("plot", lambda args: getattr(args, "distribute", "none") == "processes",
         "does not go with --distribute processes, as one of them would draw alone; run plot.py afterwards"),
    *excludes("gs_key", "refit_prior", reason="whose run lies beside RUN"),
    *excludes("runs_dir", "refit_prior", reason="whose run lies beside RUN"),
    *excludes("overwrite", "cluster", reason="as a run that loses its node would begin again instead of resuming"),
]  # fmt: skip


def add_arguments(parser):
    """Adds the flags of train.py."""
    add_settings(parser)
    text = "resume the run in this folder, or with other --epochs or --patience train it further in a new folder"
    parser.add_argument("--resume", metavar="RUN", type=path, topic="runs", common=True, help=text)
    text = "keep q(z|x) and p(x|z) of a finished vae, hvae or markov and fit this prior to draws of q, in a new run "
    text += "beside it; flags of the prior and of its optimisation change the settings of RUN"
    parser.add_argument("--refit_prior", nargs=2, metavar="PRIOR RUN", topic="prior", help=text)
    text = "train again although the run's folder exists (in a grid: the unfinished runs only)"
    parser.add_argument("--overwrite", action="store_true", topic="runs", help=text)
    text = "draw the run's figures at its end, as plot.py does"
    parser.add_argument("--plot", action="store_true", topic="runs", common=True, help=text)
    text = "list the presets with cost and results, and exit"
    parser.add_argument("--list_presets", action="store_true", topic="runs", common=True, help=text)
    add_code(parser)
    add_backend(parser)
    text = "--distribute processes: host and free port of the first process, the same for all [found under Slurm, "
    text += "else $JAX_COORDINATOR_ADDRESS]"
    parser.add_argument("--process_address", metavar="HOST:PORT", topic="machine", help=text)
    text = "--distribute processes: how many there are [found under Slurm, else $JAX_NUM_PROCESSES]"
    parser.add_argument("--num_processes", type=whole(1), metavar="N", topic="machine", help=text)
    text = "--distribute processes: index of this one, 0 for the first [found under Slurm, else $JAX_PROCESS_ID]"
    parser.add_argument("--process_index", type=whole(0), metavar="N", topic="machine", help=text)
    text = "runs at a time, each in a process of its own; several share cores and memory and write log files [1]"
    parser.add_argument("--jobs", type=whole(1, 1024), metavar="N", topic="grid", help=text)
    text = "train on the Ray cluster at this address (auto: that of this machine); all its nodes need the checkout, "
    text += "the data and RUNS_DIR"
    parser.add_argument("--cluster", metavar="ADDRESS", topic="grid", help=text)
    text = "CPUs that a run asks of the cluster [1]"
    parser.add_argument("--cpus_per_run", type=number(0), metavar="X", topic="grid", help=text)
    text = "GPUs that a run asks of the cluster, also a fraction [0]"
    parser.add_argument("--gpus_per_run", type=number(0), metavar="X", topic="grid", help=text)
    text = "let Optuna propose runs that maximise the validation ELBO; flags take ranges, as --lr 1e-5..1e-2"
    parser.add_argument("--search", choices=("optuna",), topic="grid", help=text)
    text = f"runs of a search in all, those of earlier commands included [{launch.TRIALS}]"
    parser.add_argument("--trials", type=whole(1), metavar="N", topic="grid", help=text)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # the process of one run of a grid
    parser.add_argument("--member", metavar="FLAGS", help=argparse.SUPPRESS)  # one of --distribute processes


def run(args):
    """Trains what the flags ask for; returns the exit code, 0 if all of it is finished."""
    if args.list_presets:
        return list_presets()
    check(RULES, args)
    if args.worker:
        end_with_parent()
    if getattr(args, "distribute", None) == "processes" and not args.member:
        flags = {name: value for name, value in vars(args).items() if name != "run"}
        return processes.guarded(flags | {"entered": own.entered()})
    if args.member:
        join(args)
        if not processes.leads():
            return follow(args)
    if args.resume is not None:
        return start.run_again(args)
    if args.refit_prior:
        return start.refit(args)
    lists = lists_of(args)
    networks = lists.get("network", [Config.network])
    backend.settle(args.backend, args.device, dense=all(models.NETWORKS[name].is_dense for name in networks))
    if args.search:
        return launch.train_search(lists, args)
    configs = configs_of(args)
    if len(configs) == 1 and not (args.jobs or args.cluster is not None):
        return start.run_one(configs[0], args)
    if args.member:
        return launch.train_here(configs, lambda config: start.run_one(config, args))
    return launch.train_grid(configs, args)


def list_presets():
    """Prints each preset with its cost and its expected result; returns the exit code."""
    for name in preset_names():
        about, cost, expected, _ = preset(name)
        print(f"{name}\n  {about}\n  {cost}; {expected}")
    return 0


def join(args):
    """Connects this process with the others of a distributed run. Raises UserError if that fails."""
    place = processes.place(args)
    backend.settle(args.backend, args.device)
    if os.environ["KERAS_BACKEND"] != "jax":
        raise UserError("--distribute processes needs --backend jax")
    deterministic = getattr(args, "deterministic", Config.deterministic) == "on"
    backend.start(args.device, deterministic, lambda: processes.join(*place))


def follow(args):
    """Trains each run that the first process announces, and returns the exit code that it sends at the end."""
    from training import fit

    while "config" in (order := processes.order()):
        config = Config.from_dict(order["config"])
        if place := getattr(args, "data_dir", None):
            config = dataclasses.replace(config, data_dir=place)
        try:
            fit.follow(config)
        except KeyboardInterrupt:
            if processes.is_busy():  # a second request, in the middle of a step: the processes are no longer in step
                raise
    return order["code"]


def main(argv=None):
    """The command line of train.py; returns the exit code."""
    parser = Parser(prog="train.py", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.member:
        given = argparse.Namespace(**json.loads(args.member) | {"member": True})
        for entry in given.entered:
            own.name_of(*entry)
        for file in given.code or ():
            own.take(file)
        return processes.serve(lambda: command(run, given))
    return command(run, args)


if __name__ == "__main__":
    sys.exit(main())
