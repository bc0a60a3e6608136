"""What is done about events: decisions, which see ports and plain data, never storage.

predict/     a row changed: the corridor
train.py     a training begins: which rows it learns from
promote.py   a candidate is trained: does it go live?
reload.py    declarations changed: which workers start, stop, restart
schedule.py  time passed, rows came, a metric fell: which runs are due
"""
