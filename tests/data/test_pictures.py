"""Image files of a user's own: turned upright, all pages of them, and nothing transparent or animated."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import data
from data import pictures
from runtime.errors import DataError

N, H, W = 23, 12, 8
GREY = np.random.default_rng(0).integers(0, 256, (N, H, W), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (N, H, W, 3), np.uint8)
TURNS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def write(folder, arrays, suffix=".png", **options):
    folder.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{number:03d}{suffix}", **options)
    return folder


def split(folder, name="train"):
    return data.load(f"folder:{folder}").split(name)


def everything(folder):
    """All images, in the order in which they are stored."""
    images = np.concatenate([split(folder, name).images for name in ("val", "test", "train")])
    return images[np.argsort(np.random.RandomState(20_180_409).permutation(len(images)))]


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_photographs_are_turned_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(tmp_path, GREY[:20], suffix, **({"lossless": True} if suffix == ".webp" else {}))
    for number in range(20, N):  # upright as the others only once they are turned
        stored = Image.fromarray(GREY[number]).transpose(TURNS[orientation])
        stored.save(tmp_path / f"{number:03d}{suffix}", exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(everything(tmp_path)[..., 0], GREY)


def test_what_follows_the_pixels_of_a_png_turns_nothing(tmp_path):
    """As sizes are read from the beginnings of files alone."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in write(tmp_path, GREY[:10]).iterdir():
        content, chunk = path.read_bytes(), b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        late = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(content[:-12] + late + content[-12:])
    assert Image.open(path).getexif()[0x0112] == 6
    np.testing.assert_array_equal(everything(tmp_path)[..., 0], GREY[:10])


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparency_is_refused_by_name_however_it_is_stored(tmp_path, kind):
    image = Image.fromarray(COLOUR[0]).convert(kind)
    write(tmp_path, COLOUR)
    options = {"P": {"transparency": 3}, "L": {"transparency": 3}, "RGB": {"transparency": (1, 2, 3)}}
    image.save(tmp_path / "003.png", **options.get(kind, {}))
    with pytest.raises(DataError, match=rf"003\.png is transparent \(Pillow's mode {kind}\): lay it on a background"):
        split(tmp_path)


def test_every_page_of_a_stack_is_an_image(tmp_path):
    first, *rest = (Image.fromarray(image) for image in GREY[:20])
    tmp_path.joinpath("a").mkdir()
    first.save(tmp_path / "a" / "stack.tif", save_all=True, append_images=rest)
    write(tmp_path / "a" / "z", GREY[20:], ".tiff")
    np.testing.assert_array_equal(everything(tmp_path)[..., 0], GREY)
    Image.fromarray(GREY[0]).save(tmp_path / "c.tif", save_all=True, append_images=[Image.fromarray(GREY[0].T)])
    with pytest.raises(DataError, match=r"c\.tif, page 2, is 8x12 with 1 channel, but .*stack\.tif is 12x8"):
        split(tmp_path)


def test_previews_and_masks_in_a_tiff_are_no_images(tmp_path):
    write(tmp_path, GREY, ".tif")
    small = Image.fromarray(GREY[0, ::2, ::2])
    small.encoderinfo = {"tiffinfo": {pictures.SUBFILE: 1}}  # a version at a lower resolution
    Image.fromarray(GREY[0]).save(tmp_path / "000.tif", save_all=True, append_images=[small])
    np.testing.assert_array_equal(everything(tmp_path)[..., 0], GREY)


def test_a_stack_is_opened_once_for_all_of_its_pages(tmp_path, monkeypatch):
    first, *rest = (Image.fromarray(image) for image in GREY)
    first.save(tmp_path / "stack.tif", save_all=True, append_images=rest)
    images, decoded = [], pictures.decoded
    monkeypatch.setattr("data.folder.decoded", lambda image, *args: images.append(image) or decoded(image, *args))
    assert len(split(tmp_path).images) == 19 and len(images) == 1


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_an_animation_is_refused_with_the_number_of_its_frames(tmp_path, suffix):
    write(tmp_path, COLOUR[:12])
    first, *rest = (Image.fromarray(image) for image in COLOUR[12:])
    first.save(tmp_path / f"moving{suffix}", save_all=True, append_images=rest)
    with pytest.raises(DataError, match=rf"moving\{suffix} is an animation of 11 frames: store each as an image"):
        split(tmp_path)


def test_pixels_in_any_order_of_a_png_and_of_any_compression_of_a_tiff(tmp_path):
    """Adam7's interlacing, which Pillow reads and does not write."""
    steps = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for number, image in enumerate(GREY[:12]):
        passes = (image[top::rows, left::columns] for left, top, columns, rows in steps)
        lines = b"".join(b"\0" + line.tobytes() for one in passes if one.size for line in one)
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 8, 0, 0, 0, 1))
        content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
        (tmp_path / f"{number:03d}.png").write_bytes(content)
    for number in range(12, N):
        kind = ("tiff_lzw", "tiff_deflate", "packbits")[number % 3]
        Image.fromarray(GREY[number]).save(tmp_path / f"{number:03d}.tif", compression=kind)
    np.testing.assert_array_equal(everything(tmp_path)[..., 0], GREY)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "jpg"), ("LAB", "tif"), ("F", "tif"), ("I;16", "png"), ("I", "tif")]
)
def test_pixels_that_are_not_8_bits_of_grey_or_rgb_are_refused(tmp_path, mode, suffix):
    write(tmp_path, COLOUR)
    image = Image.fromarray(COLOUR[0])
    (image if mode in ("CMYK", "LAB") else image.convert("L")).convert(mode).save(tmp_path / f"100.{suffix}")
    with pytest.raises(DataError, match=rf"100\.{suffix} is of Pillow's mode {mode}: store it in 8 bits, grey or RGB"):
        split(tmp_path)


