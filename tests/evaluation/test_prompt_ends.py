"""An answer ends at the end token of the prompt in use, which the model's own settings lack."""

from dataclasses import replace

from tuninglab.data.prompt_formats import TUNINGLAB
from tuninglab.data.sample import Sample
from tuninglab.evaluation.answers import generate_answers
from tuninglab.models.build import load_flamingo
from tuninglab.models.generation import ending_with
from tuninglab.models.processing import FlamingoProcessor
from tuninglab.serving.conversation import Conversation


def test_generation_stops_there_and_the_answer_is_cut_there(model_directory, monkeypatch):
    model, processor = load_flamingo(model_directory)
    sample = Sample([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], [])
    made = []
    generate = model.generate

    def seen(**options):
        ids = generate(**options)
        made.append(ids[0, options["input_ids"].shape[1] :].tolist())
        return ids

    monkeypatch.setattr(model, "generate", seen)
    generate_answers(model, processor, [sample], max_new_tokens=8)
    (whole,) = made
    # What the model happens to say in the middle stands for a template's end.
    end = next(i for i in whole[2:] if i != whole[0])
    place = whole.index(end)
    prompt = replace(TUNINGLAB, end=processor.tokenizer.convert_ids_to_tokens(end))
    monkeypatch.setattr(FlamingoProcessor, "prompt", property(lambda self: prompt))
    # The prompt of the question is the same: only its end is another.
    (answer,) = generate_answers(model, processor, [sample], max_new_tokens=8)
    said = processor.tokenizer.decode(whole[:place]).strip()
    assert made[-1] == whole[: place + 1] and answer == said
    parts = []
    talk = Conversation(model, processor, max_new_tokens=8)
    assert talk.ask("a", on_text=parts.append) == said == "".join(parts)


def test_a_model_that_stops_there_anyway_is_told_nothing(model_directory):
    model, processor = load_flamingo(model_directory)
    assert ending_with(model, processor.eoc_token_id) == {}
    ends = model.generation_config.eos_token_id
    assert ending_with(model, 5) == {"eos_token_id": [*ends, 5]}
    model.generation_config.eos_token_id = 7
    assert ending_with(model, 7) == {} and ending_with(model, 5) == {"eos_token_id": [7, 5]}
    model.generation_config.eos_token_id = None
    assert ending_with(model, 5) == {"eos_token_id": [5]}
