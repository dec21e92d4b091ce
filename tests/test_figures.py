"""The numbers of README and docs are those of benchmarks/results, rounded as they are shown."""

import json
import re

import pytest

from tests.documents import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
INT8 = (ROOT / "docs" / "int8.md").read_text(encoding="utf-8")
RUNS = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def result(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def tables(page: str, head: str) -> list[list[list[str]]]:
    """The rows of all tables of a page whose head begins so, their bold taken out."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE):
        if block.startswith(f"| {head}"):
            rows = block.replace("**", "").splitlines()[2:]
            found.append([[cell.strip() for cell in row.strip("|").split("|")] for row in rows])
    assert found, head
    return found


def costs(rows: list[dict]) -> list[list[str]]:
    """Rows of a comparison as the pages write them."""
    return [
        [
            row["config"],
            row["precision"],
            f"{row['peak_memory_mib']:.0f} MiB",
            f"{row['memory_ratio']:.2f}",
            f"{row['time_ratio']:.2f} ({row['time_ratio_min']:.2f})",
        ]
        for row in rows
    ]


@pytest.mark.parametrize("page", [README, INT8], ids=["README", "int8.md"])
def test_the_int8_table_of_the_text_model(page):
    assert costs(result("flan_t5")["rows"]) == tables(page, "config | precision")[0]


def test_what_a_server_gives_to_many_clients():
    found = result("serving")
    rows = {(row["way"], row["clients"], row["pictures"]): row for row in found["rows"]}
    expected = []
    for pictures in (False, True):
        usual = rows["generate", 1, pictures]["tokens_per_s"]
        for clients in (1, 4, 16):
            ways = [rows[way, clients, pictures] for way in ("one_at_a_time", "together")]
            rates = [f"{row['tokens_per_s'] / usual:.2f}" for row in ways]
            waits = [
                f"{ways[1][f'first_token_s_{share}'] / ways[0][f'first_token_s_{share}']:.2f}"
                for share in ("p50", "p95")
            ]
            expected.append([str(clients), "one" if pictures else "none", *rates, *waits])
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert tables(page, "clients | pictures")[0] == expected
    memory = found["peak_memory_mib"]
    said = (
        f"held {memory['together']:,} MiB at most, that of one row {memory['one_at_a_time']:,} MiB"
    )
    assert said in " ".join(page.split())


def test_the_int8_table_of_the_flamingo():
    assert costs(result("flamingo_int8")["rows"]) == tables(INT8, "config | precision")[1]


def test_what_the_peak_is_made_of():
    parts = ["weights", "embeddings_head", "lora_gradients_optimizer", "activations", "logits"]
    expected = [
        [row["config"], *(f"{row['memory_split_mib'][part]:.0f}" for part in [*parts, "rest"])]
        for row in result("flan_t5")["rows"]
    ]
    assert expected == tables(INT8, "config | weights")[0]


FORMS = {
    "fp32": "fp32",
    "bf16, LoRA gradients by hand": "bf16, own backward",
    "bitsandbytes int8": "bitsandbytes int8",
    "int8 weights made float at each use": "dequantise at each use",
    "int8 (ours)": "int8",
}


def test_the_table_of_single_layers():
    rows = result("int8_layers")["rows"]
    (shown,) = tables(INT8, "out x in, tokens")
    assert [row[0] for row in shown] == list(FORMS)
    for name, *cells in shown:
        ratios = [f"{row['time_ratio']:.2f}" for row in rows if row["form"] == FORMS[name]]
        assert cells == ratios


def test_the_table_of_quality():
    summary = result("int8_quality")["summary"]
    (shown,) = tables(INT8, "tuned, seed 0 / seed 1")
    for kind, (_, exact, int8_exact, _, loss, int8_loss, gap, spread) in zip(
        ("flamingo", "t5"), shown, strict=True
    ):
        scores, losses = summary[kind]["exact_match"], summary[kind]["val_loss"]
        for cell, values, digits in (
            (exact, scores["16-bit"], 3),
            (int8_exact, scores["int8"], 3),
            (loss, losses["16-bit"], 4),
            (int8_loss, losses["int8"], 4),
        ):
            assert cell == " / ".join(f"{value:.{digits}f}" for value in values)
        assert (gap, spread) == (f"{losses['gap']:.4f}", f"{losses['seed_spread_16_bit']:.4f}")


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_the_table_of_the_demo():
    found = result("demo")
    scores = [run["report"]["evaluation"] for run in found["runs"]]

    def expected(pick) -> list[str]:
        """Of before, after with its spread, both controls and prior; `pick` takes one figure."""
        parts = [[s["before"] for s in scores], [s["after"] for s in scores]]
        parts += [[s["controls"][name] for s in scores] for name in ("blank", "shuffled")]
        cells = [[100 * pick(score) for score in part] for part in parts]
        cells.append([100 * pick(s["prior"]) for s in scores])
        text = [f"{mean(cell):.1f}" for cell in cells]
        text[1] += f" ({min(cells[1]):.1f}–{max(cells[1]):.1f})"
        return text

    (rows,) = tables(README, "exact match on 1,000")
    for name, *cells in rows:
        if name == "all questions":
            assert cells == expected(lambda score: score["exact_match"])
            continue
        split = "by_group" if name in scores[0]["after"]["by_group"] else "by_type"
        assert cells == expected(lambda score, n=name, s=split: score[s][n])
    # "the others reach 92 to 100", "the two hardest types are shown".
    shown = {row[0] for row in rows}
    by_type = found["summary"]["after_by_type"].items()
    others = [100 * values["mean"] for kind, values in by_type if kind not in shown]
    assert f"the others reach {min(others):.0f} to {max(others):.0f}" in README
    assert len(others) == len(by_type) - 2 and min(others) > max(
        100 * values["mean"] for kind, values in by_type if kind in shown
    )


def test_what_the_demo_costs():
    summary = result("demo")["summary"]
    said = [
        f"{values['mean']:.0f} s ({values['min']:.0f}–{values['max']:.0f})"
        for values in (summary["tuning_s"], summary["command_s"])
    ]
    text = " ".join(README.split())
    assert f"tuning took {said[0]}" in text
    assert f"the whole command {said[1]}" in text
    assert f"the adapter has {summary['adapter_kib']['mean']:.0f} KiB" in text


PEER = result("against_open_flamingo")["images"]


def test_the_paragraph_on_open_flamingo():
    def spread(row: str, name: str) -> str:
        values = [shape["rows"][row][name] for shape in PEER.values()]
        # Ratios are of times; the page tells of speed.
        values = [1 / value for value in values] if name.startswith("gen") else values
        return f"{min(values):.2f}–{max(values):.2f}"

    text = " ".join(README.split())
    step, memory, answers = "step_ratio_median", "memory_ratio", "gen_ratio_median"
    assert f"takes {spread('ours', step)} of its time" in text
    assert f"({spread('ours, features given', step)} with image features given)" in text
    assert f"and {spread('ours', memory)} of its memory" in text
    assert (
        f"generation is {spread('ours', answers)} times as fast, token for token the same" in text
    )
    int8 = [spread("ours, bf16, int8", name) for name in (step, memory, answers)]
    assert f"with an int8 base in bf16 {int8[0]}, {int8[1]} and {int8[2]} times" in text
    for shape in PEER.values():
        peer = shape["rows"]["peer"]
        for name in ("ours", "ours, features given"):
            row = shape["rows"][name]
            assert row["tokens_equal_to_the_peers"] == peer["tokens_equal_to_the_peers"] == 64
            assert abs(row["first_loss"] - peer["first_loss"]) < 1e-4


def test_the_table_beside_open_flamingo():
    (shown,) = tables(PERFORMANCE, "beside open_flamingo, ")
    assert [row[0] for row in shown] == [n.removeprefix("ours, ") for n in PEER["1"]["rows"]][1:]
    for name, *cells in shown:
        found = [
            shape["rows"].get(f"ours, {name}") or shape["rows"][name] for shape in PEER.values()
        ]
        speed = [f"{1 / r['gen_ratio_median']:.1f}x" for r in found if "gen_ratio_median" in r]
        assert cells == [
            " / ".join(f"{row['step_ratio_median']:.2f}" for row in found),
            " / ".join(f"{row['memory_ratio']:.2f}" for row in found),
            " / ".join(speed),
        ]


def test_the_table_of_busy_machines():
    (shown,) = tables(PERFORMANCE, "beside other work, ")
    rows = result("busy_machine")["rows"]
    ways = list(dict.fromkeys(row["way"] for row in rows))
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    assert [row[0] for row in shown] == ways
    for way, *cells in shown:
        ratios = [
            " / ".join(
                f"{r['ratio_to_idle']:.1f}" for r in rows if (r["way"], r["kind"]) == (way, kind)
            )
            for kind in kinds
        ]
        assert cells == ratios
    # What the project promises: the work that came later, and that was there before.
    assert all(row["ratio_to_idle"] <= 2.5 for row in rows if row["way"] != "torch as it is")


def test_the_table_of_costs():
    (shown,) = tables(README, "base | what")
    demo = [run["report"]["train"]["peak_memory_mib"] for run in result("demo")["runs"]]
    int8, plain = (row["peak_memory_mib"] for row in result("flamingo_int8")["rows"][:2])
    convert, tune, ask = (row["peak_own_mib"] for row in result("true_size")["rows"])
    memory = [f"{mean(demo):.0f} MiB", f"{int8:.0f} MiB"]
    memory += [f"{mib / 1024:.1f} GiB" for mib in (convert, tune, ask)]
    assert [row[2] for row in shown] == memory
    assert f"16 bits without int8: {plain:.0f} MiB" in shown[1][1]
    steps = result("true_size")["step_s"]
    least, most = f"{min(steps):.0f}", f"{max(steps):.0f}"
    spread = least if least == most else f"{least} to {most}"
    assert f"a step took {spread} s" in " ".join(README.split())


def test_the_table_of_own_data():
    (shown,) = tables(README, "exact match on held-out records")
    sets = result("own_data")["sets"]
    assert len(shown) == len(sets)
    for (name, *cells), found in zip(shown, sets.values(), strict=True):
        (run,) = found["runs"]
        assert f"{found['records']:,} records on {found['pictures']:,} pictures" in name
        order = ("before", "after", "blank", "shuffled", "prior")
        assert cells == [f"{100 * run[part]:.1f}" for part in order]
        # What the project promises of data that the base never saw.
        assert run["after"] >= max(run["prior"], run["blank"]) + 0.2 and run["command_s"] <= 300
    slowest = max(found["runs"][0]["command_s"] for found in sets.values())
    assert f"at most {slowest:.0f} s on 2 cores" in " ".join(README.split())


def test_the_first_step_on_large_data():
    found = result("large_data")
    sets = {
        "64 x 64 PNG": found["now"]["drawings"],
        "1024 x 768 JPEG": found["now"]["photographs"],
        "64 x 64 PNG, the commit before": found["before"]["drawings"],
    }
    expected = [
        [
            name,
            f"{of['cold']['first_step_s']:.1f} s",
            f"{of['warm']['first_step_s']:.1f} s",
            f"{of['bytes_a_record']:,} bytes",
        ]
        for name, of in sets.items()
    ]
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert expected == tables(page, "pictures | first start")[0]


def test_what_padding_costs():
    rows = result("packing")["rows"]
    mixed, demo = ([row["time_ratio"] for row in rows[name][1:]] for name in ("mixed", "demo"))
    page = " ".join((ROOT / "docs" / "data.md").read_text(encoding="utf-8").split())
    assert f"{mixed[0]:.2f} of the time of padded rows when grouped and {mixed[1]:.2f} when" in page
    assert f"nearly of one length, {demo[0]:.2f} and {demo[1]:.2f} (" in page
    assert f"({rows['mixed'][0]['padding']:.0%} of those was padding)".replace("%", " %") in page


def test_what_batches_and_shared_pictures_save():
    (engine,) = [row for row in result("evaluate")["rows"] if row["way"] == "engine"]
    low, high = engine["time_ratio_of_rounds"]
    page = " ".join((ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split())
    assert f"{engine['time_ratio']:.2f} ({low:.2f}–{high:.2f}) of the time" in page
    assert engine["answers_unlike_one_by_one"] == 0


def test_the_table_of_processes():
    expected = []
    for row in result("processes")["rows"]:
        alone, others = row["processes"] == 1, row["loading_peak_of_others_mib"]
        run = "1 process" if alone else f"{row['parallel']}, {row['processes']}"
        first = f"{row['loading_peak_mib']:.0f}"
        loading = first if others is None else f"{first} / {others:.0f}"
        mib = [f"{row[name]:.0f}" for name in ("training_peak_mib", "step_gathers_mib")]
        expected.append([row["base"], run, f"{row['weights_mib']:.0f}", loading, *mib])
    assert tables(SCALING, "base | run")[0] == expected


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_the_arithmetic_of_many_devices(kind):
    """From the sizes that the page counts to what each of 64 devices holds and sends."""
    column = ["bf16", "int8"].index(kind) + 1
    sizes = {row[0][0]: int(row[column].replace(",", "")) for row in tables(SCALING, "bytes of")[0]}
    whole, layers, tower, root, largest, gradients = (sizes[name] for name in "WLVRBG")
    expected = []
    for count in (1, 8, 16, 64):
        share = (count - 1) / count
        held = whole + 3 * gradients
        for_a_time = root + 2 * largest if count > 1 else 0
        received = share * (2 * (layers + root) + tower)
        figures = [held, 2 * share * gradients, held / count, for_a_time, received]
        digits = [2, 3, 2, 2, 2, 3]
        found = [
            f"{value / 2**30:.{digit}f}" if value else "0"
            for value, digit in zip([*figures, share * gradients], digits, strict=True)
        ]
        expected.append([kind, str(count), *found])
    rows = [row for row in tables(SCALING, "GiB a process")[0] if row[0] == kind]
    assert rows == expected


def test_the_table_of_kills():
    found = result("kills")
    kinds = found["kinds"]
    assert found["survived"] == found["tried"] == sum(kind["tried"] for kind in kinds.values())
    expected = [[name, f"{kind['survived']} of {kind['tried']}"] for name, kind in kinds.items()]
    rows = [cells for row in tables(RUNS, "run | survived")[0] for cells in (row[:2], row[2:])]
    assert [row for row in rows if any(row)] == expected
    assert f"{found['survived']} of {found['tried']} kills" in RUNS


def test_the_table_of_plans():
    found = result("plan")
    expected = [
        [
            row["name"],
            f"{row['planned_mib']:,.0f}",
            f"{row['measured_mib']:,.0f}",
            f"{row['memory_error']:+.0%}".replace("-", "−"),
            f"{row['step_error']:+.0%}".replace("-", "−"),
        ]
        for row in found["rows"]
    ]
    assert tables(RUNS, "run | planned")[0] == expected and len(expected) == 12
    assert all(abs(row["memory_error"]) <= 0.1 for row in found["rows"])
    large = found["9B"]
    assert f"{large['plan_s']:.0f} s and {large['plan_peak_mib'] / 1024:.1f} GiB" in RUNS
