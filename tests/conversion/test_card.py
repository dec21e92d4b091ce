"""The model card: metadata that the hub's own loader reads, and foreign texts that stay texts."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from tuninglab.config import ExportConfig, FinetuneConfig
from tuninglab.config.yaml_file import config_yaml
from tuninglab.conversion.card import Exported, escaped, fenced, hub_id, write_card
from tuninglab.run_folder.named_model import NamedModel

CHECK = {"prompts": 8, "max_logit_difference": 1e-6, "answers_equal": 8}
SCORE = {"exact_match": 0.91, "val_loss": 0.1, "count": 40}
REPORT = {
    "run_name": "a",
    "task": "colours <b>&copy;</b>: [x](http://evil) | `y`\n# no heading",
    "data": {"train": 90, "val": 10, "skipped": 1},
    "base": "org/base",
    "precision": "bf16",
    "quantization": "int8",
    "train": {
        "steps": 3,
        "samples": 12,
        "tokens": 100,
        "wall_s": 1.5,
        "peak_memory_mib": 10.0,
        "trainable_parameters": 5,
    },
    "evaluation": {
        "before": SCORE | {"exact_match": 0.05},
        "after": SCORE,
        "controls": {"blank": {"exact_match": 0.1}, "shuffled": {"exact_match": 0.2}},
        "prior": {"exact_match": 0.3},
    },
}
EVALUATION = {
    "model": "a",
    "data": "test.jsonl",
    "count": 500,
    "shots": 4,
    "metrics": {"vqa_accuracy": {"value": 0.624, "low": 0.581, "high": 0.665}},
    "controls": {"blank": {"vqa_accuracy": {"value": 0.2}}, "shuffled": {}},
    "prior": {"vqa_accuracy": {"value": 0.31}},
}


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "run"
    (run / "evaluation" / "vqa").mkdir(parents=True)
    (run / "evaluation" / "broken").mkdir()
    (run / "config.yaml").write_text(config_yaml(FinetuneConfig()))
    (run / "report.json").write_text(json.dumps(REPORT))
    (run / "evaluation" / "vqa" / "report.json").write_text(json.dumps(EVALUATION))
    (run / "evaluation" / "broken" / "report.json").write_text("{")
    start = {"command": ["/x/bin/tuninglab", "finetune", "--data", "my ``` data.json"]}
    (run / "environment.json").write_text(json.dumps([start]))
    return run


def card_of(run, base="org/base", **flags):
    out = run.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    (out / "adapter_config.json").touch()
    named = NamedModel(base, run / "adapter", "run", "none", run)
    config = ExportConfig(run=str(run), out=str(out), **flags)
    write_card(out, Exported(config, named, "my model", "float32", CHECK))
    return ModelCard.load(out / "README.md")


def test_metadata_of_an_adapter(run):
    data = card_of(run, license="apache-2.0").data
    assert (data.library_name, data.pipeline_tag) == ("peft", "image-text-to-text")
    assert (data.base_model, data.to_dict()["base_model_relation"]) == ("org/base", "adapter")
    assert data.tags == ["flamingo", "tuninglab", "lora", "base_model:adapter:org/base"]
    assert data.license == "apache-2.0" and data.datasets is None
    results = {r.metric_type: r for r in data.eval_results}
    assert results["exact_match"].metric_value == 0.91
    assert results["vqa_accuracy"].metric_value == 0.624
    assert results["vqa_accuracy"].dataset_name == "test.jsonl"


def test_metadata_of_a_merged_model(run):
    data = card_of(run, merge=True).data
    assert data.library_name == "transformers" and data.license is None
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert data.tags[-1] == "base_model:finetune:org/base"


@pytest.mark.parametrize("base", ["embedded", "/some/where", "models/here"])
def test_a_base_that_is_no_hub_id_is_no_metadata(base, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "here").mkdir(parents=True)
    assert hub_id(base) is None
    data = card_of(run, base).data.to_dict()
    assert not {"base_model", "base_model_relation"} & data.keys()
    assert not any(tag.startswith("base_model") for tag in data["tags"])


def test_a_card_has_the_figures_of_its_run(run):
    text = card_of(run).text
    row = "| exact match, 40 questions | 5.0 % | 91.0 % | 10.0 % | 20.0 % | 30.0 % |"
    assert row in text
    assert "| validation loss | 0.1 | 0.1 | – | – | – |" in text
    row = r"| vqa | test.jsonl | 500 | 4 | vqa\_accuracy | 62.4 % | 58.1 % to 66.5 % | 20.0 % | – |"
    assert f"{row} 31.0 % |" in text
    assert "90 records to train, 10 to validate" in text
    assert "broken" not in text
    # A fence that what stands in it cannot close.
    assert "````bash\ntuninglab finetune --data 'my ``` data.json'\n````" in text
    # Tables are tables: no empty line within.
    assert re.search(r"\|---\|\n\| exact match.*\n\| validation", text)


def test_a_text_of_the_data_is_nothing_but_text(run):
    card = card_of(run)
    assert r"\<b\>\&copy;\</b\>\: \[x\](http\://evil) \| \`y\` \# no heading" in card.text
    assert "\n# no heading" not in card.text
    assert card.data.eval_results[0].dataset_name == REPORT["task"].replace("\n", " ")


def test_without_a_run_a_card_says_what_is_not_known(run):
    for name in ("report.json", "environment.json"):
        (run / name).unlink()
    shutil.rmtree(run / "evaluation")
    card = card_of(run)
    assert card.data.eval_results is None
    assert "Nothing was scored" in card.text and "The command is not known" in card.text


@given(st.text())
def test_no_mark_is_left_bare(text):
    shown = str(escaped(text))
    assert "\n" not in shown and shown.isprintable()
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_{}\[\]<>#|~&$!:@^=]", re.sub(r"\\.", "", shown))


@given(st.text(alphabet="`a\n"))
def test_no_block_of_code_is_closed_from_within(text):
    fence, *inside, last = str(fenced(text, "bash")).split("\n")
    marks = fence.removesuffix("bash")
    assert last == marks and "\n".join(inside) == text
    assert marks not in text
