"""CelebA: aligned photographs of faces, too many for memory: each is read from a folder or zip when it is needed."""

import hashlib
import io
import os

import numpy as np

from data.archives import ZipFolder
from data.dataset import SPLITS, Source, Stored
from data.files import REGISTRY, published, unreadable
from data.pictures import MOST_FILE, file_content, pillow, stated, upright, words
from runtime.errors import DataError

PARTITION = "list_eval_partition.txt"
PAGE = "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
LAST = (162_770, 182_637, 202_599)  # the number of the last image of train, val and test, as published
PARTITION_SHA256 = REGISTRY[f"celeba/{PARTITION}"].checksum.removeprefix("sha256:")
MOST_PARTITION = 8 << 20  # bytes
STORED = (218, 178, 3)  # height, width and channels of a file
CROP, SIDE = 148, 64  # pixels of the middle that is kept, and of that at its lower resolution


def read_celeba(dataset, split):
    """Images, a Stored of bytes (N, 64, 64, 3), of a split of CelebA; it has no classes."""
    (file,) = dataset.source.files
    read, names, parts, sha256 = dataset.opened(file, open_faces)
    dataset.sha256 |= sha256
    if sha256[PARTITION] != PARTITION_SHA256:
        difference = "celeba's images or splits are not those of the published partition"
        dataset.take_other(difference, f"put all images there, and no {PARTITION} of your own")
    return Stored(read, names[parts == SPLITS.index(split)], (SIDE, SIDE, 3)), None


def open_faces(path):
    """What is in the zip or folder `path`: a function from a name to an image, uint8 (64, 64, 3), and, (N,) each, all
    names and the indices in SPLITS of these; and the sha256 of the images, of the partition and of the zip's directory.

    The partition is the file beside them if there is one, else the published one. Raises DataError unless the images
    are those of the partition, all of them.
    """
    own = path.with_name(PARTITION)
    path = path / path.name if (path / path.name).is_dir() else path  # some unpackers make two folders of one
    listed, sizes, read = (_folder if path.is_dir() else _zip)(path)
    partition = parse_partition(file_content(own, MOST_PARTITION), own) if own.exists() else published_partition()
    if missing := next((name for name in partition if name not in sizes), None):
        raise DataError(
            f"{path} holds {len(sizes):,} images, and no {missing} of the {len(partition):,} that are expected: "
            f"put all of them there, or a {own} that lists those that you have"
        )
    if strange := next((name for name in sizes if name not in partition), None):
        raise DataError(f"{path} holds {strange}, which {own} does not list: list it there, or move it away")
    sha256 = {path.stem: _sha256(f"{name} {size}\n" for name, size in sorted(sizes.items()))} | listed
    sha256[PARTITION] = _sha256(f"{name} {part}\r\n" for name, part in partition.items())

    def pixels(name):
        return pillow(io.BytesIO(read(name)), path / name, _cropped)

    return pixels, np.array(list(partition)), np.array(list(partition.values())), sha256


def _folder(path):
    """No checksum, sizes in bytes by name, and a function that reads a file."""
    try:
        sizes = {one.name: one.stat().st_size for one in os.scandir(path) if one.name.endswith(".jpg")}
    except OSError as error:
        raise unreadable(path, error) from error
    return {}, sizes, lambda name: file_content(path / name, MOST_FILE)


def _zip(path):
    """The checksum of the zip's directory, sizes in bytes by name, and a function that reads a file."""
    archive, folder = ZipFolder(path), f"{path.stem}/"
    infos = {name.removeprefix(folder): info for name, info in archive.infos.items() if name.startswith(folder)}
    lines = (f"{name} {info.file_size} {info.CRC:08x}\n" for name, info in sorted(infos.items()))
    sizes = {name: info.file_size for name, info in infos.items() if name.endswith(".jpg")}
    return {path.name: _sha256(lines)}, sizes, lambda name: archive.read(folder + name, MOST_FILE)


def _sha256(lines):
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def published_partition() -> dict[str, int]:
    """The index in SPLITS of each image, by name."""
    parts = np.repeat(range(3), np.diff((0, *LAST))).tolist()
    return {f"{number:06d}.jpg": part for number, part in enumerate(parts, 1)}


def parse_partition(content, path) -> dict[str, int]:
    """The partition in a file: each line has a name, and 0, 1 or 2 for train, val or test.

    Raises DataError for anything else, and for an empty split.
    """
    partition = {}
    for number, line in enumerate(content.split(b"\n"), 1):
        words = line.decode("latin1").split()
        if not words:
            continue
        if len(words) != 2 or not words[0].endswith(".jpg") or words[1] not in ("0", "1", "2") or words[0] in partition:
            raise DataError(f"{path}, line {number}: expected the name of a .jpg, once, and 0, 1 or 2")
        partition[words[0]] = int(words[1])
    if empty := [name for part, name in enumerate(SPLITS) if part not in partition.values()]:
        raise DataError(f"{path} lists no image for {empty[0]}: give each of 0, 1 and 2 some")
    return partition


def _cropped(image, path):
    """The middle of an image at a lower resolution: uint8 (64, 64, 3)."""
    from PIL import Image

    if (shape := stated(image, path)) != STORED:
        size = f"{words(shape)}, but those of CelebA are {words(STORED)}"
        raise DataError(f"{path} is {size}: put the published one there")
    left, top = (STORED[1] - CROP) // 2, (STORED[0] - CROP) // 2
    middle = upright(image, path).crop((left, top, left + CROP, top + CROP))
    return np.asarray(middle.resize((SIDE, SIDE), Image.Resampling.BILINEAR))  # over all pixels that one stands for


celeba = Source(
    name="celeba",
    title="CelebA: aligned photographs of the faces of celebrities, their middle at 64x64",
    image_shape=(SIDE, SIDE, 3),
    num_images={name: int(count) for name, count in zip(SPLITS, np.diff((0, *LAST)), strict=True)},
    read=read_celeba,
    likelihood="mixlogistic",
    files=(published("celeba", "img_align_celeba.zip", page=PAGE),),
    origin=f"CelebA's aligned and cropped images, to be downloaded by hand: {PAGE}",
    pseudo_pixels=(0.5, 0.02),
    is_lazy=True,
)
