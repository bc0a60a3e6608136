"""The process that keeps everything running: `predictd run`. It is light and never imports torch.

service.py        the daemon: wires everything, starts, follows service.toml, stops
leadership.py     reaches MongoDB and holds the lease: one active daemon for a service name
operation.py      what runs while this daemon leads: workers, jobs, schedules
desired_state.py  which workers should run, with which listeners
fleet.py          keeps workers running: one keeper for each
scheduler.py      queues trainings and validations when they are due
job_runner.py     claims queued jobs, runs one attempt after another: job_attempt.py
leader_context.py what all of these work with
timed_wait.py     waiting for an event for a limited time
reporter.py       tells systemd and the status document how the service is
"""
