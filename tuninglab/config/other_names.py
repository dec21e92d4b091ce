"""What settings are called elsewhere: LLaMA-Factory, Hugging Face, LLaVA."""

from collections.abc import Collection

# Where our name alone would mean another thing, with the value that theirs means.
OTHER_NAMES = {
    **dict.fromkeys(("model_name_or_path", "base_model", "pretrained_model_path"), "model"),
    **dict.fromkeys(("dataset", "dataset_path", "data_path", "train_file"), "data"),
    **dict.fromkeys(("eval_dataset", "validation_file"), "val_data"),
    **dict.fromkeys(("image_folder", "image_dir", "media_dir"), "image_root"),
    "val_size": "val_split",
    **dict.fromkeys(("lora_rank", "lora_r", "rank"), "tuning_config.r"),
    "lora_target": "tuning_config.lora_target_modules",
    "additional_target": "tuning_config.modules_to_save",
    **dict.fromkeys(("pissa_init", "lora_init"), "tuning_config.init_lora_weights"),
    **dict.fromkeys(("cutoff_len", "max_length", "model_max_length", "max_seq_len"), "max_tokens"),
    **dict.fromkeys(("load_in_8bit", "use_int8"), "enable_int8 true"),
    "load_in_4bit": "quantization bnb-nf4",
    "quantization_bit": "quantization",
    "bf16": "precision bf16",
    "fp16": "precision fp16",
    **dict.fromkeys(("eval_strategy", "evaluation_strategy"), "eval_steps"),
    "save_strategy": "save_steps",
    "load_best_model_at_end": "keep_best",
    "metric_for_best_model": "eval_metric",
    "early_stopping_patience": "patience",
    "warmup_ratio": "warmup_steps",
    "train_batch_size": "batch_size",
    "num_epochs": "epochs",
    "resume_from_checkpoint": "resume",
    "freeze_vision_tower": "tuning_config.freeze vision",
    "freeze_multi_modal_projector": "tuning_config.freeze perceiver",
    "tune_mm_mlp_adapter": "tuning_config.train perceiver",
    **dict.fromkeys(("mm_projector_lr", "mm_vision_tower_lr"), "tuning_config.part_learning_rates"),
}


def our_name(written: str, known: Collection[str]) -> str | None:
    """The setting that somebody means who writes another tool's name, or ours without its prefix.

    Args:
        written: a name that is none of ours.
        known: names of our settings, those inside another as `tuning_config.r`.

    Returns:
        Our name, with a value behind it where theirs is a switch; None where nothing is known.
    """
    ours = OTHER_NAMES.get(written)
    if ours and ours.split()[0] in known:
        return ours
    return next((name for name in known if name.endswith(f".{written}")), None)


def in_yaml(ours: str) -> str:
    """Our name, as `our_name` gives it, as it stands in a file."""
    name, _, value = ours.partition(" ")
    outer, _, inner = name.rpartition(".")
    line = f"{inner}: {value or '...'}"
    return f"{outer}: {{{line}}}" if outer else line
