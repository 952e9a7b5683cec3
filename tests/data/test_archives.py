"""Archives and pickles that somebody else wrote: what is published is read, what is hostile is refused."""

import io
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from data.archives import ZipFolder, read_member, unpickle
from data.files import DataError

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


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_file_is_read_by_its_exact_name(tmp_path, make):
    path = make(tmp_path / "a", **{"other": b"x", "folder/data": CONTENT})
    assert read_member(path, "folder/data", len(CONTENT)) == CONTENT
    for name in ("data", "folder", "./folder/data", "/folder/data", "folder/../folder/data"):
        with pytest.raises(DataError, match="holds no file"):
            read_member(path, name, len(CONTENT))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_usual_compression_of_a_tar_is_read(tmp_path, mode):
    assert read_member(make_tar(tmp_path / "a", mode, data=CONTENT), "data", 1000) == CONTENT


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_names_that_leave_the_archive_reach_nothing(tmp_path, make):
    """Nothing is ever written to disk, so a traversal has nowhere to go; the file of that name is only read."""
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in" / "a", **{"../evil": b"evil", "/tmp/evil": b"evil", "data": CONTENT})
    assert read_member(path, "data", 1000) == CONTENT
    assert [one.name for one in tmp_path.rglob("*")] == ["in", "a"]


def test_links_and_devices_are_no_files(tmp_path):
    (tmp_path / "secret").write_text("secret")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
        with pytest.raises(DataError, match=r"data in .* is no regular file"):
            read_member(make_tar(tmp_path / "a", data=link("data", str(tmp_path / "secret"), kind)), "data", 1000)
    info = zipfile.ZipInfo("data")
    info.external_attr = 0o120777 << 16  # a symbolic link, as unzip makes them
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr(info, str(tmp_path / "secret"))
    with pytest.raises(DataError, match="holds no file data"):
        read_member(tmp_path / "z", "data", 1000)


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_bomb_is_not_unpacked(tmp_path, make):
    path = make(tmp_path / "a", data=bytes(200_000_000))
    assert path.stat().st_size < 1_000_000
    code = "import resource, sys; from data.archives import read_member; read_member(sys.argv[1], 'data', 1000)"
    limit = 1_000_000_000  # bytes of address space, with Python and NumPy in it
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert "DataError: data in" in done.stderr and "has more than 1,000 bytes unpacked" in done.stderr


def test_a_tar_whose_headers_are_bombs_is_refused(tmp_path):
    """A pax header of two gigabytes, which tarfile would read at once, and a file of a terabyte before the one."""
    for kind, size in ((tarfile.XHDTYPE, 2**31), (tarfile.GNUTYPE_LONGNAME, 2**31), (tarfile.REGTYPE, 2**40)):
        info = tarfile.TarInfo("before")
        info.type, info.size = kind, size
        (tmp_path / "a").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
        with pytest.raises(DataError, match=r"a tar has a header of|a tar holds far more|is damaged, or no archive"):
            read_member(tmp_path / "a", "data", 1000)


def test_a_tar_that_goes_back_or_has_holes_is_refused(tmp_path):
    back, sparse = tarfile.TarInfo("back"), tarfile.TarInfo("data")
    back.size, sparse.type = -512, tarfile.GNUTYPE_SPARSE
    holes = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    holes[482] = 1  # the map of its holes goes on behind the end
    holes[148:156] = b"%06o\0 " % (sum(holes[:148]) + 8 * 32 + sum(holes[156:]))
    for content in (tarfile.TarInfo("link").tobuf() + back.tobuf(tarfile.GNU_FORMAT), bytes(holes)):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(DataError, match=r"a (has headers that no|is damaged, or no archive|holds no file)"):
            read_member(tmp_path / "a", "data", 1000)


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_unpacks_more_than_is_asked_for_is_refused(tmp_path, kind):
    with pytest.raises(DataError, match=r"data in .* is not stored or deflated"):
        read_member(make_zip(tmp_path / "a", kind, data=CONTENT), "data", 1000)


def test_a_zip_that_stays_open_is_read_with_the_same_distrust(tmp_path):
    make_zip(tmp_path / "a", data=CONTENT, bomb=bytes(10_000_000))
    archive = ZipFolder(tmp_path / "a")
    assert list(archive.infos) == ["data", "bomb"] and archive.infos["bomb"].file_size == 10_000_000
    assert archive.read("data", len(CONTENT)) == archive.read("data", 1000) == CONTENT
    for name, most in (("bomb", 1000), ("data", len(CONTENT) - 1)):
        with pytest.raises(DataError, match=rf"{name} in .*a has more than {most:,} bytes unpacked"):
            archive.read(name, most)
    with pytest.raises(DataError, match=r"data in .* is not stored or deflated"):
        ZipFolder(make_zip(tmp_path / "b", zipfile.ZIP_BZIP2, data=CONTENT)).read("data", 1000)
    (tmp_path / "c").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"c is damaged, or no archive"):
        ZipFolder(tmp_path / "c")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06" + bytes(18), b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0"])
def test_what_is_no_archive_is_a_sentence(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=r"a (is damaged, or no archive|holds no file)"):
        read_member(tmp_path / "a", "data", 1000)


