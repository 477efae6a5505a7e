"""Download a file once, with checksum, progress and resume, into the user's cache."""

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from deepclust_jax.data.errors import DataError

ATTEMPTS = 3  # per source; each goes on where the last one stopped
TIMEOUT = 30  # s without a byte
CHUNK = 2**16


def cache_folder() -> Path:
    """DEEPCLUST_CACHE, or the user's cache folder of this package."""
    import pooch

    return Path(os.environ.get("DEEPCLUST_CACHE") or pooch.os_cache("deepclust_jax"))


def fetch(urls: Sequence[str], known_hash: str, name: str) -> Path:
    """Path of the file in the cache, downloaded from the first source that works.

    An interrupted download is kept as `name`.part and continued by the next call. Raises DataError
    if no source works, or if the content does not have the checksum `known_hash` ("md5:...").
    """
    import pooch
    import requests
    import tqdm
    import urllib3

    pooch.get_logger().setLevel("WARNING")  # the progress bar says it
    folder = cache_folder()
    part = folder / f"{name}.part"

    def transfer(url: str, output: str, _pooch) -> None:
        with tqdm.tqdm(
            desc=name, unit="B", unit_scale=True, disable=not sys.stderr.isatty()
        ) as bar:
            resume(url, part, bar)
        part.replace(output)

    reason = ""
    mismatch = False
    for url, attempt in itertools.product(urls, range(ATTEMPTS)):
        if attempt and mismatch:
            continue  # the same bytes again would not help
        mismatch, fresh = False, not part.exists()
        try:
            return Path(pooch.retrieve(url, known_hash, name, folder, downloader=transfer))
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = f"{type(error).__name__} from {url}"
        except ValueError:
            mismatch = fresh  # a resumed file may have been joined from two versions
            reason = f"the content of {url} does not have the checksum {known_hash}"
        except OSError as error:
            raise DataError(
                f"cannot write to the cache {folder}: {error.strerror}; "
                "set DEEPCLUST_CACHE to another folder"
            ) from None
    kept = f", {part.stat().st_size} bytes kept: run again to continue" if part.exists() else ""
    raise DataError(f"cannot download {name}: {reason}{kept}")


def resume(url: str, part: Path, bar) -> None:
    """Append to `part` what it lacks of the file at `url`; start anew if the server cannot.

    `bar` is a tqdm bar. Raises what requests and urllib3 raise; `part` then keeps what has arrived.
    """
    import requests

    have = part.stat().st_size if part.exists() else 0
    # identity: a server must not wrap a .gz once more, which would break checksum and ranges
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if have and response.status_code == 416:  # nothing beyond: complete, or another file
            if response.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            part.unlink()
            raise requests.ConnectionError("the partial file is longer than the source")
        response.raise_for_status()
        continued = response.status_code == 206
        length = response.headers.get("Content-Length")
        done = have if continued else 0
        bar.reset(total=int(length) + done if length else None)
        bar.update(done)
        with part.open("ab" if continued else "wb") as file:
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
