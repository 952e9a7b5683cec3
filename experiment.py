"""What a run is: its settings and its folder on disk. Keras is imported only at need."""

import contextlib
import csv
import dataclasses
import errno
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

import atomic
import data
import engine
import models
import tracking
import weights
from errors import UserError

FORMAT = 10  # of config.json, and of what lies beside it
TERMS = ("loss", "elbo", "rate", "distortion")
STREAMS = (
    "pseudo-inputs",
    "order",
    "noise",
    "validation noise",
    "context",
)  # what a seed is used for; new ones go to the end
GREY_NOTE = "grey-pixel bound, not a likelihood"
DENSITY_NOTE = "density of pixels in [0, 1], not a probability"
MOST_JSON = 1 << 20  # bytes of a config.json or status.json; larger ones are not read
MOST_HISTORY = 1 << 28  # bytes of a history.csv; some million epochs
MOST_EVALUATION = 1 << 28  # bytes of an evaluation, unpacked; some million images
PER_IMAGE = ("log_px", "log_px_se", "ess", "khat", "samples")  # what an evaluation says of each image
LINKED = ("last", "replaced", "evaluations", "tensorboard")  # folders that are written into, so must be the run's own
MOST_VALUES = 1 << 24  # in an image
MOST_LAYERS = 256  # of latents
INT32 = 2**31 - 1
WALKING = ("num_steps", "step_size", "target_accept", "learn_schedule", "learn_step_size")  # settings of chains
LOCK_WAIT = 1.0  # seconds; somebody may only be looking whether a run is in progress


