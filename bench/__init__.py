"""Measurements of predictd against what it is to be compared with. Nothing here is part of the distribution, and no
test asserts a time.
"""
