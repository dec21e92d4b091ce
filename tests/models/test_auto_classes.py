"""`import tuninglab` is enough for transformers' Auto classes, and loads nothing itself."""

import json
import subprocess
import sys

import pytest

NAMES = {
    "AutoConfig": "FlamingoConfig",
    "AutoProcessor": "FlamingoProcessor",
    "AutoModel": "FlamingoForConditionalGeneration",
    "AutoModelForImageTextToText": "FlamingoForConditionalGeneration",
    "AutoModelForMultimodalLM": "FlamingoForConditionalGeneration",
}
FIRST = "import sys, tuninglab\nassert not {'torch', 'transformers'} & {*sys.modules}\n"
LAST = "\nimport json\nprint(json.dumps(found))"
ONE = "from transformers import {0}\nfound = [type({0}.from_pretrained(sys.argv[1])).__name__]"


def run(code, model):
    done = subprocess.run(
        [sys.executable, "-c", code + LAST, str(model)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AutoConfig", "AutoProcessor", "AutoModelForImageTextToText"])
def test_each_auto_class_alone_finds_ours(name, model_directory):
    assert run(FIRST + ONE.format(name), model_directory) == [NAMES[name]]


@pytest.mark.slow
def test_also_where_transformers_was_there_before(model_directory):
    code = f"import sys\nfrom transformers import {', '.join(NAMES)}\nimport tuninglab\n"
    code += f"found = [type(c.from_pretrained(sys.argv[1])).__name__ for c in ({', '.join(NAMES)})]"
    assert run(code, model_directory) == list(NAMES.values())