def setting(default, help, *, tag=None, low=None, high=math.inf, above=None, choices=None, kind=None, words=None):
    """A field of `Config`, from which its flag, its checks and its part of the training id are made.

    A field with a `tag` changes the numbers: "" has a place of its own in the training id, any other tag names its
    suffix. A field without one says only where things lie or how fast they run. `low` <= value <= `high`, or
    `above` < value. None is allowed where it is the default; `kind` is then the type of other values. `words` are what
    the flag takes for values of another type, a dict.
    """
    bounds = {"low": low, "high": high, "above": above, "choices": choices, "words": words or {}}
    return dataclasses.field(
        default=default, metadata={"help": help, "tag": tag, "kind": kind or type(default)} | bounds
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of one run. Raises UserError where a value is out of bounds or two do not go together."""

    model: str = setting(
        "vae", "one latent layer (vae), two (hvae), or many (ladder), below a diffusion-based VampPrior (dvp)",
        tag="", choices=tuple(models.MODELS),
    )  # fmt: skip
    prior: str = setting("standard", "prior over the top latent", tag="", choices=tuple(models.PRIORS))
    network: str = setting(
        "conv", "conv: convolutions; the VampPrior paper's dense layers (mlp), convHVAE (gatedconv), PixelHVAE (pixel)",
        tag="",
        choices=tuple(models.NETWORKS),
    )  # fmt: skip
    posterior: str = setting(
        "gaussian", "gaussian, or bent by a flow of 5 couplings (realnvp)", tag="", choices=tuple(models.POSTERIORS)
    )
    objective: str = setting(
        "elbo", "bound that is trained: elbo; iwae, or dreg with its better gradient; Monte Carlo VAEs, lmcvae by "
        "Langevin steps and amcvae by accepted ones", tag="", choices=tuple(models.OBJECTIVES),
    )  # fmt: skip
    num_samples: int = setting(
        None, "samples or chains an image in the bound; None: 1 for elbo and lmcvae, 5 else", tag="samples", low=1,
        high=100_000, kind=int,
    )  # fmt: skip
    num_steps: int = setting(5, "annealing steps T of lmcvae and amcvae", tag="steps", low=1, high=100)
    step_size: float = setting(0.01, "of their Langevin steps", tag="step", low=1e-5, high=1)
    target_accept: float = setting(
        None, "acceptance that step sizes adapt to; None: 0.8 for amcvae, and fixed ones for lmcvae", tag="accept",
        above=0, high=0.999, kind=float,
    )  # fmt: skip
    learn_schedule: str = setting("off", "train the annealing schedule", tag="learnschedule", choices=("off", "on"))
    learn_step_size: str = setting("off", "train the step sizes", tag="learnstep", choices=("off", "on"))
    data_set: str = setting(
        "mnist", "images to train on; folder:PATH are your own, see data/README.md", tag="", choices=data.NAMES
    )
    latent_dim: int = setting(2, "latent dimensions in all, split over the layers of hvae", tag="", low=1, high=4096)
    network_size: float = setting(4.0, "scales the filters of the convolutions", tag="", above=0, high=64)
    hidden_units: int = setting(
        None, "units of dense layers; None: 256 and 300 of conv, 300 of the paper's", tag="units", low=1, high=65_536,
        kind=int,
    )  # fmt: skip
    epochs: int = setting(250, "passes over the training images", tag="", low=1, high=INT32)
    batch_size: int = setting(256, "images in a training step", tag="", low=1, high=INT32)
    lr: float = setting(1e-4, "learning rate", tag="lr", above=0)
    optimizer: str = setting(
        "adam", "adamnormgrad: Adam on gradients of norm 1, the VampPrior paper's", tag="opt",
        choices=("adam", "adamax", "adamw", "adamnormgrad"),
    )  # fmt: skip
    lr_schedule: str = setting(
        "constant", "how the learning rate falls; plateau: halved after 10 epochs without a better validation ELBO",
        tag="schedule", choices=("constant", "cosine", "cosine_restarts", "step", "plateau"),
    )  # fmt: skip
    lr_final: float = setting(None, "what it falls to; None: a hundredth of --lr", tag="final", above=0, kind=float)
    lr_warmup: int = setting(0, "epochs over which it first rises from 0", tag="lrwarmup", low=0, high=INT32)
    clip_norm: float = setting(None, "clip the norm of the whole gradient", tag="clip", above=0, kind=float)
    accumulate: int = setting(
        1, "steps whose mean gradient makes one update, as if batches were so many times larger", tag="accum", low=1,
        high=10_000,
    )  # fmt: skip
    ema: float = setting(
        0.0, "momentum of an average of the weights, which is then judged and kept, as 0.999; 0: off", tag="ema",
        low=0, high=0.999999,
    )  # fmt: skip
    precision: str = setting(
        "float32", "that hidden layers compute in; weights, last layers, latents and densities are float32 in any case",
        tag="precision", choices=tuple(models.PRECISIONS),
    )  # fmt: skip
    activation: str = setting("relu", "any name that keras.activations knows", tag="act")
    seed: int = setting(0, "seed of weights, order, noise and pseudo-inputs", tag="seed", low=0, high=INT32)
    num_pseudo_inputs: int = setting(500, "components K of a mixture or VampPrior", tag="K", low=1, high=1_000_000)
    pseudo_init: str = setting(
        "data", "pseudo-inputs begin as training images, or as random ones near the data's mean", tag="init",
        choices=("data", "random"),
    )  # fmt: skip
    binarize: str = setting(
        "auto", "dynamic: draw pixels anew in each step; threshold: cut at 0.5; none: grey", tag="binarize",
        choices=data.BINARIZE,
    )  # fmt: skip
    likelihood: str = setting(
        "auto", "of a pixel; logistic: discretized, 256 grey values; mixlogistic: a mixture of 10 such, whose channels "
        "depend on one another; gaussian: of one --sigma; auto: the data set's",
        tag="likelihood", choices=("auto", *models.LIKELIHOODS),
    )  # fmt: skip
    sigma: float = setting(1.0, "standard deviation of a gaussian pixel", tag="sigma", above=0)
    scales: str = setting(
        "4x14,4x7", "ladder, dvp: layers of latents by rows of their maps, the finest first", tag="scales"
    )
    channels: int = setting(32, "ladder, dvp: of their maps of features", tag="", low=1, high=4096)
    bottleneck: float = setting(1.0, "ladder, dvp: scales the channels inside a block", tag="hidden", above=0, high=16)
    encoder_blocks: int = setting(3, "ladder, dvp: in the encoder, before each scale", tag="blocks", low=1, high=100)
    context_size: int = setting(
        7, "dvp: low frequencies of the image, along each side", tag="context", low=1, high=1024
    )
    diffusion_steps: int = setting(25, "dvp: in which these are drawn", tag="T", low=1, high=1000)
    gamma_min: float = setting(-6.0, "dvp: log of the noise that they are known with", tag="gamma", low=-12, high=-5)
    score_channels: int = setting(16, "dvp: of the network that predicts the noise, an even number", tag="score", low=2,
                                  high=1024)  # fmt: skip
    score_blocks: int = setting(2, "dvp: in it, before the middle", tag="scoreblocks", low=1, high=100)
    score_dropout: float = setting(0.0, "dvp: share of its features that drop out", tag="dropout", low=0, high=0.9)
    patience: int = setting(
        0, "stop after so many epochs without a better validation bound; 0: off", tag="patience", low=0, high=INT32
    )
    beta_warmup: int = setting(
        0, "epochs over which the weight of the rate rises to 1", tag="warmup", low=0, high=INT32
    )
    max_train_images: int = setting(
        None, "train on the first N training images only", tag="n", low=1, high=INT32, kind=int
    )
    gs_key: str = setting(None, "name of a grid search, whose runs lie in RUNS_DIR/GS_KEY", kind=str)
    data_dir: str = setting(None, "where the data files lie; else VAMPVAE_DATA, a cache, a download", kind=str)
    runs_dir: str = setting("runs", "where runs are written")
    save_minutes: float = setting(
        10.0, "inside a long epoch, write what --resume needs so often; it is always written between epochs", above=0
    )
    track: str = setting(
        "tensorboard", "event files in RUN/tensorboard, also beside what is logged to mlflow or wandb; or none",
        choices=tuple(tracking.SINKS),
    )  # fmt: skip
    jit: str = setting(
        "auto", "compile with XLA; auto: off on TensorFlow's CPU, else on", choices=("auto", "on", "off")
    )
    steps_per_execution: int = setting(
        0, "steps that run without a look between them, at their terms, the clock or a request to stop; auto: 8 where "
        "steps are short, on a GPU and of dense networks, else 1", low=0, high=10_000, words={"auto": 0},
    )  # fmt: skip
    distribute: str = setting(
        "none", "devices: each has a part of every batch, on all devices of this machine; processes: also on those of "
        "others, where the same command is started", choices=("none", "devices", "processes"),
    )  # fmt: skip
    deterministic: str = setting(
        "on", "on: the same bits whenever a run is repeated or resumed here; off: may be faster on a GPU",
        choices=("on", "off"),
    )  # fmt: skip

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))
        if not re.fullmatch(r"[a-z0-9_]{1,50}", self.activation):  # it becomes part of a folder's name
            raise UserError(
                f"--activation {_short(self.activation)} must be a name that keras.activations knows, as relu"
            )
        self._check_model()
        smallest = models.MODELS[self.model].smallest_latent
        if self.latent_dim < smallest:
            raise UserError(f"--latent_dim {self.latent_dim} is too small: {self.model} needs at least {smallest}")
        if self.posterior == "realnvp" and self.latent_dim < 2 * smallest:
            needs = f"--posterior realnvp needs two dimensions in each layer, so {2 * smallest} for {self.model}"
            raise UserError(f"--latent_dim {self.latent_dim} is too small: {needs}")
        if not self.is_sized and (self.network_size, self.activation) != (Config.network_size, Config.activation):
            raise UserError(f"--network {self.network} has the sizes and gates of its paper: --network_size and "
                            "--activation go with conv")  # fmt: skip
        if not self.is_deep and self.model not in (fitting := models.NETWORKS[self.network].models):
            raise UserError(f"--network {self.network} needs --model {' or '.join(fitting)}")
        self._check_learning_rate()
        if self.ema and models.NETWORKS[self.network].normalises_batches:
            raise UserError(f"--ema {self.ema} does not go with --network {self.network}: the statistics of its batch "
                            "normalisation are not averaged")  # fmt: skip
        if self.prior == "vampdata" and self.pseudo_init != "data":
            raise UserError(f"--pseudo_init {self.pseudo_init} does not go with --prior vampdata, made of data")
        if (self.binarization != "none" or self.source.is_binary) and self.observation != "bernoulli":
            what = f"--likelihood {self.observation}"
            raise UserError(f"{what} is for grey pixels, and those of {self.data_set} are binarized")
        if self.sigma != Config.sigma and self.observation != "gaussian":
            raise UserError(f"--sigma {self.sigma} goes with --likelihood gaussian")
        self._check_objective()
        if self.gs_key is not None and not re.fullmatch(r"\w[\w.-]{0,99}", self.gs_key):
            raise UserError(
                f"--gs_key {_short(self.gs_key)} must be a folder name of letters, digits, '.', '_' and '-'"
            )

    def _check_model(self):
        for name in models.OWNED:
            value = getattr(self, name)
            if not self.has(name) and value != getattr(Config, name):
                raise UserError(not_of(self.model, name, value))
        sides = re.findall(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", self.scales)
        if ",".join("x".join(part) for part in sides) != self.scales or not sides:
            raise UserError(f"--scales {_short(self.scales)} must be counts and rows, the finest first, as 4x14,4x7")
        rows = [int(part[1]) for part in sides]
        if rows != sorted(set(rows), reverse=True):
            raise UserError(f"--scales {_short(self.scales)} must begin with the finest, and have each once")
        if self.num_layers > MOST_LAYERS:
            raise UserError(
                f"--scales {_short(self.scales)} are {self.num_layers} layers; at most {MOST_LAYERS} may be"
            )
        if self.score_channels % 2:
            raise UserError(f"--score_channels {self.score_channels} must be even")
        if self.is_deep and models.OBJECTIVES[self.objective].has_gradients:
            raise UserError(
                f"--objective {self.objective} goes with --model vae or hvae; {self.model} has elbo and iwae"
            )

    def _check_learning_rate(self):
        if self.lr_final is not None and self.lr_schedule == "constant":
            raise UserError(f"--lr_final {self.lr_final} needs a --lr_schedule that falls")
        if self.lr_final is not None and self.lr_final > self.lr:
            raise UserError(f"--lr_final {self.lr_final} must be at most --lr {self.lr}")
        if self.lr_warmup and self.lr_schedule == "plateau":
            raise UserError("--lr_warmup does not go with --lr_schedule plateau")
        if self.lr_warmup >= self.epochs:
            raise UserError(f"--lr_warmup {self.lr_warmup} must be less than --epochs {self.epochs}")

    def _check_objective(self):
        entry = models.OBJECTIVES[self.objective]
        if self.samples < entry.fewest:
            needs = f"{self.objective} needs at least {entry.fewest}"
            raise UserError(f"--num_samples {self.samples} is too small: {needs}")
        changed = [name for name in WALKING if getattr(self, name) != getattr(Config, name)]
        if changed and not entry.is_annealed:
            raise UserError(f"--{changed[0]} {getattr(self, changed[0])} goes with --objective lmcvae or amcvae")
        if self.learn_step_size == "on" and self.target_accept is not None:
            raise UserError(f"--target_accept {self.target_accept} does not go with --learn_step_size on")
        if entry.has_gradients and models.NETWORKS[self.network].normalises_batches:
            raise UserError(f"--objective {self.objective} does not go with --network {self.network}: its gradients "
                            "with respect to z would pass through batch normalisation")  # fmt: skip

    @classmethod
    def from_dict(cls, values):
        """The Config with these fields. Raises UserError for one that there is not, or a value that does not fit."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UserError(f"unknown setting {_short(unknown[0])}; known are {', '.join(known)}")
        return cls(**values)

    def has(self, name):
        """Whether the setting of this name means something for the model."""
        return name not in models.OWNED or name in models.MODELS[self.model].settings

    @property
    def is_deep(self):
        """Whether the model is a hierarchy of many layers."""
        return models.MODELS[self.model].is_deep

    @property
    def num_layers(self):
        """L, latent layers of a deep model; a context u is one more."""
        return sum(int(part.split("x")[0]) for part in self.scales.split(","))

    @property
    def layers(self):
        """Names of the layers of a deep model, the top one first: L to 1, below u if there is one; none of others."""
        if not self.is_deep:
            return ()
        return (*["u"] * self.has("context_size"), *map(str, range(self.num_layers, 0, -1)))

    @property
    def hidden_channels(self):
        """Channels inside the blocks of a deep model."""
        return max(1, int(self.channels * self.bottleneck))

    @property
    def source(self):
        """What is known of the data set before anything is opened, a data.Source."""
        return data.source(self.data_set)

    @property
    def observation(self):
        """What `likelihood` comes to for this data set: a name in models.LIKELIHOODS."""
        return self.source.likelihood if self.likelihood == "auto" else self.likelihood

    @property
    def binarization(self):
        """What `binarize` comes to: dynamic, threshold or none; auto is the data set's, for a Bernoulli likelihood."""
        if self.binarize == "auto" and self.observation != "bernoulli":
            return "none"
        return data.binarization(self.source, self.binarize)

    @property
    def samples(self):
        """What `num_samples` comes to: samples or chains an image."""
        return models.OBJECTIVES[self.objective].samples if self.num_samples is None else self.num_samples

    @property
    def decodings(self):
        """How often an image is decoded in a training step: once a sample, or once more than a chain has steps."""
        return self.samples * (1 + self.num_steps * models.OBJECTIVES[self.objective].is_annealed)

    @property
    def acceptance(self):
        """What `target_accept` comes to; None where step sizes do not adapt."""
        adapts = self.objective == "amcvae" and self.learn_step_size == "off"
        return 0.8 if adapts and self.target_accept is None else self.target_accept

    @property
    def terms(self):
        """The names of what the history has of each split."""
        rates = [f"rate_{layer}" for layer in self.layers]
        return (*TERMS, *rates, *models.OBJECTIVES[self.objective].logged)

    @property
    def columns(self):
        """The names of the columns of history.csv."""
        return ("epoch", *(f"{split}_{term}" for split in ("train", "val") for term in self.terms), "seconds")

    @property
    def judged(self):
        """The column of the validation value of what is trained: the best weights and patience follow it."""
        return "val_bound" if "bound" in self.terms else "val_elbo"

    @property
    def is_sized(self):
        """Whether the networks have the size and the activation that the settings say, not those of a paper."""
        return models.NETWORKS[self.network].is_sized

    @property
    def size(self):
        """What the training id says of the networks: `factor<F>`, the name of networks without sizes, or channels."""
        if self.is_deep:
            return f"c{self.channels}"
        return f"factor{self.network_size}" if self.is_sized else self.network

    @property
    def law(self):
        """The part of the training id that says of what pixels, and by what law, scores are; those of others differ."""
        tags = {field.name: field.metadata["tag"] for field in dataclasses.fields(self)}
        suffixes = [f"_{tags[name]}" for name in ("binarize", "likelihood", "sigma")]
        return "".join(one for one in self._suffixes() if one.startswith(tuple(suffixes)))

    @property
    def comparable(self):
        """The same for settings whose validation ELBOs can be compared: images of one data set, scored by one law."""
        return self.data_set, self.law

    @property
    def is_autoregressive(self):
        """Whether an image is drawn pixel by pixel."""
        return models.NETWORKS[self.network].is_autoregressive

    @property
    def is_made_for_its_epochs(self):
        """Whether the learning rate depends on how many epochs there are: such a run cannot be trained longer."""
        return self.lr_schedule in ("cosine", "cosine_restarts", "step")

    @property
    def has_components(self):
        """Whether the prior is a mixture, of K components."""
        return models.PRIORS[self.prior].has_components

    @property
    def has_pseudo_inputs(self):
        """Whether these components are made of pseudo-inputs."""
        return models.PRIORS[self.prior].has_pseudo_inputs

    @property
    def is_likelihood(self):
        """Whether scores bound a likelihood; those of a Bernoulli on grey pixels do not."""
        return self.observation != "bernoulli" or self.binarization != "none" or self.source.is_binary

    @property
    def note(self):
        """What has to be said beside every score with these settings, whatever the data files are."""
        if self.observation == "gaussian":
            return DENSITY_NOTE
        return "" if self.is_likelihood else GREY_NOTE

    def note_on(self, sha256):
        """What has to be said beside every score on data files of these checksums, a dict of name to sha256."""
        return "; ".join(filter(None, (self.note, self.source.note(sha256))))

    @property
    def training_id(self):
        """`<data_set>_<model>_<prior>_bs<B>_dim<D>_factor<F>_epochs<E>` and a suffix for each other changed setting.

        A deep model is `<data_set>_<model>_L<layers>_c<channels>_bs<B>_epochs<E>`. A network without sizes stands with
        its name in the place of `factor<F>`, a posterior and an objective that are not usual before the suffixes, and
        the images of a user's own as `folder-<name>-<8 hex of the path>`.
        """
        name = f"{self.source.name}_{self.model}"
        if self.is_deep:
            name += f"_L{self.num_layers}_{self.size}_bs{self.batch_size}"
        else:
            name += f"_{self.prior}_bs{self.batch_size}_dim{self.latent_dim}_{self.size}"
        posterior = "" if self.posterior == "gaussian" else f"_{self.posterior}"
        objective = "" if self.objective == "elbo" else f"_{self.objective}"
        return f"{name}_epochs{self.epochs}{posterior}{objective}" + "".join(self._suffixes())

    @property
    def settings(self):
        """What changes the numbers, by name; what comes to the usual value is written so, as `auto` or None.

        Settings that mean nothing beside the others, as K without components, are left out.
        """
        numbers = [field.name for field in dataclasses.fields(self) if field.metadata["tag"] is not None]
        found = {name: getattr(self, name) for name in numbers if self.has(name)}
        if self.observation == self.source.likelihood:
            found["likelihood"] = "auto"
        if self.binarization == dataclasses.replace(self, binarize="auto").binarization:
            found["binarize"] = "auto"
        for name in ("num_samples", "target_accept"):
            usual = dataclasses.replace(self, **{name: None})
            if (self.samples, self.acceptance) == (usual.samples, usual.acceptance):
                found[name] = None
        used = dict.fromkeys(WALKING, models.OBJECTIVES[self.objective].is_annealed)
        used |= {"num_pseudo_inputs": self.has_components, "pseudo_init": self.has_pseudo_inputs}
        used |= {"network_size": self.is_sized, "activation": self.is_sized, "sigma": self.observation == "gaussian"}
        return {name: value for name, value in found.items() if used.get(name, True)}

    def _suffixes(self):
        settings = self.settings
        for field in dataclasses.fields(self):
            value = settings.get(field.name, field.default)
            if field.metadata["tag"] and value != field.default:
                yield f"_{field.metadata['tag']}{value}"

    def stream(self, use, *index):
        """The NumPy SeedSequence for one use of the seed, independent of every other use's."""
        return np.random.SeedSequence([self.seed, STREAMS.index(use), *index])

    @property
    def path(self):
        """The run's folder, RUNS_DIR/[GS_KEY/]TRAINING_ID."""
        return Path(self.runs_dir, self.gs_key or "", self.training_id)


def varying(configs):
    """The names of the settings that have several values among the Configs that they mean something for."""
    settings = [config.settings for config in configs]
    names = [field.name for field in dataclasses.fields(Config)]
    return [name for name in names if len({one[name] for one in settings if name in one}) > 1]


def not_of(model, name, value):
    """The sentence for a setting that a model does not have."""
    owners = [other for other, entry in models.MODELS.items() if name in entry.settings]
    return f"--{name} {_short(value)} does not go with --model {model}: it is of {' and '.join(owners)}"


def checked(field, value):
    """The value of a setting, a whole number made a float where that is its kind. Raises UserError for a wrong one."""
    meta, flag = field.metadata, f"--{field.name}"
    if value is None and field.default is None:
        return None
    if meta["kind"] is float and type(value) is int and abs(value) < INT32:
        value = float(value)
    if type(value) is not meta["kind"]:
        raise UserError(f"{flag} {_short(value)} must be {meta['kind'].__name__}, not {type(value).__name__}")
    if type(value) is float and not math.isfinite(value):
        raise UserError(f"{flag} {value} must be a finite number")
    if meta["choices"] and value not in meta["choices"]:
        raise UserError(f"{flag} {_short(value)} is unknown; choose from {', '.join(meta['choices'])}")
    if meta["above"] is not None and not meta["above"] < value <= meta["high"]:
        raise UserError(f"{flag} {value} must be more than {meta['above']}{_at_most(meta)}")
    if meta["low"] is not None and not meta["low"] <= value <= meta["high"]:
        raise UserError(f"{flag} {value} must be at least {meta['low']}{_at_most(meta)}")
    return value


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _at_most(meta):
    return "" if math.isinf(meta["high"]) else f" and at most {meta['high']}"


# ---------------------------------------------------------------------------------------------- the folder of a run


class Evaluation(NamedTuple):
    """What an evaluation stored: its name, and of N images of the split, (N,) each, their index and PER_IMAGE."""

    name: str
    index: np.ndarray
    log_px: np.ndarray
    log_px_se: np.ndarray
    ess: np.ndarray
    khat: np.ndarray
    samples: np.ndarray


class Run:
    """A run on disk: `path`, `config`, `status`, and on first use `dataset`, `model` (best weights) and `history`.

    Nothing in the folder is trusted: what does not fit is refused with a sentence, and nothing in it is ever run.
    """

    def __init__(self, path, data_dir=None):
        self.path = Path(path)
        self.record = _read_json(self.path / "config.json", f"{path} is no run: it has no readable config.json")
        if links := [name for name in LINKED if (self.path / name).is_symlink()]:
            raise UserError(f"{path} has a link in the place of its folder {links[0]}, which is not followed")
        try:
            _check_record(self.record)
            self.config = Config.from_dict(self.record["config"])
            _check_shape(self.record.get("image_shape", self.config.source.image_shape))
        except (UserError, KeyError, TypeError) as error:
            raise UserError(f"{path} has a config.json that does not fit this version: {error}") from error
        trained_from = self.config.data_dir
        self.data_dir = data_dir or (trained_from if trained_from and os.path.isdir(trained_from) else None)
        self.status = _status(self.path / "status.json")

    @property
    def name(self):
        """The name of its folder, which is its training id unless somebody gave it another one."""
        return self.path.resolve().name  # the path `.` has none

    @property
    def state(self):
        """running, interrupted (no process holds it, and it does not say how it ended), stopped, failed or finished."""
        state = self.status.get("state", "running")
        return "interrupted" if state == "running" and not is_held(self.path) else state

    @property
    def best_val_elbo(self):
        """The validation ELBO of the weights that it kept, nats an image; None before the end of the first epoch."""
        return self.status.get("best_val_elbo")

    @property
    def comparable(self):
        """As of its Config, and of the data files that it was trained on, of which a name may have had others once."""
        return *self.config.comparable, tuple(sorted(self.record["data_sha256"].items()))

    @property
    def backend(self):
        """What Keras ran on when this run was started: tensorflow or jax."""
        return self.record["backend"]

    @property
    def weights(self):
        """The file of the weights with the best validation value of the trained bound."""
        return self.path / "best.safetensors"

    @property
    def weights_sha256(self):
        """The checksum of that file."""
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()

    @cached_property
    def dataset(self):
        """The data set, loaded by name from `data_dir` or wherever it is found."""
        return data.load(self.config.data_set, self.data_dir)

    @property
    def image_shape(self):
        """(H, W, C), for which no data file is opened."""
        return self.config.source.image_shape or tuple(self.record["image_shape"])

    @property
    def latent_dim(self):
        """Latent dimensions of all layers. Raises UserError where they do not fit the images."""
        try:
            return models.latent_dim(self.config, self.image_shape)
        except ValueError as error:
            raise UserError(f"{self.path / 'config.json'} describes no model: {error}") from error

    @property
    def note(self):
        """What has to be said beside every score of this run: of the files that it was trained on, or that are open."""
        return self.config.note_on(self.record["data_sha256"] | self.dataset.sha256)

    @cached_property
    def model(self):
        """The LatentModel with its best weights. Raises UserError if there are none that fit the config and are finite.

        Every shape is compared before a weight is allocated, so that a config of absurd size costs nothing.
        """
        if "keras" not in sys.modules:  # called from Python, where no script has settled the backend
            engine.settle()
            engine.start(whole=True)
        engine.check_images()
        try:
            expected = models.blank_weights(self.config, self.image_shape)
        except (ValueError, MemoryError) as error:
            raise UserError(f"{self.path / 'config.json'} describes no model: {error}") from error
        try:
            values = weights.read(self.weights, expected)
        except (ValueError, OSError) as error:
            raise UserError(f"{self.weights} does not fit {self.path / 'config.json'}: {error}") from error
        from models.base import named_weights

        model = models.build(self.config, self.image_shape)
        weights.assign(named_weights(model), values)
        if path := weights.not_finite(model):
            said = f"weight {path} is not finite, so log p(x) of image 0, or of any other, is not either"
            raise UserError(f"{self.weights}: {said}; the weights are not usable")
        return model

    @cached_property
    def history(self):
        """history.csv as a dict of columns, each a float array (epochs,). Raises UserError if there is none to read."""
        columns = self.config.columns
        try:
            text = io.StringIO(_read(self.path / "history.csv", MOST_HISTORY).decode(), newline="")
            reader = csv.DictReader(text, strict=True)
            rows = list(reader) if tuple(reader.fieldnames or ()) == columns else []
            if not rows:
                raise ValueError("it has other columns, or no epoch")
            return {name: np.array([float(row[name]) for row in rows]) for name in columns}
        except OSError as error:
            raise UserError(f"{self.path} has no history yet: {error.strerror}") from error
        except (ValueError, TypeError, csv.Error) as error:
            raise UserError(f"{self.path / 'history.csv'} is damaged: {error}") from error

    def images(self, split, n=None):
        """Images of a split, or the first n, as this run scores them, binarized once for all: float32 (N, H, W, C).

        Of the training split, those that the run was trained on. An array, or a data.Grey.
        """
        trained = self.config.max_train_images if split == "train" else None
        n = min(filter(None, (n, trained)), default=None)
        images = data.held_out(self.dataset, split, self.config.binarization, n)
        self.check_data(self.dataset)
        if images.shape[1:] != self.image_shape:
            raise UserError(f"{self.path} was trained on images {self.image_shape}, but these are {images.shape[1:]}")
        return images

    def check_data(self, dataset):
        """Raises UserError where a file of the Dataset is not the one of its name that the run was trained on."""
        for file, sha256 in dataset.sha256.items():
            if (before := self.record["data_sha256"].get(file, sha256)) != sha256:
                raise UserError(f"{self.path} was trained on another {file}, of sha256 {before}; "
                                "put that back, or name its --data_dir")  # fmt: skip

    def check_writable(self):
        """Raises UserError where an evaluation could not be stored: better before it takes hours."""
        if not os.access(self.path, os.W_OK):
            raise UserError(f"cannot write the evaluation to {self.path}: Permission denied")

    def save_evaluation(self, metrics, per_image):
        """Writes evaluations/<split>_<tag>_N<images>.json and .npz, and metrics.json; returns the .json."""
        name = "{split}_{tag}_N{num_images}".format(**metrics)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **per_image)
        try:
            (self.path / "evaluations").mkdir(exist_ok=True)
            atomic.write(self.path / "evaluations" / f"{name}.npz", buffer.getvalue())
            atomic.write_json(self.path / "evaluations" / f"{name}.json", metrics)
            atomic.write_json(self.path / "metrics.json", metrics)
        except OSError as error:
            raise UserError(f"cannot write the evaluation to {self.path}: {error.strerror or error}") from error
        return self.path / "evaluations" / f"{name}.json"

    @property
    def metrics(self):
        """The latest scores, a dict, if they are of the weights that are here now; an empty one if not."""
        with contextlib.suppress(UserError, OSError):
            metrics = _read_json(self.path / "metrics.json", "unreadable")
            if metrics.get("weights_sha256") == self.weights_sha256:
                return metrics
        return {}

    def evaluation(self, split):
        """The newest whole Evaluation of most images of a split by the weights that are here now; None without one.

        What is damaged is passed over, as are those of older versions, which said less of each image.
        """
        name = re.compile(rf"{split}_[\w.+-]+_N(\d+)\.npz")
        with contextlib.suppress(*_UNREADABLE):
            found = [path for path in (self.path / "evaluations").iterdir() if name.fullmatch(path.name)]
            found.sort(key=lambda path: (int(name.fullmatch(path.name)[1]), path.lstat().st_mtime), reverse=True)
            for path in found:
                with contextlib.suppress(*_UNREADABLE):
                    metrics = _read_json(path.with_suffix(".json"), "")
                    if metrics["weights_sha256"] == self.weights_sha256:
                        return _evaluation(path)
        return None


