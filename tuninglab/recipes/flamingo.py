"""The main recipe: tune a Flamingo. `tuninglab finetune`, `flamingo.py` and `fine_tuning.py`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from tuninglab.adapters.base_format import base_format_of
from tuninglab.adapters.lora import SCOPE, train_fresh_bridge
from tuninglab.config import FinetuneConfig
from tuninglab.config.data import columns_of, pictures_checked
from tuninglab.console import Choices, say
from tuninglab.data.batches import Collator, SampleDataset
from tuninglab.data.features import FeatureCache
from tuninglab.data.prompt import answer_ids, count_tokens, counting_key
from tuninglab.data.reading.splits import read_splits
from tuninglab.data.sample import Sample, plain_text
from tuninglab.data.sources import Splits
from tuninglab.embedded import base_directory
from tuninglab.evaluation.answers import generate_answers
from tuninglab.evaluation.encoded import EncodedPictures
from tuninglab.evaluation.own_data import Asked, OwnTask
from tuninglab.evaluation.questions import question_of
from tuninglab.evaluation.task import Task
from tuninglab.models.build import flamingo_from_parts, load_flamingo
from tuninglab.models.encoding import VISION_GROUP
from tuninglab.recipes.common import open_run, run_recipe
from tuninglab.recipes.recipe import Base, Recipe
from tuninglab.run_folder import RunFolder
from tuninglab.training.hardware import DTYPES, use_threads


def finetune(config: FinetuneConfig, task: Task | None = None) -> dict[str, Any]:
    """Tune a Flamingo and write its run folder, or compare; returns the figures of report.json.

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
        from tuninglab.comparison import compare_flamingo

        return compare_flamingo(config)
    return run_recipe(FLAMINGO, *open_run(config), task)


def open_data(config: FinetuneConfig) -> Task:
    """Read and check the samples that the settings name, or the embedded ones.

    Raises:
        UserError: a file or record is wrong; all records are checked.
    """
    if config.data is None:
        from tuninglab.embedded.scoring import EmbeddedTask

        say("No --data is given: tuning on the embedded questions about generated pictures.")
        return EmbeddedTask(config.embedded_pictures)
    return OwnTask(own_splits(config), asked)


def own_splits(config: FinetuneConfig) -> Splits:
    """Read and check the samples that the settings name.

    Raises:
        UserError: a file or record is wrong; all records are checked.
    """
    return read_splits(
        config.data or [],
        config.image_root,
        config.val_data,
        config.val_split,
        config.seed,
        config.skip_bad_records,
        config.mix,
        format=config.format,
        columns=columns_of(config.columns),
        keep_marks=config.keep_marks,
        check=pictures_checked(config.check),
    )


def asked(sample: Sample) -> list[Asked]:
    """The turns of a dialogue, as plain text."""
    texts = [plain_text(m).strip() for m in sample.messages if m["role"] != "system"]
    turns = [Asked(*turn, sample.kind) for turn in zip(texts[::2], texts[1::2], strict=True)]
    return [*turns[:-1], turns[-1]._replace(right=question_of(sample, "").scored(""))]


def load(config: FinetuneConfig, run: RunFolder, choices: Choices) -> Base:
    """Load the Flamingo that the settings name, or make one of its parts.

    Raises:
        UserError: there is no such model, its tokenizer does not fit the prompt, or bitsandbytes is
            asked for and missing.
    """
    tuning, new = config.tuning_config, config.lang_encoder is not None
    model, processor = load_model(config, run)
    # Of the processor too, so that one that is saved with a new base asks as the run does.
    processor.use_prompt(config.prompt)
    tokenizer, prompt = processor.tokenizer, processor.prompt
    # In groups of one size, as `evaluate` does, so that both come to the same answers.
    pictures = EncodedPictures(group=VISION_GROUP)

    def rows(samples: Sequence[Sample], features: FeatureCache | None = None) -> SampleDataset:
        skip = config.on_bad_picture == "skip"
        return SampleDataset(samples, processor, features=features, skip_bad=skip)

    def answer(
        tuned: Any,
        samples: Sequence[Sample],
        max_new_tokens: int,
        features: FeatureCache | None = None,
    ) -> list[str]:
        kept: dict[str, Any] = {"features": features, "pictures": pictures}
        return generate_answers(tuned, processor, samples, max_new_tokens=max_new_tokens, **kept)

    return Base(
        model,
        processor,
        None if new else config.model,
        train_fresh_bridge(tuning, choices) if new else tuning,
        rows,
        Collator(tokenizer.pad_token_id, processor.image_size),
        partial(count_tokens, tokenizer=tokenizer, prompt=prompt),
        partial(answer_ids, tokenizer=tokenizer, prompt=prompt),
        getattr(model.config.text_config, "max_position_embeddings", None),
        answer,
        counting_key(tokenizer, prompt),
        prompt.choice,
    )


def load_model(config: FinetuneConfig, run: RunFolder) -> tuple[Any, Any]:
    """Load the base model and its processor; frozen weights come quantised if they shall be.

    Raises:
        UserError: there is no such model, or bitsandbytes is asked for and missing.
    """
    dtype, quantization = DTYPES[config.precision], base_format_of(config)
    if config.lang_encoder and config.vision_encoder:
        # The bridge that the first start drew is in the run, and nowhere else.
        if run.resumed:
            return load_flamingo(run.path / "base", dtype, quantization)
        parts = (config.lang_encoder, config.vision_encoder, config.cross_attn_every_n_layers)
        return flamingo_from_parts(*parts, dtype, quantization)
    if config.model == "embedded":
        say("Base model: the small pre-trained Flamingo that ships with tuninglab (embedded).")
        return load_flamingo(base_directory(), dtype, quantization)
    return load_flamingo(config.model, dtype, quantization)


FLAMINGO = Recipe(SCOPE, open_data, load)
