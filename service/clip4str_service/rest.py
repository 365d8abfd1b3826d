"""REST: thin endpoints before the engine. `create_app` makes the application; there is no global one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from clip4str_service.bodies import read_crops
from clip4str_service.engine import Caller, Engine
from clip4str_service.errors import ClientGoneError, MethodNotAllowedError, NotFoundError, ServiceError
from clip4str_service.gate import Gate
from clip4str_service.intake import Intake
from clip4str_service.metrics import FrontEndMetrics
from clip4str_service.middleware import RequestContext, problem_response
from clip4str_service.openapi import RECOGNIZE, describe, errors
from clip4str_service.schemas import ModelsAnswer, RecognizeAnswer, models_json, recognize_json
from clip4str_service.security_headers import SecurityHeaders
from clip4str_service.settings import Settings
from clip4str_service.tracing import RequestTracing, current_span

MODEL = "clip4str"
"""The model's name in the Open Inference Protocol."""


def create_app(
    engine: Engine,
    gate: Gate,
    intake: Intake,
    settings: Settings,
    metrics: FrontEndMetrics,
    tracing: RequestTracing,
) -> FastAPI:
    """The REST application of an engine."""
    app = FastAPI(
        title="CLIP4STR",
        version=version("clip4str"),
        description="Reads the word in each image.",
        redoc_url=None,
    )
    app.add_middleware(RequestContext, metrics=metrics, tracing=tracing)
    app.add_middleware(SecurityHeaders, tls=settings.tls_cert_file is not None)  # outermost: on every answer
    app.add_exception_handler(ServiceError, _failed)
    app.add_exception_handler(HTTPException, _not_routed)
    app.include_router(_recognition(engine, gate, intake, settings))
    app.include_router(_health(engine))
    describe(app)
    return app


def _recognition(engine: Engine, gate: Gate, intake: Intake, settings: Settings) -> APIRouter:
    router = APIRouter(tags=["recognition"])

    def caller(request: Request) -> Caller:
        return gate.caller(request.headers.getlist, current_span.get().traceparent)

    @router.post(
        "/v1/recognize",
        response_model=RecognizeAnswer,
        responses=errors(400, 401, 413, 415, 422, 429, 499, 500, 503, 504),
        openapi_extra=RECOGNIZE,
    )
    async def recognize(request: Request) -> Response:
        """Read one or many word crops.

        The body is one image, or a form with `image` parts, or JSON. Options are query parameters, form
        fields or `options` in the body. A form or JSON is answered with a result or an error for each crop;
        an image's error is the response's.
        """
        asking = caller(request)
        engine.check_ready()
        with intake.request() as holding:
            crops = await read_crops(request, settings, holding)
            request.state.crops = len(crops.contents)
            async with _until_disconnect(request):
                answer = await engine.recognize(crops.contents, crops.options, asking)
        if crops.raw and isinstance(answer.outcomes[0], ServiceError):
            raise answer.outcomes[0]
        return _json(recognize_json(crops.ids, answer, crops.options.detail))

    @router.get("/v1/models", response_model=ModelsAnswer, responses=errors(401, 503))
    async def models(request: Request) -> Response:
        """Describe the loaded model."""
        caller(request)
        return _json(models_json(engine.model))

    return router


def _health(engine: Engine) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/livez", responses=errors(503))
    @router.get("/v2/health/live", responses=errors(503))
    async def live() -> dict[str, bool]:
        """Say whether the process is sound; one that is not must be restarted."""
        engine.check_alive()
        return {"live": True}

    @router.get("/readyz", responses=errors(503))
    @router.get("/v2/health/ready", responses=errors(503))
    async def ready() -> dict[str, bool]:
        """Say whether crops are accepted: the model is warm and the service does not drain."""
        engine.check_ready()
        return {"ready": True}

    @router.get("/startupz", responses=errors(503))
    async def started() -> dict[str, str | bool]:
        """Say whether the model was loaded and warmed up."""
        return {"started": True, "revision": engine.model.revision}

    @router.get(f"/v2/models/{MODEL}/ready", responses=errors(503))
    async def model_ready() -> dict[str, str | bool]:
        """Say whether the model accepts crops (Open Inference Protocol)."""
        engine.check_ready()
        return {"name": MODEL, "ready": True}

    @router.get(f"/v2/models/{MODEL}", responses=errors(503))
    async def model_metadata() -> dict[str, object]:
        """Describe the model's input and output (Open Inference Protocol)."""
        return {
            "name": MODEL,
            "versions": [engine.model.revision],
            "platform": "pytorch",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        }

    return router


@asynccontextmanager
async def _until_disconnect(request: Request) -> AsyncIterator[None]:
    """Cancels what runs inside, and raises ClientGoneError, when the client leaves. The body must be read."""
    task = asyncio.current_task()
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        if task is not None:
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and task is not None and task.uncancel() == 0:
            raise ClientGoneError("the client left before its answer was ready") from None
        raise
    finally:
        watcher.cancel()


async def _failed(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    request.state.code = error.code
    return problem_response(error)


async def _not_routed(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    found = error.status_code == MethodNotAllowedError.http_status
    refused: type[ServiceError] = MethodNotAllowedError if found else NotFoundError
    response = await _failed(request, refused(f"{request.method} {request.url.path[:128]} is not served"))
    response.headers.update(error.headers or {})
    return response


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