def load(path, data_dir=None):
    """The Run in this folder, from which config, data set and model are rebuilt. Raises UserError if it is none."""
    return Run(path, data_dir)


# What reading a damaged .npz or .json raises: NumPy and zipfile let most of it through
_UNREADABLE = (UserError, OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)
_UNREADABLE += (MemoryError, SyntaxError, zipfile.BadZipFile, zlib.error)


def _evaluation(path):
    """The Evaluation in an .npz. Raises one of _UNREADABLE where it is not what `save_evaluation` writes."""
    content = _read(path, MOST_EVALUATION)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(info.file_size for info in archive.infolist()) > MOST_EVALUATION:
            raise ValueError("it unpacks to too much")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        index, *columns = (file[name] for name in Evaluation._fields[1:])
    if index.dtype.kind not in "iu" or index.ndim != 1 or len(np.unique(index)) != len(index) or index.min() < 0:
        raise ValueError("its index does not name images")
    if any(column.dtype.kind != "f" or column.shape != index.shape for column in columns):
        raise ValueError("its columns are not numbers of the same images")
    if not np.isfinite(columns[0]).all():
        raise ValueError("an image has no log p(x)")
    return Evaluation(path.stem, index, *columns)


def _read_json(path, complaint):
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if isinstance(value := json.loads(_read(path, MOST_JSON)), dict):
            return value
    raise UserError(complaint)


