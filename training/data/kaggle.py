"""Download Fruits-360 from Kaggle with kagglehub, which shows progress, resumes, checks and caches downloads.

The cache is `~/.cache/kagglehub`, or `KAGGLEHUB_CACHE`. A public data set needs no account. If Kaggle asks
for one, kagglehub reads `KAGGLE_API_TOKEN` or `~/.kaggle/access_token`.
"""

import contextlib
import logging
import sys
from pathlib import Path

from fruitstand.errors import DataError, UsageError

KAGGLE_HANDLE = "moltean/fruits/versions/100"
"""The version is pinned because classes and file names change between versions."""
KAGGLE_SUBSET = "100x100"
"""The classic one of the data sets in the download."""


def download() -> Path:
    """Download the data set, or find it in the cache; return its folder.

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

    logging.getLogger("kagglehub").propagate = False  # it has its own handler; this avoids double lines
    try:
        with contextlib.redirect_stdout(sys.stderr):  # our stdout carries only the result
            return Path(kagglehub.dataset_download(KAGGLE_HANDLE))
    except (exceptions.UnauthenticatedError, exceptions.CredentialError) as exc:
        raise DataError(
            f"Kaggle asks for credentials for {KAGGLE_HANDLE}: set KAGGLE_API_TOKEN, or download the zip"
            " and give its path"
        ) from exc
    except (exceptions.KaggleApiHTTPError, exceptions.BackendError, exceptions.NotFoundError) as exc:
        raise DataError(f"Kaggle refuses {KAGGLE_HANDLE}: {_first_line(exc)}") from exc
    except exceptions.DataCorruptionError as exc:
        raise DataError(
            f"the download of {KAGGLE_HANDLE} is damaged ({_first_line(exc)}); run the command again"
        ) from exc
    except requests.exceptions.RequestException as exc:
        raise DataError(
            f"Kaggle cannot be reached for {KAGGLE_HANDLE} ({type(exc).__name__}); run the command again to"
            " continue the download, or give the path of a folder or zip"
        ) from exc


def _first_line(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0]
