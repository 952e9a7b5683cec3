"""Archives and pickles that others wrote: published ones are read, hostile ones are refused."""

import io
import os
import pickle
import re
import resource
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from data.archives import ZipFolder, read_tar, unpickle
from runtime.errors import DataError

SHARED = Path(os.environ.get("VAMPVAE_DATA", "/nowhere"))
CONTENT = b"a picture" * 100


def make_tar(path, mode="w:gz", **members):
    """A tar of files; a member that is a TarInfo stands for itself."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def make_zip(path, compression=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def read_zip(path, name, most=1000):
    """As `read_tar` of a .zip."""
    archive = ZipFolder(path)
    if name not in archive.infos:
        raise DataError(f"{path} holds no file {name}")
    return archive.read(name, most)


BOTH = pytest.mark.parametrize(("make", "read"), [(make_tar, read_tar), (make_zip, read_zip)])


@BOTH
def test_a_file_is_read_by_its_exact_name(tmp_path, make, read):
    path = make(tmp_path / "a", **{"other": b"x", "folder/data": CONTENT})
    assert read(path, "folder/data") == CONTENT
    for name in ("data", "folder", "./folder/data", "/folder/data", "folder/../folder/data"):
        with pytest.raises(DataError, match="holds no file"):
            read(path, name)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_is_read_packed_or_not(tmp_path, mode):
    assert read_tar(make_tar(tmp_path / "a", mode, data=CONTENT), "data") == CONTENT


@BOTH
def test_names_that_leave_the_archive_reach_nothing(tmp_path, make, read):
    """Nothing is ever written to disk, so a traversal has nowhere to go; the file of that name is only read."""
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in" / "a", **{"../evil": b"evil", "/tmp/evil": b"evil", "data": CONTENT})
    assert read(path, "data") == CONTENT
    assert [one.name for one in tmp_path.rglob("*")] == ["in", "a"]


def test_links_and_devices_are_no_files(tmp_path):
    (tmp_path / "secret").write_text("secret")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
        with pytest.raises(DataError, match=r"data in .* is not a regular file"):
            read_tar(make_tar(tmp_path / "a", data=link("data", str(tmp_path / "secret"), kind)), "data")
    info = zipfile.ZipInfo("data")
    info.external_attr = 0o120777 << 16  # a symbolic link, as unzip makes them
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr(info, str(tmp_path / "secret"))
    assert ZipFolder(tmp_path / "z").infos == {}


@pytest.mark.parametrize(
    ("make", "read"), [(make_tar, "read_tar(path, 'data')"), (make_zip, "ZipFolder(path).read('data', 1000)")]
)
def test_a_bomb_is_not_unpacked(tmp_path, make, read):
    path = make(tmp_path / "a", data=bytes(300_000_000))
    assert path.stat().st_size < 1_000_000
    code = "import sys; from data import archives; archives.MOST_BYTES = 1000; path = sys.argv[1]; archives."
    limit = 400_000_000  # bytes of address space, with Python and NumPy in it
    done = subprocess.run(
        [sys.executable, "-c", code + read, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert re.search(r"DataError: .* has more than 1,000 bytes unpacked", done.stderr), done.stderr


def test_a_tar_whose_headers_are_bombs_is_refused(tmp_path):
    """A pax header of two gigabytes, which tarfile would read at once, and a file of a terabyte before the one."""
    for kind, size in ((tarfile.XHDTYPE, 2**31), (tarfile.GNUTYPE_LONGNAME, 2**31), (tarfile.REGTYPE, 2**40)):
        info = tarfile.TarInfo("before")
        info.type, info.size = kind, size
        (tmp_path / "a").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
        with pytest.raises(DataError, match=r"is damaged, or no archive|holds no file data"):
            read_tar(tmp_path / "a", "data")


def test_a_tar_that_goes_back_or_has_holes_is_refused(tmp_path):
    back, sparse = tarfile.TarInfo("back"), tarfile.TarInfo("data")
    back.size, sparse.type = -512, tarfile.GNUTYPE_SPARSE
    holes = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    holes[482] = 1  # the map of its holes goes on behind the end
    holes[148:156] = b"%06o\0 " % (sum(holes[:148]) + 8 * 32 + sum(holes[156:]))
    for content in (tarfile.TarInfo("link").tobuf() + back.tobuf(tarfile.GNU_FORMAT), bytes(holes)):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(DataError, match=r"a (has headers that no|is damaged, or no archive|holds no file)"):
            read_tar(tmp_path / "a", "data")


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_unpacks_more_than_is_asked_for_is_refused(tmp_path, kind):
    with pytest.raises(DataError, match=r"data in .* is neither stored nor deflated"):
        read_zip(make_zip(tmp_path / "a", kind, data=CONTENT), "data")


def test_a_zip_that_stays_open_is_read_with_the_same_distrust(tmp_path):
    make_zip(tmp_path / "a", data=CONTENT, bomb=bytes(10_000_000))
    archive = ZipFolder(tmp_path / "a")
    assert list(archive.infos) == ["data", "bomb"] and archive.infos["bomb"].file_size == 10_000_000
    assert archive.read("data", len(CONTENT)) == archive.read("data", 1000) == CONTENT
    for name, most in (("bomb", 1000), ("data", len(CONTENT) - 1)):
        with pytest.raises(DataError, match=rf"{name} in .*a has more than {most:,} bytes unpacked"):
            archive.read(name, most)
    (tmp_path / "c").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"c is damaged, or no archive"):
        ZipFolder(tmp_path / "c")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06" + bytes(18), b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0"])
@pytest.mark.parametrize("read", [read_tar, read_zip])
def test_what_is_no_archive_is_a_sentence(tmp_path, content, read):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=r"a (is damaged, or no archive|holds no file|is truncated or corrupted)"):
        read(tmp_path / "a", "data")


@pytest.mark.parametrize("kept", [0.3, 0.9])
@BOTH
def test_a_truncated_archive_is_a_sentence(tmp_path, make, read, kept):
    path = make(tmp_path / "a", data=np.random.default_rng(0).bytes(100_000))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(DataError, match=r"a (is damaged, or no archive|is truncated or corrupted)"):
        read(path, "data")


# ---------------------------------------------------------------------------------------------- pickles

ARRAYS = [
    np.arange(12).astype(dtype).reshape(3, 4)[:, ::step]
    for dtype in ("u1", "i8", "<f4", ">f8", "?", "f2")
    for step in (1, 2)
]


@pytest.mark.parametrize("protocol", range(5))
def test_numbers_text_and_arrays_are_read_back(protocol):
    value = {"data": [*ARRAYS, np.asfortranarray(ARRAYS[0])], b"labels": (1, 2.5, None, True), "x": "grün"}
    read = unpickle(pickle.dumps(value, protocol), "x")
    assert read.keys() == value.keys() and read[b"labels"] == value[b"labels"] and read["x"] == "grün"
    for ours, theirs in zip(read["data"], value["data"], strict=True):
        assert ours.dtype == theirs.dtype.newbyteorder("=")
        np.testing.assert_array_equal(ours, theirs)


class Call:
    """A pickle that calls what it likes."""

    def __init__(self, function, *arguments):
        self.calls = function, arguments

    def __reduce__(self):
        return self.calls


HOSTILE = {
    "a call": Call(os.system, "touch evil"),
    "a call by another name": Call(eval, "open('evil', 'w')"),
    "a call inside": [1, {"a": (2, Call(print, "evil"))}],
    "numpy's own loader": Call(np.load, "evil.npy"),
    "an object array": np.array([Call(os.system, "touch evil")], object),
    "a record array": np.zeros(3, [("a", "f4")]),
    "text in an array": np.array(["a", "b"]),
    "dates in an array": np.zeros(3, "M8[s]"),
    "a path": Path("/etc/passwd"),
    "a codec": Call(__import__("_codecs").encode, "text", "rot13"),
    "an array of a size of its choice": Call(np.ndarray, 2**40),
    "an array that is read from a file": Call(np.fromfile, "/etc/passwd"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path, monkeypatch, capfd, name, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^x is no pickle that is read: "):
        unpickle(pickle.dumps(HOSTILE[name], protocol), "x")
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")


U1 = b"cnumpy\ndtype\n(X\x02\0\0\0u1K\0K\x01tR"  # a type in a pickle
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n)R"  # an array there


def test_arrays_that_share_their_bytes_are_not_made_many_times():
    assert len(unpickle(pickle.dumps([np.zeros(2**16, np.uint8)] * 1000, 2), "x")) == 1000  # one with a thousand names
    text = b"X" + (2**16).to_bytes(4, "little") + bytes(2**16) + b"q\x63"
    one = b"c_codecs\nencode\n(" + b"h\x63" + b"X\x06\x00\x00\x00latin1tR"
    with pytest.raises(DataError, match="uses some of its bytes many times"):
        unpickle(b"\x80\x02" + text + b"0](" + 50 * one + b"e.", "x")
    dtype = U1 + b"(K\x03X\x01\0\0\0|NNNK\xffK\xffK\0tb"
    state = b"(K\x01(J" + (2**16).to_bytes(4, "little") + b"t" + dtype + b"\x89"
    state += b"B" + (2**16).to_bytes(4, "little") + bytes(2**16) + b"tq\x020"
    for count in (1, 3):
        arrays = b"](" + count * (EMPTY + b"h\x02b") + b"e."
        if count == 1:
            assert len(unpickle(b"\x80\x04" + state + arrays, "x")[0]) == 2**16
        else:
            with pytest.raises(DataError, match="uses some of its bytes many times"):
                unpickle(b"\x80\x04" + state + arrays, "x")


def test_an_array_of_a_false_shape_is_refused():
    content = pickle.dumps(np.zeros(7, np.uint8), 2)
    assert unpickle(content, "x").shape == (7,)
    for shape in (b"K\x09\x85", b"J\xff\xff\xff\x7f\x85"):
        with pytest.raises(DataError, match="buffer size does not match array size"):
            unpickle(content.replace(b"K\x07\x85", shape), "x")


def test_a_type_that_lies_about_its_content_is_refused():
    """The flags of a type of objects in a type of numbers, on which NumPy itself fails."""
    dtype = U1 + b"(K\x03X\x01\0\0\0|NNNK\xffK\xffK\x3ftb"
    array = unpickle(b"\x80\x04" + EMPTY + b"(K\x01K\x02\x85" + dtype + b"\x89C\x02abtb.", "x")
    assert array.dtype == np.uint8 and not array.dtype.hasobject and array.tolist() == [97, 98]


def test_a_truncated_pickle_is_a_sentence():
    content = pickle.dumps({"data": ARRAYS[:2], "labels": [1, 2]}, 2)
    for length in range(len(content)):
        with pytest.raises(DataError, match=r"^x is no pickle that is read: ."):
            unpickle(content[:length], "x")


@pytest.mark.skipif(not (SHARED / "freyfaces").is_dir(), reason="needs freyfaces.pkl in $VAMPVAE_DATA")
def test_the_pickle_of_freyfaces_is_read():
    (images,) = unpickle((SHARED / "freyfaces" / "freyfaces.pkl").read_bytes(), "x")
    assert images.shape == (1965, 560) and images.dtype == np.uint8


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="needs CIFAR-10 in $VAMPVAE_DATA")
def test_the_pickles_of_cifar_are_read():
    batch = unpickle((SHARED / "cifar10" / "cifar-10-batches-py" / "data_batch_1").read_bytes(), "x")
    assert batch["data"].shape == (10_000, 3072) and len(batch["labels"]) == 10_000
