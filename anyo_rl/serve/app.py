"""The service: JSON endpoints, the page, and what watches over it. It takes the extra `serve`.

Each model has a thread of its own, with a bounded queue: what finds no room is answered 429, what takes too long 504.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from fastapi import FastAPI, HTTPException, Query, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from jinja2 import Environment
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException

from anyo_rl import __version__
from anyo_rl.data.names import named_items
from anyo_rl.run.settings import UsageError
from anyo_rl.search.how import SEARCHES
from anyo_rl.serve.guard import Guard, policy
from anyo_rl.serve.messages import (
    MOST_LISTED,
    About,
    Answer,
    Asked,
    Example,
    Health,
    Item,
    Model,
    Problem,
    answer_of,
)
from anyo_rl.serve.recommender import Recommended, Recommender, Request
from anyo_rl.serve.worker import ClosedError, FullError, Question, Worker

logger = logging.getLogger(__name__)

N_EXAMPLES = 50
RETRY_AFTER_S = 1
BUSY, SHUTTING_DOWN = "too many questions are waiting: ask again in a moment", "the service is shutting down"
PROBLEMS: Any = {
    code: {"model": Problem, "description": told}
    for code, told in {
        400: "The body is no JSON.",
        413: "The body is too large.",
        422: "An unknown item, or a value out of its range.",
        429: "The queue is full.",
        504: "It took too long.",
    }.items()
}


@dataclass(frozen=True)
class Limits:
    """How much is taken on.

    Attributes:
        most_waiting: questions in a model's queue.
        most_at_once: questions answered in one batch.
        timeout_s: longest wait for an answer, in the queue and after it.
    """

    most_waiting: int = 32
    most_at_once: int = 32
    timeout_s: float = 60.0


class Service:
    """The models, their workers, and what is known of the data.

    Args:
        models: by name; the first is asked where none is named. All know the same items.
        limits: how much is taken on.

    Raises:
        UsageError: models of other items.
    """

    def __init__(self, models: Mapping[str, Recommender], limits: Limits) -> None:
        self.models, self.limits = dict(models), limits
        self.first = next(iter(self.models.values()))
        for name, other in self.models.items():
            if other.titles != self.first.titles:
                raise UsageError(
                    f"{name} recommends other items than {next(iter(self.models))}: take runs on the same data"
                )
        self.examples = {str(request.name): request for request in self.first.examples(N_EXAMPLES)}
        self.first.names.search("warm up", 1)
        self.registry = CollectorRegistry()
        self.waiting = Gauge("anyo_rl_waiting", "Questions in the queue.", ["model"], registry=self.registry)
        self.tokens = Counter("anyo_rl_tokens", "Tokens written.", ["model", "search"], registry=self.registry)
        self.answering = Histogram(
            "anyo_rl_answer_seconds", "Of a batch, over its questions.", ["model", "search"], registry=self.registry
        )
        self.workers: dict[str, Worker] = {}

    def start(self) -> None:
        """Starts the workers."""
        for name, model in self.models.items():
            self.workers[name] = Worker(model, self.limits.most_waiting, self.limits.most_at_once)
            self.waiting.labels(name).set_function(lambda worker=self.workers[name]: worker.n_waiting)  # type: ignore[misc]

    def stop(self) -> None:
        """Ends them; what they have begun is answered first."""
        for worker in self.workers.values():
            worker.close(self.limits.timeout_s)

    def item(self, item_id: str) -> Item:
        """An item with its title."""
        return Item(item_id=item_id, title=self.first.titles[item_id])

    def question(self, asked: Asked) -> tuple[str, Question]:
        """The model that is asked, and the question in item ids.

        Raises:
            UsageError: something is unknown or out of its range.
        """
        name = next(iter(self.models)) if asked.model is None else asked.model
        if name not in self.models:
            raise UsageError(f"model is {name!r}: expected one of {', '.join(self.models)}")
        names = self.first.names
        if (asked.history is None) == (asked.example is None):
            raise UsageError("give a history, or the id of one of /examples, and not both")
        if asked.example is not None:
            if asked.example not in self.examples:
                raise UsageError(f"no example is called {asked.example!r}: expected the id of one of /examples")
            request = self.examples[asked.example]
        else:
            request = Request(tuple(named_items(names, asked.history or (), "history")))
        only = None if asked.only is None else tuple(named_items(names, asked.only, "only"))
        request = replace(
            request, exclude=(*request.exclude, *named_items(names, asked.exclude, "exclude")), only=only
        )
        if asked.target is not None:
            request = replace(request, target=names.find(asked.target))
        model = self.models[name]
        model.check(request, asked.k, asked.search, asked.n)
        return name, Question(request, asked.k, asked.search, asked.n)

    def submit(self, name: str, question: Question) -> "Future[Recommended]":
        """Queues a question.

        Raises:
            HTTPException: the queue is full, or the service is being shut down.
        """
        try:
            return self.workers[name].submit(question)
        except FullError:
            raise HTTPException(429, BUSY, {"Retry-After": str(RETRY_AFTER_S)}) from None
        except (ClosedError, KeyError):
            raise HTTPException(503, SHUTTING_DOWN) from None

    async def wait(self, future: "Future[Recommended]") -> Recommended:
        """Waits for an answer; one that nobody waits for any more is not begun.

        Raises:
            HTTPException: it took too long.
        """
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.timeout_s)
        except TimeoutError:
            limit = self.limits.timeout_s
            raise HTTPException(504, f"no answer within {limit:g} s: take a smaller n, or another search") from None
        except asyncio.CancelledError:
            if future.cancelled() and not asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise HTTPException(503, SHUTTING_DOWN) from None
            raise

    def told(self, name: str, question: Question, found: Recommended, reasons: bool) -> Answer:
        """An answer as JSON has it; it is counted."""
        model, target = self.models[name], question.request.target
        search = question.search or model.search
        self.tokens.labels(name, search).inc(found.n_tokens)
        self.answering.labels(name, search).observe(found.seconds)
        return answer_of(
            found, (name, model.place.name, search), None if target is None else self.item(target), reasons
        )

    def about(self) -> About:
        """What is served."""
        task = self.first.task
        models = [
            Model(
                model=name,
                stage=model.place.name,
                searches=list(SEARCHES) if model.reasons else ["plain"],
                search=model.search,
                n=model.n_paths,
            )
            for name, model in self.models.items()
        ]
        return About(
            models=models, data=task.interactions.name, n_items=len(self.first.titles), masked=task.args.mask_history
        )


def make_app(models: Mapping[str, Recommender], limits: Limits = Limits()) -> FastAPI:
    """The application.

    Args:
        models: by name; the first is asked where none is named.
        limits: how much is taken on.

    Raises:
        UsageError: models of other items.
    """
    service = Service(models, limits)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="anyo-rl", version=__version__, description="Asks trained recommenders for items.",
        docs_url=None, redoc_url=None, lifespan=life,
    )  # fmt: skip
    app.add_middleware(Guard, registry=service.registry)
    _handle_problems(app)
    _ask(app, service)
    _look(app, service)
    return app


def _ask(app: FastAPI, service: Service) -> None:
    """The endpoints that answer questions."""

    @app.post("/recommend", responses=PROBLEMS)
    async def recommend(asked: Asked) -> Answer:
        """Recommends items."""
        name, question = service.question(asked)
        found = await service.wait(service.submit(name, question))
        return service.told(name, question, found, asked.reasons)

    @app.post("/recommend/stream", responses=PROBLEMS, response_class=StreamingResponse)
    async def stream(asked: Asked) -> StreamingResponse:
        """The same as server-sent events: `steps` as they are written, then `answer`, or `problem`.

        Searches that go line by line tell each step, the others each whole reasoning; what was sent is not always what
        the answer comes after.
        """
        name, question = service.question(asked)
        loop, events = asyncio.get_running_loop(), asyncio.Queue[str]()

        def watch(_: str, steps: tuple[str, ...]) -> None:
            loop.call_soon_threadsafe(events.put_nowait, _event("steps", {"steps": steps}))

        watched = service.models[name].searches and asked.reasons
        question = replace(question, watch=watch if watched else None)
        future = service.submit(name, question)
        return StreamingResponse(_events(service, (name, question), future, events, asked.reasons), media_type=EVENTS)


EVENTS = "text/event-stream"


def _event(kind: str, data: Mapping[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


async def _events(
    service: Service,
    asked: tuple[str, Question],
    future: "Future[Recommended]",
    events: "asyncio.Queue[str]",
    reasons: bool,
) -> AsyncIterator[str]:
    """Steps as they come, then the answer."""
    answer = asyncio.ensure_future(service.wait(future))
    try:
        while not answer.done():
            step = asyncio.ensure_future(events.get())
            await asyncio.wait({step, answer}, return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                step.cancel()
                break
            yield step.result()
        with suppress(asyncio.QueueEmpty):
            while True:
                yield events.get_nowait()
        try:
            found = await answer
            yield _event("answer", service.told(*asked, found, reasons).model_dump(mode="json"))
        except HTTPException as problem:
            yield _event("problem", {"error": problem.detail})
        except UsageError as problem:
            yield _event("problem", {"error": str(problem)})
        except Exception:
            logger.exception("a question was not answered")
            yield _event("problem", {"error": "an error of the service's own; its log says which"})
    finally:
        answer.cancel()
        future.cancel()


def _look(app: FastAPI, service: Service) -> None:
    """The pages, and the endpoints that tell what there is."""
    page = resources.files("anyo_rl.serve").joinpath("page.html").read_text(encoding="utf-8")
    reference = resources.files("anyo_rl.serve").joinpath("reference.html.jinja").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy(page)})

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        shown = Environment(autoescape=True).from_string(reference).render(api=app.openapi(), dump=_indented)
        return HTMLResponse(shown, headers={"Content-Security-Policy": policy(shown)})

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)  # browsers ask for one

    @app.get("/about")
    async def about() -> About:
        """What is served."""
        return service.about()

    @app.get("/items")
    async def items(
        query: str = Query(default="", max_length=500), limit: int = Query(default=10, ge=1, le=MOST_LISTED)
    ) -> list[Item]:
        """Items by what somebody has typed so far, best first."""
        return [service.item(item) for item in service.first.names.search(query, limit)]

    @app.get("/examples")
    async def examples(limit: int = Query(default=20, ge=1, le=N_EXAMPLES)) -> list[Example]:
        """Some test users' histories, with what they really chose."""
        chosen = list(service.examples.items())[:limit]
        return [
            Example(
                example=name,
                history=[service.item(item) for item in request.history],
                target=service.item(str(request.target)),
            )
            for name, request in chosen
        ]

    @app.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """Whether questions are answered."""
        alive = bool(service.workers) and all(worker.alive for worker in service.workers.values())
        response.status_code = 200 if alive else 503
        waiting = {name: worker.n_waiting for name, worker in service.workers.items()}
        return Health(status="ok" if alive else "down", waiting=waiting)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)


def _indented(value: Any) -> str:
    return json.dumps(value, indent=2)


def _handle_problems(app: FastAPI) -> None:
    """Every problem is one line of JSON."""

    def problem(status: int, told: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": told}, status, headers)

    def of_usage(_: HttpRequest, error: Exception) -> JSONResponse:
        return problem(422, str(error))

    def of_http(_: HttpRequest, error: Any) -> JSONResponse:
        return problem(error.status_code, str(error.detail), error.headers)

    def of_values(_: HttpRequest, error: Any) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return problem(400, f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}")
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
        return problem(422, f"{where or 'the body'}: {first['msg']}")

    handlers: dict[Any, Callable[..., JSONResponse]] = {
        UsageError: of_usage,
        StarletteHTTPException: of_http,
        RequestValidationError: of_values,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
