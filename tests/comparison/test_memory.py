import sys
from dataclasses import replace

import pytest
import torch

from tuninglab.comparison.memory import measure_memory, saved_for_backward, split
from tuninglab.comparison.variants import Variant
from tuninglab.comparison.workloads import Bench, TextWorkload, save_random
from tuninglab.config.tuning import TextTuningConfig
from tuninglab.errors import WorkError
from tuninglab.models.text_to_text import FLAN_T5_SMALL

CPU = torch.device("cpu")
PLAIN = Variant("plain", "fp32")
MIB = 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="macOS cannot reset its peak")
def test_a_model_of_64_mib_more_is_measured_as_such(tmp_path):
    # Two target tokens: the logits of the larger table are next to nothing.
    shape = FLAN_T5_SMALL | {"d_kv": 16, "num_heads": 2, "d_ff": 32, "num_layers": 1}
    batch = {"batch_size": 1, "source_tokens": 4, "target_tokens": 2}
    found = []
    for rows in (1024, 1024 + 16 * 1024):
        tuning = TextTuningConfig(lora_target_modules=["q"])
        workload = TextWorkload(shape | {"vocab_size": rows}, **batch, tuning=tuning)
        save_random(workload, tmp_path / str(rows))
        found.append(measure_memory(PLAIN, Bench(workload, tmp_path / str(rows), CPU)))
    # Token table and head, each 16,384 x 512 numbers of 4 bytes.
    assert found[1]["peak_memory_mib"] - found[0]["peak_memory_mib"] == pytest.approx(64, abs=4)
    parts = [figures["memory_split_mib"] for figures in found]
    assert parts[1]["embeddings_head"] - parts[0]["embeddings_head"] == pytest.approx(64, abs=0.2)
    assert parts[1]["weights"] == parts[0]["weights"]
    assert found[0]["base_memory_mib"] > 50
    assert sum(parts[1].values()) == pytest.approx(found[1]["peak_memory_mib"], abs=0.1)


@pytest.mark.slow
def test_a_process_that_fails_is_told_with_its_reason(tmp_path, small_bases):
    bench = replace(small_bases["text"], base=tmp_path / "nowhere")
    with pytest.raises(WorkError, match=r"(?s)memory of 'plain' failed:\n.*nowhere"):
        measure_memory(PLAIN, bench)


def test_each_saved_storage_counts_once_and_known_ones_do_not():
    weight = torch.randn(8, 8, requires_grad=True)
    x = torch.randn(16, 8, requires_grad=True)
    known = {weight.untyped_storage().data_ptr()}
    with saved_for_backward(known) as saved:
        y = x @ weight
        z = y * y.view(16, 8)
        z.exp().sum()
    # x for the product, y for the square, exp's result for itself.
    assert sorted(tensor.bytes for tensor in saved.values()) == [512, 512, 512]
    with saved_for_backward(known) as saved:
        (x.detach() @ weight).sum()
    assert [tensor.bytes for tensor in saved.values()] == [512]


def test_the_split_counts_parameters_states_and_logits(small_bases):
    bench = small_bases["text"]
    workload = bench.workload
    training, batch = PLAIN.build(bench, 0), bench.batch(0)
    training.step(batch)
    parts = split(training, batch, 100.0, workload.vocabulary)
    named = dict(training.state.model.named_parameters())
    trained = sum(p.numel() for p in named.values() if p.requires_grad)
    # Weight, gradient and AdamW's two moments, all float32.
    assert parts["lora_gradients_optimizer"] == round(4 * 4 * trained / MIB, 1)
    table = 2 * 4 * workload.vocabulary * workload.shape["d_model"]
    assert parts["embeddings_head"] == round(table / MIB, 1)
    frozen = 4 * sum(p.numel() for p in named.values() if not p.requires_grad)
    assert parts["weights"] == round((frozen - table) / MIB, 1)
    # log_softmax keeps its result.
    logits = 4 * workload.vocabulary * workload.batch_size * workload.target_tokens
    assert parts["logits"] == pytest.approx(logits / MIB, abs=0.1)
    assert parts["activations"] > 0
    assert sum(parts.values()) == pytest.approx(100.0, abs=0.1)


def test_checkpointed_blocks_keep_less(small_bases):
    bench = small_bases["text"]
    batch = bench.batch(0)
    kept = []
    for every in (None, 1):
        training = Variant("row", "fp32", checkpoint_every=every).build(bench, 0)
        training.step(batch)
        kept.append(split(training, batch, 0.0, bench.workload.vocabulary)["activations"])
    assert kept[1] < 0.5 * kept[0]
