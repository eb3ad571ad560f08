"""FastAPI under uvicorn, one worker process per core; FastAPI has no batching."""

from contextlib import asynccontextmanager

from classifier import BadImage, Classifier
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool


@asynccontextmanager
async def _lifespan(app: FastAPI):
    app.state.classifier = Classifier(threads=1)
    yield


app = FastAPI(lifespan=_lifespan)


@app.post("/classify")
async def classify(request: Request) -> dict[str, str]:
    """Classify the image in the body."""
    image = await request.body()
    try:
        (label,) = await run_in_threadpool(app.state.classifier.classify, [image])
    except BadImage as exc:
        raise HTTPException(400, str(exc)) from exc
    return {"label": label}
