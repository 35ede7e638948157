"""The HTTP layer: gunicorn's worker, the checks that each request passes, the routes and the pages."""
