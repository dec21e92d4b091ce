"""The settings of every verb: one dataclass each, the source of flags, YAML keys and help.

Neither torch nor transformers is imported here, so that `--help` answers at once.
"""

from tuninglab.config.data_verb import DataConfig
from tuninglab.config.evaluate import EvaluateConfig
from tuninglab.config.finetune import FinetuneConfig
from tuninglab.config.flan_t5 import FlanT5Config
from tuninglab.config.models import ConvertConfig, TreeConfig
from tuninglab.config.planning import PlanConfig, PlanTextConfig
from tuninglab.config.runs import ChatConfig, DemoConfig, ReportConfig
from tuninglab.config.serving import ExportConfig, ServeConfig
from tuninglab.config.training import TrainingConfig

__all__ = [
    "ChatConfig",
    "ConvertConfig",
    "DataConfig",
    "DemoConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FinetuneConfig",
    "FlanT5Config",
    "PlanConfig",
    "PlanTextConfig",
    "ReportConfig",
    "ServeConfig",
    "TrainingConfig",
    "TreeConfig",
]
