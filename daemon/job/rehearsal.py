"""The rehearsal of a candidate, in the process of its training: it predicts a few rows of its model's listeners before
it goes live.
"""

from __future__ import annotations

from components.model import Model
from daemon.job.context import Context
from daemon.rehearsal.rules import Note, rehearsed
from daemon.rehearsal.sample import rows_of


def refusal(context: Context, name: str, model: Model) -> str | None:
    """Why this version of the model `name` must not go live; None if nothing is wrong. Warnings go to the job's log."""
    voice = context.voice
    voice.doing("rehearsing")
    known = context.patience("registry", context.registry.read)
    for listener, each in known.listeners.items():
        declared = each.declaration
        if declared.model != name or declared.table not in known.tables:
            continue
        fields = known.tables[declared.table].declaration.fields
        rows = context.patience("rows", lambda: rows_of(declared, context.database))  # noqa: B023 - called at once
        for found in rehearsed(listener, declared, fields, model, rows, voice.moved):
            if not isinstance(found, Note):
                return str(found)
            voice.say(f"rehearsed: {found}")
    return None
