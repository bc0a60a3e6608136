"""The rehearsal: a model predicts a few rows of its listeners before it goes live, and stores nothing.

    __main__.py     its process: reads its assignment and its request, rehearses, reports
    assignment.py   the assignment, which the daemon sends
    changes.py      what of some declarations differs from what is applied
    candidates.py   builds what is to be rehearsed, with the weights that it would have
    sample.py       the rows: real ones, or made-up ones if there are none
    rules.py        predicts them and judges the outputs

`predictd check --rows` and the job of a training use the last two in their own processes.
"""
