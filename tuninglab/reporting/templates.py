"""Pages from templates: every value is escaped, and nothing is fetched from elsewhere."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tuninglab.reporting.tables import visible


def render(template: str, **content: Any) -> str:
    """The page of a template in this folder; `content` may hold texts of unknown origin.

    Args:
        template: its name ("data.html.jinja").
        content: what the template names.
    """
    # Escaping is the environment's business, never the caller's: names and answers are foreign.
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["digest"] = digest
    page = jinja.get_template(template).render(**content)
    # Half a pair of surrogates, which names of files and JSON may hold, is no text.
    return page.encode("utf-8", "replace").decode("utf-8")


def digest(script: str) -> str:
    """What a content security policy calls an inline script: no other one may run in the page.

    Source: Content Security Policy Level 3, https://www.w3.org/TR/CSP3/#grammardef-hash-source
    """
    value = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(value).decode('ascii')}"


def _harmless(value: Any) -> Any:
    # What turns the direction of letters would turn those of the page as well. What comes of the
    # template's own blocks is markup, made of values that were here before.
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
