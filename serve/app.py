"""The server's routes: /ping, /invocations, /metrics, /openapi.json and the page, as a Starlette application.

`create_app` is all of it but the socket; serve/server.py puts it on uvicorn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from serve.access import AccessLog
from serve.answers import choose_form, write_answer
from serve.metrics import CONTENT_TYPE
from serve.openapi import describe
from serve.queue import Model, Queue
from serve.reading import Fetch, Limits, check_size
from serve.refusals import Failure, Refusal

PAGE = Path(__file__).parent / "page"
# The page's own files and photos that it shows from memory; nothing from elsewhere, and nobody frames it.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# What is left to check of a model waits this long after the first: who asks at once would wait for it otherwise.
CHECK_AFTER_S = 1.0
T = TypeVar("T")
_log = logging.getLogger("graft.serve")


@dataclass
class Service:
    """What the routes work with.

    Attributes:
        load: gives the model, warmed and checked; runs in a thread once the server listens.
        model: what it gave. failure: why it gave none.
        deadline: seconds for a request. top_k: classes in an answer that does not ask for a number.
        begin_fetching: gives what gets the photos behind a request's addresses; None refuses them.
    """

    load: Callable[[], Model]
    queue: Queue
    limits: Limits
    deadline: float
    top_k: int = 5
    begin_fetching: Callable[[], Fetch] | None = None
    model: Model | None = None
    failure: str | None = None

    def ready(self) -> Model:
        """The model; Refusal 503 while there is none, with the reason."""
        if self.model is not None:
            return self.model
        if self.failure is not None:
            raise Refusal(503, f"the model cannot be served: {self.failure}", "mend the model and start again")
        raise Refusal(503, "the model is being loaded", "try again", retry_after=1)


def create_app(service: Service) -> Starlette:
    """The application that answers for a service."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(service))
        yield
        loading.cancel()
        service.queue.close()

    # Starlette's types ask for handlers of any Exception, and it calls each with its own kind.
    handlers: dict[Any, Any] = {Refusal: refuse, HTTPException: refuse_route, Exception: fail}
    app = Starlette(
        routes=[
            Route("/ping", ping),
            Route("/invocations", invocations, methods=["POST"]),
            # Where boto3's sagemaker-runtime posts to, given an endpoint_url.
            Route("/endpoints/{name}/invocations", invocations, methods=["POST"]),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            Route("/", page),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        exception_handlers=handlers,
        middleware=[Middleware(AccessLog, metrics=service.queue.metrics)],
        lifespan=lifespan,
    )
    app.state.service = service
    return app


async def _load(service: Service) -> None:
    begun = time.perf_counter()
    try:
        service.model = await asyncio.to_thread(service.load)
        _log.info("ready", extra={"fields": {"model": service.model.model_id, "seconds": time.perf_counter() - begun}})
        await asyncio.sleep(CHECK_AFTER_S)
        await asyncio.to_thread(service.model.check_remaining)
    except Exception as error:  # whatever it is, /ping has to tell it: nobody else waits for this task
        service.model, service.failure = None, str(error) or type(error).__name__
        _log.exception("the model cannot be served")


async def ping(request: Request) -> Response:
    """200 once the model is loaded, warmed and has reproduced its first parity samples; 503 before that.

    The others are run a second later; a model that does not reproduce them is 503 again, with the reason.
    """
    return JSONResponse({"status": "healthy", "model": _service(request).ready().model_id})


async def invocations(request: Request) -> Response:
    """Answer the photos of a request; every refusal has the form of `Refusal.body`."""
    service, begun = _service(request), time.perf_counter()
    with service.queue.place():
        try:
            async with asyncio.timeout(service.deadline):
                answer = await _answer(service, request, begun)
        except TimeoutError as error:
            accepted = "send the photo faster, or try again when less is asked"
            raise Refusal(504, f"no answer within {service.deadline:g} s", accepted, retry_after=1) from error
        except ClientDisconnect:
            return Response(status_code=499)  # nginx's code; nobody reads it but the log
    service.queue.metrics.stages.labels("total").observe(time.perf_counter() - begun)
    return answer


async def _answer(service: Service, request: Request, begun: float) -> Response:
    model = service.ready()
    accept = request.headers.get("accept")
    choose_form(accept)
    top_k, shown = _top_k(request, service.top_k), _shown(request)
    with service.queue.metrics.time("read"):
        body = await _body(request, service.limits)
        content_type = request.headers.get("content-type")
        fetch = service.begin_fetching() if service.begin_fetching else None
        photos = await _unless_gone(request, service.queue.photos(body, content_type, service.limits, fetch))
    request.state.photos = len(photos)
    answers = await _unless_gone(request, service.queue.answers(model, photos, service.limits, shown=shown))
    milliseconds = 1000 * (time.perf_counter() - begun)
    content, media_type = write_answer(answers, accept, top_k, milliseconds, model.model_id, many=photos.listed)
    return Response(content, media_type=media_type)


async def _body(request: Request, limits: Limits) -> bytes:
    """The body; refused by its announced length already, and by what came so far where none is announced."""
    announced = request.headers.get("content-length", "0")
    check_size(int(announced) if announced.isdecimal() else 0, limits)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        check_size(size, limits)
        chunks.append(chunk)
    return b"".join(chunks)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; ClientDisconnect, and the work dropped, as soon as the client goes away."""
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        doing.cancel()
        gone.cancel()


def _top_k(request: Request, default: int) -> int:
    text = request.query_params.get("top_k")
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and 1 <= len(text) <= 6 and int(text) >= 1):
        raise Refusal(400, f"top_k={text[:100]!r} is not a number of classes", "top_k may be 1 to 999999")
    return int(text)


def _shown(request: Request) -> bool:
    text = request.query_params.get("photo", "false")
    if text not in ("true", "false"):
        raise Refusal(400, f"photo={text[:100]!r} is neither yes nor no", "photo may be true or false")
    return text == "true"


async def metrics(request: Request) -> Response:
    """Counts for Prometheus."""
    return Response(_service(request).queue.metrics.text(), media_type=CONTENT_TYPE)


async def openapi(request: Request) -> Response:
    """The OpenAPI description of this server."""
    return JSONResponse(describe(_service(request).limits))


async def page(request: Request) -> Response:
    """The page for people."""
    headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return Response((PAGE / "index.html").read_bytes(), media_type="text/html", headers=headers)


async def refuse(request: Request, refusal: Refusal) -> Response:
    """The response for a Refusal."""
    return _refuse(request, refusal)


async def refuse_route(request: Request, error: HTTPException) -> Response:
    """The response for a path or a method that is not there, in the form of a refusal."""
    routes = "POST /invocations, GET /ping, /metrics, /openapi.json and /"
    problem = f"{request.method} {request.url.path[:100]} is not answered: {error.detail}"
    response = _refuse(request, Refusal(error.status_code, problem, routes))
    response.headers.update(error.headers or {})
    return response


async def fail(request: Request, error: Exception) -> Response:
    """The response for a fault of the server: no word of what it was; the log has it."""
    return _refuse(request, Failure())


def _refuse(request: Request, refusal: Refusal) -> Response:
    request.state.problem = refusal.problem
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    # What still drips in is not waited for; after a 413 it is read, so that the answer is read too.
    if refusal.status == 504:
        headers["Connection"] = "close"
    return Response(refusal.body(), refusal.status, headers, "application/json")


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
