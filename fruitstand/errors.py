"""All errors that a user can get.

FruitstandError               exit code 1
├── UsageError                exit code 2: the command cannot run as written
├── DataError                 images, folders, manifests
│   └── ImageRejected         one image; the message is safe to send to a caller
├── ArtefactError             run folders, model versions, labels: missing, incomplete or altered
├── TrainingError             training cannot start or continue
├── GateFailed                an export check missed its limit; nothing was published
├── ServerError               the embedded server did not start, or stopped by itself
└── ClientError               a served model did not answer; the tree is in fruitstand_client.errors

A message is one line that says what was got, what was expected, and what to do.
"""


class FruitstandError(Exception):
    """Base of all errors that this project raises deliberately."""

    exit_code = 1


class UsageError(FruitstandError):
    """The command cannot run as written."""

    exit_code = 2


class DataError(FruitstandError):
    """Images, folders or manifests are missing or invalid."""


class ImageRejected(DataError):
    """One image is rejected.

    The message contains no path, so a server may send it to a caller.
    """


class ArtefactError(FruitstandError):
    """A run folder, model version or label file is missing, incomplete or altered."""


class TrainingError(FruitstandError):
    """Training cannot start or continue."""


class GateFailed(FruitstandError):
    """A check before publishing missed its limit."""


class ServerError(FruitstandError):
    """The embedded server did not start, or stopped by itself."""


class ClientError(FruitstandError):
    """A served model did not answer as asked."""
