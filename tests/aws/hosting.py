"""Models, endpoint configurations and endpoints, each of which is a process that answers with the uploaded model."""

from __future__ import annotations

import gzip
import http.client
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.aws.account import ACCOUNT, LogStream, arn, check_role, environment, list_objects, split_uri
from tests.aws.containers import container_of
from tests.aws.listing import paged
from tests.aws.rejections import Rejection, invalid

Request = Mapping[str, Any]
LONGEST_ANSWER_S = 60.0  # "A customer's model containers must respond to requests within 60 seconds."


@dataclass
class Endpoint:
    """An endpoint and its process.

    Attributes:
        request: of CreateEndpoint.
        config: its configuration's request.
        model: its model's request.
        url: of the local AWS.
        folder: stands for its container's /opt/ml.
    """

    request: Request
    config: Request
    model: Request
    url: str
    folder: Path
    created: float = field(default_factory=time.time)
    changed: float = field(default_factory=time.time)
    status: str = "Creating"
    failure: str = ""
    port: int = 0
    deleted: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """Of the endpoint."""
        return str(self.request["EndpointName"])

    @property
    def variant(self) -> str:
        """Name of its only variant."""
        return str(self.config["ProductionVariants"][0]["VariantName"])

    @property
    def log_group(self) -> str:
        """Where its container's lines are."""
        return f"/aws/sagemaker/Endpoints/{self.name}"

    def start(self) -> None:
        """Serve it in a thread."""
        self.thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        log = LogStream(self.url, self.log_group, f"{self.variant}/i-0123456789abcdef0")
        container = self.model["PrimaryContainer"]
        environ = {**environment(self.url), **container.get("Environment", {})}
        place = f"""for container "container_1" from URL: "{container["ModelDataUrl"]}". Please ensure that"""
        try:
            self._unpack(self.folder / "model")
            with container_of(container["Image"])(self.folder, environ, log.write, self.deleted) as self.port:
                self._settle("InService")
                self._wait(log)
        except ClientError:
            self._fail(f"Failed to download model data {place} there is an object located at the URL.", log)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile):
            self._fail(f"Failed to extract model data archive {place} it is a valid tar.gz archive.", log)
        except TimeoutError:
            self._fail(
                f"The primary container for production variant {self.variant} did not pass the ping health check. "
                "Please check CloudWatch logs for this endpoint.",
                log,
            )
        log.flush()

    def _fail(self, reason: str, log: LogStream) -> None:
        """It stays, failed, until it is deleted."""
        self.failure = reason
        self._settle("Failed")
        self._wait(log)

    def _wait(self, log: LogStream) -> None:
        """Until it is deleted."""
        log.flush()
        while not self.deleted.wait(0.2):
            log.flush()

    def _unpack(self, model: Path) -> None:
        from tests.aws.account import client

        bucket, key = split_uri(self.model["PrimaryContainer"]["ModelDataUrl"])
        model.mkdir(parents=True)
        archive = self.folder / "model.tar.gz"
        client("s3", self.url).download_file(bucket, key, str(archive))
        with tarfile.open(archive) as tar:
            tar.extractall(model, filter="data")

    def _settle(self, status: str) -> None:
        self.status, self.changed = status, time.time()

    def invoke(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, Mapping[str, str]]:
        """Ask its container; status, body and headers of the answer."""
        if self.status != "InService":
            raise Rejection("ValidationError", f"Endpoint {self.name} of account {ACCOUNT} is not in service.")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONGEST_ANSWER_S)
        try:
            connection.request("POST", "/invocations", body, dict(headers))
            response = connection.getresponse()
            return response.status, response.read(), dict(response.getheaders())
        except (OSError, http.client.HTTPException):
            return 0, b"Your invocation timed out while waiting for a response from container", {}
        finally:
            connection.close()

    def delete(self) -> None:
        """End it."""
        self.deleted.set()
        if self.thread:
            self.thread.join(timeout=150)  # AWS's stack is waited for when it has begun to start

    def describe(self) -> dict[str, Any]:
        """The answer of DescribeEndpoint."""
        variant = self.config["ProductionVariants"][0]
        count = variant.get("InitialInstanceCount", 1)
        known: dict[str, Any] = {
            "EndpointName": self.name,
            "EndpointArn": arn("endpoint", self.name),
            "EndpointConfigName": self.request["EndpointConfigName"],
            "EndpointStatus": self.status,
            "CreationTime": self.created,
            "LastModifiedTime": self.changed,
        }
        if self.status == "InService":
            known["ProductionVariants"] = [
                {"VariantName": self.variant, "CurrentInstanceCount": count, "DesiredInstanceCount": count}
            ]
        return known | ({"FailureReason": self.failure} if self.failure else {})


