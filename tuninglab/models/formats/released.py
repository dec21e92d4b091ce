"""The released models that checkpoints can be: what tells them apart, and what they belong to."""

from dataclasses import dataclass

from tuninglab.models.formats.layout import Layout

CLIP = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class Released:
    """A released model.

    Attributes:
        name: as its authors published it.
        format: how `Layout.format` begins.
        family: model_type of its language model in transformers (mosaic_gpt is not there).
        width, layers: of its language model.
        interval: a gated block before every n-th layer.
        rows: rows of its token table; None for an adapter, which has none.
        lang_encoder: hub id of the language model that it was trained with, or where to get it.
        note: what a user must know besides.
        vision_encoder: hub id of its vision tower.
    """

    name: str
    format: str
    family: str
    width: int
    layers: int
    interval: int
    rows: int | None
    lang_encoder: str
    note: str = ""
    vision_encoder: str = CLIP


MOSAIC = (
    "its language model is a MosaicGPT, which transformers does not have (its attention normalises "
    "queries and keys, MPT's does not). --trust_remote_code runs the code in a directory of the "
    "language model, but its decoder layers may not be found: that code is older than transformers "
    "5, and no other model of transformers computes the same"
)

# OpenFlamingo 2.0.1, README and factory.py. Rows: 32000 + 3 of LLaMA's tokenizer, 50277 + 3 of
# GPT-NeoX's; the counts of trained parameters in public logs agree.
RELEASED = (
    Released(
        "OpenFlamingo-9B (v1, now OpenFlamingo-9B-deprecated)",
        "open_flamingo",
        *("llama", 4096, 32, 4, 32003),
        lang_encoder="huggyllama/llama-7b",
    ),
    Released(
        "OpenFlamingo-9B-vitl-mpt7b",
        "open_flamingo",
        *("mpt", 4096, 32, 4, 50280),
        lang_encoder="anas-awadalla/mpt-7b",
    ),
    Released(
        "OpenFlamingo-4B-vitl-rpj3b",
        "open_flamingo",
        *("gpt_neox", 2560, 32, 2, 50280),
        lang_encoder="togethercomputer/RedPajama-INCITE-Base-3B-v1",
    ),
    Released(
        "OpenFlamingo-4B-vitl-rpj3b-langinstruct",
        "open_flamingo",
        *("gpt_neox", 2560, 32, 2, 50280),
        lang_encoder="togethercomputer/RedPajama-INCITE-Instruct-3B-v1",
    ),
    Released(
        "OpenFlamingo-3B-vitl-mpt1b",
        "open_flamingo",
        *("mosaic_gpt", 2048, 24, 1, 50280),
        lang_encoder="anas-awadalla/mpt-1b-redpajama-200b",
        note=MOSAIC,
    ),
    Released(
        "OpenFlamingo-3B-vitl-mpt1b-langinstruct",
        "open_flamingo",
        *("mosaic_gpt", 2048, 24, 1, 50280),
        lang_encoder="anas-awadalla/mpt-1b-redpajama-200b-dolly",
        note=MOSAIC,
    ),
    Released(
        "mmgpt-lora-v0-release.pt",
        "multimodal_gpt",
        *("llama", 4096, 32, 4, None),
        lang_encoder="huggyllama/llama-7b",
        note="it is a LoRA on OpenFlamingo-9B (v1): convert that first and name it as --model",
    ),
    # Otter 2024-03: LLaMA's tokenizer with four tokens; MPT's table is padded and not resized.
    Released(
        "Otter around LLaMA-7B (OTTER-9B, OTTER-Image-LLaMA7B-LA-InContext)",
        "otter",
        *("llama", 4096, 32, 4, 32004),
        lang_encoder="huggyllama/llama-7b",
    ),
    Released(
        "Otter around MPT-7B (OTTER-Image-MPT7B)",
        "otter",
        *("mpt", 4096, 32, 4, 50432),
        lang_encoder="mosaicml/mpt-7b-instruct",
    ),
)


def matching(layout: Layout) -> list[Released]:
    """The released models of this shape; some were published twice, with other language models."""
    # MosaicGPT names its layers as MPT does.
    families = {layout.family, "mosaic_gpt"} if layout.family == "mpt" else {layout.family}
    return [
        model
        for model in RELEASED
        if layout.format.startswith(model.format)
        and model.family in families
        and model.width == layout.width
        and (model.rows is None or layout.rows in (None, model.rows))
        and layout.gated_layers == list(range(model.interval - 1, model.layers, model.interval))
    ]


def right_parts(layout: Layout) -> str:
    """Which language model and tower a checkpoint needs, in words."""
    found = matching(layout)
    if found:
        names = " or ".join(model.name for model in found)
        models = " or ".join(model.lang_encoder for model in found)
        notes = dict.fromkeys(model.note for model in found if model.note)
        after = "".join(f"; {note}" for note in notes)
        return (
            f"The file has the shape of {names}: --lang_encoder {models}, --vision_encoder "
            f"{found[0].vision_encoder}{after}"
        )
    rows = "" if layout.rows is None else f" and a token table of {layout.rows} rows"
    last = layout.gated_layers[-1] + 1
    most = last + (layout.interval or 1) - 1
    layers = f"{last}" if most == last else f"{last} to {most}"
    return (
        f"The right language model is a {layout.family} {layout.width} wide with {layers} layers"
        f"{rows}; the right tower is {layout.media_width} wide"
    )
