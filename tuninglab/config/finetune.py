"""The settings of `finetune`: the source of its flags, YAML keys and help."""

import os
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from tyro.conf import Suppress

from tuninglab.config.checks import check, check_paths, check_positive
from tuninglab.config.data import DataFlag, ReadingConfig
from tuninglab.config.marks import Mark
from tuninglab.config.prompts import kept_prompt
from tuninglab.config.training import TrainingConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.errors import UserError

EVERY_N_LAYERS = 4  # OpenFlamingo-9B's interval
EMBEDDED_PICTURES = 1000


@dataclass
class FinetuneConfig(ReadingConfig, TrainingConfig):
    """Tune a Flamingo on pictures and dialogues; with no data named, on the embedded default."""

    recipe: Suppress[Literal["finetune"]] = "finetune"
    data: DataFlag = None
    """Training data, of any format in docs/data.md: files or folders. None: the embedded data."""
    embedded_pictures: int = EMBEDDED_PICTURES
    """Without --data: training pictures of the embedded data, each with three questions."""
    lang_encoder: Annotated[str | None, Mark.PATH] = None
    """Start from this plain language model instead (directory or hub id; with --vision_encoder)."""
    vision_encoder: Annotated[str | None, Mark.PATH] = None
    """Vision tower for --lang_encoder: CLIP, SigLIP or DINO (directory or hub id)."""
    cross_attn_every_n_layers: int = EVERY_N_LAYERS
    """With --lang_encoder: a gated block before every n-th decoder layer."""
    cache_features: Annotated[str | None, Mark.BARE, Mark.CHANGEABLE] = None
    """Compute once what frozen parts make of each picture, and read it from this folder. Without
    a value or auto: a folder for each model and precision in features/ of --output_dir."""
    group_by_length: bool = False
    """Records of like length in each step: less padding, with any model."""
    pack_tokens: int | None = None
    """Pack records into rows of up to so many tokens, where each sees itself alone: for records of
    mixed lengths. --batch_size counts such rows. On a CPU at most 1024: attention costs the square.
    """
    pack_images: int | None = None
    """With --pack_tokens: most pictures of a packed row. None: any number."""
    compare: bool = False
    """Train nothing but measure: time, memory and loss of int8 against 16-bit and others, on a
    Flamingo with random weights."""
    rounds: int = 5
    """With --compare: how often each configuration is measured, in turns."""
    tuning_config: TuningConfig = field(default_factory=TuningConfig)

    @property
    def is_demo(self) -> bool:
        """Whether everything is the embedded default."""
        return super().is_demo and self.lang_encoder is None

    def located(self) -> "FinetuneConfig":
        """As of all trainings; the folder of features, which need not exist yet, too.

        Raises:
            UserError: the prompt is neither a name nor a Jinja file.
        """
        # The text of a Jinja file, which may be gone or changed when the run goes on.
        config = replace(super().located(), prompt=kept_prompt(self.prompt))
        folder = self.cache_features
        if folder in (None, "auto"):
            return config
        return replace(config, cache_features=os.path.abspath(folder))

    def validate(self) -> None:
        """Check every range, and settings that exclude each other.

        Raises:
            UserError: naming the flag, the value given, what is expected and the remedy.
        """
        check_positive(self, "cross_attn_every_n_layers", "embedded_pictures", "rounds")
        check_positive(self, "pack_tokens", "pack_images")
        # Taken for folders, these would do what nobody meant.
        folder = (self.cache_features or "").lower() not in ("true", "false", "none")
        check(folder, "cache_features", self.cache_features, "auto, a folder, or no such flag")
        check_paths(self, "cache_features")
        super().validate()

    def _check_combinations(self) -> None:
        if self.compare:
            self._check_comparison()
        pair = (self.lang_encoder, self.vision_encoder)
        if (pair[0] is None) != (pair[1] is None):
            given = "--lang_encoder" if pair[0] is not None else "--vision_encoder"
            other = "--vision_encoder" if pair[0] is not None else "--lang_encoder"
            raise UserError(f"{given} is given without {other}. Give both, or only --model.")
        # Two bases at once: whichever won, somebody would have expected the other.
        if pair[0] is not None and self.model != "embedded":
            raise UserError("--model and --lang_encoder are both given. Give one of them.")
        frozen = {"gates", "perceiver", "cross_attention"} & set(self.tuning_config.freeze)
        if pair[0] is not None and frozen:
            raise UserError(
                f"--freeze names {min(frozen)}, but --lang_encoder gets a new Perceiver and new "
                "gated blocks, which answer nothing before they were trained. Leave it out."
            )
        if pair[0] is None and self.cross_attn_every_n_layers != EVERY_N_LAYERS:
            raise UserError(
                "--cross_attn_every_n_layers is given without --lang_encoder. A base model has its "
                "gated blocks already; leave the flag out."
            )
        if self.data is not None and self.embedded_pictures != EMBEDDED_PICTURES:
            raise UserError("--embedded_pictures is given with --data. Leave one of them out.")
        self._check_packing()
        super()._check_combinations()

    def _check_packing(self) -> None:
        if self.group_by_length and self.pack_tokens is not None:
            raise UserError(
                "--group_by_length and --pack_tokens are both given: packed rows have no padding "
                "to save. Give one of them."
            )
        if self.pack_images is not None and self.pack_tokens is None:
            raise UserError(
                "--pack_images is given without --pack_tokens. Add --pack_tokens 1024, or leave "
                "it out."
            )

    def _check_without_data(self) -> None:
        # The embedded data brings its own pictures.
        if self.image_root is not None:
            raise UserError("--image_root is given without --data. Name the training data too.")
        super()._check_without_data()
