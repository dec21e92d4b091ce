"""The text recipe: tune a T5, its base in int8 or not. `tuninglab flan-t5` and `flan_t5.py`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuninglab.adapters.base_format import left_in_float, quantization_config
from tuninglab.config import FlanT5Config
from tuninglab.console import Choices, is_main_process, program, say
from tuninglab.data.reading.splits import read_pair_splits
from tuninglab.data.sample import Pair
from tuninglab.data.text_batches import PairCollator, PairDataset, ended_ids, pair_tokens
from tuninglab.embedded import text_base_directory
from tuninglab.evaluation.own_data import Asked, OwnTask
from tuninglab.evaluation.task import Task
from tuninglab.evaluation.texts import generate_texts
from tuninglab.models.text_to_text import load_text_to_text
from tuninglab.recipes.common import open_run, run_recipe
from tuninglab.recipes.embedded_runs import check_own
from tuninglab.recipes.ending import print_scores
from tuninglab.recipes.recipe import WHOLE_MODEL, Base, Recipe
from tuninglab.run_folder import RunFolder
from tuninglab.training.hardware import DTYPES, use_threads

DEMO_NAME = "flan_t5"


def flan_t5(config: FlanT5Config, task: Task | None = None) -> dict[str, Any]:
    """Tune a T5 and write its run folder, or compare; returns the figures of report.json.

    Args:
        config: the settings; a resumed run takes those it was started with.
        task: data and scores to use instead of those the settings name.

    Raises:
        UserError: the settings, the data or the machine do not allow it.
        WorkError: training failed, or the disk is full.
        KeyboardInterrupt: stopped by Ctrl-C, with the state saved.
    """
    if config.compare:
        use_threads(config.threads)
        from tuninglab.comparison import compare

        return compare(config)
    # A resumed run may be on data of one's own, which this call does not name again.
    config, run = open_run(named(config))
    more = (lambda: {"cost": measured(config)}) if config.is_demo else dict
    report = run_recipe(FLAN_T5, config, run, task, more)
    if config.is_demo and is_main_process():
        show(report, run)
    return report


def named(config: FlanT5Config) -> FlanT5Config:
    """The demonstration goes by a name of its own and replaces its earlier run.

    Raises:
        UserError: a run of somebody's own data or model has that name.
    """
    if config.run_name is not None or not config.is_demo:
        return config
    check_own(Path(config.output_dir) / DEMO_NAME, FlanT5Config)
    return replace(config, run_name=DEMO_NAME, overwrite=True)


def open_data(config: FlanT5Config) -> Task:
    """Read and check the pairs that the settings name, or the embedded ones.

    Raises:
        UserError: a file or record is wrong; all records are checked.
    """
    if config.data is None:
        from tuninglab.embedded.text_task import DateTask

        say("No --data is given: tuning on embedded dates, to be written as ISO dates.")
        return DateTask(config.embedded_pairs)
    where = (config.data, config.val_data, config.val_split)
    return OwnTask(read_pair_splits(*where, config.seed, config.skip_bad_records), asked)


def asked(pair: Pair) -> list[Asked]:
    """What a pair is scored by."""
    return [Asked(pair.source, pair.target.strip(), pair.kind)]


def load(config: FlanT5Config, run: RunFolder, choices: Choices) -> Base:
    """Load the T5 that the settings name; frozen weights come quantised if they shall be.

    Raises:
        UserError: there is no such model, or bitsandbytes is asked for and missing.
    """
    dtype = DTYPES[config.precision]
    in_float = left_in_float(config.tuning_config, fresh_bridge=False)
    base: str | Path = config.model
    if base == "embedded":
        say("Base model: the small pre-trained T5 that ships with tuninglab; it is no FLAN-T5.")
        base = text_base_directory()
    quantization = quantization_config(config.base_format, dtype, in_float)
    model, tokenizer = load_text_to_text(base, dtype, quantization)
    if model.config.dropout_rate:
        usual = f"its {model.config.dropout_rate} is for training all of it; see lora_dropout"
        choices.add("dropout of the base", "0", f"the base is frozen, {usual}")
        model.set_dropout(0.0)

    def rows(pairs: Sequence[Pair]) -> PairDataset:
        return PairDataset(pairs, tokenizer)

    def answer(tuned: Any, pairs: Sequence[Pair], max_new_tokens: int) -> list[str]:
        sources = [pair.source for pair in pairs]
        return generate_texts(tuned, tokenizer, sources, max_new_tokens=max_new_tokens)

    return Base(
        model,
        tokenizer,
        config.model,
        config.tuning_config,
        rows,
        PairCollator(tokenizer.pad_token_id),
        lambda pairs: [pair_tokens(pair, tokenizer) for pair in pairs],
        lambda pairs: [ended_ids(pair.target, tokenizer) for pair in pairs],
        # T5's positions are relative: any length can be read.
        None,
        answer,
    )


def measured(config: FlanT5Config) -> dict[str, Any]:
    """Time and memory of these settings at the shape of flan-t5-small, with random weights."""
    from tuninglab.comparison import measure_alone

    return measure_alone(config)


def show(report: dict[str, Any], run: RunFolder) -> None:
    """Print the scores by spelling, what the run cost and where its report lies."""
    print_scores(report, "Exact match on days not trained on", "spelling of the date", "dates")
    say("prior: always the most frequent date of the training data.")
    say()
    say(f"See what it wrote:              {run.path / 'report.html'}")
    say(f"Compare int8 with 16 bits:      {program()} flan-t5 --compare")


FLAN_T5 = Recipe(WHOLE_MODEL, open_data, load)
