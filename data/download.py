"""Downloads of public files: https only, several mirrors, checked, whole or not at all."""

import http.client
import urllib.request
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

from data.files import DataError, Found, places, read_first
from runtime import atomic

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 16


def obtain(file, data_dir, folder, known) -> Found:
    """The file `file`: found in its places, else downloaded into `folder`; verified.

    Raises DataError for a wrong copy (see `files.read_first`), or if there is none and no download succeeds.
    """
    if found := read_first(file, places(file.data_set, data_dir), known):
        return found
    try:
        download(file.download, folder)
    except DataError as error:
        names = ", ".join(dict.fromkeys(one.download.name for one in known if one.data_set == file.data_set))
        raise DataError(
            f"{file} was not found and could not be downloaded ({error}): put {names} into {folder}, "
            "or into a folder that --data_dir or $VAMPVAE_DATA names."
        ) from error
    return read_first(file, [folder], known)


def download(file, folder) -> Path:
    """Downloads `file` into `folder` from the first of its mirrors that sends it whole; returns its path.

    Processes that fetch the same file at once each write their own copy, and the last rename wins.
    Raises DataError with every mirror's reason, or if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.sweep(folder)
        with atomic.replacing(folder / file.name) as out:
            _receive_from_any(file, out)
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}") from error
    return folder / file.name


def _receive_from_any(file, out):
    reasons = []
    if not file.urls:
        unknown = "never, as its checksum is not known; vampvae.py data --list names its source"
        reasons = [f"only by hand, from {file.page}" if file.page else unknown]
    for url in file.urls:
        try:
            return _receive(url, file, out)
        except DataError as error:
            reasons.append(f"{urlsplit(url).netloc}: {error}")
    raise DataError("; ".join(reasons))


def _receive(url, file, out):
    from tqdm import tqdm

    out.seek(0)
    out.truncate()  # what an earlier mirror sent
    most = file.most_bytes if file.bytes is None else file.bytes
    # disable=None shows the bar on a terminal only
    with tqdm(total=file.bytes, desc=str(file), unit="B", unit_scale=True, disable=None) as bar:
        for chunk in _chunks(url):
            out.write(chunk)
            bar.update(len(chunk))
            if out.tell() > most:
                break
    received = out.tell()
    out.seek(0)
    if received > most or not file.is_sent(out.read()):
        raise DataError(f"sent other content, {received:,} bytes of an expected {file.size}")


def _chunks(url):
    """The bytes at `url`, piece by piece; a network failure is a DataError, so an OSError means the disk."""
    try:
        with _https_only().open(url, timeout=TIMEOUT) as response:
            while chunk := response.read(CHUNK):
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise DataError(str(getattr(error, "reason", error))) from error


def _https_only():
    """An opener that knows no other scheme, so that neither a mirror nor a redirect can leave https."""
    proxies = {scheme: proxy for scheme, proxy in urllib.request.getproxies().items() if scheme == "https"}
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        _RefuseOthers(),
    ):
        opener.add_handler(handler)
    return opener


class _RefuseOthers(urllib.request.BaseHandler):
    def unknown_open(self, request):
        """Refuses every scheme that no other handler takes."""
        raise URLError(f"{request.type} is refused, only https is used")
