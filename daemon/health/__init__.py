"""How the service is: verdicts over what workers and jobs report. Pure; the supervisor, HTTP, systemd and commands all
ask here.

readiness.py       is it ready, does its work move, in one line
worker_failure.py  whether somebody who waits may give a worker up
report.py          how one line of JSON becomes a report
worker_report.py   what a worker reports
job_report.py      what the process of a job reports
backoff.py         how long to wait before something that failed is tried again
measures.py        what a worker measures, as Prometheus metrics
"""
