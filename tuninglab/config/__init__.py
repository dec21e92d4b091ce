"""The settings of every verb: one dataclass each, the source of flags, YAML keys and help.

Neither torch nor transformers is imported here, so that `--help` answers at once.
"""

from tuninglab.config.finetune import FinetuneConfig
from tuninglab.config.models import ConvertConfig, TreeConfig
from tuninglab.config.runs import ChatConfig, DemoConfig, ReportConfig

__all__ = [
    "ChatConfig",
    "ConvertConfig",
    "DemoConfig",
    "FinetuneConfig",
    "ReportConfig",
    "TreeConfig",
]
