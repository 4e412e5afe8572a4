"""Fetching a published data set: checksum, safe unzip, and a folder that is either whole or not there."""

import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from anyo_rl.data.schema import DataError

ML_100K_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
ML_100K_MD5 = "0e33842e24a9c977be4e0107933c0723"
_MAX_UNZIPPED_BYTES = 4 << 30


def download_archive(url: str, md5: str, folder: Path, timeout_seconds: float = 60) -> Path:
    """Download a zip file, check it and unpack it as `folder`.

    The work is done in a hidden folder beside `folder`, which takes its name at the very end: a kill, a bad checksum
    or a full disk leaves nothing behind that looks like data. A folder at the top of the archive that holds
    everything is dropped.

    Args:
        url: http or https.
        md5: hexadecimal checksum of the zip file.
        folder: where the files go; must not exist, or be empty.
        timeout_seconds: the longest silence of the server.

    Raises:
        DataError: if the server, the checksum, the archive or the disk is at fault.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"url is {url!r}: expected http:// or https://")
    by_hand = f"try again, or download it by hand and unpack it as {folder}"
    work = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        found = _fetch(url, work / "archive.zip", timeout_seconds)
        if found != md5.lower():
            raise DataError(
                f"{url}: found a file with md5 {found}, expected {md5}: nothing was kept; {by_hand}, or pass the new "
                "checksum if the publisher changed the file"
            )
        _unzip(work / "archive.zip", work / "files", url)
        top = list((work / "files").iterdir())
        whole = top[0] if len(top) == 1 and top[0].is_dir() else work / "files"
        try:
            os.replace(whole, folder)
        except OSError:
            # Another process may have been faster: its files passed the same checksum.
            if not (folder.is_dir() and any(folder.iterdir())):
                raise
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise DataError(f"{url}: the download failed ({error}): {by_hand}") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{url}: is not a zip file that can be unpacked ({error}): {by_hand}") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error}): name another data folder (ANYO_RL_DATA)") from None
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _fetch(url: str, path: Path, timeout_seconds: float) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "anyo-rl"})
    with urllib.request.urlopen(request, timeout=timeout_seconds) as response, path.open("wb") as file:
        while block := response.read(1 << 20):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _unzip(archive: Path, folder: Path, url: str) -> None:
    with zipfile.ZipFile(archive) as zipped:
        members = zipped.infolist()
        if sum(member.file_size for member in members) > _MAX_UNZIPPED_BYTES:
            raise DataError(f"{url}: unpacks to more than {_MAX_UNZIPPED_BYTES >> 30} GiB: unpack it by hand")
        for member in members:
            path = PurePosixPath(member.filename.replace("\\", "/"))
            is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
            if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or is_link:
                raise DataError(f"{url}: holds the unsafe member {member.filename!r}: nothing was kept")
        folder.mkdir()
        zipped.extractall(folder, members)
