"""The text recipe: tune a T5, its base in int8 or not. `tuninglab flan-t5` and `flan_t5.py`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from rich.console import Console
from rich.table import Table

from tuninglab.adapters.base_format import left_in_float, quantization_config, tell_quantisation
from tuninglab.adapters.lora import check_patterns
from tuninglab.config import FlanT5Config
from tuninglab.config.yaml_file import read_recipe
from tuninglab.console import Choices, is_main_process, say
from tuninglab.data.pairs import Pair
from tuninglab.data.splits import Splits, fit, read_pair_splits
from tuninglab.data.text_batches import PairCollator, PairDataset, pair_tokens
from tuninglab.embedded import text_base_directory
from tuninglab.errors import UserError
from tuninglab.evaluation.task import Task
from tuninglab.models.text_to_text import load_text_to_text
from tuninglab.recipes import common as recipe
from tuninglab.recipes.common import Setup
from tuninglab.reporting.tables import percent
from tuninglab.run_folder import RunFolder
from tuninglab.training.hardware import DTYPES, make_accelerator, precision_of

DEMO_NAME = "flan_t5"
WHOLE_MODEL = ""  # the scope of LoRA: nothing of a T5 is left out


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
        from tuninglab.comparison import compare

        return compare(config)
    config, run = recipe.open_run(named(config))
    # Mistakes up to here, and in the data, are told before anything heavy is loaded.
    if task is None and config.data is None:
        from tuninglab.embedded.text_task import DateTask

        say("No --data is given: tuning on embedded dates, to be written as ISO dates.")
        task = DateTask(config.embedded_pairs)
    splits = task.splits if task else open_data(config)
    setup = prepare(config, splits, run)
    report = recipe.tune_and_report(config, run, setup, setup.splits, task)
    if config.is_demo and is_main_process():
        report["cost"] = measured(config)
        run.write("report.json", report)
        show(report, run)
    return report


def named(config: FlanT5Config) -> FlanT5Config:
    """The demonstration goes by a name of its own and replaces its earlier run.

    Raises:
        UserError: a run of somebody's own data or model has that name.
    """
    if config.run_name is not None or not config.is_demo:
        return config
    run = Path(config.output_dir) / DEMO_NAME
    if (run / "config.yaml").is_file():
        earlier = read_recipe(run / "config.yaml")
        if not isinstance(earlier, FlanT5Config) or not earlier.is_demo:
            raise UserError(f"{run} is no demonstration but a run of your own. Give a --run_name.")
    return replace(config, run_name=DEMO_NAME, overwrite=True)


def open_data(config: FlanT5Config) -> Splits:
    """Read and check the pairs that the settings name.

    Raises:
        UserError: a file or record is wrong; all records are checked.
    """
    assert config.data is not None
    where = (config.data, config.val_data, config.val_split)
    return read_pair_splits(*where, config.seed, config.skip_bad_records)


def prepare(config: FlanT5Config, splits: Splits, run: RunFolder) -> Setup:
    """Load the model, make the run folder, add what is tuned; says and saves every choice.

    Raises:
        UserError: the model, the data or the tuning do not fit each other or the machine.
    """
    choices = Choices()
    accelerator = make_accelerator(config.precision, choices)
    set_seed(config.seed)
    dtype = DTYPES[precision_of(accelerator)]
    in_float = left_in_float(config.tuning_config, fresh_bridge=False)
    quantization = quantization_config(config.base_format, dtype, in_float)
    base: str | Path = config.model
    if base == "embedded":
        say("Base model: the small pre-trained T5 that ships with tuninglab; it is no FLAN-T5.")
        base = text_base_directory()
    model, tokenizer = load_text_to_text(base, dtype, quantization)
    tell_quantisation(model, choices, accelerator.device)
    if model.config.dropout_rate:
        usual = f"its {model.config.dropout_rate} is for training all of it; see lora_dropout"
        choices.add("dropout of the base", "0", f"the base is frozen, {usual}")
        model.set_dropout(0.0)

    if config.max_tokens:
        limit, skip = config.max_tokens, config.skip_bad_records
        splits = fit(splits, tokenizer, limit, skip, pair_tokens)

    def rows(pairs: Sequence[Pair]) -> PairDataset:
        return PairDataset(pairs, tokenizer)

    collator = PairCollator(tokenizer.pad_token_id)
    loaders = recipe.make_loaders(config, splits, accelerator, rows, collator)
    # A mistake told before the folder is made leaves nothing in the way of the corrected command.
    check_patterns(model, config.tuning_config, WHOLE_MODEL)
    run.create(config)
    setup = Setup(model, tokenizer, *loaders, accelerator, config.model, choices, splits)
    return recipe.wrap(setup, config.tuning_config, config, run, WHOLE_MODEL)


def measured(config: FlanT5Config) -> dict[str, Any]:
    """Time and memory of these settings at the shape of flan-t5-small, with random weights."""
    from tuninglab.comparison import measure_alone

    return measure_alone(config)


def show(report: dict[str, Any], run: RunFolder) -> None:
    """Print the scores by spelling, what the run cost and where its report lies."""
    scores, train = report["evaluation"], report["train"]
    table = Table(title="Exact match on days not trained on", title_justify="left")
    table.add_column("spelling of the date")
    columns = {name: scores[name] for name in ("before", "after", "prior")}
    for name in columns:
        table.add_column(name, justify="right", style="bold" if name == "after" else None)
    for kind in scores["after"]["by_type"]:
        table.add_row(kind, *(percent(score["by_type"][kind]) for score in columns.values()))
    table.add_section()
    totals = [percent(score["exact_match"]) for score in columns.values()]
    table.add_row(f"all {scores['after']['count']} dates", *totals, style="bold")
    Console(stderr=True).print(table)
    say("prior: always the most frequent date of the training data.")
    say()
    say(
        f"Tuned {train['trainable_parameters']:,} parameters in {train['wall_s']:.0f} s at "
        f"{train['peak_memory_mib']:,.0f} MiB;"
    )
    say(f"the adapter has {report['adapter_bytes'] / 1024:,.0f} KiB.")
    say(f"See what it wrote:              {run.path / 'report.html'}")
    say("Compare int8 with 16 bits:      tuninglab flan-t5 --compare")