def _read(path, most):
    with atomic.opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def _status(path):
    """status.json, which training writes anew whenever it goes on: empty where it cannot be read or makes no sense."""
    kinds = {"state": str, "epochs_done": int, "best_epoch": int, "best_val_elbo": float, "seconds": float, "note": str}
    try:
        status = _read_json(path, "unreadable")
        if status["state"] not in ("running", "stopped", "failed", "finished"):
            raise UserError(f"its state is {_short(status['state'])}")
        for name, kind in kinds.items():
            value = status.get(name, kind())
            fits = type(value) is kind or (kind is float and type(value) is int)
            if not fits or (kind is float and not abs(value) <= sys.float_info.max):  # JSON's NaN, or a long integer
                raise UserError(f"its {name} is {_short(value)}")
    except (UserError, KeyError) as error:
        if path.exists():
            print(f"warning: {path} is damaged ({error}); it is left out of account", file=sys.stderr)
        return {}
    return status


def _check_record(record):
    """Raises UserError unless a config.json has this version's format, and beside its settings what was written there.

    All settings must be there: a default of this version need not be the value that the run had.
    """
    number = record.get("format")
    if type(number) is not int or number != FORMAT:
        writer = _short(record.get("git_commit") or "unknown")
        raise UserError(f"version {writer} wrote it, in format {_short(number)}; this version reads format {FORMAT}")
    settings = record["config"]
    if not isinstance(settings, dict):
        raise UserError(f"its settings are {type(settings).__name__}, not an object")
    if missing := [field.name for field in dataclasses.fields(Config) if field.name not in settings]:
        raise UserError(f"setting {missing[0]!r} is missing")
    if record["backend"] not in engine.BACKENDS:
        raise UserError(f"its backend is {_short(record['backend'])}")
    for name in ("versions", "data_sha256"):
        if not isinstance(record[name], dict) or not all(type(text) is str for text in record[name].values()):
            raise UserError(f"its {name} is {_short(record[name])}")


