"""The service: what watches MongoDB, runs the models on the rows that changed, and writes their outputs back.

`components` says WHAT (tables, models, listeners: declarations and pure computation); this package says WHEN and WHERE.
Nothing is imported here, so that `import daemon` costs nothing and brings neither torch nor a driver.
"""
