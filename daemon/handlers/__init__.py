"""The decisions about events. Handlers see ports and plain data, never storage.

predict/     a row changed: the corridor from its key to its output
train.py     a training begins: which rows it learns from, and which it validates on
promote.py   a candidate is trained: whether it goes live
reload.py    declarations changed: which workers start, stop, restart
search.py    somebody searches: the vector of what is searched for
schedule.py  time passed, rows came, a metric fell: which runs are due
"""
