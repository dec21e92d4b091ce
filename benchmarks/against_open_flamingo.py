"""Train step and generation against open_flamingo 2.0.1 with peft, on the same weights.

    python benchmarks/against_open_flamingo.py --rounds 5

Needs an environment that has open_flamingo==2.0.1, einops_exts, open_clip_torch==2.16.0 and
torchvision beside tuninglab; it is no dependency of ours. The peer and our side in several settings
run interleaved in one process; ours are built and trained as `tuninglab finetune` does. Peak memory
is that of a process of its own for each: the highest RSS in its second step over the RSS after the
imports; on a GPU what torch allocated there in that step. In float32 losses and texts must be the
peer's; of other settings it is written down how many tokens are (weights are random, so that all
tokens are nearly as likely). Writes benchmarks/results/against_open_flamingo.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "against_open_flamingo.json"
sys.path.insert(0, str(ROOT))

EOC, IMAGE, PAD, ROWS = 32000, 32001, 32002, 32003
INTERVAL, BATCH, TOKENS, ANSWER_TOKENS, NEW_TOKENS = 2, 2, 128, 32, 32
TEXT = {
    "model_type": "llama",
    "vocab_size": ROWS,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "pad_token_id": PAD,
}
VISION = {"image_size": 224, "patch_size": 14, "width": 384, "layers": 6, "head_width": 64}
# Kept for as long as the process: what it defines goes with it.
TORCHVISION = torch.library.Library("torchvision", "DEF")


class Side(NamedTuple):
    """Our settings; `features`: what the frozen parts make of the pictures is given, as cached."""

    precision: str = "fp32"
    int8: bool = False
    least_memory: bool = False
    features: bool = False


OURS = {
    "ours": Side(),
    "ours, features given": Side(features=True),
    "ours, all savers, blocks checkpointed": Side(least_memory=True),
    "ours, bf16": Side("bf16"),
    "ours, bf16, int8": Side("bf16", int8=True),
    "ours, bf16, int8, features given": Side("bf16", int8=True, features=True),
    "ours, bf16, int8, blocks checkpointed": Side("bf16", int8=True, least_memory=True),
}
SIDES = ("peer", *OURS)
# What a model made of pictures, by the model and their number a row.
FEATURES: dict[tuple[int, int], torch.Tensor] = {}


def import_peer() -> None:
    """Import open_flamingo, also where torchvision's compiled part does not fit this torch.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        # Only Python parts of torchvision are used, but its import asks for these two operators.
        for name in ("nms", "qnms"):
            TORCHVISION.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        import open_flamingo  # noqa: F401
    except ImportError as error:
        sys.exit(
            f"{error}. Into an environment of its own: pip install --no-deps open_flamingo==2.0.1 "
            "einops_exts open_clip_torch==2.16.0 torchvision; pip install einops ftfy sentencepiece"
        )


