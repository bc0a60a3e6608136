"""The records that daemons, jobs and clients share.

leases.py           which daemon is active
epochs.py           repairs epochs that no daemon ever had
services.py         the services that daemons are active for
status.py           the status of the active daemon
jobs.py             trainings and validations, from request to result
schedules.py        the state of each schedule
requests.py         requests to a worker, through its change stream
searches.py         what other clients search for, and what is found
notify.py           notifications to the daemon
overview.py         declarations with their data, for the command line and the API
state_directory.py  the local files of a daemon
keyring.py          where this user's daemons keep their signing keys
"""
