"""The sources of the data sets: what each one is, its public files, and how a split is read from them."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from data.amat import parse_amat
from data.archives import unpickle
from data.dataset import SPLITS, STAND_IN, Dataset, as_bytes
from data.files import DataError, PublicFile, StandIn
from data.idx import parse_idx


@dataclass(frozen=True)
class Source:
    """What is known of a data set before any file is opened, and `read(dataset, split)`, which opens files.

    `read` returns images, uint8 (N, H, W, C) from 0 to max_value, and labels, int64 (N,) or None.
    `image_shape` and `num_images` are None where only the user's own files tell.
    `binarize` is the meaning of `--binarize auto` for this data set; "none" where the pixels are 0 and 1 already.
    `likelihood` is that of `--likelihood auto`: bernoulli, logistic or mixlogistic.
    `is_lazy`: images stay on disk and are read as they are needed (a `Stored`), so that they cannot be binarized.
    `published` are checksums by name: with others, images and their counts are the user's own, and no published ones.
    `pseudo_pixels` are mean and standard deviation of random pseudo-inputs' pixels (Tomczak & Welling 2018, code).
    """

    name: str
    title: str
    image_shape: tuple[int, int, int] | None
    num_images: dict[str, int] | None
    max_value: int
    class_names: tuple[str, ...]
    binarize: str
    read: Callable[[Dataset, str], tuple[np.ndarray, np.ndarray | None]]
    files: tuple[PublicFile, ...]
    licence: str
    origin: str
    likelihood: str = "bernoulli"
    pseudo_pixels: tuple[float, float] = (0.05, 0.01)
    is_lazy: bool = False
    published: dict[str, str] = field(default_factory=dict)

    @property
    def is_binary(self) -> bool:
        """Whether the pixels are 0 and 1 as they are published."""
        return self.max_value == 1

    def counts(self, sha256) -> dict[str, int]:
        """Images of each split where the files have these checksums, a dict of name to sha256; {} if only they tell."""
        if self._is_own(sha256):
            return {}
        counts = dict(self.num_images)
        for stand_in in self._stand_ins(sha256):
            counts |= stand_in.num_images
        return counts

    def note(self, sha256) -> str:
        """What has to be said beside every score on files of these checksums, a dict of name to sha256; mostly ""."""
        return STAND_IN if self._stand_ins(sha256) or self._is_own(sha256) else ""

    def _is_own(self, sha256):
        return any(sha256.get(name, known) != known for name, known in self.published.items())

    def _stand_ins(self, sha256):
        return [file.stand_in for file in self.files if file.is_stand_in(sha256.get(file.unpacked_name))]


DIGIT_NAMES = tuple("0123456789")

IDX_FILES = (  # the public names, and the unpacked sizes: a header and one byte per pixel or label
    ("train-images-idx3-ubyte.gz", 16 + 60_000 * 28 * 28),
    ("train-labels-idx1-ubyte.gz", 8 + 60_000),
    ("t10k-images-idx3-ubyte.gz", 16 + 10_000 * 28 * 28),
    ("t10k-labels-idx1-ubyte.gz", 8 + 10_000),
)
IDX_SPLITS = {  # which files, and which of their images: validation is the end of the training files
    "train": (slice(0, 2), slice(None, -10_000)),
    "val": (slice(0, 2), slice(-10_000, None)),
    "test": (slice(2, 4), slice(None)),
}


def read_idx(dataset, split):
    """Images uint8 (N, H, W, 1) and labels int64 (N,) of a split of a data set that is four idx files."""
    files, rows = IDX_SPLITS[split]
    images, labels = (parse_idx(dataset.content(file)) for file in dataset.source.files[files])
    return images[rows][..., None], labels[rows].astype(np.int64)


def idx_source(name, mirrors, published, **about):
    """A Source that is four idx files; `published`: size, sha256 and unpacked sha256 of each of IDX_FILES."""
    files = tuple(
        PublicFile(name, file, size, sha256, unpacked_bytes, unpacked_sha256, tuple(m + file for m in mirrors))
        for (file, unpacked_bytes), (size, sha256, unpacked_sha256) in zip(IDX_FILES, published, strict=True)
    )
    return Source(
        name=name,
        image_shape=(28, 28, 1),
        num_images={"train": 50_000, "val": 10_000, "test": 10_000},
        max_value=255,
        binarize="dynamic",
        read=read_idx,
        files=files,
        **about,
    )


mnist = idx_source(
    "mnist",
    title="MNIST: handwritten digits",
    class_names=DIGIT_NAMES,
    licence="CC BY-SA 3.0 according to the Keras documentation; the files themselves state none",
    origin="The MNIST database of Y. LeCun, C. Cortes and C. J. C. Burges, http://yann.lecun.com/exdb/mnist/",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    published=(
        (
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        (
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        (
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        (
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
)

fashionmnist = idx_source(
    "fashionmnist",
    title="Fashion-MNIST: Zalando's articles of clothing",
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    licence="MIT",
    origin="Fashion-MNIST (Xiao, Rasul, Vollgraf), https://github.com/zalandoresearch/fashion-mnist",
    mirrors=(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    published=(
        (
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        (
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        (
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        (
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
)


def read_static(dataset, split):
    """Images uint8 (N, 28, 28, 1) of 0 and 1 of a split of static MNIST, which has no labels."""
    file = dataset.source.files[("train", "val", "test").index(split)]
    images = parse_amat(dataset.content(file), 28 * 28)
    return images.reshape(-1, 28, 28, 1), None


STATIC_MIRROR = "https://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"

staticmnist = Source(
    name="staticmnist",
    title="Static MNIST: MNIST, binarized once",
    image_shape=(28, 28, 1),
    num_images={"train": 50_000, "val": 10_000, "test": 10_000},
    max_value=1,
    class_names=(),
    binarize="none",
    read=read_static,
    files=tuple(
        PublicFile("staticmnist", name, size, sha256, size, sha256, (STATIC_MIRROR + name,))
        for name, size, sha256 in (
            (
                "binarized_mnist_train.amat",
                78_400_000,
                "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
            ),
            (
                "binarized_mnist_valid.amat",
                15_680_000,
                "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
            ),
            (
                "binarized_mnist_test.amat",
                15_680_000,
                "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
            ),
        )
    ),
    licence="none stated with the files; they are made from MNIST",
    origin="H. Larochelle's binarization of MNIST after Salakhutdinov and Murray (2008), "
    "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
)


def read_matrix(dataset, name):
    """The array `name` in a data set that is one MATLAB file. Raises DataError if it has none."""
    from scipy.io import loadmat

    (file,) = dataset.source.files
    arrays = loadmat(io.BytesIO(dataset.content(file)), variable_names=[name])
    if name not in arrays:
        raise DataError(f"{file} has no array {name}")
    return arrays[name]


def upright(rows):
    """Images (N, 28, 28, 1) of rows of pixels (N, 784) that were stored column by column, as MATLAB does."""
    return np.ascontiguousarray(rows.reshape(-1, 28, 28).transpose(0, 2, 1)[..., None])


def read_silhouettes(dataset, split):
    """Images uint8 (N, 28, 28, 1), 1 inside the object, of a split of the silhouettes; no labels (there are 101)."""
    return upright(1 - read_matrix(dataset, f"{split}_data")), None  # stored as 0 inside the object


caltech101 = Source(
    name="caltech101",
    title="Caltech 101 Silhouettes: outlines of objects, split 1",
    image_shape=(28, 28, 1),
    num_images={"train": 4_100, "val": 2_264, "test": 2_307},
    max_value=1,
    class_names=(),
    binarize="none",
    read=read_silhouettes,
    files=(
        PublicFile(
            "caltech101",
            "caltech101_silhouettes_28_split1.mat",
            872_124,
            "eb6735e8d84b1850fabc5590124aab1755e90c9fd28123585324398405e1e42a",
            872_124,
            "eb6735e8d84b1850fabc5590124aab1755e90c9fd28123585324398405e1e42a",
            (
                "https://people.cs.umass.edu/~marlin/data/caltech101_silhouettes_28_split1.mat",
                "https://raw.githubusercontent.com/YingzhenLi/vae_renyi_divergence/"
                "f8c08e445567212a745c2f9981597f0d102c5ae8/data/silhouettes/caltech101_silhouettes_28_split1.mat",
            ),
        ),
    ),
    licence="none stated with the file",
    origin="B. Marlin's silhouettes of the Caltech 101 objects (Marlin, Swersky, Chen, de Freitas, 2010), "
    "https://people.cs.umass.edu/~marlin/data.shtml",
    pseudo_pixels=(0.5, 0.02),
)


SHUFFLE_SEED = 20_180_409  # of the splits below, which the VampPrior code draws anew in each run: never change it


def shuffled(n):
    """The numbers below n in the one order that our own splits have: RandomState's draws are the same for ever."""
    return np.random.RandomState(SHUFFLE_SEED).permutation(n)


