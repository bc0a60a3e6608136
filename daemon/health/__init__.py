"""The health of the service: the reports of workers and jobs, and pure verdicts on them. The supervisor, HTTP, systemd
and commands all use them.

readiness.py         is the service ready, does its work make progress; the status line
worker_failure.py    whether a worker will never run, for a client that waits
report.py            how one line of JSON becomes a report
worker_report.py     what a worker reports
job_report.py        what the process of a job reports
rehearsal_report.py  what the process of a rehearsal reports
service_status.py    the status of a service, as it is written and read
backoff.py           how long to wait before something that failed is tried again
measures.py          the Prometheus metrics of a worker
"""
