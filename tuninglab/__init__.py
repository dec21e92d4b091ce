"""tuninglab tunes Flamingo models: LoRA on a vision-language model, on one machine.

Importing the package loads neither torch nor transformers: the names below are fetched when asked.
"""

from importlib import import_module
from typing import TYPE_CHECKING

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


def __dir__() -> list[str]:
    """List the lazy names too, for completion in a shell."""
    return sorted({*globals(), *_HOMES})
