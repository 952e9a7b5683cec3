"""Downloads published files with pooch: over https alone, from several mirrors, each file verified and whole."""

import functools
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests

from data.archives import MOST_BYTES
from runtime import atomic
from runtime.errors import DataError
from runtime.progress import Progress

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 16
pooch.get_logger().setLevel("WARNING")  # else it reports every download


def download(file, folder) -> Path:
    """Downloads `file`, a PublicFile, into `folder` from the first of its mirrors that sends it; returns its path.

    Raises DataError with each mirror's reason, or if the folder cannot be written.
    """
    checksum = file.packed.checksum
    known_hash = None if checksum.startswith("git:") else checksum  # pooch knows no git:, which `_receive` checks
    reasons = []
    for url in file.urls:
        try:
            receive = functools.partial(_receive, file)
            path = Path(pooch.retrieve(url, known_hash, file.name, folder, downloader=receive))
            path.chmod(0o666 & ~atomic.umask())  # pooch makes files that only their owner reads
            return path
        except requests.RequestException as error:
            reasons.append(f"{urlsplit(url).netloc}: {_reason(error)}")
        except ValueError:
            reasons.append(f"{urlsplit(url).netloc}: it sent other content, expected {file.packed}")
        except OSError as error:
            if error.errno is None:  # requests' own, of a file of certificates that is not there
                raise DataError(str(error)) from error
            raise DataError(f"cannot write to {folder}: {error.strerror or error}") from error
    raise DataError("; ".join(reasons) or f"only by hand, from {file.page or 'where vampvae.py data --list says'}")


def _receive(file, url, path, _):
    """Writes what `url` sends to `path`, as pooch's `downloader`. Raises ValueError for what cannot be `file`."""
    with requests.Session() as session:
        session.adapters.pop("http://")  # so that neither a mirror nor a redirect leaves https
        session.headers["Accept-Encoding"] = "identity"  # a .gz as it is
        bar = Progress(total=file.packed.bytes, desc=str(file), unit="B", unit_scale=True)
        with session.get(url, stream=True, timeout=TIMEOUT) as response, open(path, "wb") as out, bar:
            response.raise_for_status()
            for chunk in response.iter_content(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
                if out.tell() > (file.packed.bytes or MOST_BYTES):
                    raise ValueError("too long")
    if file.packed.checksum.startswith("git:") and not file.packed.fits(Path(path).read_bytes()):
        raise ValueError("another checksum")


def _reason(error):
    """Why a request failed, without the names of the classes that say so."""
    if isinstance(error, requests.exceptions.InvalidSchema) and "No connection adapters" in str(error):
        return "it leads to an address that is not https"
    cause = getattr(error.args[0] if error.args else None, "reason", error)
    return str(cause).partition(">: ")[2] or str(cause)