@dataclass
class Hosting:
    """What an account hosts: requests and endpoints by name."""

    folder: Path
    url: str = ""
    tags: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    _started: int = 0

    def operations(self) -> dict[str, Callable[[Request], dict[str, Any]]]:
        """By name as the API has it."""
        return {
            "CreateModel": self.create_model,
            "DescribeModel": lambda request: self._stored(self.models, "Model", request),
            "DeleteModel": lambda request: self._forget(self.models, "Model", request),
            "ListModels": lambda request: self._list(self.models, "Model", request),
            "CreateEndpointConfig": self.create_endpoint_config,
            "DescribeEndpointConfig": lambda request: self._stored(self.configs, "EndpointConfig", request),
            "DeleteEndpointConfig": lambda request: self._forget(self.configs, "EndpointConfig", request),
            "ListEndpointConfigs": lambda request: self._list(self.configs, "EndpointConfig", request),
            "CreateEndpoint": self.create_endpoint,
            "DescribeEndpoint": lambda request: self.endpoint(request["EndpointName"]).describe(),
            "DeleteEndpoint": self.delete_endpoint,
            "ListEndpoints": self.list_endpoints,
        }

    def create_model(self, request: Request) -> dict[str, Any]:
        """Register a model whose archive is there."""
        check_role(self.url, request["ExecutionRoleArn"])
        place = request["PrimaryContainer"].get("ModelDataUrl", "")
        if split_uri(place)[1] not in list_objects(self.url, place):
            raise invalid(f"Could not find model data at {place}.")
        return self._store(self.models, "Model", request)

    def create_endpoint_config(self, request: Request) -> dict[str, Any]:
        """Register a configuration of models that are there."""
        for variant in request["ProductionVariants"]:
            if variant.get("ModelName") not in self.models:
                raise invalid(f'Could not find model "{arn("model", variant.get("ModelName", ""))}".')
        return self._store(self.configs, "EndpointConfig", request)

    def create_endpoint(self, request: Request) -> dict[str, Any]:
        """Start a container."""
        name, config_name = request["EndpointName"], request["EndpointConfigName"]
        if config_name not in self.configs:
            raise invalid(f'Could not find endpoint configuration "{arn("endpoint-config", config_name)}".')
        if name in self.endpoints:
            raise invalid(f'Cannot create already existing endpoint "{arn("endpoint", name)}".')
        config = self.configs[config_name]
        model = self.models[config["ProductionVariants"][0]["ModelName"]]
        self._started += 1
        folder = self.folder / f"endpoint-{self._started}"
        endpoint = Endpoint(request, config, model, self.url, folder)
        self.endpoints[name] = endpoint
        self.tags[arn("endpoint", name)] = list(request.get("Tags", []))
        endpoint.start()
        return {"EndpointArn": arn("endpoint", name)}

    def endpoint(self, name: str) -> Endpoint:
        """By name."""
        try:
            return self.endpoints[name]
        except KeyError:
            raise invalid(f'Could not find endpoint "{arn("endpoint", name)}".') from None

    def delete_endpoint(self, request: Request) -> dict[str, Any]:
        """End a container that has come up, or has failed to; configuration and model stay."""
        name = request["EndpointName"]
        if self.endpoint(name).status == "Creating":
            raise invalid(f'Cannot update in-progress endpoint "{arn("endpoint", name)}".')
        self.endpoints.pop(name).delete()
        return {}

    def list_endpoints(self, request: Request) -> dict[str, Any]:
        """Endpoints, the newest first."""
        names = ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus")
        described = [e.describe() for e in reversed(self.endpoints.values()) if _is_asked(e.name, request)]
        return paged("Endpoints", [{name: entry[name] for name in names} for entry in described], request)

    def _store(self, place: dict[str, dict[str, Any]], kind: str, request: Request) -> dict[str, Any]:
        name = request[f"{kind}Name"]
        identity = arn(_KINDS[kind], name)
        if name in place:
            raise invalid(f'Cannot create already existing {_WORDS[kind]} "{identity}".')
        place[name] = {**request, f"{kind}Arn": identity, "CreationTime": time.time()}
        self.tags[identity] = place[name].pop("Tags", [])
        return {f"{kind}Arn": identity}

    def _stored(self, place: dict[str, dict[str, Any]], kind: str, request: Request) -> dict[str, Any]:
        name = request[f"{kind}Name"]
        if name not in place:
            raise invalid(f'Could not find {_WORDS[kind]} "{arn(_KINDS[kind], name)}".')
        return place[name]

    def _forget(self, place: dict[str, dict[str, Any]], kind: str, request: Request) -> dict[str, Any]:
        self._stored(place, kind, request)
        del place[request[f"{kind}Name"]]
        return {}

    def _list(self, place: dict[str, dict[str, Any]], kind: str, request: Request) -> dict[str, Any]:
        names = (f"{kind}Name", f"{kind}Arn", "CreationTime")
        asked = [entry for name, entry in reversed(place.items()) if _is_asked(name, request)]
        return paged(f"{kind}s", [{name: entry[name] for name in names} for entry in asked], request)

    def invoke(
        self, name: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, bytes | dict[str, Any], Mapping[str, str]]:
        """Status, body and headers of InvokeEndpoint; a model's own error is 424."""
        if name not in self.endpoints:
            raise Rejection("ValidationError", f"Endpoint {name} of account {ACCOUNT} not found.")
        endpoint = self.endpoints[name]
        status, answered, given = endpoint.invoke(body, headers)
        if status == 200:
            kept = {"Content-Type": given.get("content-type", given.get("Content-Type", ""))}
            return 200, answered, kept | {"x-Amzn-Invoked-Production-Variant": endpoint.variant}
        who = "client" if 400 <= status < 500 else "server"
        said = answered.decode(errors="replace")
        problem = {
            "Message": f'Received {who} error ({status}) from {endpoint.variant} with message "{said}". '
            f"See CloudWatch log group {endpoint.log_group} in account {ACCOUNT} for more information.",
            "OriginalStatusCode": status,
            "OriginalMessage": said,
            "LogStreamArn": endpoint.log_group,
        }
        return 424, problem, {"x-amzn-ErrorType": "ModelError"}

    def close(self) -> None:
        """End all containers."""
        for endpoint in self.endpoints.values():
            endpoint.delete()


_KINDS = {"Model": "model", "EndpointConfig": "endpoint-config"}
_WORDS = {"Model": "model", "EndpointConfig": "endpoint configuration"}


def _is_asked(name: str, request: Request) -> bool:
    return str(request.get("NameContains", "")) in name
