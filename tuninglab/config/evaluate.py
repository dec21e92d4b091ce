"""The settings of the verb `evaluate`."""

from dataclasses import dataclass, field
from typing import Literal

from tyro.conf import Positional

from tuninglab.config.checks import check, check_paths, check_positive, check_run_name
from tuninglab.config.data import DataFlag, RecordsConfig, check_places
from tuninglab.config.prompts import kept_prompt
from tuninglab.config.training import Precision
from tuninglab.errors import UserError

# OpenFlamingo's benchmarks; docs/evaluation.md says which files each reads.
Task = Literal[
    "caption", "vqa", "okvqa", "vizwiz", "textvqa", "hateful_memes", "imagenet", "flickr30k"
]
MOST_SHOTS = 64


@dataclass
class ScoringConfig:
    """What is scored, how, and beside what."""

    model: Positional[str | None] = None
    """A run folder or one of its checkpoints, an adapter, a model directory, a hub id or
    `embedded`. Not needed with --predictions."""
    data: DataFlag = None
    """Questions with their answers, of any format in docs/data.md. None: the embedded test set."""
    metric: list[str] = field(default_factory=lambda: ["auto"])
    """One or several, see docs/evaluation.md; auto: by the data, and says why."""
    candidates: list[str] | None = None
    """Answers to choose from, ranked by their probability; the first is the positive one."""
    rank: Literal["letters", "texts"] | None = None
    """Rank the options of multiple choice, by their letters or texts, instead of generating."""
    limit: int | None = None
    """At most so many questions, drawn by the seed."""
    against: str | None = None
    """Compare with this run or model, or with `base`: what is gained and lost, with intervals."""
    shots: list[int] = field(default_factory=lambda: [0])
    """Examples before each question; of several numbers each is an evaluation of its own."""
    shots_data: DataFlag = None
    """Where examples come from: training data."""
    select: Literal["random", "rices"] = "random"
    """Examples drawn by (seed, question), or those with the most similar pictures."""
    task: Task | None = None
    """Ask as OpenFlamingo's benchmark does: its prompt, longest answer and metric."""
    compat: Literal["openflamingo"] | None = None
    """With --task: its 0-shot rule, beams and clipping of answers too."""
    controls: bool = True
    """Ask again with blank pictures and with those of other questions."""
    predictions: str | None = None
    """Score this JSON lines file (id, prediction) again, without a model."""
    prompt: str | None = None
    """How a dialogue becomes text. None: as the adapter was tuned, else tuninglab."""
    beams: int = 1
    """Beams of generation; 1 is greedy."""
    max_new_tokens: int | None = None
    """Longest answer in tokens. None: by the longest right answer."""
    batch_size: int | None = None
    """Questions answered together. None: by the size of the model."""
    precision: Precision = "auto"
    """Number format of the computation; auto: that of the run, else as finetune."""
    seed: int = 0
    """Draws examples, exchanged pictures, samples of the intervals and PATH#500."""
    name: str | None = None
    """Of the evaluation. None: that of the data file."""
    output_dir: str | None = None
    """Folder that holds evaluations. None: evaluation/ of the run, or here."""
    overwrite: bool = False
    """Replace an evaluation of this name."""
    skip_bad_records: bool = False
    """Leave out records that have problems, instead of stopping."""
    threads: int | None = None
    """Threads that compute. None: one for each core."""
    json: bool = False
    """Print the figures as JSON on standard output."""
    debug: bool = False
    """Show the Python traceback of an error."""

    def validate(self) -> None:
        """Check every range, and settings that exclude each other.

        Raises:
            UserError: naming the flag, the value given and what is expected.
        """
        check_places(self, "data", "shots_data")
        check_positive(self, "limit", "beams", "max_new_tokens", "batch_size")
        check_positive(self, "threads", most=4096)
        check_positive(self, "seed", least=0, most=2**32 - 1)
        check_paths(self, "model", "against", "predictions", "output_dir")
        if self.name is not None:
            check_run_name(self.name, "name")
        if self.prompt is not None:
            kept_prompt(self.prompt)
        for count in self.shots:
            expected = f"whole numbers from 0 to {MOST_SHOTS}"
            check(0 <= count <= MOST_SHOTS, "shots", count, expected)
        check(bool(self.shots), "shots", self.shots, "a number or several")
        check(len(set(self.shots)) == len(self.shots), "shots", self.shots, "different numbers")
        if self.candidates is not None:
            several = len(set(self.candidates)) == len(self.candidates) > 1
            fine = several and all(text.strip() for text in self.candidates)
            check(fine, "candidates", self.candidates, "two different texts or more")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.model is None and self.predictions is None:
            raise UserError("No model is named. Name a run or a model, or give --predictions FILE.")
        if self.predictions is not None:
            given = {
                "a model": self.model,
                "--against": self.against,
                "--shots": self.shots != [0],
                "--rank": self.rank,
            }
            if wrong := next((name for name, value in given.items() if value), None):
                raise UserError(f"--predictions is scored without a model; leave out {wrong}.")
            check(self.data is not None, "data", None, "the data that was asked")
        if self.shots_data is None and self.shots != [0]:
            raise UserError("--shots is given without --shots_data. Name data for the examples.")
        if self.compat is not None and self.task is None:
            raise UserError("--compat is given without --task. Name the benchmark, e.g. --task vqa")


@dataclass
class EvaluateConfig(RecordsConfig, ScoringConfig):
    """Score a run or a model on a data set, beside what needs no looking."""
