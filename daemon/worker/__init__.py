"""A worker: the process that runs the corridors of its listeners. It shares nothing with other workers; its state is in
MongoDB.

    __main__.py      the process: reads its assignment, runs, reports why it ends
    assignment.py    the assignment, which its parent sends
    worker.py        the composition root: starts everything, reports, swaps versions, stops
    listener_run.py  one listener: its corridor, its scans, the version that it runs
    search_desk.py   answers the searches of other clients
    memory.py        the limit on the worker's memory

Started as `python -P -m daemon.worker`. The first line on standard input is its `WorkerAssignment`. Standard input then
stays open until the parent ends; the worker then exits at once, and its successor replays from the saved position.
Reports and log lines go through descriptors of their own (`daemon.engine.child`); standard output and standard error
belong to user code.

    start:  load the models, claim the stream's position, open the corridors, begin the due scans
    run:    the threads work; one of them reports
    stop:   take no more events, finish the batches in flight, save the position
"""
