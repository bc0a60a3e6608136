"""The names of predictd's own collections. They are in the user's database, and all begin with `_predictd.`"""

from __future__ import annotations

from typing import Final

COMPONENTS: Final = "_predictd.components"
SERVICES: Final = "_predictd.services"
VERSIONS: Final = "_predictd.versions"
WEIGHTS: Final = "_predictd.weights"  # a GridFS bucket
POSITIONS: Final = "_predictd.positions"
SCANS: Final = "_predictd.scans"
DEAD_LETTERS: Final = "_predictd.dead_letters"
ARTIFACTS: Final = "_predictd.artifacts"  # a GridFS bucket
JOBS: Final = "_predictd.jobs"
SCHEDULES: Final = "_predictd.schedules"
DATASETS: Final = "_predictd.datasets"
BELLS: Final = "_predictd.bells"
REQUESTS: Final = "_predictd.requests"
SEARCHES: Final = "_predictd.searches"
REHEARSALS: Final = "_predictd.rehearsals"
LEASES: Final = "_predictd.leases"
STATUS: Final = "_predictd.status"

_BUCKETS: Final = (WEIGHTS, ARTIFACTS, DATASETS)
OWN: Final = tuple(
    sorted(
        {each for name, each in list(vars().items()) if name.isupper() and isinstance(each, str)} - {WEIGHTS, ARTIFACTS}
        | {f"{bucket}.{part}" for bucket in _BUCKETS for part in ("files", "chunks")}
    )
)
"""All collections; a bucket of GridFS is two."""
