"""tuninglab tunes Flamingo models: LoRA on a vision-language model, on one machine.

Importing the package loads neither torch nor transformers: the names below are fetched when asked.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuninglab.config.tuning import TuningConfig
    from tuninglab.models.configuration import FlamingoConfig
    from tuninglab.models.flamingo import FlamingoForConditionalGeneration
    from tuninglab.models.processing import FlamingoProcessor
    from tuninglab.serving.open_model import open_model

__all__ = [
    "FlamingoConfig",
    "FlamingoForConditionalGeneration",
    "FlamingoProcessor",
    "TuningConfig",
    "__version__",
    "open_model",
]

__version__ = "0.1.0"

# Where the public names live. `import tuninglab` takes 0.04 s with this table; importing them here
# would load torch and transformers, several seconds.
_HOMES = {
    "FlamingoConfig": "tuninglab.models.configuration",
    "FlamingoForConditionalGeneration": "tuninglab.models.flamingo",
    "FlamingoProcessor": "tuninglab.models.processing",
    "TuningConfig": "tuninglab.config.tuning",
    "open_model": "tuninglab.serving.open_model",
}


def __getattr__(name: str) -> object:
    """Import the module of a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tuninglab' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    # Found directly from now on: __getattr__ is only asked for names that are missing.
    globals()[name] = value
    return value


class _AutoClasses(MetaPathFinder):
    """Waits for transformers' Auto classes to be imported, and lets them know the Flamingo then."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """None, so that others look for it; but of an Auto module its spec, with a word more."""
        tell = _TELL.pop(fullname, None)
        if tell is None or (spec := find_spec(fullname)) is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module
        loader.exec_module = lambda module: (execute(module), tell(module))
        return spec


def _tell_configurations(auto: ModuleType) -> None:
    """Let AutoConfig find our configuration by its name, in this module, which fetches it."""
    mapping = auto.CONFIG_MAPPING
    if "flamingo" not in mapping:
        mapping._mapping["flamingo"] = "FlamingoConfig"
        mapping._modules["flamingo"] = sys.modules[__name__]


def _tell_processors(auto: ModuleType) -> None:
    # AutoProcessor looks for classes, not for names: there is no way but to load ours.
    import_module("tuninglab.models")


# `import tuninglab` is enough for `AutoModelForImageTextToText.from_pretrained`, and loads nothing:
# model and processor register themselves (tuninglab.models), and with the configuration they come.
_TELL: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _tell_configurations,
    "transformers.models.auto.processing_auto": _tell_processors,
}
for _name in _TELL.keys() & sys.modules.keys():
    _TELL.pop(_name)(sys.modules[_name])
sys.meta_path.insert(0, _AutoClasses())


def __dir__() -> list[str]:
    """List the lazy names too, for completion in a shell."""
    return sorted({*globals(), *_HOMES})
