"""The process of one job: a training, or a validation, from its document to its result. Runs as
`python -P -m daemon.job`.

    __main__.py     the process: its assignment, its priority, and why it ends
    assignment.py   what it reads first
    reporter.py     what it reports
    context.py      what it works with: the declarations, the models, the retries of MongoDB
    evaluation.py   a model measured by its validations, always on the same rows
    training.py     train, store a candidate, decide, promote
    measurer.py     measures a candidate, as a fresh load of it, and the live version on the same rows
    judges.py       the rows that judged the last promotion, and judge the next
    served.py       whether a fresh load of what was learned predicts the same
    rehearsal.py    the candidate predicts a few rows before it goes live
    pins.py         what a training fixed before its first step, for the attempt that resumes it
    validation.py   measure the live version, add to its history

Like a worker it reads its assignment on the first line of standard input, whose end means that the parent is gone. It
reports through a descriptor of its own, one JSON object a line (`daemon.health.job_report`).

It can be killed at any instant. What it has pinned and learned is in STATE_DIR/checkpoints, its results are in the
database, and each later step first looks whether an earlier attempt has made it.
"""
