"""The rows of a listener, and the records about them.

outputs.py       the guarded writes of outputs, and the snapshots that batches are read at
transactions.py  the transactions of these writes
row_finder.py    finds rows by their `_id`
row_reader.py    decodes the replies of a find into rows
raw_updates.py   updates whose replies are read as raw BSON
table_kind.py    the kinds of collections, and which of them can be served
dead_letters.py  the rows that cannot be predicted
positions.py     how far each change stream is
oplog_window.py  how much of the oplog is left behind a position
scans.py         how far each scan is
datasets.py      the rows of a training or a validation
kept_rows.py     rows kept as they were: those that judged a promotion, and those of pinned datasets
left_tables.py   the tables that a listener has left, until its outputs there are removed
"""
