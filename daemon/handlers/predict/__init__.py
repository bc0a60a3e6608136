"""The handling of a dirty row: the corridor, from a key to a guarded write.

dirty_keys.py        the waiting keys, each once
progress.py          how far the sources of dirty keys are finished
corridor.py          the four steps: start reading here
corridor_threads.py  the threads that run them
stages.py            the pure part of the steps: judge, prepare, predict
live.py              what a corridor runs
preparing.py         decodes and preprocesses rows, where the model's `preprocess` runs
letters.py           the dead letter of a row that failed
failures.py          what kind of failure an error is
decoding.py          from stored values to a model's arguments, a chunk of rows at a time
triage.py            rows that fail: which are tried again, which are predicted alone, and the circuit breaker
suspects.py          the file that names the rows at work, so that the next process finds the one that killed this one
attempts.py          runs a batch in as few calls as possible, and bisects one that fails
hand.py              where a model's code is called: in the caller's thread, or elsewhere
model_threads.py     the threads in which a model's code runs
processes.py         the processes in which a model preprocesses its rows, if it asks for them
messages.py          what passes between these and the worker
interpreter_turn.py  lets one thread at a time make many short calls
process_settings.py  settings of the process that user code must not leave changed
turnstile.py         the lock that lets one row run alone in the process
batch_cap.py         how many rows a batch may hold
records.py           the records that pass between the steps
"""
