"""Columns that Locust does not have: images/s, refusals, missed deadlines."""

import json
import time
from typing import Any

from locust.env import Environment

from loadtests.generator.recording import MISSED, REJECTED, Recording

RECENT_S = 10
KEY = "images"
COLUMNS = {
    "images_per_s": f"Images/s (last {RECENT_S} s)",
    "num_images": "Images",
    "rejected": "Rejects",
    "missed": "Deadline misses",
}


def add_columns(environment: Environment, recording: Recording) -> None:
    """A tab of its own in the page, fed with the statistics; nothing without a page.

    Source:
        locust, examples/extend_modern_web_ui.py
    """
    page = environment.web_ui
    if page is None:
        return
    titles = [{"key": "name", "title": "Name"}, *({"key": k, "title": t} for k, t in COLUMNS.items())]
    page.template_args["extended_tabs"] = [{"title": "Images", "key": KEY}]
    page.template_args["extended_tables"] = [{"key": KEY, "structure": titles}]

    @page.app.after_request
    def add_rows(response: Any) -> Any:
        from flask import request

        if request.path == "/stats/requests" and response.status_code == 200:
            statistics = [{"key": KEY, "data": rows(recording)}]
            response.set_data(json.dumps({**response.json, "extended_stats": statistics}))
        return response


def rows(recording: Recording) -> list[dict[str, Any]]:
    """One row for each request batch size."""
    now, table = int(time.time()), []
    for size in sorted({batch for _, batch in recording.cells}):
        own = {second: cell for (second, batch), cell in recording.cells.items() if batch == size}
        total = recording.total(own.values())
        recent = sum(cell.num_images for second, cell in own.items() if now - RECENT_S <= second < now)
        name = f"classify, batch {size}"
        table.append(
            {
                "name": name,
                "safeName": name,
                "images_per_s": round(recent / RECENT_S, 1),
                "num_images": total.num_images,
                "rejected": total.outcomes[REJECTED],
                "missed": total.outcomes[MISSED],
            }
        )
    return table
