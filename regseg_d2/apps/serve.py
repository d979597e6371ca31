"""A page in a browser on which a model predicts photos."""

# No postponed annotations: FastAPI reads those of functions that are made below.
import io
import threading
from typing import Any

from regseg_d2.common.errors import ConfigError, UserError, check_key
from regseg_d2.data.images import decoded_file
from regseg_d2.prediction import Predictor

# A photo of a phone has about ten.
_MOST_MEGABYTES = 50
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>regseg_d2</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
  img { max-width: 100%; } .trouble { color: #b00020; }
</style>
<h1>Predict a photo</h1>
<p><input type="file" id="photo" accept="image/*" aria-label="photo">
<label>Opacity <input type="range" id="opacity" min="0" max="1" step="0.05" value="0.5"></label></p>
<p id="said" role="status"></p>
<img id="overlay" alt="">
<script>
  const [photo, opacity, said, overlay] =
    ["photo", "opacity", "said", "overlay"].map((id) => document.getElementById(id));
  async function predict() {
    if (!photo.files.length) return;
    said.className = "";
    said.textContent = "Predicting …";
    const answer = await fetch(`predict?opacity=${opacity.value}`, { method: "POST", body: photo.files[0] });
    if (answer.ok) {
      overlay.src = URL.createObjectURL(await answer.blob());
      overlay.alt = `Classes painted over ${photo.files[0].name}`;
      said.textContent = photo.files[0].name;
    } else {
      said.className = "trouble";
      said.textContent = (await answer.json()).detail;
    }
  }
  photo.onchange = opacity.onchange = predict;
</script>
"""


def make_app(predictor: Predictor) -> Any:
    """Returns the application: ``GET /`` is the page, ``POST /predict`` takes the bytes of an image file.

    Raises:
        ConfigError: FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, HTTPException, Request, Response
        from fastapi.concurrency import run_in_threadpool
        from fastapi.responses import HTMLResponse
    except ImportError:
        raise ConfigError("The page needs FastAPI: pip install 'regseg_d2[serve]'.") from None

    app = FastAPI(title="regseg_d2")
    one_at_a_time = threading.Lock()

    def painted(content: bytes, opacity: float) -> bytes:
        try:
            with one_at_a_time, decoded_file("that was sent", "image", content) as image:
                overlay = predictor(image).overlay(opacity)
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        file = io.BytesIO()
        overlay.save(file, "PNG")
        return file.getvalue()

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return _PAGE

    @app.post("/predict")
    async def predict(request: Request, opacity: float = 0.5) -> Response:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > _MOST_MEGABYTES * 2**20:
                raise HTTPException(413, f"The file has more than {_MOST_MEGABYTES} MB.")
        return Response(await run_in_threadpool(painted, bytes(content), opacity), media_type="image/png")

    return app


def serve(predictor: Predictor, host: str, port: int) -> None:
    """Serves the page until Ctrl-C.

    Raises:
        ConfigError: FastAPI or uvicorn is not installed, or the port is none.
    """
    check_key("--port", port, 0 < port < 2**16, "1 to 65535")
    app = make_app(predictor)
    try:
        import uvicorn
    except ImportError:
        raise ConfigError("The page needs uvicorn: pip install 'regseg_d2[serve]'.") from None
    uvicorn.run(app, host=host, port=port, log_level="warning")
