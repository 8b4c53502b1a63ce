"""What a job writes: its log streams in CloudWatch, read from where the last look ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from graft.errors import CloudError
from graft.launcher.calls import client, explained, is_absent

GROUP = "/aws/sagemaker/TrainingJobs"


class JobLog:
    """The lines of one training job, of all its machines; each line once.

    Attributes:
        is_missed: a person has been told that it cannot be read for the time being.
    """

    def __init__(self, name: str, region: str) -> None:
        self.is_missed = False
        self._name = name
        self._service = client("logs", region)
        self._after: dict[str, str] = {}

    def new_lines(self) -> Iterator[str]:
        """Lines since the last look, oldest first; with the machine in front where there are several.

        Raises:
            CloudError: CloudWatch refuses or cannot be reached. No log yet is no error.
        """
        streams = self._streams()
        for stream in streams:
            host = f"{stream.rpartition('/')[2].rpartition('-')[0]} | " if len(streams) > 1 else ""
            for message in self._events(stream):
                yield from (f"{host}{line}" for line in message.splitlines())

    def _streams(self) -> list[str]:
        try:
            with explained(f"the log of {self._name}"):
                # Streams are called NAME/algo-NUMBER-TIME.
                answer = self._service.describe_log_streams(
                    logGroupName=GROUP, logStreamNamePrefix=f"{self._name}/", orderBy="LogStreamName"
                )
        except CloudError as error:
            if is_absent(error):
                return []
            raise
        return [str(stream["logStreamName"]) for stream in answer["logStreams"]]

    def _events(self, stream: str) -> Iterator[str]:
        while True:
            request: dict[str, Any] = {"logGroupName": GROUP, "logStreamName": stream, "startFromHead": True}
            if stream in self._after:
                request["nextToken"] = self._after[stream]
            with explained(f"the log of {self._name}"):
                answer = self._service.get_log_events(**request)
            yield from (str(event["message"]) for event in answer["events"])
            token = answer["nextForwardToken"]
            # That it comes again is the end; a page without events may be followed by others.
            if token == self._after.get(stream):
                return
            self._after[stream] = token
