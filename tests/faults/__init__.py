"""The fault rig: a real replica set, a real daemon, faults injected into both, and an oracle for what is left.

    replica_set.py   one node or three, started, killed, stopped; a TCP proxy before each
    proxy.py         partition, latency, reset
    server_faults.py failCommand, killCursors, killOp, step-down
    models.py        the models of the soak
    soak_service.py  the service.toml of the soak, and what each row should hold
    load.py          random operations of clients
    chaos.py         random faults
    witness.py       watches the run: positions, memory, unexpected ends
    verdict.py       compares what is left with the oracle
    test_*.py        an outage, an oplog that rolls over; full disks are in tests/acceptance/test_leaders.py
    soak.py          `make soak MINUTES=20 SEED=1 NODES=3`

A person runs the soak; `make acceptance` runs a short one.
"""
