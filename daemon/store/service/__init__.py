"""What daemons, jobs and clients tell each other: leases, status, jobs, schedules, notifications, and the state
directory of a daemon.
"""