def _check_shape(shape):
    """Raises UserError unless this could be the (H, W, C) of images."""
    whole = isinstance(shape, list | tuple) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
    if not whole or math.prod(shape) > MOST_VALUES:
        raise UserError(f"its image_shape is {_short(shape)}")


# ---------------------------------------------------------------------------------------------- who may write


@contextlib.contextmanager
def held(path):
    """The run in `path` is this process' alone for the block. Raises UserError while another process trains it.

    The lock is the operating system's and ends with its process, however that dies.
    """
    import filelock

    lock = filelock.FileLock(Path(path, ".lock"), timeout=LOCK_WAIT)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"{path} is being trained by {_holder(path)}; wait for it, or choose other settings") from error
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def is_held(path):
    """Whether a process is training the run in `path`, as far as can be seen."""
    import filelock

    if not Path(path, ".lock").is_file():
        return False
    try:
        with filelock.FileLock(Path(path, ".lock"), blocking=False):
            return False
    except (filelock.Timeout, OSError):  # the latter where we may not write
        return True


def process():
    """Which process this is, for status.json."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _holder(path):
    with contextlib.suppress(UserError, KeyError, TypeError):
        one = _read_json(Path(path, "status.json"), "")["process"]
        return f"process {one['pid']} on {one['host']}"
    return "another process"


def create(config, path, dataset, overwrite=False, fill=None):
    """Makes a new run's folder with config.json, status.json and what `fill(folder)` writes. Raises UserError.

    What `overwrite` replaces is kept in the new folder's `replaced` until the new run is finished.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        finish_replacing(path)
        atomic.sweep(path.parent)
        with atomic.folder(path.parent) as fresh:  # renamed when whole, so that no half a run is ever seen
            atomic.write_json(fresh / "config.json", _record(config, dataset))
            atomic.write_json(fresh / "status.json", {"state": "running"})
            if fill:
                fill(fresh)
            if overwrite and path.exists():
                _set_aside(path)
            fresh.rename(path)
        finish_replacing(path)
    except FileExistsError as error:
        raise UserError(
            f"{error.filename} is in the way: it is no folder of runs; choose another --runs_dir"
        ) from error
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise UserError(f"{path} has just been made by another process; see what it does there") from error
        reason = error.strerror or error
        raise UserError(f"cannot write a run to {path}: {reason}; choose another --runs_dir") from error


