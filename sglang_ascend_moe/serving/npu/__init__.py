"""What only a machine with NPUs needs. Nothing of it has run on one. May import exchange and options.

`experts` runs SGLang's Ascend runner on the rows of a window, `machine_checks` says whether NPUs can be used here.
"""