OMNIGLOT_VAL = 1_345  # of the training images, as in the VampPrior paper


def read_omniglot(dataset, split):
    """Images uint8 (N, 28, 28, 1), ink 255, of a split of OMNIGLOT; no labels (there are 50 alphabets)."""
    name = "testdata" if split == "test" else "data"
    images = upright(as_bytes(read_matrix(dataset, name).T, name))
    if split == "test":
        return images, None
    rows = shuffled(len(images))
    return images[rows[:-OMNIGLOT_VAL] if split == "train" else rows[-OMNIGLOT_VAL:]], None


omniglot = Source(
    name="omniglot",
    title="OMNIGLOT: handwritten characters of 50 alphabets, as Burda et al. prepared them",
    image_shape=(28, 28, 1),
    num_images={"train": 24_345 - OMNIGLOT_VAL, "val": OMNIGLOT_VAL, "test": 8_070},
    max_value=255,
    class_names=(),
    binarize="dynamic",
    read=read_omniglot,
    files=(
        PublicFile(
            "omniglot",
            "chardata.mat",
            *(None,) * 4,
            ("https://raw.githubusercontent.com/yburda/iwae/master/datasets/OMNIGLOT/chardata.mat",),
            git_blob="016a3536ffe5e1d38e42563a18d7a78bfaf643ec",
            stand_in=StandIn("e2ef5049bfe4f4390f1e304e20dacc77cab1abed1bf01d0e38e432a46d0a1c4f", {"test": 8_115}),
        ),
    ),
    licence="MIT for the original drawings; none stated with the file",
    origin="Y. Burda's file of B. Lake's drawings, https://github.com/yburda/iwae (datasets/OMNIGLOT)",
)


