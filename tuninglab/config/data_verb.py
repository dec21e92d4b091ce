"""The settings of the verb `data`."""

from dataclasses import dataclass

from tyro.conf import Positional

from tuninglab.config.checks import check, check_paths, check_positive
from tuninglab.config.data import DataFlag, ReadingConfig, check_places
from tuninglab.console import program
from tuninglab.errors import UserError

# Each is read again to be shown, and its pictures are part of the page.
MOST_SHOWN = 1000


@dataclass
class AuditConfig:
    """What is looked at, and what of it is shown."""

    data: Positional[DataFlag] = None
    """Training data, of any format in docs/data.md: files or folders."""
    val_data: DataFlag = None
    """Validation data: checked as well, and compared with the training data."""
    model: str = "embedded"
    """Whose tokenizer reads: `embedded`, a model directory, a run folder or a hub id."""
    max_tokens: int | None = None
    """Longest record in tokens. None: what the model can read."""
    skip_bad_records: bool = False
    """Leave out records that have problems, and end well if others remain."""
    seed: int = 0
    """Draws records (PATH#500) and one of several answers, as in training."""
    show: int | None = None
    """Print so many records, from all over the data, as the model reads them. None: none, and 12 on
    the page of --html."""
    html: str | None = None
    """Write all that was found as a page into this file."""
    json: bool = False
    """Print the figures as JSON on standard output."""
    debug: bool = False
    """Show the Python traceback of an error."""
    config: str | None = None
    """YAML file of settings; flags override it. There, data can have weights."""

    def validate(self) -> None:
        """Check every range, and that there is data.

        Raises:
            UserError: naming the flag, the value given and what is expected.
        """
        if self.data is None:
            raise UserError(f"No data is named. Name a file or folder: {program()} data PATH")
        check_places(self, "data", "val_data")
        check_positive(self, "max_tokens")
        check_positive(self, "show", least=0, most=MOST_SHOWN)
        check_positive(self, "seed", least=0, most=2**32 - 1)
        check_paths(self, "image_root", "model", "html")
        # A data file that stands there by mistake would be replaced.
        named = self.html is None or self.html.lower().endswith((".html", ".htm"))
        check(named, "html", self.html, "a name that ends in .html")


@dataclass
class DataConfig(ReadingConfig, AuditConfig):
    """Look at data before a training: what is wrong, what is read, what is learned."""
