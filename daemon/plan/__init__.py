"""What an edit costs, told before it is paid: which keys changed, what follows from each, and whether it waits.

    declared.py      the declarations of service.toml and of the API at one moment
    changes.py       which keys differ between two of them, in words
    effects.py       what follows from each changed key; pure
    counts.py        how many rows and outputs that concerns: counted on the server
    plan.py          the plan: changes with consequences, its name, and the verdict
    judge.py         all of it, for a changed service.toml or what a client applies

A plan that takes away, or replaces by an untrained model's, more than `guard.unset_share` of a listener's outputs, or
that removes a listener, is *held*: what ran goes on until somebody confirms the plan by its name.
"""
