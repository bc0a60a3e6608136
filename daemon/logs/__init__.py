"""The output of the process: log lines (setup.py), text made safe for a log, a terminal or a document (text.py), lines
and progress bars on a terminal (terminal.py).
"""
