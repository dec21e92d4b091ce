import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.reading.released import (
    DOCUMENTS_RELEASED,
    RECORDS_RELEASED,
    format_of,
    kind_of_document,
    read_rows,
)
from tests.json_values import FORTY, JSON_VALUES
from tuninglab.data.reading.formats import FORMATS
from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.sets import DOCUMENTS
from tuninglab.data.reading.sets import FORMATS as SETS
from tuninglab.data.sample import Sample
from tuninglab.errors import UserError

ALL = [(name, tuple(documents)) for name, documents in DOCUMENTS_RELEASED.items()]


@pytest.mark.parametrize(("name", "documents"), ALL)
def test_each_document_is_found_by_one_kind(name, documents):
    assert [one.name for one in DOCUMENTS if one.fits(documents)] == [name]
    if name not in ("vqa", "ai2d"):  # these two are joined
        assert kind_of_document([*documents, *documents]) is None


@pytest.mark.parametrize(("name", "record"), RECORDS_RELEASED.items())
def test_each_record_is_found_by_its_keys(name, record):
    assert format_of(record).name == name.strip()


def test_what_documents_yield_is_a_record_of_a_format():
    for name, documents in DOCUMENTS_RELEASED.items():
        rows = kind_of_document(documents).records(documents, "set.json", Reading())
        wanted = {"scienceqa": "choices", "ai2d": "choices", "coco_captions": "captions"}
        wanted |= {"karpathy": "captions"}
        assert {format_of(row).name for _, row in rows} == {wanted.get(name, "query-response")}


@pytest.mark.parametrize("format", SETS, ids=lambda format: format.name)
def test_formats_of_sets_say_their_keys(format):
    own = next((one for one in RECORDS_RELEASED.values() if format.fits(one)), None)
    assert format.keys and (own is None or own.keys() & set(format.keys))


def test_names_are_unique():
    names = [one.name for one in (*DOCUMENTS, *FORMATS)]
    assert len(set(names)) == len(names)


def places(value, path=()):
    """The ways to all values inside of a value."""
    yield path
    inside = isinstance(value, dict | list | tuple)
    items = value.items() if isinstance(value, dict) else enumerate(value if inside else ())
    for key, inner in items:
        yield from places(inner, (*path, key))


def damaged(value, path, by):
    """A copy that has another value at a place; a tuple stays one."""
    if not path:
        return by
    if isinstance(value, tuple):
        key = path[0]
        return (*value[:key], damaged(value[key], path[1:], by), *value[key + 1 :])
    changed = copy.copy(value)
    changed[path[0]] = damaged(value[path[0]], path[1:], by)
    return changed


DEEP: list = []
for _ in range(900):
    DEEP = [DEEP]
LONG = "a" * 5000
BAD = JSON_VALUES | st.sampled_from([10**4000, "\0", "../../x", "\ud800", LONG, -1, DEEP])


@pytest.mark.parametrize(("name", "documents"), ALL)
@FORTY
@given(data=st.data())
def test_any_value_in_a_document_is_read_or_refused(name, documents, data, tmp_path):
    path = data.draw(st.sampled_from([p for p in places(documents) if p]))
    broken = damaged(documents, path, data.draw(BAD))
    reading = Reading(root=tmp_path)
    document = kind_of_document(broken)
    if document is None:
        return
    try:
        rows = list(document.records(broken, "set.json", reading))
    except UserError as error:
        assert str(error).startswith("set.json") and len(str(error)) < 400
        return
    check(*read_rows(rows, reading))


@pytest.mark.parametrize("record", RECORDS_RELEASED.values(), ids=RECORDS_RELEASED)
@FORTY
@given(data=st.data())
def test_any_value_in_a_record_is_read_or_refused(record, data, tmp_path):
    path = data.draw(st.sampled_from([p for p in places(record) if p]))
    broken = damaged(record, path, data.draw(BAD))
    for format in FORMATS:
        if format.fits(broken):
            check(*read_rows([("set.json, record 1", broken)], Reading(root=tmp_path), format))


KEYS = sorted({key for record in RECORDS_RELEASED.values() for key in record})


@FORTY
@given(record=st.dictionaries(st.sampled_from(KEYS), JSON_VALUES, max_size=8))
def test_a_format_that_is_named_may_find_any_keys(record):
    for format in FORMATS:
        check(*read_rows([("set.json, record 1", record)], format=format))


def check(samples, problems):
    for sample in samples:
        assert isinstance(sample, Sample)
        assert sample.id is None or isinstance(sample.id, str | int)
        assert sample.kind is None or isinstance(sample.kind, str)
        assert sample.answers == () or all(isinstance(one, str) for one in sample.answers)
        "".join([str(sample.id or ""), sample.kind or "", *sample.answers]).encode()
    for problem in problems:
        assert problem.startswith("set.json, ") and len(problem) < 400
