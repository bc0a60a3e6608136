"""The process of one job: a training, or a validation, from its document to its result. Runs as
`python -P -m daemon.job`.

    __main__.py     the process: its order, its priority, and why it ends
    assignment.py   its order, from its parent
    reporter.py     its reports
    context.py      what it works with: the declarations, the models, patience with MongoDB
    evaluation.py   a model measured by its validations, on rows that are chosen once
    training.py     learn, store a candidate, decide, promote
    pins.py         what a training settled before its first step, for the attempt that resumes it
    validation.py   measure the live version, add to its history

Like a worker it is told all on the first line of its standard input, whose end means that its parent is gone, and
reports through a descriptor of its own, one JSON object a line (`daemon.health.job_report`).

It can be killed at any instant: what it has pinned and learned lies in STATE_DIR/checkpoints, what it has found in the
database, and each step towards the end looks first whether an attempt before it has made it.
"""
