"""What is declared and which versions exist: signed components, the code that travels with them, weights, and models
built from all of it.
"""
