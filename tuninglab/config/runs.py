"""The settings of the verbs that make, use and show a run: `demo`, `chat`, `report`."""

from dataclasses import dataclass, field

from tyro.conf import Positional

from tuninglab.config.checks import check, check_paths, check_positive, check_run_name
from tuninglab.config.training import Precision
from tuninglab.untrusted import check_path


@dataclass
class DemoConfig:
    """Tune the embedded Flamingo on its demonstration task and show before and after."""

    run_name: str = "demo"
    """Name of the run folder; an earlier run of this name is replaced."""
    output_dir: str = "runs"
    """Folder that holds the run folders."""
    max_steps: int | None = None
    """Stop after this many optimizer steps. None: the demonstration's own length."""
    precision: Precision = "auto"
    """Number format of the computation; auto says what it chose and why."""
    seed: int = 0
    """Seed of data order, fresh weights and dropout."""
    threads: int | None = None
    """Threads that compute. None: one for each core."""
    write_data: str | None = None
    """Only write the embedded data into this folder, as files that finetune reads."""
    json: bool = False
    """Print the final figures as JSON on standard output."""
    debug: bool = False
    """Show the Python traceback of an error."""

    def validate(self) -> None:
        """Check every range.

        Raises:
            UserError: naming the flag, the value given and what is expected.
        """
        check_run_name(self.run_name)
        check_positive(self, "max_steps")
        check_positive(self, "threads", most=4096)
        check_positive(self, "seed", least=0, most=2**32 - 1)
        check_paths(self, "output_dir", "write_data")


@dataclass
class ChatConfig:
    """Talk to a run or a model about pictures."""

    model: Positional[str] = "embedded"
    """A run folder or one of its checkpoints, a model directory, or `embedded`."""
    terminal: bool = True
    """Chat in this terminal, the only place so far."""
    image: str | None = None
    """Picture of the first question."""
    ask: str | None = None
    """Answer this one question, on standard output, and end."""
    system: str | None = None
    """What the system message says, before all questions, as in the training data."""
    max_new_tokens: int = 64
    """Longest answer in tokens."""
    exact: bool = True
    """Answer with the weights as they are saved; false: the language model's as int8."""
    threads: int | None = None
    """Threads that compute. None: one for each core."""
    debug: bool = False
    """Show the Python traceback of an error."""

    def validate(self) -> None:
        """Check every range.

        Raises:
            UserError: naming the flag, the value given and what is expected.
        """
        check(self.terminal, "terminal", self.terminal, "true", "There is no other chat yet.")
        check_positive(self, "max_new_tokens")
        check_positive(self, "threads", most=4096)
        check_paths(self, "model", "image")
        for name in ("ask", "system"):
            value = getattr(self, name)
            check(value is None or value.strip() != "", name, value, "a text")


@dataclass
class ReportConfig:
    """Write the report of a run anew, follow one that goes on, or compare several."""

    run: Positional[str]
    """The run folder."""
    others: Positional[list[str]] = field(default_factory=list)
    """Further run folders, to be compared with the first."""
    watch: bool = False
    """Write the page again and again while the run goes on; Ctrl-C ends that, not the run."""
    out: str | None = None
    """Write the page of a comparison into this file. None: comparison.html beside the runs."""
    json: bool = False
    """Print the figures as JSON on standard output."""
    debug: bool = False
    """Show the Python traceback of an error."""

    def validate(self) -> None:
        """Check that the names can be some, and that the flags fit each other.

        Raises:
            UserError: naming the flag.
        """
        check_paths(self, "run", "out")
        for other in self.others:
            check_path(other, "--others")
        several = bool(self.others)
        check(not (self.watch and several), "watch", True, "one run", "Follow one at a time.")
        remedy = "The page of one run lies in its folder."
        check(several or self.out is None, "out", self.out, "several runs", remedy)
        # A file of another kind that stands there by mistake would be replaced.
        named = self.out is None or self.out.lower().endswith((".html", ".htm"))
        check(named, "out", self.out, "a name that ends in .html")
