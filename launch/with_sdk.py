"""The same job through the SageMaker Python SDK: python launch/with_sdk.py JOB.yaml [KEY=VALUE ...]"""

import sys

from raytrain import Job
from raytrain.sagemaker.sdk import trainer_for

if __name__ == "__main__":
    with trainer_for(Job.from_yaml(sys.argv[1], sys.argv[2:])) as trainer:  # a sagemaker.train.ModelTrainer
        trainer.train(wait=False)
