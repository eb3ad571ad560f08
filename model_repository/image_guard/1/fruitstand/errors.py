"""Every error a user can meet.

FruitstandError               exit code 1
├── UsageError                exit code 2: the command itself cannot be carried out as written
├── DataError                 images, folders, manifests
│   └── ImageRejected         one image; the reason is fit to be shown to whoever sent it
├── ArtefactError             run folders, model versions, labels: missing, half written or altered
├── TrainingError             training cannot start or cannot go on
├── GateFailed                an export check missed its limit; nothing was published
├── ServerError               the embedded server did not start, or stopped by itself
└── ClientError               a served model did not answer; the tree is in fruitstand_client.errors

A message is one line: what, got, expected, what to do.
"""


class FruitstandError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = 1


class UsageError(FruitstandError):
    """The command cannot be carried out as written."""

    exit_code = 2


class DataError(FruitstandError):
    """Images, folders or manifests are not what they should be."""


class ImageRejected(DataError):
    """One image is refused.

    The message carries no path, so that a server may send it to a caller as it is.
    """


class ArtefactError(FruitstandError):
    """A run folder, model version or label file is missing, half written or altered."""


class TrainingError(FruitstandError):
    """Training cannot start or cannot go on."""


class GateFailed(FruitstandError):
    """A check before publishing missed its limit."""


class ServerError(FruitstandError):
    """The embedded server did not start, or stopped by itself."""


class ClientError(FruitstandError):
    """A served model did not answer as asked."""
