"""The declared components of a service, and the versions of its models.

registry.py      publishes, applies and removes declarations; raises generations
declarations.py  writes one signed declaration
components.py    reads and verifies the signed declarations
artifacts.py     the code that declarations name, as blobs
version.py       one version, as it is stored
versions.py      the versions of a model: weights, lineage, metrics; promotion and rollback
rehearsals.py    requests for rehearsals of what is to go live
model_loader.py  builds a model with the weights of a version
"""
