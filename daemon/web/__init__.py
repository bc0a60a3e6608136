"""The HTTP server of the daemon: health, readiness, metrics, and the reload of service.toml."""
