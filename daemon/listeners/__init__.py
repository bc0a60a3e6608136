"""Where events come from, and what marks rows dirty.

change_stream.py  rows that changed, as keys, and how far the stream is
intake.py         reads the stream and hands keys to each listener's queue
scan.py           the `_id`s of a table, page by page
scan_lane.py      runs the scans of a listener: backfill, resync, recovery
clock.py          wake-up calls (the only user of APScheduler)
config_file.py    changes of service.toml
"""
