"""Everything that predictd keeps in MongoDB, one package for each concern. Besides the listeners, the only user of
pymongo.

connection.py     the clients, and one error for everything that keeps MongoDB from answering
driver_errors.py  the driver's errors as one short sentence
mongo_retry.py    tries again until MongoDB answers, and says why it waits
names.py          the names of predictd's own collections
partition.py      the share of one process in the keys of its worker
documents.py      reads its own documents, whatever they hold
rows/             outputs, positions, scans, dead letters, datasets
registry/         signed declarations, code that travels, versions, models built from them
service/          leases, epochs, status, jobs, schedules, requests, notifications; the state directory, the keyring
"""
