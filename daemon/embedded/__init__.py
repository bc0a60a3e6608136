"""A real MongoDB that predictd starts itself (server.py), and the small process that ends it with its owner
(guardian.py).
"""
