"""The container's start: the SageMaker Python SDK's own scripts, as its ModelTrainer uploads them, for the same job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from raytrain.config.sagemaker import SageMaker
from raytrain.errors import ConfigError
from raytrain.sagemaker.request import CODE_FOLDER, command

REQUIREMENTS = "requirements.txt"


def write_drivers(asked: SageMaker, folder: Path) -> None:
    """Fill the folder of the `sm_drivers` channel.

    The script is the SDK's template with the three steps that a ModelTrainer of `sdk.model_trainer` would put in; a
    test compares both, byte by byte.

    Raises:
        ConfigError: the SDK is not installed, or of a version that keeps its scripts elsewhere.
    """
    try:
        from sagemaker.core.utils import install_requirements
        from sagemaker.train.constants import SM_DRIVERS_LOCAL_PATH
        from sagemaker.train.templates import EXECUTE_BASE_COMMANDS, INSTALL_REQUIREMENTS, TRAIN_SCRIPT_TEMPLATE
    except ImportError as error:
        raise ConfigError(
            f"launching needs the SageMaker SDK, version 3: pip install 'raytrain[sagemaker]' ({error})"
        ) from None
    shutil.copytree(SM_DRIVERS_LOCAL_PATH, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(install_requirements.__file__, folder / "scripts" / "install_requirements.py")
    script = TRAIN_SCRIPT_TEMPLATE.format(
        working_dir=f"cd {CODE_FOLDER} \n",
        install_requirements=INSTALL_REQUIREMENTS.format(requirements_file=REQUIREMENTS),
        execute_driver=EXECUTE_BASE_COMMANDS.format(base_command=command(asked)),
    )
    (folder / "sm_train.sh").write_text(script)
    source = {"source_dir": CODE_FOLDER, "requirements": REQUIREMENTS, "command": command(asked)}
    (folder / "sourcecode.json").write_text(json.dumps(source))
    (folder / "distributed.json").write_text("{}")
