"""What was found in data, as one self-contained page, from data.html.jinja."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tuninglab.data.images import load_image
from tuninglab.data.sample import ImageSource
from tuninglab.errors import UserError
from tuninglab.reporting.data_facts import answer_rows, facts, headline, length_rows, set_rows
from tuninglab.reporting.data_shown import Shown, bounded, picture_name, visible
from tuninglab.reporting.tables import percent, table

# Pixels of the longer side, and how many pictures of a record: 1,000 records stay below 100 MB.
THUMBNAIL = 320
MOST_PICTURES = 4
MOST_PROBLEMS = 200
MOST_ANSWERS = 20


def page(figures: Mapping[str, Any], records: Sequence[Shown]) -> str:
    """The page; every text of the data is escaped, and nothing is fetched from elsewhere."""
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        # What turns the direction of letters would turn those of the page as well.
        finalize=lambda value: visible(value) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    problems = figures["problems"]
    content = jinja.get_template("data.html.jinja").render(
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
    # Half a pair of surrogates, which a file's name may hold, is no text.
    return content.encode("utf-8", "replace").decode("utf-8")


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
