"""Settings that were left open, decided by the size of the base and of the data, with the reason.

Small models take steps ten times as large as those of seven billion parameters, and can afford
to see few records several times. A setting that was given always stands.
"""

from dataclasses import replace
from typing import TypeVar

from tuninglab.config import TrainingConfig
from tuninglab.console import Choices

Config = TypeVar("Config", bound=TrainingConfig)

SMALL, LARGE = 100_000_000, 1_000_000_000
# Of bases below SMALL, below LARGE, and of all others. The first was chosen on the validation
# split of the embedded task, the last is what LoRA is tuned with at 7 B (Alpaca-LoRA: 3e-4,
# Multimodal-GPT: 1e-5 to 2e-4).
LEARNING_RATES = (3e-3, 1e-3, 2e-4)
BATCH_SIZES = (16, 8, 8)
# As many passes as show a small base about 10,000 records, a larger one 3,000, but not too many. On
# 2,400 questions about real pictures 5 passes answer as well as 8 (48.0 and 49.0 % of 200), with a
# lower validation loss and in less than half the time.
RECORDS_SEEN, MOST_EPOCHS = (10_000, 3_000, 3_000), (8, 3, 3)
# Answered before and after tuning, and twice more by the controls.
QUESTIONS = (200, 100, 24)


def decide(config: Config, parameters: int, records: int, choices: Choices) -> Config:
    """The settings with learning rate, batch size, passes and scored questions decided.

    Args:
        config: the settings; what is not None stays.
        parameters: of the base.
        records: of the training data.
        choices: where each decision is said and kept.
    """
    size = (parameters >= SMALL) + (parameters >= LARGE)
    base = f"for a base of {parameters / 1e6:,.1f} M parameters"
    decided = {}
    if config.learning_rate is None:
        decided["learning_rate"] = LEARNING_RATES[size]
        choices.add("learning rate", f"{LEARNING_RATES[size]:g}", base)
    if config.batch_size is None and config.pack_tokens:
        decided["batch_size"] = 1
        choices.add("batch size", "1", f"rows packed of up to {config.pack_tokens:,} tokens")
    elif config.batch_size is None:
        decided["batch_size"] = BATCH_SIZES[size]
        choices.add("batch size", str(BATCH_SIZES[size]), base)
    if config.epochs is None:
        # The embedded data is made to be seen once; there is as much of it as is asked for.
        wanted = -(-RECORDS_SEEN[size] // max(1, records)) if config.data else 1
        decided["epochs"] = max(1, min(MOST_EPOCHS[size], wanted))
        if config.max_steps is None:
            choices.add("epochs", str(decided["epochs"]), f"{records:,} records, {base}")
    if config.score_questions is None:
        decided["score_questions"] = QUESTIONS[size]
    return replace(config, **decided)
