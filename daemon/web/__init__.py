"""The HTTP server of the daemon: health, readiness, metrics, and the reload of service.toml.

server.py   the server, bounded in connections and time
access.py   who is answered
app.py      the routes
metrics.py  the metrics page, with every metric's name, labels and help
"""
