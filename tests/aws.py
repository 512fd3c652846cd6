"""AWS on loopback: moto's HTTP server (S3, IAM, STS, SageMaker, CloudWatch, its logs) for the real boto3 and SDK.

moto forgets some fields of CreateTrainingJob, has no StopTrainingJob, takes a name twice and knows no quota. `Aws`
stands before it and puts those in their place; it records every SageMaker request as it came over the wire.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

REGION = "us-east-1"
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/training"
BUCKET = f"sagemaker-{REGION}-{ACCOUNT}"
FORGOTTEN = ("Environment", "RetryStrategy", "RemoteDebugConfig", "AlgorithmSpecification")
ENDED = ("Completed", "Failed", "Stopped")


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


@dataclass
class Aws:
    """What a test sees of it.

    Attributes:
        sent: (operation, request) of SageMaker, in order.
        jobs: requests of CreateTrainingJob by name.
        states: what DescribeTrainingJob says besides, by name.
        refusals: (operation, times left, HTTP status, error code, message).
        on_describe: called before every answer of DescribeTrainingJob.
    """

    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusals: list[list[Any]] = field(default_factory=list)
    on_describe: Callable[[str], None] = lambda name: None
    port: int = 0

    def start(self) -> Aws:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        self._server.shutdown()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """For a process that shall believe this to be AWS."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nowhere",
            "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
            "SAGEMAKER_VALIDATE_ROLE": "false",  # the SDK asks IAM for simulations that moto does not have
        }

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def reset(self) -> None:
        self.sent.clear(), self.jobs.clear(), self.states.clear(), self.refusals.clear()
        self.on_describe = lambda name: None
        self.client("s3")._endpoint.http_session.send(_post(f"{self.url}/moto-api/reset"))
        self.client("s3").create_bucket(Bucket=BUCKET)
        self.client("iam").create_role(RoleName="training", AssumeRolePolicyDocument="{}")

    def requests(self, operation: str) -> list[dict[str, Any]]:
        return [request for name, request in self.sent if name == operation]

    def refuse(self, operation: str, code: str, message: str, times: int = 1, status: int = 400) -> None:
        """Answer the next requests of this kind with an error."""
        self.refusals.append([operation, times, status, code, message])

    def objects(self, prefix: str = "", bucket: str = BUCKET) -> list[str]:
        found = self.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for entry in found.get("Contents", [])]

    def _answer(self, environ: dict[str, Any], start_response: Callable) -> Any:
        operation = environ.get("HTTP_X_AMZ_TARGET", "")
        form = environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded")
        if form and b"Action=SimulatePrincipalPolicy" in _body(environ):  # moto has none; the SDK goes on without
            start_response("403 Refused", [])
            return [b""]
        if not operation.startswith("SageMaker."):
            return self._moto(environ, start_response)
        operation = operation.removeprefix("SageMaker.")
        body = _body(environ)
        request = json.loads(body or b"{}")
        self.sent.append((operation, request))
        name = request.get("TrainingJobName")
        for refusal in self.refusals:
            if refusal[0] == operation and refusal[1] > 0:
                refusal[1] -= 1
                return _error(start_response, *refusal[2:])
        if operation == "CreateTrainingJob":
            if name in self.jobs:
                text = f"Training job names must be unique within an AWS account and region, and {name} is taken"
                return _error(start_response, 400, "ResourceInUse", text)
            self.jobs[name] = request
        if operation == "StopTrainingJob":
            return self._stop(name, start_response)
        if operation == "DescribeTrainingJob":
            self.on_describe(name)
            return self._describe(name, environ, start_response)
        return self._moto(environ, start_response)

    def _stop(self, name: str, start_response: Callable) -> Any:
        if name not in self.jobs:
            return _error(start_response, 400, "ValidationException", "Requested resource not found.")
        status = self.states.get(name, {}).get("TrainingJobStatus", "Completed")
        if status in ENDED:
            text = f"The request was rejected because the training job is in status {status}."
            return _error(start_response, 400, "ValidationException", text)
        self.states[name]["TrainingJobStatus"] = "Stopping"
        return _reply(start_response, "200 OK", {})

    def _describe(self, name: str, environ: dict[str, Any], start_response: Callable) -> Any:
        status: list[str] = []
        answer = b"".join(self._moto(environ, lambda s, headers, *_: status.append(s)))
        tree = json.loads(answer)
        if name in self.jobs and status[0].startswith("200"):
            tree |= {key: self.jobs[name][key] for key in FORGOTTEN if key in self.jobs[name]}
            tree |= self.states.get(name, {})
            tree["SecondaryStatus"] = self.states.get(name, {}).get("SecondaryStatus", tree["TrainingJobStatus"])
        return _reply(start_response, status[0], tree)


def _body(environ: dict[str, Any]) -> bytes:
    """The request's body, left there for the next reader."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def _error(start_response: Callable, status: int, code: str, message: str) -> list[bytes]:
    return _reply(start_response, f"{status} Refused", {"__type": code, "message": message})


def _reply(start_response: Callable, status: str, tree: dict[str, Any]) -> list[bytes]:
    body = json.dumps(tree).encode()
    start_response(status, [("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(body)))])
    return [body]


def _post(url: str) -> Any:
    from botocore.awsrequest import AWSRequest

    return AWSRequest(method="POST", url=url).prepare()
