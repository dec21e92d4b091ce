import shutil

import pytest
import torch

from tuninglab import cli
from tuninglab.config import FinetuneConfig
from tuninglab.config_file import config_yaml
from tuninglab.errors import UserError
from tuninglab.serving.open_model import open_model


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7]])).logits


def test_a_run_is_its_base_with_its_adapter(model_directory, run_folder):
    base, _ = open_model(str(model_directory))
    tuned, processor = open_model(str(run_folder))
    assert not base.training and not tuned.training
    assert processor.image_token == "<image>"
    assert not torch.allclose(logits(base), logits(tuned))
    with tuned.disable_adapter():
        assert torch.equal(logits(base), logits(tuned))


def test_a_base_kept_in_the_run_comes_before_the_named_one(model_directory, run_folder, tmp_path):
    run = tmp_path / "from_parts"
    shutil.copytree(run_folder, run)
    shutil.copytree(model_directory, run / "base")
    (run / "config.yaml").write_text(config_yaml(FinetuneConfig(model="gone/away/x")))
    assert torch.equal(logits(open_model(str(run))[0]), logits(open_model(str(run_folder))[0]))


def test_what_is_missing_is_said(run_folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(config_yaml(FinetuneConfig(model=str(tmp_path / "gone"))))
    with pytest.raises(UserError, match="saved nothing to go on from.*--overwrite"):
        open_model(str(run))
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    with pytest.raises(UserError, match="--resume --run_name run"):
        open_model(str(run))
    shutil.copytree(run_folder / "adapter", run / "adapter")
    with pytest.raises(UserError, match="base of run.*gone"):
        open_model(str(run))
    with pytest.raises(UserError, match="nowhere"):
        open_model(str(tmp_path / "nowhere"))


def test_the_tree_verb_shows_a_model_its_parts_and_its_lora(model_directory, run_folder, capsys):
    def shown(*words):
        assert cli.main(["tree", *map(str, words)]) == 0
        return capsys.readouterr().out

    whole = shown(model_directory)
    assert whole.startswith("root\n├── vision_encoder (")
    assert "└── lang_encoder (LlamaForCausalLM)" in whole
    assert "gated_cross_attn_layer (GatedCrossAttentionBlock) attn_gate:[1] ff_gate:[1]" in whole
    assert "lora_A" not in whole
    perceiver = shown(model_directory, "--part", "perceiver")
    assert "to_kv (Linear)" in perceiver
    assert "lang_encoder" not in perceiver and "LlamaForCausalLM" not in perceiver
    tuned = shown(model_directory, "--lora", "--part", "lang_encoder")
    assert "lora_A" in tuned and "base_layer" not in tuned
    assert shown(run_folder, "--part", "lang_encoder") == tuned
    assert cli.main(["tree", str(model_directory), "--part", "perciever"]) == 2
    assert "'perceiver'" in capsys.readouterr().err
