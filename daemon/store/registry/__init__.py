"""The declared components of a service, and the versions of its models.

registry.py         publishes, applies and removes declarations; raises generations
declarations.py     writes one signed declaration
components.py       reads and verifies the signed declarations
references.py       what declarations name: tables, models, fields, outputs
other_services.py   listeners that another service has on the same tables
accepted.py         the settings of the service.toml that was accepted last
artifacts.py        the code that declarations name, as blobs
version.py          one version, as it is stored
stored_versions.py  the versions of a model as they are stored
signed_versions.py  the signatures of versions and of promotions
versions.py         the versions of a model: promotion and rollback
live_versions.py    the leader's watch over what is live
judged.py           which kept rows judged a promotion, and which versions are held
rehearsals.py       requests for rehearsals of what is to go live
model_loader.py     builds a model with the weights of a version
trust.py            what a process believes all of this by
seen.py             what programs elsewhere have seen
signed_anew.py      signs what an older release, or a former key, has signed
"""
