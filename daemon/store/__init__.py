"""The only user of pymongo beside the listeners: everything that predictd keeps in MongoDB, a package for each concern.

connection.py   the clients, and one error for whatever is in the way
mongo_retry.py  tries again until MongoDB answers, and says why it waits
names.py        the names of predictd's own collections
rows/           outputs, positions, scans, dead letters, requests, datasets
registry/       signed declarations, code that travels, versions, models built from them
service/        leases, status, jobs, schedules, notifications; the state directory
"""
