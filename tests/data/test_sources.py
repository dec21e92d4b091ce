import os
from dataclasses import replace

from PIL import Image

from tuninglab.data.sample import Pair, Sample
from tuninglab.data.sources import Records, Source
from tuninglab.embedded.task import EmbeddedSamples
from tuninglab.embedded.text_task import DateTask


def asked(*images, answer="a", **options):
    question = {"role": "user", "content": "<image>" * len(images) + "?"}
    return Sample([question, {"role": "assistant", "content": answer}], list(images), **options)


def test_records_are_a_source_of_their_samples():
    records = Records([asked(), asked(answer="b")], ["line 3: bad"], 1)
    assert isinstance(records, Source) and len(records) == 2
    assert records[1] == list(records)[1] == asked(answer="b")


def test_a_fingerprint_tells_what_is_learned_and_not_where_it_stood(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 3)).save(path)
    red, blue = (Image.new("RGB", (2, 2), colour) for colour in ("red", "blue"))
    different = [
        [asked(image) for image in images] for images in ([path], [red], [blue], [b"1"], [b"2"])
    ]
    different += [[asked()], [asked(), asked()], [asked(answer="b")], [asked(kind="k")], []]
    different += [[Pair("ab", "c")], [Pair("a", "bc")], [Pair("a", "b"), Pair("a", "c")]]
    prints = [Records(samples).fingerprint for samples in different]
    assert len(set(prints)) == len(different)
    assert all(len(found) == 64 for found in prints)
    again = [Records([replace(s, origin="elsewhere") for s in samples]) for samples in different]
    assert [records.fingerprint for records in again] == prints
    os.utime(path, ns=(0, 0))
    assert Records(different[0]).fingerprint != prints[0]


def test_embedded_data_is_a_source():
    first, again = EmbeddedSamples("val", 6), EmbeddedSamples("val", 6)
    others = EmbeddedSamples("test", 6), EmbeddedSamples("val", 7), EmbeddedSamples("val", 6, 2)
    assert isinstance(first, Source) and first.fingerprint == again.fingerprint
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 4
    splits = DateTask(20).splits
    assert isinstance(splits.train, Source) and isinstance(splits.val, Source)
    assert splits.train.fingerprint == DateTask(20).splits.train.fingerprint
    assert splits.train.fingerprint != DateTask(21).splits.train.fingerprint
