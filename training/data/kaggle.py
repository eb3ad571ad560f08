"""Fruits-360 from Kaggle, through kagglehub: progress, resumed downloads, checksums and a cache are its own.

The cache is `~/.cache/kagglehub`, or `KAGGLEHUB_CACHE`. A public data set needs no account; where Kaggle asks
for one, kagglehub takes `KAGGLE_API_TOKEN` or `~/.kaggle/access_token`.
"""

import contextlib
import logging
import sys
from pathlib import Path

from fruitstand.errors import DataError, UsageError

KAGGLE_HANDLE = "moltean/fruits/versions/100"
"""Pinned: classes and file names change from version to version."""
KAGGLE_SUBSET = "100x100"
"""Of the data sets in it, the classic one."""


def download() -> Path:
    """The folder with the downloaded files; a later call finds them there.

    Raises:
        DataError: no network, no access, or a damaged download.
        UsageError: kagglehub is not installed.
    """
    try:
        import kagglehub
        import requests
        from kagglehub import exceptions
    except ModuleNotFoundError as exc:
        raise UsageError("--source kaggle needs kagglehub: pip install 'fruitstand[data]'") from exc

    logging.getLogger("kagglehub").propagate = False  # it logs for itself
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for our result
            return Path(kagglehub.dataset_download(KAGGLE_HANDLE))
    except (exceptions.UnauthenticatedError, exceptions.CredentialError) as exc:
        raise DataError(
            f"Kaggle wants to know who asks for {KAGGLE_HANDLE}: set KAGGLE_API_TOKEN, or download the zip"
            " and give its path"
        ) from exc
    except (exceptions.KaggleApiHTTPError, exceptions.BackendError, exceptions.NotFoundError) as exc:
        raise DataError(f"Kaggle refuses {KAGGLE_HANDLE}: {_first_line(exc)}") from exc
    except exceptions.DataCorruptionError as exc:
        raise DataError(f"{KAGGLE_HANDLE} came damaged ({_first_line(exc)}); run the command again") from exc
    except requests.exceptions.RequestException as exc:
        raise DataError(
            f"Kaggle cannot be reached for {KAGGLE_HANDLE} ({type(exc).__name__}); with a network the"
            " download goes on where it stopped; without one, give the path of a folder or zip"
        ) from exc


def _first_line(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0]
