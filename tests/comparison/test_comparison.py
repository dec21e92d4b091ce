import json
import sys
from dataclasses import replace

import pytest
import torch

from tuninglab import cli, comparison
from tuninglab.adapters import products
from tuninglab.adapters.products import FastLoraLinear
from tuninglab.comparison import results, timing, variants
from tuninglab.comparison.variants import AS_IT_IS, INT8, PLAIN, Variant, with_products
from tuninglab.comparison.workloads import FlamingoWorkload, TextWorkload
from tuninglab.config import FinetuneConfig, FlanT5Config
from tuninglab.errors import UserError
from tuninglab.int8.linear import Int8Linear
from tuninglab.kernels.products import FastLinear
from tuninglab.models import attention

CPU = torch.device("cpu")
SAVERS = ("norm", "glu", "attention", "loss", "embedding")


def fake_memory(variant, *_):
    split = dict.fromkeys(results.PARTS, 1.0)
    peak = 50.0 if variant.quantization == "int8" else 100.0
    figures = {"base_memory_mib": 1.0, "build_peak_mib": 1.0, "peak_memory_mib": peak}
    return figures | {"memory_split_mib": split}


@pytest.fixture
def small(monkeypatch):
    """Comparisons of small models, with memory made up: its processes have tests of their own."""
    monkeypatch.setattr(comparison, "measure_memory", fake_memory)
    monkeypatch.setattr(comparison, "TextWorkload", lambda tuning: TextWorkload().small())
    monkeypatch.setattr(comparison, "FlamingoWorkload", lambda tuning: FlamingoWorkload().small())


def without_bitsandbytes(monkeypatch):
    # None in sys.modules is how an import fails.
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)