@pytest.mark.parametrize("kept", [0.3, 0.9])
@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_truncated_archive_is_a_sentence(tmp_path, make, kept):
    path = make(tmp_path / "a", data=np.random.default_rng(0).bytes(100_000))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(DataError, match="a is damaged, or no archive"):
        read_member(path, "data", 100_000)


# ---------------------------------------------------------------------------------------------- pickles

ARRAYS = [
    np.arange(12).astype(dtype).reshape(3, 4)[:, ::step]
    for dtype in ("u1", "i8", "<f4", ">f8", "?", "f2")
    for step in (1, 2)
]


@pytest.mark.parametrize("protocol", range(5))
def test_numbers_text_and_arrays_are_read_back(protocol):
    value = {"data": [*ARRAYS, np.asfortranarray(ARRAYS[0])], b"labels": (1, 2.5, None, True), "x": "grün"}
    read = unpickle(pickle.dumps(value, protocol))
    assert read.keys() == value.keys() and read[b"labels"] == value[b"labels"] and read["x"] == "grün"
    for ours, theirs in zip(read["data"], value["data"], strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
        ours[0, 0] = 0  # it is a copy


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
    "numpy's own types": Call(np.dtype, "O"),
    "an object array": np.array([Call(os.system, "touch evil")], object),
    "a record array": np.zeros(3, [("a", "f4")]),
    "text in an array": np.array(["a", "b"]),
    "dates in an array": np.zeros(3, "M8[s]"),
    "a set": {1, 2},
    "a path": Path("/etc/passwd"),
    "a codec": Call(__import__("_codecs").encode, "text", "rot13"),
    "odd keys": {(1, 2): 3},
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path, monkeypatch, capfd, name, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^a pickle "):
        unpickle(pickle.dumps(HOSTILE[name], protocol))
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")


def test_pickles_that_grow_are_refused_or_stay_small():
    laughs = ["ha"]
    for _ in range(60):
        laughs = [laughs] * 10
    assert len(unpickle(pickle.dumps(laughs))) == 10  # each list once: 60 of them, not 10^60
    endless = []
    endless.append(endless)
    with pytest.raises(DataError, match="holds itself"):
        unpickle(pickle.dumps(endless))
    with pytest.raises(DataError, match="is damaged"):
        unpickle(b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".")  # lists in lists


def test_arrays_that_share_their_bytes_are_not_made_many_times():
    assert len(unpickle(pickle.dumps([np.zeros(2**16, np.uint8)] * 1000, 2))) == 1000  # one with a thousand names
    text = b"X" + (2**16).to_bytes(4, "little") + bytes(2**16) + b"q\x63"
    one = b"c_codecs\nencode\n(" + b"h\x63" + b"X\x06\x00\x00\x00latin1tR"
    with pytest.raises(DataError, match="holds more than its own bytes"):
        unpickle(b"\x80\x02" + text + b"0](" + 50 * one + b"e.")
    dtype = b"cnumpy\ndtype\n(X\x02\0\0\0u1K\0K\x01tR(K\x03X\x01\0\0\0|NNNK\xffK\xffK\0tb"
    state = b"(K\x01(J" + (2**16).to_bytes(4, "little") + b"t" + dtype + b"\x89"
    state += b"B" + (2**16).to_bytes(4, "little") + bytes(2**16) + b"tq\x020"
    for count in (1, 3):
        arrays = b"](" + count * b"cnumpy.core.multiarray\n_reconstruct\n)Rh\x02b" + b"e."
        if count == 1:
            assert len(unpickle(b"\x80\x04" + state + arrays)[0]) == 2**16
        else:
            with pytest.raises(DataError, match="holds more than its own bytes"):
                unpickle(b"\x80\x04" + state + arrays)


def test_pickles_that_never_end_are_refused():
    with pytest.raises(DataError, match="keys are neither text nor numbers"):
        unpickle(b"\x80\x02})" + 60 * b"2\x86" + b"Ns.")  # a key of pairs of pairs, hashed one by one
    assert unpickle(b"\x80\x02Nr\xff\xff\xff\x03.") is None  # number 67,108,863 of what it remembers: no room is made


def test_an_array_of_a_false_shape_is_refused():
    content = pickle.dumps(np.zeros(7, np.uint8), 2)
    assert unpickle(content).shape == (7,)
    with pytest.raises(DataError, match=r"an array of shape \(9,\) with other bytes"):
        unpickle(content.replace(b"K\x07\x85", b"K\x09\x85"))
    with pytest.raises(DataError, match="with other bytes"):
        unpickle(content.replace(b"K\x07\x85", b"J\xff\xff\xff\x7f\x85"))


@pytest.mark.skipif(not (SHARED / "freyfaces").is_dir(), reason="needs freyfaces.pkl in $VAMPVAE_DATA")
def test_the_pickle_of_freyfaces_is_read():
    (images,) = unpickle((SHARED / "freyfaces" / "freyfaces.pkl").read_bytes())
    assert images.shape == (1965, 560) and images.dtype == np.uint8


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="needs CIFAR-10 in $VAMPVAE_DATA")
def test_the_pickles_of_cifar_are_read():
    batch = unpickle((SHARED / "cifar10" / "cifar-10-batches-py" / "data_batch_1").read_bytes())
    assert batch["data"].shape == (10_000, 3072) and len(batch["labels"]) == 10_000
