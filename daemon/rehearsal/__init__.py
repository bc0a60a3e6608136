"""The rehearsal: a model predicts a few rows of its listeners before it goes live, and stores nothing.

    __main__.py     its process: reads its assignment and its request, rehearses, reports
    assignment.py   the assignment, which the daemon sends
    changes.py      what of some declarations differs from what is applied
    candidates.py   builds what is to be rehearsed, with the weights that it would have
    sample.py       the rows: real ones, or made-up ones if there are none
    rules.py        predicts them and judges the outputs
    likeness.py     whether two outputs of one row are alike
    compiling.py    compiles a model for such rows; workers do so too

`predictd check --rows` and the job of a training use `sample` and `rules` in their own processes.
"""