@pytest.mark.slow
def test_compare_gives_one_object_with_rows_and_ratio(small, tmp_path, monkeypatch):
    without_bitsandbytes(monkeypatch)
    config = FlanT5Config(output_dir=str(tmp_path), rounds=2, precision="bf16")
    result = comparison.compare(config)
    names = [row["config"] for row in result["rows"]]
    assert names == [INT8, PLAIN, "fp32", "16-bit, same tricks", AS_IT_IS]
    (left_out,) = result["left_out"]
    assert left_out["config"] == "bitsandbytes int8"
    assert "pip install 'tuninglab[int8]'" in left_out["reason"]
    int8, plain, *_ = result["rows"]
    assert result["ratio"] == {"time": int8["time_ratio"], "memory": 0.5}
    for row in result["rows"]:
        # Two seeds of two timed rounds; the first step of each is warm-up.
        assert len(row["times_s"]) == 4 and len(row["warm_up_s"]) == 2
        assert [len(losses) for losses in row["losses"].values()] == [3, 3]
        assert row["step_s"] > 0 and row["epoch_s"] > 0
    assert "random" in result["workload"]["weights"]
    assert result["machine"]["threads"] == torch.get_num_threads()
    folder = tmp_path / "flan_t5_comparison"
    assert json.loads((folder / "comparison.json").read_text()) == result
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_finetune_compares_a_flamingo_and_prints_json_alone(small, tmp_path, monkeypatch, capsys):
    without_bitsandbytes(monkeypatch)
    flags = ["--compare", "--rounds", "1", "--precision", "fp32", "--json"]
    assert cli.main(["finetune", *flags, "--output_dir", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    # Plain is fp32 here, so there is no second fp32 row.
    assert [row["config"] for row in result["rows"]] == [INT8, PLAIN, "fp32, same tricks", AS_IT_IS]
    assert "Left out: bitsandbytes int8" in captured.err
    assert (tmp_path / "flamingo_comparison" / "comparison.png").is_file()


def test_a_setting_alone_is_measured_as_its_flags_have_it(small, tmp_path):
    config = FlanT5Config(precision="fp32", enable_int8=False, checkpoint_every=2)
    config.memory_savers = ["norm"]
    (row,) = comparison.measure_alone(config)["rows"]
    assert (row["config"], row["quantization"]) == (PLAIN, "none")
    assert (row["savers"], row["checkpoint_every"]) == (["norm"], 2)
    assert list(row["losses"]) == ["seed 0"]


def test_a_library_that_is_missing_is_told(monkeypatch):
    without_bitsandbytes(monkeypatch)
    with pytest.raises(UserError, match="pip install"):
        comparison.measure_alone(FlanT5Config(precision="fp32", quantization="bnb-int8"))


def test_rows_follow_the_flags_but_plain_is_what_a_run_is_by_itself():
    config = FlanT5Config(precision="bf16", checkpoint_every=2)
    rows = {row.config: row for row in comparison.rows_of(config, CPU)}
    assert rows[INT8] == Variant(INT8, "bf16", "int8", tuple(config.savers), 2)
    assert rows[PLAIN] == Variant(PLAIN, "bf16", savers=("norm", "loss"))
    nothing = Variant(AS_IT_IS, "bf16", products="torch", attention=False)
    assert rows[AS_IT_IS] == nothing
    tricks = rows["16-bit, same tricks"]
    assert tricks == replace(rows[INT8], config=tricks.config, quantization="none")
    assert rows["bitsandbytes int8"].quantization == "bnb-int8"
    assert all(row.precision != "fp16" for row in rows.values())
    with pytest.raises(UserError, match="fp16 does not work on a CPU"):
        comparison.rows_of(replace(config, precision="fp16"), CPU)
    on_gpu = variants.standard_rows(rows[INT8], rows[PLAIN], torch.device("cuda"))
    assert "fp16" in [row.precision for row in on_gpu]


def test_finetune_settings_have_both_rows_too():
    rows = comparison.rows_of(FinetuneConfig(precision="bf16"), CPU)
    assert [row.quantization for row in rows[:2]] == ["int8", "none"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "flamingo"])
def test_all_rows_are_one_model_and_learn_alike(small_bases, kind):
    rows = [
        Variant("plain", "fp32"),
        Variant("int8", "fp32", "int8"),
        Variant("savers", "fp32", "int8", SAVERS, 2),
    ]
    measured = timing.take_turns(rows, small_bases[kind], 5)
    plain = measured[0].losses
    for row in measured:
        for seed, losses in row.losses.items():
            assert losses == pytest.approx(plain[seed], abs=0.03)
            # It learns: the last two steps are on the same batches as the first two.
            assert losses[4] < losses[0] and losses[5] < losses[1]
    assert plain[0] != plain[1]


def test_rows_have_the_products_and_the_attention_of_a_run(small_bases, monkeypatch, capsys):
    bench, tried = small_bases["flamingo"], []
    monkeypatch.setattr(products, "SMALL", 1)
    monkeypatch.setattr(products, "faster", lambda shapes: tried.append(1) or (True, "tried"))
    monkeypatch.setattr(attention, "bf16_cpu", lambda: True)
    rows = [
        Variant("plain", "fp32"),
        Variant("plain, 16-bit", "bf16"),
        Variant("saver", "bf16", savers=("attention",)),
        Variant("as it is", "fp32", products="torch", attention=False),
        Variant("as it is, 16-bit", "bf16", attention=False),
    ]
    decided = with_products(rows, bench)
    assert [row.products for row in decided] == ["onednn", *["torch"] * 4]
    # Once for all rows.
    assert len(tried) == 1 and capsys.readouterr().err.count("products in float32: oneDNN") == 1
    for row in decided:
        model = row.build(bench, 0).state.model
        kinds = {type(module) for module in model.modules()}
        assert (FastLoraLinear in kinds) == (FastLinear in kinds) == (row.config == "plain")
        own = model.get_base_model().lang_encoder.config._attn_implementation == "sdpa"
        assert own == (row.config != "plain, 16-bit")


def test_a_build_has_the_layers_and_the_seed_that_were_asked_for(small_bases):
    bench = small_bases["text"]
    built = Variant("row", "bf16", "int8", SAVERS).build(bench, 0)
    layers = [m for m in built.state.model.modules() if isinstance(m, Int8Linear)]
    # Four in each attention (one in the encoder's layers, two in the decoder's), three beside.
    assert len(layers) >= 2 * (4 + 3) + 2 * (8 + 3)
    named = built.state.model.named_parameters()
    formats = {(p.requires_grad, p.dtype) for name, p in named if "scale" not in name}
    assert formats == {(True, torch.float32), (False, torch.bfloat16), (False, torch.int8)}
    weights = []
    for seed in (0, 0, 1):
        model = Variant("row", "fp32").build(bench, seed).state.model
        weights.append(torch.cat([p.flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


GIVEN = {
    "model": ["--model", "mine"],
    "data": ["--data", "mine.json"],
    "resume": ["--resume", "--run_name", "a"],
    "max_steps": ["--max_steps", "3"],
    "embedded_pictures": ["--embedded_pictures", "5"],
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_a_comparison_would_pass_over_is_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "compare_rows", lambda *a, **k: pytest.fail("measured"))
    words = ["--compare", "--output_dir", str(tmp_path), *GIVEN[name]]
    assert cli.main(["finetune", *words]) == 2
    said = capsys.readouterr().err
    assert f"it has no use for --{name}" in said and "leave --compare out to tune" in said
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_writes_into_no_run_and_over_none_that_was_named(tmp_path, monkeypatch):
    kept = {"rows": [], "ratio": {}}
    monkeypatch.setattr(comparison, "compare_rows", lambda *args: kept)
    monkeypatch.setattr(comparison, "draw_plot", lambda *args: args[-1].write_bytes(b"png"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text("batch_size: 2\n")
    config = FinetuneConfig(compare=True, output_dir=str(tmp_path))
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is no comparison: it holds config.yaml"):
            comparison.compare_flamingo(replace(config, run_name="a", overwrite=overwrite))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["config.yaml"]
    comparison.compare_flamingo(replace(config, run_name="b"))
    (tmp_path / "b" / "comparison.json").write_text("mine")
    with pytest.raises(UserError, match="b exists. Replace it: --overwrite"):
        comparison.compare_flamingo(replace(config, run_name="b"))
    assert (tmp_path / "b" / "comparison.json").read_text() == "mine"
    comparison.compare_flamingo(replace(config, run_name="b", overwrite=True))
    assert json.loads((tmp_path / "b" / "comparison.json").read_text()) == kept
    # The usual name is for the latest one.
    for _ in range(2):
        comparison.compare_flamingo(config)


def test_a_folder_that_cannot_be_made_is_told_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    config = FlanT5Config(output_dir=str(tmp_path / "file"))
    with pytest.raises(UserError, match="--output_dir"):
        comparison.compare(config)