def test_the_second_picture_of_a_phone_s_jpeg_is_no_image(tmp_path):
    write(tmp_path, COLOUR[:11], ".jpg")
    first, depth = Image.fromarray(COLOUR[0]), Image.fromarray(COLOUR[1])
    first.save(tmp_path / "100.jpg", "MPO", save_all=True, append_images=[depth])
    assert len(everything(tmp_path)) == 12


def test_a_folder_that_changes_while_it_is_read_is_noticed(tmp_path):
    write(tmp_path, COLOUR)
    dataset = data.load(f"folder:{tmp_path}")
    dataset.split("val")
    write(tmp_path, GREY)
    with pytest.raises(DataError, match=r"is 12x8 with 1 channel, and not 12x8 with 3 channels as it was: has it been"):
        dataset.split("train")
    write(tmp_path / "more", GREY)  # not there when the folder was looked at
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"\d\.png cannot be read: No such file"):
        dataset.split("train")


def test_names_that_are_no_text_are_read_and_told(tmp_path, capfd):
    folder = write(tmp_path / os.fsdecode(b"caf\xe9"), COLOUR)
    (folder / "000.png").rename(folder / os.fsdecode(b"\xff\xfe.png"))
    (folder / os.fsdecode(b"\xe9.gi\xe9")).touch()
    dataset = data.load(f"folder:{folder}")
    assert len(dataset.split("train").images) == 19
    dataset.tell()
    assert "folder:caf" in (said := capfd.readouterr().err) and "left out: 1 .gi" in said


def test_damaged_exif_data_are_left_alone(tmp_path, recwarn):
    write(tmp_path, GREY, ".jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert len(split(tmp_path).images) == 19 and not recwarn


# ---------------------------------------------------------------------------------------------- resized


def sized(path, size, name="train"):
    return data.load(f"folder:{path}", image_size=size).split(name).images


def smooth(height, width, seed=0):
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_images_of_mixed_sizes_become_the_squares_in_their_middle(tmp_path, suffix):
    for number, shape in enumerate([(40, 60), (90, 64), (33, 33), (16, 20), (400, 900)] * 3):
        smooth(*shape, number).save(tmp_path / f"{number:02d}{suffix}", quality=98)
    order = np.random.RandomState(20_180_409).permutation(15)[2:]
    images = sized(tmp_path, 32)
    assert images.shape == (13, 32, 32, 3)
    for image, number in zip(images, order, strict=True):
        with Image.open(tmp_path / f"{number:02d}{suffix}") as picture:
            side = min(picture.size)
            left, top = ((length - side) / 2 for length in picture.size)
            square = picture.resize((32, 32), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        assert np.abs(image.astype(int) - np.asarray(square)).mean() < 4


def test_photographs_beyond_the_limit_are_taken_where_they_are_resized(tmp_path):
    for number in range(10):
        smooth(2100, 2000).save(tmp_path / f"{number}.jpg")
    with pytest.raises(
        DataError, match=r"2100x2000, more than 4,194,304 pixels: make it smaller, or .* --image_size 64"
    ):
        split(tmp_path)
    assert sized(tmp_path, 64).shape == (8, 64, 64, 3)


def test_images_of_other_sizes_are_refused_with_the_way_to_resize_them(tmp_path):
    write(tmp_path, [*GREY, GREY[0].T])
    with pytest.raises(
        DataError, match=r"023\.png is 8x12 .*: make all images alike, or train with --image_size 64, which"
    ):
        split(tmp_path)
    assert sized(tmp_path, 16).shape == (20, 16, 16, 1)
    write(tmp_path, COLOUR[:1])
    with pytest.raises(DataError, match="make all images grey, or all RGB"):
        sized(tmp_path, 16)


@pytest.mark.parametrize("array", [GREY, COLOUR, GREY > 127])
def test_arrays_are_resized_as_files_are(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    files = write(tmp_path / "files", 255 * array.astype(np.uint8) if array.dtype == bool else array)
    np.testing.assert_array_equal(sized(tmp_path / "x.npy", 6), sized(files, 6))


def test_rotated_photographs_are_resized_once_they_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = smooth(64, 48)
    for number in range(10):
        turned = picture.transpose(Image.Transpose.ROTATE_90) if number % 2 else picture
        turned.save(tmp_path / f"{number}.png", **({"exif": exif} if number % 2 else {}))
    assert np.ptp(sized(tmp_path, 24).astype(int), axis=0).max() <= 1
