"""One typed job description. YAML in, unknown keys refused, every error names the key and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from raytrain.config.cluster import Cluster
from raytrain.config.data import Data
from raytrain.config.file import has, read_tree, section_of
from raytrain.config.learning import Model
from raytrain.config.own_code import OFFERED_STAGES, look_in, offered
from raytrain.config.sagemaker import SageMaker
from raytrain.config.section import Section
from raytrain.config.training import Training
from raytrain.errors import ConfigError


class Job(Section):
    """What to train, on what, how, and where."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=63)] = Field(
        description="of the run: letters, digits and ._-, at most 63"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of everything random")
    data: Data | None = None
    model: Model | None = None
    training: Training
    cluster: Cluster = Cluster()
    sagemaker: SageMaker | None = None
    run_dir: str = Field("runs", description="the run's folder is `<run_dir>/<name>`")

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Job:
        """Read a job file and apply `key.sub=value` overrides (values are YAML).

        From now on modules beside the file and in the working folder can be imported: the job may name them.

        Raises:
            ConfigError: the file cannot be read or parsed, or a key or value is wrong.
        """
        look_in(Path(path).parent, Path())
        return cls.from_dict(read_tree(path, overrides), where=str(path))

    @property
    def imports(self) -> tuple[str, ...]:
        """Every `package.module:name` that it names: its loop and its parts, model, sources and stages."""
        data = self.data
        stages = (*data.stages, *(data.validation_stages or ())) if data else ()
        known = offered(OFFERED_STAGES) if stages else {}
        training = self.training
        named = [training.loss, *(training.metrics or ()), training.optimizer, training.schedule]
        names = [
            training.loop,
            *(each.name for each in named if each is not None),
            self.model and self.model.name,
            *(source and source.kind for source in ((data.train, data.validation) if data else ())),
            *(known.get(name, name) for spec in stages for name in ([spec] if isinstance(spec, str) else spec)),
        ]
        return tuple(dict.fromkeys(name for name in names if name and ":" in name))

    @classmethod
    def from_dict(cls, tree: dict[str, Any], where: str = "job") -> Job:
        """Validate a parsed job description; `where` opens the error message."""
        if has(tree, "data", "source") and not has(tree, "data", "train") and "training" not in tree:
            raise ConfigError(f"{where} is a job of `raytrain infer` (it has `data.source` and no `training`)")
        return section_of(cls, tree, where)