def unpickled(dataset, file):
    """The value in a file that is a pickle. Raises DataError, which names it."""
    content = dataset.content(file)
    try:
        return unpickle(content)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


def read_freyfaces(dataset, split):
    """Images uint8 (N, 28, 20, 1) of a split of the Frey faces, frames of one film in an order of our own."""
    (frames,) = unpickled(dataset, dataset.source.files[0])
    ends = np.cumsum([dataset.source.num_images[name] for name in SPLITS])
    rows = dict(zip(SPLITS, np.split(shuffled(len(frames)), ends[:-1]), strict=True))[split]
    return frames[rows].reshape(-1, 28, 20, 1), None


freyfaces = Source(
    name="freyfaces",
    title="Frey faces: the frames of a film of one face",
    image_shape=(28, 20, 1),
    num_images={"train": 1_565, "val": 200, "test": 200},
    max_value=255,
    class_names=(),
    binarize="none",
    read=read_freyfaces,
    likelihood="logistic",
    files=(
        PublicFile(
            "freyfaces",
            "freyfaces.pkl",
            3_568_521,
            "3b69410c6a5fd6e03f09012905168be3712373a094a776f7e58fcd0670d2138a",
            3_568_521,
            "3b69410c6a5fd6e03f09012905168be3712373a094a776f7e58fcd0670d2138a",
            (
                "https://raw.githubusercontent.com/jmtomczak/vae_vampprior/"
                "2b530e5a69b1fe030e71a93c06fa7deed8000f28/datasets/Freyfaces/freyfaces.pkl",
            ),
        ),
    ),
    licence="none stated with the file; MIT for the repository that it comes from",
    origin="B. Frey's film, as in https://github.com/jmtomczak/vae_vampprior (datasets/Freyfaces)",
    pseudo_pixels=(0.5, 0.02),
)


