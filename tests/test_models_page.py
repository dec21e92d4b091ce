"""docs/models.md says what is run and what is there."""

import re

import pytest

from tests.documents import ROOT
from tests.models.test_language_models import SHAPES
from tests.tiny import FAMILIES, flamingo, flamingo_config
from tuninglab.adapters.lora import check_patterns
from tuninglab.config.tuning import TuningConfig
from tuninglab.errors import UserError
from tuninglab.models.towers import TOWERS
from tuninglab.savers import add_savers

TEXT = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = [[c.strip(" `") for c in row.split("|")[1:-1]] for row in re.findall(r"^\| `.*", TEXT, re.M)]
LANGUAGE = {row[0]: row for row in ROWS if row[0] in FAMILIES}


def test_every_tower_and_shape_has_its_row():
    towers = {row[0]: row[-1] for row in ROWS if row[0] in TOWERS}
    assert towers == {kind: tower.unused for kind, tower in TOWERS.items()}
    assert list(LANGUAGE) == list(SHAPES)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_row_of_a_shape_is_true(shape):
    _, _, kind, head, names, alone = LANGUAGE[shape]
    model = flamingo(flamingo_config(shape), 0.5).requires_grad_(False)
    assert model.config.text_config.model_type == kind
    assert (head == "tied") == SHAPES[shape]
    if names == "hit":
        check_patterns(model, TuningConfig())
    else:
        with pytest.raises(UserError, match="hits"):
            check_patterns(model, TuningConfig())
        check_patterns(model, TuningConfig(lora_target_modules=names.split()))
    said = add_savers(model, ["norm", "glu", "loss", "embedding"])
    # The two gated blocks have a feed-forward each.
    left = ["norms"] * said["norm"].startswith("0 ") + ["feed-forwards"] * (said["glu"][0] == "2")
    left += ["token table"] * ("left as" in said["embedding"])
    left += ["loss"] * ("all at once" in said["loss"])
    assert [word for word in alone.split(", ") if word] == left
