from collections.abc import Callable
from typing import Any

from raytrain.config.inference import PredictionJob as PredictionJob
from raytrain.config.job import Job as Job
from raytrain.data.pipeline import Pipeline as Pipeline
from raytrain.infer.export.folder import export as export
from raytrain.infer.predict import predict as predict
from raytrain.report.live import fit as fit

__version__: str

def loaded_on_use(package: str, init: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]: ...
def public_names(init: str) -> dict[str, str]: ...
