import pytest

from tuninglab.comparison import results
from tuninglab.comparison.timing import Measured, ratio_of
from tuninglab.comparison.variants import INT8, PLAIN, Variant
from tuninglab.comparison.workloads import TextWorkload

SPLIT = dict.fromkeys(results.PARTS, 10.0)


def memory(peak):
    figures = {"base_memory_mib": 300.0, "build_peak_mib": 5.0, "peak_memory_mib": peak}
    return figures | {"memory_split_mib": SPLIT}


def rows():
    plain = Measured([9.0], [2.0, 4.0, 3.0], {0: [15.0, 14.0], 1: [15.0, 14.2]})
    int8 = Measured([8.0], [1.0, 3.0, 0.9], {0: [15.0, 14.1], 1: [15.0, 14.0]})
    variants = [
        Variant(INT8, "bf16", "int8", ("norm", "loss"), 2),
        Variant(PLAIN, "bf16"),
    ]
    made = [
        results.make_row(variant, TextWorkload(), measured, memory(peak))
        for variant, measured, peak in zip(variants, (int8, plain), (200.0, 800.0), strict=True)
    ]
    results.add_ratios(made, made[1])
    return made


def test_ratios_are_taken_round_by_round():
    # Rounds: 0.5, 0.75, 0.3; the median of the ratios is not the ratio of the medians (0.333).
    assert ratio_of([1.0, 3.0, 0.9], [2.0, 4.0, 3.0]) == (0.5, pytest.approx(0.45))


def test_rows_hold_what_the_numbers_come_to():
    int8, plain = rows()
    assert (plain["time_ratio"], plain["time_ratio_min"], plain["memory_ratio"]) == (1, 1, 1)
    assert (int8["time_ratio"], int8["time_ratio_min"]) == (0.5, 0.45)
    assert int8["memory_ratio"] == 0.25
    assert (plain["step_s"], plain["step_s_min"]) == (3.0, 2.0)
    # 8000 samples in batches of 8; a step reads 8 x (256 + 64) tokens.
    assert plain["epoch_s"] == 3000.0
    assert plain["s_per_1k_tokens"] == pytest.approx(3000 / 2560, abs=1e-4)
    assert int8["loss_gap"] == pytest.approx((0.1 + 0.2) / 2)
    assert results.seed_spread(plain) == pytest.approx(0.2)
    assert int8["losses"] == {"seed 0": [15.0, 14.1], "seed 1": [15.0, 14.0]}
    assert (int8["savers"], int8["checkpoint_every"]) == (["norm", "loss"], 2)


def test_the_table_and_its_notes_say_random_and_name_every_row(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    machine = {"cpu": "A CPU", "threads": 2, "int8": ["vnni"], "bf16": []}
    result = {
        "rows": rows(),
        "loss": {"gap": 0.15, "seed_spread": 0.2},
        "workload": results.describe_workload(TextWorkload(), 77, 5),
        "machine": machine | {"load_before": 0.1, "load_after": 2.0},
    }
    results.print_table(result)
    shown = capsys.readouterr().err
    for part in ("random weights", INT8, PLAIN, "0.50 (0.45)", "50:00", "14.000 14.200"):
        assert part in shown
    assert "…" not in shown
    text = "\n".join(results.notes(result))
    assert f"{INT8}: bf16, int8 base, norm, loss, checkpoint_every 2." in text
    assert f"{PLAIN}: bf16." in text
    for part in ("random", "8000 samples, 1000 steps", "16-bit is bf16", "A CPU", "int8: vnni"):
        assert part in text
    assert "bf16: -" in text


def test_plain_fp32_is_not_called_16_bit():
    made = rows()
    made[1]["precision"] = "fp32"
    machine = dict.fromkeys(("cpu", "threads", "load_before", "load_after"), 1)
    result = {
        "rows": made,
        "loss": {"gap": 0.0, "seed_spread": 0.0},
        "workload": results.describe_workload(TextWorkload(), 77, 5),
        "machine": machine | {"int8": [], "bf16": []},
    }
    assert "enable_int8 = False is fp32" in "\n".join(results.notes(result))


def test_the_plot_is_a_png_and_the_same_every_time(tmp_path):
    images = []
    for number, title in enumerate(("random weights", "random weights", "other")):
        results.draw_plot(rows(), title, tmp_path / f".{number}.writing")
        images.append((tmp_path / f".{number}.writing").read_bytes())
    assert images[0].startswith(b"\x89PNG\r\n")
    assert images[0] == images[1] != images[2]
