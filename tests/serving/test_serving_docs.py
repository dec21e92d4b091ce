"""The clients of docs/serving.md, each as it stands there, against a real server."""

import shutil
import subprocess
import sys

import pytest
from PIL import Image

from tests.documents import ROOT, blocks
from tests.serving.guarded import serving
from tests.serving.test_engine import made
from tuninglab.serving.app import make_app
from tuninglab.serving.engine import Engine
from tuninglab.serving.reading import ServedModel

PAGE = ROOT / "docs" / "serving.md"
RUN = {"py": [sys.executable, "-"], "js": ["node", "--input-type=module"], "sh": ["bash"]}
CODE = [block for name in RUN for block in blocks(PAGE, name) if "127.0.0.1:8000" in block.code]


def test_each_kind_of_client_is_there():
    assert sorted(block.language for block in CODE) == ["js", "py", "sh"]


@pytest.mark.slow
@pytest.mark.parametrize("block", CODE, ids=lambda block: block.language)
def test_a_client_is_answered(block, tmp_path):
    if not shutil.which(RUN[block.language][0]):
        pytest.skip(f"install {RUN[block.language][0]}")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "photo.png")
    model, processor = made()
    served = {"mine": ServedModel(None, processor.prompt)}
    engine = Engine(model, processor, served, max_new_tokens=8)
    with serving(inner=make_app(engine, "mine")) as server:
        code = block.code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        done = subprocess.run(
            RUN[block.language], input=code, cwd=tmp_path, capture_output=True, text=True
        )
    engine.close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "error" not in done.stdout
