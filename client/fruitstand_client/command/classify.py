"""`fruitstand classify`: classify the images named on the command line."""

import logging
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fruitstand.errors import UsageError
from fruitstand.progress import track
from fruitstand_client.client import Client
from fruitstand_client.command.output import (
    FORMATS,
    RESUMED_FORMATS,
    ParquetRows,
    PartialRows,
    TextRows,
    open_partial,
    open_rows,
    partial_path,
    skip_done,
    written_rows,
)
from fruitstand_client.command.sources import count_images, find_images
from fruitstand_client.errors import ImageRejected
from fruitstand_client.images import image_name
from fruitstand_client.prediction import Prediction

log = logging.getLogger("fruitstand.classify")

NUM_REASONS = 5
"""Most kinds of failure in the summary, the most frequent first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """Output settings."""

    format: str = "table"
    """table, jsonl, csv or parquet."""
    path: Path | None = None
    """The file; None writes to stdout."""
    resume: bool = False
    """Continue the file of an interrupted run."""
    sheet: Path | None = None
    """Image file for a contact sheet."""
    explain: Path | None = None
    """Folder for a picture of each image's explanation."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"--format: got {self.format!r}, allowed {', '.join(FORMATS)}")
        if self.resume and (self.path is None or self.format not in RESUMED_FORMATS):
            raise UsageError("--resume needs --out FILE and --format jsonl or csv")
        if self.path is None and self.format == "parquet":
            raise UsageError("--format parquet is not written to stdout; give --out FILE")

    @property
    def is_resumable(self) -> bool:
        """Whether an interrupted run can be resumed; not if the output is a device."""
        return (
            self.path is not None
            and self.format in RESUMED_FORMATS
            and (self.path.is_file() or not self.path.exists())
        )


def classify_paths(arguments: list[str], *, url: str, top_k: int, output: Output, **settings: Any) -> int:
    """Classify the named images and write one row per image, in order.

    The settings are those of `fruitstand_client.Client`.

    Returns:
        Number of images without an answer.

    Raises:
        UsageError: an argument that names no image, or a setting outside what is allowed.
        RequestFailed: the server did not answer; the rows so far are kept where they can be resumed.
    """
    out = output.path
    if output.resume and out is not None and out.is_file() and not partial_path(out).exists():
        return _look_again(out, output.format, arguments)
    total = count_images(arguments)
    images = find_images(arguments)
    summary = _Summary()
    with ExitStack() as stack:
        try:
            client = stack.enter_context(Client(url, **settings))
        except ValueError as exc:
            raise UsageError(str(exc)) from exc
        rows: TextRows | ParquetRows
        num_done = 0
        if output.is_resumable and out is not None:
            partial = stack.enter_context(open_partial(output.format, out, resume=output.resume))
            images = skip_done(partial_path(out), output.format, images)
            num_done = partial.num_done
            summary.go_on(partial)
            rows = partial
        else:
            rows = stack.enter_context(open_rows(output.format, out))
        sheet = None
        if output.sheet is not None:
            from fruitstand_client.command.sheet import ContactSheet

            sheet = ContactSheet(output.sheet)
            images = sheet.watch(images)
        if output.explain is not None:
            from fruitstand_client.command.overlay import explain_each

            images = explain_each(images, client, output.explain)
        answers = client.classify_stream(images, top_k=top_k)
        for answer in track(answers, total=total, completed=num_done, description="classify"):
            rows.write(answer)
            summary.add(answer)
            if sheet is not None:
                sheet.add(answer)
        if sheet is not None:
            sheet.save()
    summary.tell()
    return summary.num_failed


def _look_again(out: Path, output_format: str, arguments: list[str]) -> int:
    """Number of failures in a complete earlier run of the same images."""
    for image in skip_done(out, output_format, find_images(arguments)):
        raise UsageError(
            f"{out}: complete, but without a row for {image_name(image)}; give the same images, or choose"
            " another --out"
        )
    log.info("%s is complete, nothing is left to do", out)
    return sum(row.failed for row in written_rows(out, output_format))


class _Summary:
    """The summary on stderr at the end of a run."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._num_now = self.num_failed = 0
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def go_on(self, partial: PartialRows) -> None:
        """Count the rows of an earlier run."""
        if partial.num_done:
            log.info("going on after %d images that have their row", partial.num_done)
        if partial.num_failed:
            self.num_failed = self._reasons["in the interrupted run"] = partial.num_failed

    def add(self, answer: Prediction) -> None:
        """Count one image."""
        self._num_now += 1
        if answer.failure is None:
            return
        self.num_failed += 1
        # The text after the colon differs from image to image.
        is_own = isinstance(answer.failure, ImageRejected)
        reason = str(answer.failure).partition(": ")[0] if is_own else type(answer.failure).__name__
        self._reasons[reason] += 1
        self._examples.setdefault(reason, f", such as {answer.path or 'an image'}: {answer.failure}")

    def tell(self) -> None:
        """Rate and failures."""
        rate = self._num_now / (time.monotonic() - self._started)
        log.info("%d images, %.0f images/s, %d without an answer", self._num_now, rate, self.num_failed)
        for reason, count in self._reasons.most_common(NUM_REASONS):
            log.info("  %d %s%s", count, reason, self._examples.get(reason, ""))
