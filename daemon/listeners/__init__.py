"""Where events come from: each listener turns one source into a generator of what happened there."""
