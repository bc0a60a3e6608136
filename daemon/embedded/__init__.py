"""A real MongoDB that predictd starts itself (server.py), from where it is installed (binary.py), the password that it
asks for (login.py), and the small process that ends it with its owner (guardian.py).
"""
