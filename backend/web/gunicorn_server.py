"""``python -P -m backend.web.gunicorn_server --config CONFIG APP``: gunicorn, which looks no modules up in the working directory."""

from __future__ import annotations

import os

from gunicorn.app.wsgiapp import WSGIApplication

from sam4mllm.host_memory import keep_freed_memory


class GunicornServer(WSGIApplication):  # type: ignore[misc] # gunicorn is not typed
    """gunicorn's command line."""

    def chdir(self) -> None:
        """Change to the folder that is set, the working directory by default. gunicorn's own also puts it in front of ``sys.path``."""
        os.chdir(self.cfg.chdir)


if __name__ == "__main__":
    keep_freed_memory()
    GunicornServer("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn").run()
