"""The process that keeps everything running: `predictd run`. It is light and never imports torch.

service.py         the daemon: wires everything, starts, stops
leadership.py      connects to MongoDB and holds the lease: one active daemon for each service
acceptance.py      the configuration that runs, and whether a changed service.toml replaces it
operation.py       what runs while this daemon leads: workers, jobs, schedules
desired_state.py   which workers should run, with which listeners
fleet.py           keeps workers running: one keeper for each
scheduler.py       queues trainings and validations when they are due
claimer.py         claims what clients have asked for: the base of the next two
rehearser.py       runs rehearsals, each in a process
job_runner.py      claims queued jobs, runs one attempt after another: job_attempt.py
user_code.py       the user's code behind service.toml, as it was proven
leader_context.py  what all of these share while this daemon leads
timed_wait.py      waits for an event, or for the end of a process
reporter.py        writes the status document
systemd.py         notifies systemd
signals.py         signals, as they stop the daemon
"""
