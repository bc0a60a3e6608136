"""What the daemon shows over HTTP: health, readiness, metrics, and the one thing that may be asked of it, a reload."""
