"""A run trains, asks and is opened with its prompt; a Jinja file is kept by its text."""

import json
from dataclasses import replace

import pytest
import yaml

from tuninglab.config import FinetuneConfig
from tuninglab.data.prompt import count_tokens
from tuninglab.data.prompt_formats import NAMED, TUNINGLAB
from tuninglab.data.reading.splits import read_splits
from tuninglab.errors import UserError
from tuninglab.recipes.flamingo import finetune
from tuninglab.serving.conversation import Conversation
from tuninglab.serving.open_model import open_model

TEMPLATE = """\
{%- for message in messages %}
{{- '# ' + message.role + '\\n' + message.content + '</s>\\n' }}
{%- endfor %}"""


def go_on(config, **changes):
    place = {"run_name": config.run_name, "output_dir": config.output_dir}
    return finetune(FinetuneConfig(**place, resume=True, **changes))


def test_a_jinja_file_goes_with_run_and_adapter(config, tmp_path):
    file, run = tmp_path / "mine.jinja", tmp_path / "a"
    file.write_text(TEMPLATE)
    own = replace(config, prompt=str(file), max_steps=1, batch_size=12)
    report = finetune(own)
    file.unlink()
    assert yaml.safe_load((run / "config.yaml").read_text())["prompt"] == TEMPLATE
    for adapter in (run / "adapter", run / "checkpoints" / "step-000001" / "adapter"):
        assert json.loads((adapter / "tuninglab.json").read_text())["prompt"] == TEMPLATE
        assert open_model(str(adapter))[1].prompt.choice == TEMPLATE
    _, processor = open_model(str(run))
    assert processor.prompt.choice == processor.chat_template == TEMPLATE
    assert processor.prompt.end == "</s>"
    samples = list(read_splits(config.data).train)
    counts = [count_tokens(samples, processor.tokenizer, p) for p in (processor.prompt, TUNINGLAB)]
    assert report["train"]["tokens"] == sum(counts[0]) != sum(counts[1])
    assert go_on(own, max_steps=2)["train"]["steps"] == 2
    for other in ("otter", TEMPLATE + " "):
        with pytest.raises(UserError, match="--prompt is .*, but the run was started with") as told:
            go_on(own, prompt=other, max_steps=3)
        assert len(str(told.value)) < 2000


def test_a_named_prompt_is_asked_and_chatted_with(config, tmp_path):
    finetune(replace(config, prompt="otter", max_steps=1))
    model, processor = open_model(str(tmp_path / "a"))
    assert processor.prompt == NAMED["otter"]
    asked = []
    talk = Conversation(model, processor, max_new_tokens=2)
    read = talk.engine.reader.read

    def seen(one):
        asked.append(processor.tokenizer.decode(one.ids))
        return read(one)

    talk.engine.reader.read = seen
    first = talk.ask("Why?")
    talk.ask("Sure?")
    assert asked == [
        "<s>User: Why? GPT:<answer>",
        f"<s>User: Why? GPT:<answer> {first}<|endofchunk|>User: Sure? GPT:<answer>",
    ]


def test_a_prompt_that_does_not_fit_is_told_before_there_is_a_run(config, tmp_path):
    for prompt, said in {
        TEMPLATE + "{{ messages[0].content }}": "repeats the content of message 1",
        TEMPLATE.replace("message.content", "message.content.replace('red', 'x')"): (
            r"colours.jsonl, line 1: .* changes \(.*\) the content of message 2"
        ),
        "openflamingo-caption": "colours.jsonl, line 1: message 1 .user. holds a text",
        "chat_template": "no chat template of its own",
    }.items():
        with pytest.raises(UserError, match=said):
            finetune(replace(config, prompt=prompt))
        assert not (tmp_path / "a").exists()


def test_a_chat_with_a_system_message_that_the_prompt_has_no_place_for(config, tmp_path):
    finetune(replace(config, prompt="openflamingo-vqa", max_steps=1))
    model, processor = open_model(str(tmp_path / "a"))
    talk = Conversation(model, processor, system="Be brief.")
    with pytest.raises(UserError, match="openflamingo-vqa has no place for a system message"):
        talk.ask("Why?")


def test_what_was_tuned_before_there_were_prompts_is_asked_as_it_was(run_folder):
    settings = json.loads((run_folder / "adapter" / "tuninglab.json").read_text())
    assert "prompt" not in settings
    _, processor = open_model(str(run_folder))
    assert processor.prompt == TUNINGLAB


@pytest.mark.parametrize("prompt", ["nobody's", 7, None, {"a": 1}])
def test_a_damaged_prompt_of_an_adapter_is_told(config, tmp_path, prompt):
    finetune(replace(config, max_steps=1))
    file = tmp_path / "a" / "adapter" / "tuninglab.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prompt": prompt}))
    with pytest.raises(UserError, match="tuninglab.json: prompt is .*; expected one of tuninglab"):
        open_model(str(tmp_path / "a"))
