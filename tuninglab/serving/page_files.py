"""The files of the page, by the paths under which they are served."""

from pathlib import Path

FOLDER = Path(__file__).with_name("page")
MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


def page_files() -> dict[str, Path]:
    """The file of each path: `index.html` of "/", the others by their names."""
    files = [file for file in sorted(FOLDER.iterdir()) if file.suffix in MEDIA_TYPES]
    return {"/" if file.name == "index.html" else f"/{file.name}": file for file in files}
