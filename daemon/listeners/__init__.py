"""The sources of events, which mark rows as dirty.

change_stream.py     the keys of changed rows, and how far the stream is
subscription.py      what the server is asked for
inputs.py            the fields of a row that a listener reads
event_cursor.py      the cursor of a change stream
followed_vectors.py  a listener's vectors in memory, followed by a stream of their own
index_vectors.py     the vectors of all indexes in one process
pulse.py             when the server last answered, and how far behind the stream is
intake.py            reads the stream and hands the keys to each listener's queue
scan.py              the `_id`s of a table, page by page
scan_lane.py         runs the scans of a listener: backfill, resync, recovery
clock.py             wake-up calls (the only user of APScheduler)
config_file.py       changes of service.toml
"""
