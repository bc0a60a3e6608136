"""What leaves the process as text: log lines (setup.py), and text made safe for a log, a terminal or a document
(text.py).
"""
