"""The models of a bulk run: those of a server with the same settings and home, so that both answer with the same version."""

from __future__ import annotations

from backend.serving.calibration import Scorer
from backend.serving.edges import Edges
from backend.serving.engine import Engine
from backend.serving.leases import remembering
from backend.serving.versions import Versions, load_cold
from backend.settings import Settings
from sam4mllm.adapters.loose import describe_adapter, find_adapter, read_papers
from sam4mllm.adapters.registry import Registry
from sam4mllm.identity import slug
from sam4mllm.pipeline import Pipeline


def load_serving(settings: Settings, adapter: str | None = None) -> Pipeline:
    """Return the pipeline that a server of these settings has: that of the registry's champion or, if that cannot be loaded, of the version
    that served before it, and so on down to the base model. If ``adapter`` is given, a folder or a version, it serves instead.

    Raises Sam4mllmError if the base models or the given adapter cannot be loaded.
    """
    folder = None if adapter is None else find_adapter(adapter, settings.home)
    # an adapter that cannot be used is refused before the seconds that loading the models takes
    described = None if folder is None else describe_adapter(folder, slug(settings.model), read_papers(folder))
    leases = load_cold(settings)
    leases.name_edges(Edges(settings.home).digest_of)
    if folder is not None and described is not None and leases.loader is not None:
        leases.seat(remembering(leases.loader.load(folder, described)))
    else:
        never = Engine(lambda: leases, 1)  # there are no requests here
        Versions(never, Registry(settings.home), lambda pipeline: None).begin(leases)
    leases.calibrate(Scorer(settings.home / "score.json").calibration)
    return leases.current