def _aside(path):
    return path.with_name(f".replaced.{path.name}")


def _set_aside(path):
    """Moves a run out of the way of its successor: the run itself if it is finished, else what it was to replace."""
    if not (path / "config.json").is_file():
        raise UserError(f"{path} exists and is no run, so --overwrite leaves it alone; move it away")
    with held(path):
        if (path / "replaced").is_dir() and _status(path / "status.json").get("state") != "finished":
            (path / "replaced").rename(_aside(path))
            with atomic.folder(path.parent) as discarded:
                path.rename(discarded / "run")
        else:
            shutil.rmtree(path / "replaced", ignore_errors=True)
            path.rename(_aside(path))


def finish_replacing(path):
    """Puts a run that was set aside where it is kept, or back, where its successor never came to be.

    It still lies aside where a process was killed between the two renames of `create`; where one is between them now,
    which holds the run, it is left there.
    """
    if not _aside(path).exists():
        return
    if not path.exists():
        _aside(path).rename(path)
        return
    with contextlib.suppress(UserError), held(path):
        _aside(path).rename(path / "replaced")


def _record(config, dataset):
    import keras

    return {
        "format": FORMAT,
        "config": dataclasses.asdict(config) | _places(config),
        "backend": keras.backend.backend(),
        "git_commit": git_commit(),
        "versions": versions(),
        "data_sha256": dataset.sha256,
        "image_shape": list(dataset.image_shape),
    }


def _places(config):
    """The settings that name where data lie, so that they can be found from every folder."""
    return {
        "data_set": data.absolute(config.data_set),
        "data_dir": config.data_dir and os.path.abspath(os.path.expanduser(config.data_dir)),
    }


def versions():
    """Versions of what the numbers depend on: a dict of package name to version, those that are installed."""
    found = {"python": platform.python_version()}
    for name in ("keras", "tensorflow", "jax", "numpy", "scikit-learn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not there, or tensorflow-cpu
            found[name] = importlib.metadata.version(name)
    return found


def git_commit():
    """The commit of this code, with "+changes" behind it where the work tree differs; None outside a checkout."""

    def git(*words):
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
