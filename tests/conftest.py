"""Settings of the whole suite."""

from hypothesis import settings

# An example may wait for other processes: how long it takes says nothing about whether it is right.
settings.register_profile(
    "suite", parent=settings.get_profile(settings.get_current_profile_name()), deadline=None, print_blob=True
)
settings.load_profile("suite")
