"""A worker: the process that owns the corridors of its listeners. Shared-nothing; all of its state lies in MongoDB.

    __main__.py      the process: its order, and why it ends
    assignment.py    its order, from its parent
    worker.py        the composition root: starts everything, reports, swaps versions, stops
    listener_run.py  one listener in it: its corridor, its scans, what it runs now

Started as `python -P -m daemon.worker`. The first line on standard input is its `WorkerAssignment`. Standard input then
stays open, and its end means that the parent is gone: the worker leaves at once, and its successor replays from the
saved position. Reports and log lines go through descriptors of their own (`daemon.engine.child`); standard output and
standard error are user code's.

    start:  claim the stream's position, load the models, open the corridors, scan what is due
    run:    the threads work; the main thread reports
    stop:   no more events, drain what is in flight, save the position
"""