def read_histopathology(dataset, split):
    """Images uint8 (N, 28, 28, 1) of a split of the histopathology patches, in each an array or a list of arrays."""
    (file,) = dataset.source.files
    parts = unpickled(dataset, file)
    key, count = {"train": "training", "val": "validation", "test": "test"}[split], dataset.source.num_images[split]
    images = parts.get(key) if isinstance(parts, dict) else None
    if isinstance(images, np.ndarray) and images.ndim:
        images = list(images)
    if not isinstance(images, list) or len(images) != count:
        raise DataError(f"{file} has no part {key!r} of {count:,} images")
    if not all(isinstance(image, np.ndarray) and image.size == 28 * 28 for image in images):
        raise DataError(f"{file} has other images than 28x28 in its part {key!r}")
    return as_bytes(np.stack([image.reshape(28, 28, 1) for image in images]), f"{file}'s part {key!r}"), None


histopathology = Source(
    name="histopathology",
    title="Histopathology: grey patches of tissue",
    image_shape=(28, 28, 1),
    num_images={"train": 6_800, "val": 2_000, "test": 2_000},
    max_value=255,
    class_names=(),
    binarize="none",
    read=read_histopathology,
    likelihood="logistic",
    files=(PublicFile("histopathology", "histopathology.pkl", *(None,) * 4, ()),),
    licence="none stated with the file, as far as we know",
    origin="histopathology.pkl.tar.gz of Tomczak and Welling (2016), to be unpacked by hand: "
    "https://github.com/jmtomczak/vae_householder_flow (datasets/histopathologyGray)",
    pseudo_pixels=(0.4, 0.05),
)


def read_digits(dataset, split):
    """Images uint8 (N, 8, 8, 1) and labels int64 (N,) of a stratified split of the 1,797 digits."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError("digits comes with scikit-learn: pip install scikit-learn.") from error
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    dataset.sha256["sklearn.digits"] = hashlib.sha256(images.tobytes()).hexdigest()
    rest, test = train_test_split(np.arange(len(labels)), test_size=300, stratify=labels, random_state=0)
    train, val = train_test_split(rest, test_size=300, stratify=labels[rest], random_state=0)
    rows = {"train": train, "val": val, "test": test}[split]
    return images[rows][..., None], labels[rows]


digits = Source(
    name="digits",
    title="Digits: small handwritten digits that come with scikit-learn",
    image_shape=(8, 8, 1),
    num_images={"train": 1_197, "val": 300, "test": 300},
    max_value=16,
    class_names=DIGIT_NAMES,
    binarize="dynamic",
    read=read_digits,
    files=(),
    licence="CC BY 4.0 in the UCI repository; scikit-learn distributes its copy under the BSD licence",
    origin="Optical Recognition of Handwritten Digits of E. Alpaydin and C. Kaynak (UCI Machine Learning "
    "Repository), its test set as scikit-learn's load_digits returns it",
)
