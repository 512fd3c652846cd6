"""The same job through the SageMaker Python SDK: python launch/with_sdk.py JOB.yaml [KEY=VALUE ...]"""

import argparse
import sys

from raytrain import Job
from raytrain.errors import RaytrainError
from raytrain.sagemaker.sdk import trainer_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job_file", metavar="JOB.yaml")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*")
    given = parser.parse_args()
    with trainer_for(Job.from_yaml(given.job_file, given.overrides)) as trainer:  # a sagemaker.train.ModelTrainer
        trainer.train(wait=False)


if __name__ == "__main__":
    try:
        main()
    except RaytrainError as error:
        print(f"raytrain: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
