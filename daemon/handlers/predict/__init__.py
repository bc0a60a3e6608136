"""What is done about a dirty row: the corridor, from a key to a guarded write.

dirty_keys.py  keys that wait, each once, and how far their sources are done
corridor.py    the four steps and the threads that run them: start reading here
stages.py      the pure part of the steps: judge, prepare, predict, dead letters
batch_cap.py   how many rows a batch may hold
records.py     what passes between the steps
"""
