"""The process of one job: a training, or a validation, from its document to its result. Runs as
`python -P -m daemon.job`.

    __main__.py     the process: its order, its politeness, and why it ends
    process.py      what it is told, what it says, and how it stops
    context.py      what it works with: the declarations, the models, patience with MongoDB
    evaluation.py   a model measured by its validations, on rows that are chosen once
    training.py     learn, store a candidate, decide, promote
    pins.py         what a training settled before its first step, for the attempt that resumes it
    validating.py   measure the live version, add to its history

Like a worker it is told all on the first line of its standard input, whose end means that its parent is gone, and
reports through a descriptor of its own, one JSON object a line:

    state      starting, running, waiting (for MongoDB), and last: done, stopped or failed
    doing      in words; `still`: for how many seconds it has not moved
    progress   step, total, loss...; `log`: lines since the last report; `threads`; at the end `result` or `error`

It can be killed at any instant: what it has pinned and learned lies in STATE_DIR/checkpoints, what it has found in the
database, and each step towards the end looks first whether an attempt before it has made it.
"""
