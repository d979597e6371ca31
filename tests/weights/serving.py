"""A server of files on this machine, and caches of their own."""

import functools
import http.server
import threading
from contextlib import contextmanager

from huggingface_hub import constants

#: Nothing listens there: a machine without a network.
DEAD = "http://127.0.0.1:9"


@contextmanager
def served(folder):
    """Serves a folder; gives its URL and the list of paths that were asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def own_caches(folder, monkeypatch):
    """Empty caches below a folder, and no hub."""
    monkeypatch.setenv("FVCORE_CACHE", str(folder / "detectron2"))
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
