"""What was found in data, as one self-contained page, from data.html.jinja."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from tuninglab.data.images import load_image
from tuninglab.data.sample import ImageSource
from tuninglab.errors import UserError
from tuninglab.reporting.data_facts import answer_rows, facts, headline, length_rows, set_rows
from tuninglab.reporting.data_shown import Shown, picture_name
from tuninglab.reporting.tables import bounded, percent, table
from tuninglab.reporting.templates import render

# Pixels of the longer side, and how many pictures of a record: 1,000 records stay below 100 MB.
THUMBNAIL = 320
MOST_PICTURES = 4
MOST_PROBLEMS = 200
MOST_ANSWERS = 20


def page(figures: Mapping[str, Any], records: Sequence[Shown]) -> str:
    """The page; every text of the data is escaped, and nothing is fetched from elsewhere."""
    problems = figures["problems"]
    return render(
        "data.html.jinja",
        name=" + ".join(one["path"] for one in figures["sets"]),
        share=percent(figures["usable"] / figures["records"] if figures["records"] else None),
        headline=headline(figures),
        problems=problems[:MOST_PROBLEMS],
        more_problems=len(problems) - MOST_PROBLEMS,
        facts=facts(figures),
        sets=table(set_rows(figures)),
        lengths=[
            (label, count, f"{100 * part:.1f}") for label, count, part in length_rows(figures)
        ],
        answers=answer_rows(figures, MOST_ANSWERS),
        records=[_record(record) for record in records],
        command=figures["command"],
    )


def _record(record: Shown) -> dict[str, Any]:
    pictures = record.sample.images[:MOST_PICTURES]
    spans = [span._replace(text=bounded(span.text)) for span in record.spans]
    return {
        "origin": record.sample.origin,
        "tokens": f"{record.trained:,} of {record.tokens:,} tokens are learned",
        "spans": spans,
        "pictures": [(picture_name(picture), thumbnail(picture)) for picture in pictures],
        "more": len(record.sample.images) - len(pictures),
    }


def thumbnail(picture: ImageSource) -> str:
    """A small copy of a picture for an `src`; "" if it can no longer be read."""
    try:
        image = load_image(picture)
    except UserError:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = BytesIO()
    image.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
