"""The released models that checkpoints can be: what tells them apart, and what they belong to."""

from dataclasses import dataclass

from tuninglab.models.formats.layout import Layout

CLIP = "openai/clip-vit-large-patch14"
LLAMA = "huggyllama/llama-7b"
REDPAJAMA = "togethercomputer/RedPajama-INCITE"
MPT_1B = "anas-awadalla/mpt-1b-redpajama-200b"


@dataclass(frozen=True)
class Released:
    """Released models of one shape; some were published twice, with other language models.

    Attributes:
        format: how `Layout.format` begins.
        family: model_type of the language model in transformers (mosaic_gpt is not there).
        width, layers: of the language model.
        interval: a gated block before every n-th layer.
        rows: rows of the token table; None for an adapter, which has none.
        lang_encoders: by the name that its authors gave a model, the hub id of the language model
            that it was trained with.
        note: what a user must know besides.
    """

    format: str
    family: str
    width: int
    layers: int
    interval: int
    rows: int | None
    lang_encoders: dict[str, str]
    note: str = ""


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
        *("open_flamingo", "llama", 4096, 32, 4, 32003),
        {"OpenFlamingo-9B (v1, now OpenFlamingo-9B-deprecated)": LLAMA},
    ),
    Released(
        *("open_flamingo", "mpt", 4096, 32, 4, 50280),
        {"OpenFlamingo-9B-vitl-mpt7b": "anas-awadalla/mpt-7b"},
    ),
    Released(
        *("open_flamingo", "gpt_neox", 2560, 32, 2, 50280),
        {
            "OpenFlamingo-4B-vitl-rpj3b": f"{REDPAJAMA}-Base-3B-v1",
            "OpenFlamingo-4B-vitl-rpj3b-langinstruct": f"{REDPAJAMA}-Instruct-3B-v1",
        },
    ),
    Released(
        *("open_flamingo", "mosaic_gpt", 2048, 24, 1, 50280),
        {
            "OpenFlamingo-3B-vitl-mpt1b": MPT_1B,
            "OpenFlamingo-3B-vitl-mpt1b-langinstruct": f"{MPT_1B}-dolly",
        },
        MOSAIC,
    ),
    Released(
        *("multimodal_gpt", "llama", 4096, 32, 4, None),
        {"mmgpt-lora-v0-release.pt": LLAMA},
        "it is a LoRA on OpenFlamingo-9B (v1): convert that first and name it as --model",
    ),
    # Otter 2024-03: LLaMA's tokenizer with four tokens; MPT's table is padded and not resized.
    Released(
        *("otter", "llama", 4096, 32, 4, 32004),
        {"Otter around LLaMA-7B (OTTER-9B, OTTER-Image-LLaMA7B-LA-InContext)": LLAMA},
    ),
    Released(
        *("otter", "mpt", 4096, 32, 4, 50432),
        {"Otter around MPT-7B (OTTER-Image-MPT7B)": "mosaicml/mpt-7b-instruct"},
    ),
)


def matching(layout: Layout) -> list[Released]:
    """The released models of this shape."""
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


def released_as(layout: Layout) -> str | None:
    """Names of the released models that a checkpoint has the shape of, in words."""
    return " or ".join(name for model in matching(layout) for name in model.lang_encoders) or None


def right_parts(layout: Layout) -> str:
    """Which language model and tower a checkpoint needs, in words."""
    found = matching(layout)
    if found:
        models = " or ".join(lang for model in found for lang in model.lang_encoders.values())
        notes = dict.fromkeys(model.note for model in found if model.note)
        after = "".join(f"; {note}" for note in notes)
        return (
            f"The file has the shape of {released_as(layout)}: --lang_encoder {models}, "
            f"--vision_encoder {CLIP}{after}"
        )
    rows = "" if layout.rows is None else f" and a token table of {layout.rows} rows"
    return (
        f"The right language model is a {layout.family} {layout.width} wide with "
        f"{layout.layers_told} layers{rows}; the right tower is {layout.media_width} wide"
    )
