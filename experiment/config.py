"""Config: the settings of a run, and what follows from them."""

import dataclasses
from pathlib import Path

import numpy as np

import data
import models
from experiment import naming, rules, tracking
from experiment.columns import Columns
from experiment.settings import INT32, checked, setting
from runtime import processor
from runtime.errors import UserError
from runtime.rules import check, meant, shown
from runtime.text import bounded

# uses of a seed; new ones go to the end
STREAMS = ("pseudo-inputs", "order", "noise", "validation noise", "context", "flips", "exemplars")
LARGE = 2.0  # network size from which on bfloat16 was faster than float32 in all measurements
BINARIZED_NOTE = "likelihood of binarized images, not of their grey values or colours"
GREY_NOTE = "grey-pixel bound, not a likelihood"
DENSITY_NOTE = "density of pixels in [0, 1], not a probability"


@dataclasses.dataclass(frozen=True)
class Config(Columns):
    """The settings of one run. Raises UserError where a value is out of bounds or two do not go together."""

    # fmt: off
    model: str = setting("vae", "model", "vae: one latent layer; hvae, markov: two; ladder: many; dvp: many, with "
                         "a diffusion prior", common=True, tag="", choices=tuple(models.MODELS))
    prior: str = setting("standard", "prior", "standard: N(0, I); mog: K Gaussians; vamp, weightedvamp, vampmixture: "
                         "of K pseudo-inputs; vampdata: of K images; exemplar: of all images; lars: N(0, I) resampled; "
                         "flow: a RealNVP", common=True, tag="", choices=models.PRIORS)
    network: str = setting("conv", "model", "conv: convolutions; dense: plain layers; mlp, gatedconv, pixel: of "
                           "the VampPrior paper; mcvae: of Monte Carlo VAEs", common=True, tag="",
                           choices=models.NETWORKS)
    posterior: str = setting("gaussian", "model", "gaussian: diagonal; realnvp: with a flow of 5 couplings", tag="",
                             choices=tuple(models.POSTERIORS))
    objective: str = setting("elbo", "bound", "elbo; iwae; dreg: iwae with a better gradient; miwae, ciwae, piwae: "
                             "between elbo and iwae; lmcvae, amcvae: Langevin steps", common=True, tag="",
                             choices=models.OBJECTIVES)
    num_samples: int = setting(None, "bound", "samples or chains per image [5; 1 for elbo and lmcvae; 64 for the "
                               "bounds between]", tag="samples", low=1, high=100_000)
    num_groups: int = setting(8, "bound", "miwae, piwae: groups of samples, each with a bound", tag="groups", low=1,
                              high=100_000)
    elbo_weight: float = setting(0.5, "bound", "ciwae: weight of the ELBO beside the importance-weighted bound",
                                 tag="elboweight", low=0, high=1)
    num_steps: int = setting(5, "bound", "lmcvae, amcvae: annealing steps", tag="steps", low=1, high=100)
    step_size: float = setting(0.01, "bound", "lmcvae, amcvae: size of the Langevin steps", tag="step", low=1e-5,
                               high=1)
    step_rule: str = setting("acceptance", "bound", "lmcvae, amcvae: acceptance: step sizes follow the acceptance rate "
                             "alone; variance: one for each dimension, smaller where gradients vary more",
                             tag="steprule", choices=("acceptance", "variance"))
    target_accept: float = setting(None, "bound", "acceptance rate to which step sizes adapt [0.8 for amcvae, 0.4 by "
                                   "Barker's rule; for lmcvae they are fixed, but 0.9 with --step_rule variance]",
                                   tag="accept", above=0, high=0.999)
    acceptance_rule: str = setting("metropolis", "bound", "amcvae: accept a step whose ratio is t with probability: "
                                   "metropolis: min(1, t); barker: t / (1 + t)", tag="rule",
                                   choices=("metropolis", "barker"))
    learn_schedule: str = setting("off", "bound", "annealing schedule: off: linear; on: each temperature is trained; "
                                  "halving: likewise, from ..., 1/4, 1/2; sigmoidal: the slope of a sigmoid is trained",
                                  tag="learnschedule", choices=("off", "on", "halving", "sigmoidal"))
    learn_step_size: str = setting("off", "bound", "train the step sizes", tag="learnstep", choices=("off", "on"))
    drift: str = setting("gradient", "bound", "lmcvae: what steps follow: gradient: that of the annealed density; "
                         "network: a network for each step, trained by the bound and to match it", tag="drift",
                         choices=("gradient", "network"))
    skip_below: float = setting(0.0, "bound", "lmcvae: skip a step if Metropolis would accept it, or its reverse, with "
                                "at most this probability; 0: none", tag="skipbelow", low=0, high=0.999)
    decision_warmup: int = setting(0, "bound", "amcvae: epochs in which the weight of the gradient of acceptance "
                                   "decisions rises from 0 to 1", tag="decisions", low=0, high=INT32)
    log_steps: str = setting("on", "bound", "size and acceptance of each Langevin step in history.csv",
                             choices=("on", "off"))
    data_set: str = setting("mnist", "data", f"{', '.join(data.NAMES)}: your own images", common=True, tag="",
                            choices=data.NAMES)
    image_size: int = setting(None, "data", "own images: resize the shorter side to N pixels and crop to a square",
                              tag="size", low=4, high=2048)
    latent_dim: int = setting(2, "model", "latent dimensions; two layers share them", common=True, tag="",
                              low=1, high=4096)
    latent_dims: tuple[int, ...] = setting(None, "model", "hvae, markov: dimensions of the top and the lower layer "
                                           "[half each]", tag="dims", low=1, high=4096)
    network_size: float = setting(4.0, "model", "factor of the number of filters of conv", common=True, tag="",
                                  above=0, high=64)
    hidden_units: tuple[int, ...] = setting(None, "model", "units of dense layers, one number for all or one for each, "
                                            "from the image to the latents [300; 256 and 300 for conv; 200 200 for "
                                            "dense, where one number is one layer]", tag="units", low=1, high=65_536)
    upper_units: tuple[int, ...] = setting(None, "model", "hvae, markov: units of dense layers between the two latent "
                                           "layers, from the lower one to the top [--hidden_units]", tag="upper",
                                           low=1, high=65_536)
    epochs: int = setting(250, "optimisation", "passes over the training images", common=True, tag="", low=1,
                          high=INT32)
    batch_size: int = setting(256, "optimisation", "images per training step", common=True, tag="", low=1, high=INT32)
    lr: float = setting(1e-4, "optimisation", "learning rate", common=True, tag="lr", above=0)
    optimizer: str = setting("adam", "optimisation", "adam, adamax, adamw; adamnormgrad: Adam on gradients of norm 1, "
                             "as in the VampPrior paper's code", tag="opt",
                             choices=("adam", "adamax", "adamw", "adamnormgrad"))
    epsilon: float = setting(None, "optimisation", "constant in the denominator of the optimizer's steps [1e-7; 1e-8 "
                             "for adamnormgrad]", tag="eps", above=0)
    lr_schedule: str = setting("constant", "optimisation", "constant, cosine, cosine_restarts, step; burda: "
                               "10^(-i/7) of --lr for 3^i epochs, i = 0 to 7, so a tenth after 1,093; quarter: a "
                               "quarter after 10, 20 and 30 epochs; plateau: halved after 10 epochs without a better "
                               "validation bound",
                               tag="schedule",
                               choices=("constant", "cosine", "cosine_restarts", "step", "burda", "quarter", "plateau"))
    lr_final: float = setting(None, "optimisation", "final learning rate [--lr / 100]", tag="final", above=0)
    lr_warmup: int = setting(0, "optimisation", "epochs in which the learning rate rises", tag="lrwarmup", low=0,
                             high=INT32)
    clip_norm: float = setting(None, "optimisation", "clip the gradient to this norm", tag="clip", above=0)
    skip_norm: float = setting(None, "optimisation", "leave out steps whose gradient has a larger norm; the history "
                               "counts them", tag="skip", above=0)
    weight_decay: float = setting(None, "optimisation", "decay of the kernels of networks: adamw's own [0.004]; of "
                                  "other optimizers an L2 term in the gradient [none]", tag="decay", above=0, high=1)
    accumulate: int = setting(1, "optimisation", "steps per weight update, by their mean gradient", tag="accum", low=1,
                              high=10_000)
    ema: float = setting(0.0, "optimisation", "momentum of a moving average of the weights, which is validated and "
                         "kept; 0: none", tag="ema", low=0, high=0.999999)
    precision: str = setting("float32", "machine", "precision of hidden layers: float32, mixed_bfloat16, mixed_float16;"
                             " weights, output layers and log-densities stay float32; auto: mixed_bfloat16 where it "
                             "is faster on this processor, else float32", tag="precision",
                             choices=("auto", *models.PRECISIONS))
    activation: str = setting("relu", "model", "activation of hidden layers, a name in keras.activations", tag="act")
    seed: int = setting(0, "optimisation", "random seed of weights, order and noise", common=True,
                        tag="seed", low=0, high=INT32)
    num_pseudo_inputs: int = setting(500, "prior", "components K of a mixture or VampPrior", common=True, tag="K",
                                     low=1, high=1_000_000)
    num_couplings: int = setting(8, "prior", "flow: affine couplings", tag="couplings", low=0, high=100)
    coupling_width: int = setting(64, "prior", "flow: units of the hidden layer of a coupling", tag="width", low=1,
                                  high=4096)
    acceptance_units: int = setting(100, "prior", "lars: units of both layers of the acceptance", tag="accunits",
                                    low=1, high=4096)
    num_proposals: int = setting(100, "prior", "lars: proposals at most, the last one is accepted", tag="proposals",
                                 low=2, high=10_000)
    num_exemplars: int = setting(500, "prior", "exemplar: training images in the prior of a step", tag="exemplars",
                                 low=2, high=1_000_000)
    pseudo_init: str = setting("data", "prior", "data: pseudo-inputs start as training images; random: as images near "
                               "their mean", tag="init", choices=("data", "random"))
    binarize: str = setting("auto", "data", "dynamic: draw binary pixels anew in each step; threshold: cut at 0.5; "
                            "none: keep grey values; auto: as usual for the data set", tag="binarize",
                            choices=data.BINARIZE)
    augment: str = setting("none", "data", "flip: mirror training images left to right, half of them in each epoch, as "
                           "photographs allow", tag="augment", choices=("none", "flip"))
    likelihood: str = setting("auto", "data", "bernoulli; logistic: discretized to 256 grey values; "
                              "mixlogistic: a mixture of 10 of these, with dependent channels; gaussian: with one "
                              "--sigma; auto: as usual for the data set", tag="likelihood",
                              choices=("auto", *models.LIKELIHOODS))
    auto_likelihood: str = setting(None, "data", "", choices=tuple(models.LIKELIHOODS))  # what auto is for own images
    sigma: float = setting(1.0, "data", "standard deviation of gaussian pixels; learned: a weight, at first 1",
                           tag="sigma", above=0, words=[("learned", "learned")])
    scales: str = setting("4x14,4x7", "deep models", "latent layers as count x rows of their maps, the finest first",
                          tag="scales")
    channels: int = setting(32, "deep models", "channels of feature maps", tag="", low=1, high=4096)
    bottleneck: float = setting(1.0, "deep models", "factor of the channels inside a block", tag="hidden", above=0,
                                high=16)
    block_activation: str = setting("silu", "deep models", "activation in blocks, by its name in Keras", tag="act")
    encoder_blocks: int = setting(3, "deep models", "encoder blocks before each scale", tag="blocks", low=1, high=100)
    pretrain_prior: int = setting(0, "deep models", "dvp: epochs in which p(u) and r(u|x) alone are trained, before "
                                  "all else", tag="pretrain", low=0, high=INT32)
    context: str = setting("cosine", "deep models", "dvp: the summary u of an image: cosine: low frequencies; pool: "
                           "means of its blocks", tag="by", choices=models.CONTEXTS)
    context_size: int = setting(7, "deep models", "dvp: frequencies or blocks along each side", tag="context",
                                low=1, high=1024)
    diffusion_steps: int = setting(25, "deep models", "dvp: steps of the diffusion that draws u", tag="T", low=1,
                                   high=1000)
    gamma_min: float = setting(-6.0, "deep models", "dvp: least log noise variance of u", tag="gamma", low=-12,
                               high=-5)
    noise_schedule: str = setting("linear", "deep models", "dvp: how the log noise variance rises: linear; cosine; "
                                  "learned, so that the bound varies little", tag="noise",
                                  choices=models.NOISE_SCHEDULES)
    score_channels: int = setting(16, "deep models", "dvp: channels, even, of the network that predicts noise",
                                  tag="score", low=2, high=1024)
    score_blocks: int = setting(2, "deep models", "dvp: blocks of that network before its middle", tag="scoreblocks",
                                low=1, high=100)
    score_dropout: float = setting(0.0, "deep models", "dvp: dropout rate of that network", tag="dropout", low=0,
                                   high=0.9)
    patience: int = setting(0, "optimisation", "stop after N epochs without a better validation bound; 0: never",
                            common=True, tag="patience", low=0, high=INT32)
    beta: float = setting(1.0, "bound", "weight of the rate in the loss; ELBOs, bounds and scores have weight 1",
                          tag="beta", above=0, high=10_000)
    beta_warmup: int = setting(0, "bound", "epochs in which beta rises from --beta_start",
                               common=True, tag="warmup", low=0, high=INT32)
    beta_start: float = setting(0.0, "bound", "weight of the rate where the warm-up begins", tag="betastart", low=0,
                                high=10_000)
    max_train_images: int = setting(None, "data", "train on the first N training images only", common=True, tag="n",
                                    low=1, high=INT32)
    refit: str = setting(None, "prior", "", tag="refit")  # ID@SHA256 of the run whose q and p(x|z) this one keeps
    validation: str = setting("split", "data", "none: train on the validation images, too, and keep the last weights",
                              tag="validation", choices=("split", "none"))
    gs_key: str = setting(None, "grid", "name of a grid: flags then take several values, and all runs are trained, into"
                          " RUNS_DIR/KEY", common=True)
    data_dir: str = setting(None, "data", "folder of the data files [$VAMPVAE_DATA, a cache, or a download]",
                            common=True)
    other_data: str = setting("off", "data", "take data files that differ from the published ones, and say so beside "
                              "every score", choices=("off", "on"))
    init_from: str = setting(None, "runs", "begin with the best weights of this run, whose names and shapes must fit")
    init_hash: str = setting(None, "runs", "", tag="from")  # of these weights, the first digits of their SHA-256
    runs_dir: str = setting("runs", "runs", "folder that runs are written to", common=True)
    save_minutes: float = setting(10.0, "runs", "minutes between saved states inside an epoch; each epoch's end is "
                                  "saved, too", above=0)
    snapshot_epochs: tuple[int, ...] = setting(None, "runs", "epochs, as 1 16 30, whose weights are kept, too; "
                                               "plot.py draws their embeddings", low=1, high=INT32)
    watch_log_px: int = setting(0, "runs", "log p(x) of 20 validation images in history.csv, by annealed importance "
                                "sampling after every N epochs; 0: none", low=0, high=INT32)
    track: str = setting("tensorboard", "runs", "tensorboard: event files in RUN/tensorboard; wandb: Weights & Biases, "
                         "too; none: neither", choices=tuple(tracking.TRACKERS))
    track_weights: int = setting(0, "runs", "also track histograms of the weights, every N epochs; 0: never",
                                 low=0, high=INT32)
    jit: str = setting("auto", "machine", "XLA: on, off; auto: on, except with TensorFlow on a CPU",
                       choices=("auto", "on", "off"))
    steps_per_execution: int = setting(0, "machine", "training steps per call into the backend; NaN checks, autosave "
                                       "and Ctrl-C happen between calls; auto: 8 on a GPU and for dense networks, else "
                                       "1", low=0, high=10_000, words=[("auto", 0)])
    diagnostics: str = setting("off", "runs", "on: the history also has norms of gradients, active units, bits per "
                               "dimension and terms of the diffusion bound", choices=("off", "on"))
    distribute: str = setting("none", "machine", "devices: split each batch over those of this machine; processes: over"
                              " those of several, on which the same command is started; both need --backend jax",
                              choices=("none", "devices", "processes"))
    deterministic: str = setting("on", "machine", "on: repeated or resumed runs give the same bits on this machine; "
                                 "off: may be faster on a GPU", choices=("on", "off"))
    # fmt: on

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))
        if self.latent_dims and self.latent_dim == type(self).latent_dim:
            object.__setattr__(self, "latent_dim", sum(self.latent_dims))
        if self.precision == "auto":  # settled here, so that a run never depends on the machine that reads it
            object.__setattr__(self, "precision", "mixed_bfloat16" if self.gain_of_bfloat16 > 1 else "float32")
        check(rules.RULES, self, given=lambda config, name: getattr(config, name) != getattr(type(config), name))

    @classmethod
    def from_dict(cls, values):
        """The Config with these fields. Raises UserError for one that there is not, or a value that does not fit."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise UserError(f"unknown setting {shown(unknown[0])}{meant(unknown[0], known)}")
        return cls(**values)

    def has(self, name):
        """Whether the setting of this name means something beside the model, prior, network and objective."""
        return all(self.has(pick) and getattr(self, pick) in names for pick, names in models.owners(name).items())

    @property
    def is_deep(self):
        """Whether the model is a hierarchy of many layers."""
        return models.MODELS[self.model].is_deep

    @property
    def num_layers(self):
        """L, latent layers of a deep model; a context u is one more."""
        return sum(count for count, _ in rules.scales(self))

    @property
    def layers(self):
        """Names of the layers of a deep model, the top one first: L to 1, below u if there is one; none of others."""
        names = (*["u"] * self.has("context_size"), *map(str, range(self.num_layers, 0, -1)))
        return names if self.is_deep else ()

    @property
    def hidden_channels(self):
        """Channels inside the blocks of a deep model."""
        return max(1, int(self.channels * self.bottleneck))

    @property
    def source(self):
        """What is known of the data set before anything is opened, a data.Source."""
        return data.source(self.data_set, self.image_size)

    @property
    def is_folder(self):
        """Whether the data set is a folder:PATH, a user's own images, which settle what `auto` is."""
        return self.source.num_images is None

    @property
    def usual_likelihood(self):
        """The likelihood that the pixels of the data set call for: a name in models.LIKELIHOODS."""
        return self.auto_likelihood or self.source.likelihood

    @property
    def observation(self):
        """What `likelihood` is, a name in models.LIKELIHOODS; auto is bernoulli where own images are binarized."""
        if self.likelihood != "auto":
            return self.likelihood
        is_asked = self.is_folder and self.binarize in ("dynamic", "threshold")
        return "bernoulli" if is_asked else self.usual_likelihood

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
        if self.target_accept is not None or self.learn_step_size == "on":
            return self.target_accept
        if self.objective == "amcvae":
            return 0.8 if self.acceptance_rule == "metropolis" else 0.4
        return 0.9 if self.step_rule == "variance" else None

    @property
    def size(self):
        """What the training id says of the networks: `factor<F>`, the name of networks without sizes, or channels."""
        sized = f"factor{self.network_size}" if self.has("network_size") else self.network
        return f"c{self.channels}" if self.is_deep else sized

    @property
    def gain_of_bfloat16(self):
        """How many times as fast training is on this machine in mixed_bfloat16; 1.0 where that is not known."""
        is_large = not self.is_deep and self.network == "conv" and self.network_size >= LARGE
        return processor.gain_of_bfloat16() if is_large else 1.0

    @property
    def is_autoregressive(self):
        """Whether an image is drawn pixel by pixel."""
        return models.NETWORKS[self.network].is_autoregressive

    @property
    def is_made_for_its_epochs(self):
        """Whether the learning rate depends on how many epochs there are: such a run cannot be trained longer."""
        return self.lr_schedule in ("cosine", "cosine_restarts", "step")

    @property
    def has_pseudo_inputs(self):
        """Whether the prior is a mixture whose components are made of pseudo-inputs."""
        return models.PRIORS[self.prior].has_pseudo_inputs

    @property
    def note(self):
        """What has to be said beside every score with these settings, whatever the data files are."""
        if self.observation == "gaussian":
            kind = DENSITY_NOTE + (self.sigma == "learned") * ", and its sigma is trained"
        elif self.binarization != "none":
            kind = BINARIZED_NOTE if self.usual_likelihood != "bernoulli" else ""
        else:
            kind = GREY_NOTE if self.observation == "bernoulli" and not self.source.is_binary else ""
        weighed = "" if self.beta == 1 else f"trained with beta {self.beta:g}, scored with beta 1"
        joined = "trained without a validation split" * (self.validation == "none")
        return "; ".join(filter(None, (kind, weighed, joined, self.source.note)))

    def note_on(self, data_note):
        """`note`, and that of the data files, which is "" for the published ones."""
        return "; ".join(filter(None, (self.note, data_note)))

    @property
    def settings(self):
        """The settings that change the numbers, by name, without those that mean nothing beside the others."""
        return naming.settings(self)

    @property
    def training_id(self):
        """The name of the run; see naming.py."""
        return naming.training_id(self)

    @property
    def likelihood_tag(self):
        """The suffixes that say which pixels are scored by which distribution; other scores differ in kind."""
        suffixes = naming.suffixes(self)
        return "".join(suffixes.get(name, "") for name in ("image_size", "binarize", "likelihood", "sigma"))

    @property
    def pixels(self):
        """What is scored of an image, and by which distribution; scores of other pixels differ in kind."""
        return self.image_size, self.binarization, self.observation, self.sigma

    @property
    def comparable(self):
        """The same for all settings whose validation ELBOs can be compared: same images, same kind of likelihood."""
        return self.data_set, *self.pixels

    def stream(self, use, *index):
        """The NumPy SeedSequence for one use of the seed, independent of every other use's.

        An index that ends with 0 is that without it, so that uses with longer and shorter ones must not have both.
        """
        return np.random.SeedSequence([self.seed, STREAMS.index(use), *index])

    @property
    def path(self):
        """The run's folder, RUNS_DIR/[GS_KEY/]TRAINING_ID, of which a hash replaces a part if it is too long."""
        return Path(self.runs_dir, self.gs_key or "", bounded(self.training_id))
