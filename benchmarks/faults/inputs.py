"""Bad images: one among good neighbours, and many kinds alone."""

import asyncio
import re

from benchmarks.faults.ledger import LOST, RIGHT, Caller, Ledger
from benchmarks.faults.running import Bench, Cell
from serving.attest.kinds import image_kinds

ROUNDS = 20
NEIGHBOURS = 7
TRUNCATED = "jpeg_half"
BAD_KINDS = (
    *("empty", "one_byte", "text", "html", "svg", "zip", "zeros", "pdf", "heic", "jpeg_header_only"),
    *("jpeg_half", "jpeg_broken_tables", "jpeg_without_picture", "jpeg_65501_wide", "png_half", "png_bomb"),
    *("png_header_checksum", "webp_half", "bmp_half", "too_many_bytes"),
)
"""Of `serving.attest.kinds`: what no classifier can answer, no formats that only ours refuses."""
LEAK = re.compile(
    r"/(?:usr|home|root|tmp|opt|var|work|srv|mnt)/|\w\.py\b|Traceback|site-packages|0x[0-9a-f]{8}"
)
"""A path, a file of source code, a stack trace or an address in memory."""


def _bad(bench: Bench, names: tuple[str, ...]) -> Caller:
    contents = {kind.name: kind.content for kind in image_kinds()}
    running = bench.running
    return Caller(running.subject, running.url, [contents[name] for name in names])


def neighbours(bench: Bench) -> Cell:
    """One truncated JPEG and seven good images are sent together, 20 times."""
    bad, good, its = _bad(bench, (TRUNCATED,)), Ledger(), Ledger()

    async def together(first: int) -> None:
        numbers = [(first + one) % bench.caller.target.num_requests for one in range(NEIGHBOURS)]
        answers = await asyncio.gather(bad.at_once([0]), bench.caller.at_once(numbers))
        its.records += answers[0]
        good.records += answers[1]

    for number in range(ROUNDS):
        asyncio.run(together(number * NEIGHBOURS))
    statuses = its.numbers()["statuses"]
    return Cell(
        text=f"{good.count(RIGHT)} of {len(good.records)} right ({', '.join(sorted(statuses))})",
        numbers={"neighbours": good.numbers(), "truncated": its.numbers()},
    )


def bad_inputs(bench: Bench) -> Cell:
    """Twenty kinds of input that are no image, one after the other."""
    bad, rows = _bad(bench, BAD_KINDS), {}
    for number, name in enumerate(BAD_KINDS):
        (record,) = asyncio.run(bad.at_once([number], 10.0))
        leak = LEAK.search(record.text)
        rows[name] = {
            "status": record.status,
            "leak": leak.group() if leak else None,
            "text": record.text[:200],
            "stays_up": bench.running.answers(),
        }
        if not rows[name]["stays_up"]:
            bench.running.restart()
    statuses = [str(row["status"]) for row in rows.values()]
    named = sum(status.startswith("4") for status in statuses)
    broken = sum(status.startswith("5") for status in statuses)
    answered = sum(status.startswith("2") for status in statuses)
    parts = [f"{named} 4xx"]
    parts += [f"{broken} 5xx"] * bool(broken) + [f"{answered} answered"] * bool(answered)
    if rest := len(rows) - named - broken - answered:
        parts.append(f"{rest} lost")
    leaks = sum(row["leak"] is not None for row in rows.values())
    down = sum(not row["stays_up"] for row in rows.values())
    parts += [f"{leaks} leak"] * bool(leaks) + [f"down after {down}"] * bool(down)
    return Cell(text=", ".join(parts), numbers={"kinds": rows, "lost": statuses.count(LOST)})