def peer_model() -> Any:
    """A random OpenFlamingo with open gates, frozen, built as its own factory does."""
    from open_clip.model import CLIP
    from open_flamingo.src.flamingo import Flamingo
    from open_flamingo.src.flamingo_lm import FlamingoLMMixin
    from open_flamingo.src.utils import extend_instance
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    text_tower = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
    clip = CLIP(embed_dim=256, vision_cfg=VISION, text_cfg=text_tower, quick_gelu=True)
    clip.visual.output_tokens = True
    lang = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TEXT))
    extend_instance(lang, FlamingoLMMixin)
    lang.set_decoder_layers_attr_name("model.layers")
    model = Flamingo(
        clip, lang, EOC, IMAGE, vis_dim=VISION["width"], cross_attn_every_n_layers=INTERVAL
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad = False
        if name.endswith("_gate"):
            parameter.fill_(0.5)
    return model


def save_ours(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Save the same weights as a tuninglab Flamingo."""
    from transformers import CLIPVisionConfig

    from tuninglab import FlamingoConfig, FlamingoForConditionalGeneration
    from tuninglab.models.formats.filling import fill
    from tuninglab.models.formats.layout import Checkpoint
    from tuninglab.models.formats.open_flamingo import describe

    vision = CLIPVisionConfig(
        hidden_size=VISION["width"],
        intermediate_size=4 * VISION["width"],
        num_hidden_layers=VISION["layers"],
        num_attention_heads=VISION["width"] // VISION["head_width"],
        image_size=VISION["image_size"],
        patch_size=VISION["patch_size"],
        hidden_act="quick_gelu",
    )
    config = FlamingoConfig(
        text_config=TEXT,
        vision_config=vision,
        cross_attn_every_n_layers=INTERVAL,
        image_token_id=IMAGE,
        eoc_token_id=EOC,
    )
    model = FlamingoForConditionalGeneration(config)
    fill(model, weights, describe(Checkpoint("the peer's weights", weights)).keys)
    model.save_pretrained(folder)


def make_batch(images: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Rows of 128 tokens with their images, 32 answer tokens labelled, one row padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, EOC, (BATCH, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    # Its language model insists on a mask, which transformers leaves out where nothing is padded.
    ids[0, :2], mask[0, :2] = PAD, 0
    for number in range(images):
        ids[:, 3 + number * ((TOKENS - ANSWER_TOKENS - 3) // images)] = IMAGE
    labels = torch.full_like(ids, -100)
    labels[:, -ANSWER_TOKENS:] = ids[:, -ANSWER_TOKENS:]
    size = VISION["image_size"]
    pixels = torch.randn(BATCH, images, 1, 3, size, size, generator=generator)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": pixels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def peer_side(peer: Any) -> tuple[Callable[..., float], Callable[..., Any]]:
    """Train step and generation of the peer, with peft's LoRA as Multimodal-GPT puts it."""
    from peft import LoraConfig, get_peft_model

    from tuninglab.config.tuning import TuningConfig

    ours = TuningConfig()
    lora = LoraConfig(
        r=ours.r, lora_alpha=ours.lora_alpha, target_modules=list(ours.lora_target_modules)
    )
    peer.lang_encoder = get_peft_model(peer.lang_encoder, lora)

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids, mask, labels = (batch[n] for n in ("input_ids", "attention_mask", "labels"))
        return peer(batch["pixel_values"], ids, attention_mask=mask, labels=labels).loss

    def generate(batch: dict[str, torch.Tensor], **options: Any) -> Any:
        mask = batch["attention_mask"]
        # Its generate sets this on peft's wrapper, where its layers do not find it: they would see
        # no image after the prompt, and say something else (found by the comparison of texts).
        lang = peer.lang_encoder.get_base_model()
        lang._use_cached_vision_x = True
        try:
            return peer.generate(
                batch["pixel_values"], batch["input_ids"], attention_mask=mask, **options
            )
        finally:
            lang._use_cached_vision_x = False

    return stepper(peer, loss), generate


def our_side(
    base: Path, side: Side, device: torch.device
) -> tuple[Callable[..., float], Callable[..., Any] | None]:
    """Train step and generation of tuninglab, with what its commands choose by themselves."""
    from tuninglab.comparison import variant_of
    from tuninglab.comparison.variants import with_products
    from tuninglab.comparison.workloads import Bench, FlamingoWorkload
    from tuninglab.config import FinetuneConfig
    from tuninglab.config.tuning import TuningConfig
    from tuninglab.data.batches import Batch

    config = FinetuneConfig(enable_int8=side.int8)
    if side.least_memory:
        savers = FinetuneConfig(enable_int8=True).savers
        config = FinetuneConfig(
            enable_int8=side.int8, memory_savers=savers, activation_checkpointing=True
        )
    # The gates stay frozen, as the peer's.
    bench = Bench(FlamingoWorkload(tuning=TuningConfig(train_gates=False)), base, device)
    (variant,) = with_products([variant_of(config, "ours", side.precision)], bench)
    training = variant.build(bench, 0)
    model: Any = training.state.model

    def step(batch: dict[str, torch.Tensor]) -> float:
        given, answers = inputs(model.get_base_model(), batch, side), BATCH * ANSWER_TOKENS
        return training.step(Batch(given, [""] * BATCH, answers, BATCH * TOKENS, BATCH))

    # Checkpointing is for training; what is read from the disk for answers knows nothing of it.
    return step, None if side.least_memory else our_generation(base, model, side, device)


def our_generation(base: Path, tuned: Any, side: Side, device: torch.device) -> Callable[..., Any]:
    """Generation as a chat has it: the base and its adapter from the disk, LoRA apart."""
    from tuninglab.adapters.base_format import TOWERS
    from tuninglab.adapters.products import choose_products, use_onednn
    from tuninglab.adapters.saving import load_adapter
    from tuninglab.console import Choices
    from tuninglab.int8.quantiser import Int8Config
    from tuninglab.models.flamingo import FlamingoForConditionalGeneration
    from tuninglab.training.hardware import DTYPES

    adapter = base / "adapter"
    tuned.save_pretrained(adapter)
    quantised = {"quantization_config": Int8Config(TOWERS, head=True)} if side.int8 else {}
    dtype = DTYPES[side.precision]
    flamingo = FlamingoForConditionalGeneration.from_pretrained(base, dtype=dtype, **quantised)
    flamingo.requires_grad_(False).to(device)
    onednn = choose_products("auto", flamingo, dtype, Choices()) == "onednn"
    model = load_adapter(flamingo, adapter).eval()
    if onednn:
        use_onednn(model)

    def generate(batch: dict[str, torch.Tensor], **options: Any) -> Any:
        given = inputs(flamingo, batch, side)
        return model.generate(**{k: v for k, v in given.items() if k != "labels"}, **options)

    return generate


def inputs(flamingo: Any, batch: dict[str, torch.Tensor], side: Side) -> dict[str, torch.Tensor]:
    """The batch as our model takes it: pictures, or what its frozen parts make of them."""
    rest = {name: value for name, value in batch.items() if name != "pixel_values"}
    pixels = batch["pixel_values"].to(flamingo.dtype)
    if not side.features:
        return {**rest, "pixel_values": pixels}
    key = id(flamingo), pixels.shape[1]
    if key not in FEATURES:
        with torch.no_grad():
            FEATURES[key] = flamingo.encode_images(pixels)
    return {**rest, "image_features": FEATURES[key]}


def stepper(model: Any, loss_of: Callable[..., torch.Tensor]) -> Callable[..., float]:
    """One optimizer step on the trainable parameters, as both projects' loops do it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step(batch: dict[str, torch.Tensor]) -> float:
        model.train()
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.eval()
        return loss.item()

    return step


def build(
    base: Path, device: torch.device, sides: tuple[str, ...] = SIDES
) -> dict[str, tuple[Callable[..., float], Any]]:
    """The named sides on a device, on equal weights: the peer's, and those saved at `base`."""
    built = {name: our_side(base, OURS[name], device) for name in sides if name in OURS}
    return {"peer": peer_side(peer_model().to(device)), **built} if "peer" in sides else built


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure_time(base: Path, images: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds of a train step and of a generation on every side, interleaved."""
    sides, batch = build(base, device), make_batch(images, device)
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    options |= {"suppress_tokens": [IMAGE], "eos_token_id": EOC}
    generations = {name: make for name, (_, make) in sides.items() if make is not None}
    with torch.no_grad():
        texts = {name: make(batch, **options) for name, make in generations.items()}
    same = {
        name: int((text == texts["peer"])[:, -NEW_TOKENS:].sum()) for name, text in texts.items()
    }
    losses = {name: step(batch) for name, (step, _) in sides.items()}
    for name in ("peer", *(name for name, side in OURS.items() if side.precision == "fp32")):
        assert same.get(name) in (None, BATCH * NEW_TOKENS), f"{name} says something else"
        # The leanest keeps int8 rows of activations: its forward pass is exact all the same.
        assert abs(losses[name] - losses["peer"]) < 1e-3, f"{name} has another loss"
    times: dict[str, dict[str, list[float]]] = {name: {"step": []} for name in sides}
    times |= {name: {"step": [], "gen": []} for name in generations}
    for _ in range(rounds):
        for name, (step, _) in sides.items():
            times[name]["step"].append(timed(lambda step=step: step(batch)))
        for name, make in generations.items():
            with torch.no_grad():
                times[name]["gen"].append(timed(lambda make=make: make(batch, **options)))
    return {"first_loss": losses, "tokens_equal_to_the_peers": same, "times_s": times}


def child_peak(base: Path, side: str, images: int, device: torch.device) -> None:
    """In a process of its own: print MiB of the highest RSS in the second step over imports."""
    import_peer()
    import peft  # noqa: F401

    import tuninglab.comparison  # noqa: F401

    before = _status_mib("VmRSS")
    ((step, generate),) = build(base, device, (side,)).values()
    del generate  # and its model
    batch = make_batch(images, device)
    step(batch)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step(batch)
        peak_mib = torch.cuda.max_memory_allocated() / 2**20
        return print(json.dumps({"peak_mib": round(peak_mib, 1)}))
    # Linux: writing 5 sets the high-water mark to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    step(batch)
    print(json.dumps({"peak_mib": round(_status_mib("VmHWM") - before, 1)}))


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def measure_peak(base: Path, side: str, images: int, device: torch.device) -> float:
    """Peak memory of one side in MiB."""
    command = [sys.executable, __file__, "--child", side, "--images", str(images)]
    command += ["--base", str(base), "--device", str(device)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.strip().splitlines()[-1])["peak_mib"]


def summary(measured: dict[str, Any], peaks: dict[str, float]) -> dict[str, Any]:
    """Ratios to the peer, of medians and of lowest times, and what they are made of."""
    rows: dict[str, Any] = {}
    peer = measured["times_s"]["peer"]
    for name, times in measured["times_s"].items():
        row = {"first_loss": measured["first_loss"][name], "peak_mib": peaks[name]}
        row["memory_ratio"] = round(peaks[name] / peaks["peer"], 3)
        for kind, values in times.items():
            row[f"{kind}_s"] = [round(value, 3) for value in values]
            for label, pick in (("median", statistics.median), ("min", min)):
                row[f"{kind}_ratio_{label}"] = round(pick(values) / pick(peer[kind]), 3)
        if "gen" in times:
            row["tokens_per_s"] = round(BATCH * NEW_TOKENS / statistics.median(times["gen"]), 1)
            row["tokens_equal_to_the_peers"] = measured["tokens_equal_to_the_peers"][name]
        rows[name] = row
    return rows


def main() -> None:
    """Measure all numbers of images and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    device = options.device
    if options.child:
        return child_peak(options.base, options.child, options.images[0], device)
    import_peer()
    from tuninglab.comparison.machine import describe_machine, load_average
    from tuninglab.run_folder import versions

    results: dict[str, Any] = {
        "command": "python benchmarks/against_open_flamingo.py " + " ".join(sys.argv[1:]),
        "machine": describe_machine(device),
        "versions": {**versions(), "open_flamingo": version("open_flamingo")},
        "work": {"batch": BATCH, "tokens": TOKENS, "answer_tokens": ANSWER_TOKENS, "text": TEXT},
        "images": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        save_ours(dict(peer_model().state_dict()), base)
        for images in options.images:
            peaks = {side: measure_peak(base, side, images, device) for side in SIDES}
            load = load_average()
            rows = summary(measure_time(base, images, options.rounds, device), peaks)
            results["images"][str(images)] = {"load_before": load, "rows": rows}
            print(json.dumps(results["images"][str(images)], indent=1), file=sys.stderr)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
