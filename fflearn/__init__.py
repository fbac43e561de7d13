"""Train neural networks without backpropagation.

>>> import fflearn
>>> net = fflearn.network("dense 64 relu | dense 10")
>>> net.spec()
'dense 64 relu | dense 10'
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import Any as _Any

__version__ = "0.1.0"

# In a source checkout rules/ and gpu/ lie beside this folder; setup.cfg puts them inside it on
# installation.  This line lets the checkout be imported as it lies, with nothing installed.
_root = _Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file() and (_root / "rules" / "__init__.py").is_file():
    __path__.append(str(_root))

# The public names, and where they live.  They are imported on first use, so that
# `import fflearn` stays well under a second.
_PUBLIC = {
    "Batch": "fflearn.base",
    "DataSet": "fflearn.data",
    "Engine": "fflearn.engine",
    "Experiment": "fflearn.experiment",
    "LayerTransformer": "fflearn.estimators",
    "LocalClassifier": "fflearn.estimators",
    "LocalRegressor": "fflearn.estimators",
    "State": "fflearn.state",
    "compare": "fflearn.comparison",
    "load_data": "fflearn.data",
    "network": "fflearn.networks",
    "rule": "fflearn.registry",
    "train": "fflearn.training",
}
__all__ = [
    "Batch",
    "DataSet",
    "Engine",
    "Experiment",
    "LayerTransformer",
    "LocalClassifier",
    "LocalRegressor",
    "State",
    "compare",
    "load_data",
    "network",
    "rule",
    "train",
]


def __getattr__(name: str) -> _Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fflearn' has no attribute {name!r}; it has {__all__}")
    value = getattr(_import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value
